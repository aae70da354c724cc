"""The pattern of TensorFlow's ``retrain.py``, written anew from what it did, as the side to be compared with.

One photo at a time: decoded and resized in one session run, through the network in another, on default threads; a vector
is comma text in a file, written in place; each training step reads the files of its photos and feeds them. The network is
EfficientNet-Lite0 as it is trained, batch norm and all. It leaves out one fault: the vectors were read back once written.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import images
from pipeline.backbones import efficientnet_lite, torch_checkpoint
from pipeline.backbones.catalogue import CATALOGUE, Package
from pipeline.dataset import Photo
from pipeline.tensorflow_v1 import tf

LEARNING_RATE = 0.01
BATCH = 100
EVAL_STEP_INTERVAL = 10

State = dict[str, np.ndarray]


# --- The network, as it was trained -------------------------------------------------------------------------------------


def read_state() -> State:
    """The weights of EfficientNet-Lite0, by PyTorch's names."""
    package = CATALOGUE["efficientnet-lite0"]
    assert isinstance(package, Package)
    module = importlib.import_module(package.module)
    return torch_checkpoint.read_state_dict(Path(str(module.__file__)).parent / package.file)


def convolve(x: tf.Tensor, state: State, convolution: str, batch_norm: str, stride: int = 1, *, depthwise: bool = False) -> tf.Tensor:
    """A convolution and, as an operation of its own, its batch norm."""
    weights = state[f"{convolution}.weight"].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    operation = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
    x = operation(x, tf.constant(weights), strides=[1, stride, stride, 1], padding="SAME")
    gamma, beta, mean, variance = (tf.constant(state[f"{batch_norm}.{part}"]) for part in ("weight", "bias", "running_mean", "running_var"))
    return tf.nn.fused_batch_norm(
        x, gamma, beta, mean, variance, epsilon=efficientnet_lite.BATCH_NORM_EPSILON, is_training=False
    )[0]  # fmt: skip


def bottleneck(image: tf.Tensor, state: State) -> tf.Tensor:
    """Normalised images [batch, 224, 224, 3] → bottlenecks [batch, 1280]."""
    x = tf.nn.relu6(convolve(image, state, "_conv_stem", "_bn0", 2))
    strides = [stage.stride if i == 0 else 1 for stage in efficientnet_lite.LITE0 for i in range(stage.repeats)]
    for index, stride in enumerate(strides):
        before, prefix = x, f"_blocks.{index}"
        if f"{prefix}._expand_conv.weight" in state:
            x = tf.nn.relu6(convolve(x, state, f"{prefix}._expand_conv", f"{prefix}._bn0"))
        x = tf.nn.relu6(convolve(x, state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride, depthwise=True))
        x = convolve(x, state, f"{prefix}._project_conv", f"{prefix}._bn2")
        if stride == 1 and before.shape[-1] == x.shape[-1]:
            x = x + before
    x = tf.nn.relu6(convolve(x, state, "_conv_head", "_bn1"))
    return tf.reduce_mean(x, axis=[1, 2])


# --- Bottlenecks --------------------------------------------------------------------------------------------------------


class Bottlenecks:
    """Photos → comma text, a file for each photo. Two runs of one session a photo, as there."""

    def __init__(self) -> None:
        size, mean, std = 224, 127.0, 128.0
        with tf.Graph().as_default() as graph:
            self.encoded = tf.placeholder(tf.string, [])
            pixels = images.decode_and_resize(self.encoded, size)
            self.decoded = images.normalise(pixels, mean, std)[tf.newaxis]
            self.image = tf.placeholder(tf.float32, [None, size, size, 3])
            self.bottleneck = bottleneck(self.image, read_state())
            self.session = tf.Session(graph=graph)

    def fill(self, photos: Sequence[Photo], folder: Path, out: Path) -> None:
        """Compute and write the vector of each photo in ``folder``."""
        for photo in photos:
            decoded = self.session.run(self.decoded, {self.encoded: (folder / photo.path).read_bytes()})
            vector = self.session.run(self.bottleneck, {self.image: decoded})
            write_text(text_path(out, photo), np.squeeze(vector))

    def read(self, photos: Sequence[Photo], out: Path) -> np.ndarray:
        return np.array([read_text(text_path(out, photo)) for photo in photos], np.float32)


def text_path(out: Path, photo: Photo) -> Path:
    return out / f"{photo.path}_efficientnet-lite0.txt"


def write_text(path: Path, vector: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        file.write(",".join(str(x) for x in vector))


def read_text(path: Path) -> list[float]:
    with open(path) as file:
        return [float(x) for x in file.read().split(",")]


# --- Training -----------------------------------------------------------------------------------------------------------

Texts = Sequence[tuple[Path, int]]
"""The text file of each photo of a split, and the number of its label."""


def train(training: Texts, validation: Texts, classes: int, folder: Path, steps: int, seed: int) -> None:
    """Gradient descent on batches drawn at random; event files with a histogram of everything at each step, as there."""
    chance = random.Random(seed)
    width = len(read_text(training[0][0]))
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        vectors = tf.placeholder(tf.float32, [None, width])
        truth = tf.placeholder(tf.int64, [None])
        train_step, summaries, accuracy = _final_layer(vectors, truth, classes)
        session.run(tf.global_variables_initializer())

        def drawn(texts: Texts) -> dict[tf.Tensor, object]:
            batch = [chance.choice(texts) for _ in range(BATCH)]
            return {vectors: [read_text(path) for path, _ in batch], truth: [label for _, label in batch]}

        with (
            tf.summary.FileWriter(str(folder / "train"), graph) as train_writer,
            tf.summary.FileWriter(str(folder / "validation")) as validation_writer,
        ):
            for step in range(steps):
                feed = drawn(training)
                summary, _ = session.run([summaries, train_step], feed)
                train_writer.add_summary(summary, step)
                if step % EVAL_STEP_INTERVAL == 0 or step == steps - 1:
                    session.run(accuracy, feed)
                    summary, _ = session.run([summaries, accuracy], drawn(validation))
                    validation_writer.add_summary(summary, step)


def _final_layer(vectors: tf.Tensor, truth: tf.Tensor, classes: int) -> tuple[tf.Operation, tf.Tensor, tf.Tensor]:
    """The training step, all summaries merged, and the accuracy."""
    weights = tf.get_variable("weights", initializer=tf.truncated_normal([int(vectors.shape[1]), classes], stddev=0.001, seed=0))
    biases = tf.get_variable("biases", initializer=tf.zeros([classes]))
    logits = tf.matmul(vectors, weights) + biases
    loss = tf.losses.sparse_softmax_cross_entropy(truth, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), truth), tf.float32))
    for name, variable in (("weights", weights), ("biases", biases)):
        mean = tf.reduce_mean(variable)
        tf.summary.scalar(f"{name}/mean", mean)
        tf.summary.scalar(f"{name}/stddev", tf.sqrt(tf.reduce_mean(tf.square(variable - mean))))
        tf.summary.scalar(f"{name}/max", tf.reduce_max(variable))
        tf.summary.scalar(f"{name}/min", tf.reduce_min(variable))
        tf.summary.histogram(f"{name}/histogram", variable)
    tf.summary.histogram("pre_activations", logits)
    tf.summary.histogram("activations", tf.nn.softmax(logits))
    tf.summary.scalar("cross_entropy", loss)
    tf.summary.scalar("accuracy", accuracy)
    train_step = tf.train.GradientDescentOptimizer(LEARNING_RATE).minimize(loss)
    return train_step, tf.summary.merge_all(), accuracy
