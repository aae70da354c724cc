"""What a model does not say of itself is guessed from its graph: where images go in, where its features are, their range."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbones import allowed_ops
from pipeline.backbones.graphs import Wiring, dimensions, node_of, tensor_name, type_fed
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.backbones.frozen import Description, Frozen
    from pipeline.tensorflow_v1 import tf

_RESHAPING = ("Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Snapshot")
_SOFTMAX = ("Softmax", "LogSoftmax", "Sigmoid")
NO_SOFTMAX = "no classes of its own (the model ends in no softmax)"
"""What is noted of a network whose scores no softmax makes into shares of one: of sigmoids, or one number alone."""

_BEHIND_LOGITS = (*_RESHAPING, *_SOFTMAX, "BiasAdd", "Add", "AddV2", "Cast", "ArgMax", "Dequantize", "FakeQuantWithMinMaxVars")
_IN_A_HEAD = (
    *_BEHIND_LOGITS,
    *("Mul", "Sub", "RealDiv", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Tanh", "Softplus", "Maximum", "Minimum"),
    *("Select", "SelectV2", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "BatchNormWithGlobalNormalization"),
)


def completed(frozen: Frozen) -> Frozen:
    """Guess what the description leaves open, and note each guess.

    Raises UserError for a tensor that is not in the graph, with the likely ones, or where nothing can be guessed.
    """
    wiring, given, guessed = Wiring(frozen.graph), frozen.description, list(frozen.guessed)
    for what, name in (("input", given.input), ("bottleneck", given.bottleneck), ("logits", given.logits)):
        if name and node_of(name) not in wiring.nodes:
            likely = ", ".join(_likely(wiring, what, name))
            raise UserError(f"model_{what} = {name!r} is not in the model's graph; likely are: {likely}")
    if not given.input:
        given = replace(given, input=tensor_name(_guess_input(wiring)))
        guessed.append(f"model_input = {given.input}")
    wiring.start_at(node_of(given.input))
    declared = size_declared(dimensions(wiring.nodes[wiring.start]), 0, "the model")
    end = ""
    if not given.bottleneck:
        cut, others = _guess_cut(wiring)
        end, given = cut.end, replace(given, bottleneck=tensor_name(cut.bottleneck))
        guessed.append(f"model_bottleneck = {given.bottleneck}" + (f" (and not {', '.join(others)})" if others else ""))
    given = _with_logits(given, wiring, end, guessed)
    if not given.size:
        if not declared:
            raise UserError("the model's graph does not say its input size; say it with model_size = PIXELS")
        given = replace(given, size=declared)
        guessed.append(f"model_size = {declared}")
    given = _with_range(given, wiring, guessed)
    given = replace(given, input=tensor_name(given.input), bottleneck=tensor_name(given.bottleneck), logits=tensor_name(given.logits))
    return replace(frozen, description=given, guessed=guessed)


def _likely(wiring: Wiring, what: str, name: str) -> list[str]:
    wanted = {
        "input": ("Placeholder",),
        "bottleneck": ("Mean", "AvgPool", "MaxPool", "Max", "Squeeze", "Reshape"),
        "logits": ("BiasAdd", "MatMul", "Reshape", "Softmax"),
    }
    near = difflib.get_close_matches(node_of(name), wiring.nodes, 3)
    by_kind = [node.name for node in wiring.nodes.values() if node.op in wanted[what]][-4:]
    return [f"{node}:0" for node in dict.fromkeys([*near, *by_kind])] or ["none"]


# --- The input ----------------------------------------------------------------------------------------------------------


def _guess_input(wiring: Wiring) -> str:
    """The placeholder of images: numbers in four dimensions, or in a shape that is not said, which a network works on."""
    placeholders = [node for node in wiring.nodes.values() if node.op in ("Placeholder", "PlaceholderWithDefault")]
    images = [node.name for node in placeholders if is_image(node)]
    if not images and len(placeholders) == 1 and len(dimensions(placeholders[0]) or []) in (0, 4):
        # TensorFlow before 1.1 wrote a shape that is not known like that of a single number. What four others hold is said later.
        return placeholders[0].name
    if len(images) > 1:
        images = [name for name in images if any(_is_layer(wiring, wiring.nodes[one]) for one in wiring.after(name))] or images
    if len(images) != 1:
        among = ", ".join(images or [node.name for node in placeholders]) or "no placeholders"
        raise UserError(f"the model's input cannot be guessed among {among}; say it with model_input = TENSOR")
    return images[0]


def is_image(node: tf.NodeDef) -> bool:
    """Whether a placeholder can take images."""
    from pipeline.tensorflow_v1 import tf

    shape = dimensions(node)
    kind = tf.as_dtype(node.attr["dtype"].type)
    return (kind.is_floating or kind.is_integer) and (shape is None or (len(shape) == 4 and shape[3] in (-1, 3)))


def _is_layer(wiring: Wiring, node: tf.NodeDef) -> bool:
    return node.op in ("Conv2D", "DepthwiseConv2dNative") or _is_dense(wiring, node) or _is_pooling(wiring, node)


WANTED = "wanted is a model that takes (batch, size, size, 3) alone"


def size_declared(shape: Sequence[int | None] | None, said: int, what: str) -> int:
    """Pixels a side of the images in a shape that a model declares; 0 where any will do, or where no four dimensions are known.

    TensorFlow would not mind: it reads three channels of one as a grouped convolution, and scales a photo to any size.

    Args:
        shape: None or -1 for a dimension that is open.
        said: the size that the model's user says; 0 for none.
        what: the model, in an error.

    Raises UserError where the images are not (batch, size, size, 3), or not of the size that is said.
    """
    if shape is None or len(shape) != 4:
        return 0
    _, height, width, channels = (None if one == -1 else one for one in shape)
    if channels not in (3, None) or (height == 3 and width != 3):  # 3 in front are the colours
        known = ", ".join("any" if one in (None, -1) else str(one) for one in shape)
        raise UserError(f"{what} takes ({known}); {WANTED}")
    if height != width and height and width:
        raise UserError(f"{what} takes images of {height} × {width} pixels; wanted are as many rows as columns")
    size = height or width or 0
    if said and size and said != size:
        raise UserError(f"model_size = {said}, but {what} takes {size} pixels a side; leave it out")
    return size


# --- The bottleneck -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """A node with features, and the end of the classifier behind it if there is one."""

    bottleneck: str
    end: str = ""


def _guess_cut(wiring: Wiring) -> tuple[_Cut, list[str]]:
    """Where to cut, and the other bottlenecks that could be meant: of several heads, that of the deepest one is taken."""
    network = wiring.reached - _beside_the_network(wiring)
    ends = [name for name in wiring.nodes if name in network and not network.intersection(wiring.users.get(name, ()))]
    cuts = [cut for end in ends if (cut := _cut_before(wiring, end))]
    if not cuts:
        raise UserError(
            "the model's bottleneck cannot be guessed: there is no pooling or dense layer at its end; say it with model_bottleneck = TENSOR"
        )
    features = {cut: wiring.back(cut.bottleneck, lambda node: node.op in _RESHAPING)[-1] for cut in cuts}
    best = max(cuts, key=lambda cut: (len(wiring.before_all(features[cut])), bool(cut.end)))
    return best, list(dict.fromkeys(cut.bottleneck for cut in cuts if features[cut] != features[best]))


def _beside_the_network(wiring: Wiring) -> set[str]:
    """What a training adds to a network: what depends on labels, or does more than compute."""
    making_the_image = wiring.before_all(wiring.start)
    found: set[str] = set()
    for node in wiring.nodes.values():
        is_fed = node.op == "Placeholder" and fixed_value(node) is None
        if (is_fed or not allowed_ops.is_allowed(node.op)) and node.name not in found | making_the_image:
            found |= wiring.after(node.name)
    return found


def fixed_value(node: tf.NodeDef) -> bool | float | None:
    """What a placeholder beside the image is when a network is not trained: a switch is off, and nothing is dropped."""
    from pipeline.tensorflow_v1 import tf

    if node.op not in ("Placeholder", "PlaceholderWithDefault") or dimensions(node):
        return None
    name, kind = node.name.lower(), tf.as_dtype(node.attr["dtype"].type)
    if kind == tf.bool and (node.op == "Placeholder" or "train" in name or "learning_phase" in name):
        return False
    if kind.is_floating and "keep" in name:
        return 1.0
    return 0.0 if kind.is_floating and ("rate" in name or "drop" in name) else None


def _cut_before(wiring: Wiring, end: str) -> _Cut | None:
    """Where to cut before an end of the graph, if a network ends there.

    Back from the end: behind a dense layer (or a convolution of a single pixel) with nothing but a softmax after it is a
    classifier, and the bottleneck is the pooling that its dense layers begin with, or else what the last of them reads.
    Where a pooling comes first, or an activation, the graph ends in features.
    """
    way = wiring.back(end, lambda node: node.op in _BEHIND_LOGITS)
    met = wiring.nodes[way[-1]]
    if _is_pooling(wiring, met):
        ends_in_softmax = any(wiring.nodes[name].op in _SOFTMAX for name in way)
        return _Cut(met.name, end) if ends_in_softmax else _Cut(end)
    head = wiring.back(met.name, lambda node: node.op in _IN_A_HEAD or _is_dense(wiring, node))
    last = wiring.nodes[head[-1]]
    pooled = _is_pooling(wiring, last) and last.op != "MaxPool"  # which seldom takes the whole image
    if _is_dense(wiring, met):
        if not pooled and met.op == "Conv2D":
            return None  # of every pixel, and not pooled behind it
        if not pooled:
            return _Cut(wiring.before(met.name), end)
        flat = len(head) - 1
        while wiring.nodes[head[flat - 1]].op in _RESHAPING:
            flat -= 1
        return _Cut(head[flat], end)
    return _Cut(end) if pooled else None


def _is_pooling(wiring: Wiring, node: tf.NodeDef) -> bool:
    """Whether a node pools an image: over height and width, and never over the images of a batch."""
    if node.op in ("Mean", "Max"):
        axes = wiring.constant(node.input[1])
        return axes is not None and axes.size in (1, 2) and not (axes == 0).any()
    return node.op in ("AvgPool", "MaxPool")


def _is_dense(wiring: Wiring, node: tf.NodeDef) -> bool:
    """Whether a node mixes the features of a vector, and not those of neighbouring pixels."""
    if node.op == "Conv2D":
        return wiring.shape_of_weights(node.input[1])[:2] == [1, 1]
    return node.op in ("MatMul", "BatchMatMulV2") and node_of(node.input[1]) not in wiring.reached


def _with_logits(given: Description, wiring: Wiring, end: str, guessed: list[str]) -> Description:
    """The description with what stands before the softmax that is named as its logits, or at ``end``: none before a sigmoid."""
    name = node_of(given.logits) or end
    if not name:
        return given
    last = wiring.nodes[wiring.back(name, lambda node: node.op in (*_RESHAPING, "ArgMax"))[-1]]
    if last.op == "Sigmoid":
        guessed.append(NO_SOFTMAX)
        return replace(given, logits="")
    logits = wiring.before(last.name) or name if last.op in _SOFTMAX else name
    if not given.logits:
        guessed.append(f"model_logits = {tensor_name(logits)}")
    return given if logits == node_of(given.logits) else replace(given, logits=tensor_name(logits))


# --- The range of its values --------------------------------------------------------------------------------------------

_MOVING_PIXELS = (
    *_RESHAPING,
    *("Cast", "Transpose", "Pad", "PadV2", "MirrorPad", "ReverseV2", "ConcatV2", "Split", "SplitV", "Unpack", "Pack", "Slice"),
    *("StridedSlice", "GatherV2", "ResizeBilinear", "ResizeBicubic", "ResizeArea", "ResizeNearestNeighbor"),
)
_ARITHMETIC = ("Mul", "Sub", "Add", "AddV2", "RealDiv", "Div")
_WHOLE = (0.0, 1.0, "the model takes whole pixels")
_PIXELS = (0.0, 1.0, "the model normalises pixels by itself")
_UNIT = (0.0, 255.0, "the model normalises values from 0 to 1 by itself")
_UNKNOWN = (127.5, 127.5, "values from -1 to 1, as most networks take them; the model does not say: compare with how it was trained")


def _with_range(given: Description, wiring: Wiring, guessed: list[str]) -> Description:
    """The description with its mean and std: as said, by custom, or guessed. Raises UserError where whole pixels would be normalised."""
    image = wiring.nodes[node_of(given.input)]
    is_whole = type_fed(image).is_integer
    if given.usual_range and not is_whole:
        given = given.or_else(replace(given, mean=given.usual_range[0], std=given.usual_range[1]))
    if given.mean is None or given.std is None:
        mean, std, why = range_of(wiring, image)
        given = replace(given, mean=mean if given.mean is None else given.mean, std=std if given.std is None else given.std)
        guessed.append(f"model_mean = {given.mean:g}, model_std = {given.std:g} ({why})")
    if is_whole and (given.mean, given.std) != _WHOLE[:2]:
        raise UserError(
            f"model_mean = {given.mean:g}, model_std = {given.std:g}, but the model takes whole pixels, which only 0 and 1 leave as they "
            "are; leave both out"
        )
    return given


def range_of(wiring: Wiring, image: tf.NodeDef) -> tuple[float, float, str]:
    """Mean, deviation and reason, from the type of the input and the first arithmetic with a constant that is done on it."""
    if type_fed(image).is_integer:
        return _WHOLE
    pending, seen = [image.name], {image.name}
    while pending:
        for user in wiring.users.get(pending.pop(0), []):
            node = wiring.nodes[user]
            if user in seen:
                continue
            seen.add(user)
            if node.op in _ARITHMETIC:
                constants = [one for name in node.input if (one := wiring.constant(name)) is not None and one.size]
                if constants:
                    return _range_before(node.op, float(constants[0].flat[np.argmax(np.abs(constants[0]))]))
            elif node.op in _MOVING_PIXELS:
                pending.append(user)
    return _UNKNOWN


def _range_before(op: str, value: float) -> tuple[float, float, str]:
    """What range of values it makes sense to begin with this arithmetic on."""
    if (op == "Mul" and 0 < value < 0.1) or (op != "Mul" and abs(value) > 10):
        return _PIXELS
    from_unit = {"Mul": value > 1, "RealDiv": 0 < value < 1, "Div": 0 < value < 1, "Sub": value > 0, "Add": value < 0, "AddV2": value < 0}
    return _UNIT if from_unit[op] else _UNKNOWN
