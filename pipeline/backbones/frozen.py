"""A frozen graph, whatever it came from, becomes a backbone: cut at its bottleneck, checked, and its weights thawed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones.allowed_ops import refuse_others
from pipeline.backbones.graphs import Wiring, functions_called, functions_of, node_of, type_fed, value_of
from pipeline.backbones.guess import NO_SOFTMAX, fixed_value
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

SCOPE = "network"
"""The network's own nodes stand below this name in ``graph.pb``; only ``image``, ``bottleneck``, … stand above."""


@dataclass(frozen=True)
class Description:
    """What has to be known of a network to use it; what is empty is guessed, or taken from the model.

    Attributes:
        input: tensor (or layer) that takes the images.
        bottleneck: tensor (for Keras, layer) with the features.
        logits: tensor (for Keras, layer or output) with the logits of the classes it was trained on.
        size: pixels a side.
        mean, std: pixels in 0..255 are normalised by (x - mean) / std.
        usual_range: the mean and std by custom where the model comes from; for an input of floats of which nothing else is said.
    """

    input: str = ""
    bottleneck: str = ""
    logits: str = ""
    size: int = 0
    mean: float | None = None
    std: float | None = None
    usual_range: tuple[float, float] | None = None

    def or_else(self, other: Description) -> Description:
        """This description, with what is empty taken from another."""
        return Description(
            self.input or other.input,
            self.bottleneck or other.bottleneck,
            self.logits or other.logits,
            self.size or other.size,
            other.mean if self.mean is None else self.mean,
            other.std if self.std is None else self.std,
            self.usual_range or other.usual_range,
        )


NOTHING_SAID = Description()


@dataclass
class Frozen:
    """A frozen graph and what is known of it.

    Attributes:
        graph: a GraphDef without variables.
        description: its tensors, size and range; what is still empty is guessed by ``completed``.
        classes: the names of the classes it was trained on, in the order of its logits; empty where unknown.
        weights_sha256: of the file that the weights came from, where it is one file.
        guessed: what was guessed, in words, for a person to correct.
    """

    graph: tf.GraphDef
    description: Description
    classes: Sequence[str] = ()
    weights_sha256: str = ""
    guessed: list[str] = field(default_factory=list)


# --- Cutting and thawing ----------------------------------------------------------------------------------------------


def cut(frozen: Frozen) -> tf.GraphDef:
    """The part of the graph between input and outputs, checked, for any batch, and with the placement forgotten.

    Raises UserError where the bottleneck does not depend on the input, or an op does more than compute.

    Placeholders beside the image become what they are when a network is not trained, and that is noted as a guess.
    """
    from pipeline.tensorflow_v1 import tf

    described = frozen.description
    given = node_of(described.input)
    graph = tf.GraphDef()
    graph.CopyFrom(frozen.graph)
    for node in graph.node:
        node.ClearField("device")
        node.attr.pop("_class", None)  # it may name nodes that are cut away
        if node.name == given:
            become_input(node, described.size)
        elif (value := fixed_value(node)) is not None:
            kind = tf.as_dtype(node.attr["dtype"].type)
            _become_constant(node, np.array(value, kind.as_numpy_dtype))
    ends = [node_of(name) for name in (described.bottleneck, described.logits) if name]
    part = tf.graph_util.extract_sub_graph(graph, ends)
    if given not in {node.name for node in part.node}:
        raise UserError(
            f"model_bottleneck = {described.bottleneck} does not depend on model_input = {described.input}; correct one of them"
        )
    refuse_others(part.node, functions_of(part))
    was = {node.name: node for node in frozen.graph.node}
    for node in part.node:
        if node.op == "Placeholder" and node.name != given:
            raise UserError(
                f"the network takes {node.name}:0 beside the image, and nothing says what to feed there; freeze it with a value instead"
            )
        if was[node.name].op.startswith("Placeholder") and node.op == "Const":
            frozen.guessed.append(f"{node.name} = {fixed_value(was[node.name])}")
    _free_batch(part, given)
    return part


def become_input(node: tf.NodeDef, size: int) -> None:
    """Whatever made the image: from here on it is where images come in."""
    kind = type_fed(node).as_datatype_enum
    del node.input[:]
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = kind
    for dimension in (-1, size or -1, size or -1, 3):
        node.attr["shape"].shape.dim.add().size = dimension


def _become_constant(node: tf.NodeDef, value: np.ndarray) -> None:
    from pipeline.tensorflow_v1 import tf

    del node.input[:]
    node.op = "Const"
    node.attr.clear()
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _free_batch(graph: tf.GraphDef, given: str) -> None:
    """Let what was built for one image take any number: Reshape and Slice to [1, …], and Squeeze of all that is 1."""
    wiring = Wiring(graph)
    wiring.start_at(given)
    fixed: list[tuple[tf.NodeDef, np.ndarray | None]] = []
    for node in (wiring.nodes[name] for name in wiring.nodes if name in wiring.reached):
        if node.op in ("Reshape", "Slice"):
            shape = wiring.constant(node.input[-1])
            if shape is not None and shape.ndim == 1 and shape.size > 1 and shape[0] == 1:
                fixed.append((node, shape))
        elif node.op == "Squeeze" and not node.attr["squeeze_dims"].list.i:
            fixed.append((node, None))
    if not fixed:
        return
    known = _shapes_of_one_image(graph, given, [node for node, _ in fixed])
    for node, shape in fixed:
        before, after = known[node.name]
        if shape is None:
            node.attr["squeeze_dims"].list.i.extend(axis for axis, size in enumerate(before) if size == 1 and axis)
            continue
        sizes = after[1:] if node.op == "Reshape" and None not in after[1:] else shape[1:]
        free = graph.node.add(name=f"{node.name}/of_any_batch")
        _become_constant(free, np.array([-1, *sizes], shape.dtype))
        node.input[len(node.input) - 1] = free.name


def _shapes_of_one_image(graph: tf.GraphDef, given: str, nodes: list[tf.NodeDef]) -> dict[str, tuple[list[int | None], list[int | None]]]:
    """The shapes that go into and come out of ``nodes`` for a batch of one; empty where they are not known."""
    from pipeline.tensorflow_v1 import tf

    one = tf.GraphDef()
    one.CopyFrom(graph)
    for node in one.node:
        if node.name == given:
            node.attr["shape"].shape.dim[0].size = 1
    with tf.Graph().as_default() as built:
        _imported(one, {}, [])
        tensors = {node.name: built.get_operation_by_name(f"{SCOPE}/{node.name}") for node in nodes}
    return {
        name: tuple(tensor.shape.as_list() if tensor.shape.rank else [] for tensor in (operation.inputs[0], operation.outputs[0]))
        for name, operation in tensors.items()
    }


def _imported(graph: tf.GraphDef, replaced: dict[str, Any], wanted: list[str]) -> list[tf.Tensor]:
    """Put a checked graph on the default graph, below SCOPE. Raises UserError where it is none that TensorFlow takes."""
    from pipeline.tensorflow_v1 import tf

    try:
        return tf.import_graph_def(graph, replaced, wanted, name=SCOPE)
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"the model's graph cannot be used ({first_line(error)}); get or freeze it again") from None


def _dequantized(graph: tf.GraphDef) -> tf.GraphDef:
    """Replace each Dequantize of constants by the floats that it gives."""
    from pipeline.tensorflow_v1 import session, tf

    nodes = {node.name: node for node in graph.node}
    constant = [
        node.name for node in graph.node if node.op == "Dequantize" and all(nodes[node_of(name)].op == "Const" for name in node.input)
    ]
    if not constant:
        return graph
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = _imported(tf.graph_util.extract_sub_graph(graph, constant), {}, [f"{name}:0" for name in constant])
        for name, value in zip(constant, running.run(tensors)):
            _become_constant(nodes[name], value)
    return graph


@dataclass(frozen=True)
class Thawed:
    """The network on the default graph: its tensors by name, and the value that each variable is to get."""

    outputs: dict[str, tf.Tensor]
    values: list[tuple[tf.Variable, np.ndarray]]


def thaw(frozen: Frozen) -> Thawed:
    """Build the network on the default graph with its float weights as variables, so that it can be trained on.

    The tensors are ``image`` [batch, size, size, 3], ``bottleneck`` [batch, width] and, where it has a classifier,
    ``logits`` and ``softmax`` [batch, classes], all float32; collections of these names hold them. Constants of one
    element, and those that are not floats, stay constants; moving averages of batch norms become variables that are not
    trained. Adds to ``frozen.guessed`` what it took for granted.
    """
    from pipeline.tensorflow_v1 import tf

    described, graph = frozen.description, _dequantized(cut(frozen))
    wiring = Wiring(graph)
    wiring.start_at(node_of(described.input))
    image = tf.placeholder(tf.float32, [None, described.size, described.size, 3], name="image")
    replaced, averages = {described.input: as_type(image, type_fed(wiring.nodes[wiring.start]))}, _moving_averages(wiring)
    weights: dict[str, tuple[tf.Variable, np.ndarray]] = {}
    for node in filter(_is_weights, graph.node):
        variable, _ = weights[node.name] = _thawed(node, trainable=node.name not in averages)
        replaced[f"{node.name}:0"] = variable.value()
    if not weights:
        raise UserError(
            f"there are no weights between {described.input} and {described.bottleneck}; name another bottleneck, or another model"
        )
    rest = _without(graph, {wiring.start, *weights})
    _keep_only_used(rest, replaced)
    found = _imported(rest, replaced, [name for name in (described.bottleneck, described.logits) if name])
    outputs = {"input": image, "bottleneck": _vectors(found[0], "bottleneck")}
    if described.logits and found[1].shape.rank and found[1].shape[-1] == 1:
        frozen.guessed.append(NO_SOFTMAX)  # a softmax of one number is 1, whatever it is
    elif described.logits:
        logits = _vectors(found[1], "logits")
        outputs |= {"logits": logits, "softmax": tf.nn.softmax(logits, name="softmax")}
    for collection, tensor in outputs.items():
        tf.add_to_collection(collection, tensor)
    return Thawed(outputs, list(weights.values()))


def _thawed(node: tf.NodeDef, *, trainable: bool) -> tuple[tf.Variable, np.ndarray]:
    """A variable in the place of a constant, and the value that it is to get."""
    from pipeline.tensorflow_v1 import tf

    value, zeros = value_of(node), tf.zeros_initializer()
    name, dtype = f"{SCOPE}/{node.name}", tf.as_dtype(value.dtype)
    return tf.get_variable(name, value.shape, dtype, zeros, use_resource=True, trainable=trainable), value


def _without(graph: tf.GraphDef, names: set[str]) -> tf.GraphDef:
    """The graph without some nodes, and with the functions that the others call."""
    from pipeline.tensorflow_v1 import tf

    rest = tf.GraphDef(node=[node for node in graph.node if node.name not in names], versions=graph.versions)
    functions_of(rest).extend(functions_called(graph.node, functions_of(graph)))
    return rest


def as_type(image: tf.Tensor, kind: tf.DType) -> tf.Tensor:
    """In the graph: images as the type that a network takes; whole pixels are the nearest ones in 0..255.

    ``saturate_cast`` would make a ClipByValue, which TensorFlow Lite's converter does not know.
    """
    from pipeline.tensorflow_v1 import tf

    if kind.is_integer:
        image = tf.minimum(tf.maximum(tf.round(image), 0.0), float(min(kind.max, 255)))
    return tf.cast(image, kind)


def _is_weights(node: tf.NodeDef) -> bool:
    from pipeline.tensorflow_v1 import tf

    if node.op != "Const" or not tf.as_dtype(node.attr["dtype"].type).is_floating:
        return False
    return int(np.prod([dimension.size for dimension in node.attr["value"].tensor.tensor_shape.dim])) > 1


_NAMES_OF_AVERAGES = re.compile(r"moving_(mean|variance)|/population_")


def _moving_averages(wiring: Wiring) -> set[str]:
    """The constants that are means and variances of batch norms: by their names, or by what is done with them.

    A frozen Keras model or SavedModel has lost the names. There they are the inputs of a batch norm, or stand in what is
    computed of weights alone: the variance below a square root, and the mean in ``offset - mean * scale``.
    """
    found = {name for name in wiring.nodes if _NAMES_OF_AVERAGES.search(name)}
    for node in wiring.nodes.values():
        read: list[str] = []
        if node.op.startswith("FusedBatchNorm"):
            read = list(node.input[3:5])
        elif node.op == "BatchNormWithGlobalNormalization":
            read = list(node.input[1:3])
        elif node.name not in wiring.reached and node.op in ("Rsqrt", "Sqrt"):
            read = list(wiring.before_all(node.name))
        elif node.name not in wiring.reached and node.op == "Sub":
            product = wiring.nodes[node_of(node.input[1])]
            scaled = product.op == "Mul" and any(wiring.nodes[one].op == "Rsqrt" for one in wiring.before_all(product.name))
            read = list(product.input) if scaled else []
        found |= {weights.name for name in read if (weights := wiring.weights(name))}
    return found


def _keep_only_used(graph: tf.GraphDef, replaced: dict[str, Any]) -> None:
    """``input_map`` may name only tensors that some node reads."""
    used = {name if ":" in name else f"{name}:0" for node in graph.node for name in node.input}
    for name in [name for name in replaced if name not in used]:
        del replaced[name]


def _vectors(tensor: tf.Tensor, name: str) -> tf.Tensor:
    """A tensor [batch, …, features] whose middle dimensions are 1, as float32 [batch, features]."""
    from pipeline.tensorflow_v1 import tf

    if tensor.shape.rank is None:
        raise UserError(
            f"{tensor.name} has no known shape; a loop (tf.while_loop) between image and features is the likely reason: "
            "name a tensor before it, or export the network without it"
        )
    dimensions = tensor.shape.as_list()
    if len(dimensions) < 2 or None in dimensions[1:]:
        raise UserError(
            f"{tensor.name} has the shape {tensor.shape}, wanted is a vector of known width for each image; name another tensor"
        )
    if any(size != 1 for size in dimensions[1:-1]):
        raise UserError(f"{tensor.name} has the shape {tensor.shape}, which is not pooled yet; name the tensor behind the last pooling")
    return tf.reshape(tf.cast(tensor, tf.float32), [-1, dimensions[-1]], name=name)
