"""A frozen graph, whatever it came from, becomes a backbone: cut at its bottleneck, checked, and its weights thawed.

Every reader ends in ``Frozen``; ``write`` makes of it the folder that the rest of the pipeline knows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError

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
        logits: tensor with the logits of the classes it was trained on.
        size: pixels a side.
        mean, std: pixels in 0..255 are normalised by (x - mean) / std.
    """

    input: str = ""
    bottleneck: str = ""
    logits: str = ""
    size: int = 0
    mean: float | None = None
    std: float | None = None

    def with_size(self, size: int) -> Description:
        return replace(self, size=size)

    def or_else(self, other: Description) -> Description:
        """This description, with what is empty taken from another."""
        return Description(
            self.input or other.input,
            self.bottleneck or other.bottleneck,
            self.logits or other.logits,
            self.size or other.size,
            other.mean if self.mean is None else self.mean,
            other.std if self.std is None else self.std,
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


# --- What a graph may not hold ----------------------------------------------------------------------------------------

_DANGEROUS = re.compile(
    r"""(Eager)?PyFunc.* | .*File.* | .*Save.* | .*Restore.* | .*Reader.* | .*Dataset.* | .*Iterator.* | .*Summary.* | Print.*
    | Debug.* | ImmutableConst | .*Checkpoint.* | .*Lmdb.* | .*LMDB.* | Rpc.* | .*Send | .*Recv | .*Remote.* | .*Bigtable.*
    | .*Script.* | .*XlaHostCompute.* | Dump.*""",
    re.VERBOSE,
)


def refuse_dangerous(graph: tf.GraphDef) -> None:
    """Raise UserError where a graph reads or writes files, talks to the network or runs Python, in its functions too."""
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    for node in nodes:
        if _DANGEROUS.fullmatch(node.op):
            raise UserError(
                f"the model is refused: its node {node.name!r} is a {node.op}, which can read or write files, use the network or "
                "run Python; take a frozen graph of the network alone"
            )


# --- Finding the way in a graph ---------------------------------------------------------------------------------------

_POOLING = ("Mean", "AvgPool", "MaxPool", "Max")
_DENSE = ("MatMul", "BatchMatMulV2")
_PASSING = ("Identity", "Squeeze", "Reshape", "Softmax", "BiasAdd", "Add", "AddV2", "Dropout", "Mul", "Sub", "Cast", "Relu", "Relu6")


def _node_of(name: str) -> str:
    return name.lstrip("^").partition(":")[0]


def tensor_name(name: str) -> str:
    """A tensor's full name; ``x`` means ``x:0``."""
    return name if not name or ":" in name else f"{name}:0"


def completed(frozen: Frozen) -> Frozen:
    """Guess what the description leaves open, and note each guess.

    Raises UserError for a tensor that is not in the graph, with the likely ones, or where nothing can be guessed.
    """
    nodes = {node.name: node for node in frozen.graph.node}
    given, guessed = frozen.description, list(frozen.guessed)
    for what, name in (("input", given.input), ("bottleneck", given.bottleneck), ("logits", given.logits)):
        if name and _node_of(name) not in nodes:
            raise UserError(f"model_{what} = {name!r} is not in the model's graph; likely are: {', '.join(_likely(nodes, what, name))}")
    if not given.input:
        given = replace(given, input=tensor_name(_guess_input(nodes)))
        guessed.append(f"model_input = {given.input}")
    reached = _reached_from(frozen.graph, _node_of(given.input))
    if not given.bottleneck:
        bottleneck, end = _guess_cut(frozen.graph, nodes, reached)
        given = replace(given, bottleneck=tensor_name(bottleneck))
        guessed.append(f"model_bottleneck = {given.bottleneck}")
        if end and not given.logits:
            given = replace(given, logits=tensor_name(_before_softmax(nodes, reached, end)))
            guessed.append(f"model_logits = {given.logits}")
    elif given.logits:
        before = _before_softmax(nodes, reached, _node_of(given.logits))
        given = given if before == _node_of(given.logits) else replace(given, logits=tensor_name(before))
    if not given.size:
        size = _size_of(nodes[_node_of(given.input)])
        if not size:
            raise UserError("the model's graph does not say its input size; say it with model_size = PIXELS")
        given = replace(given, size=size)
        guessed.append(f"model_size = {size}")
    if given.mean is None or given.std is None:
        given = replace(given, mean=127.5 if given.mean is None else given.mean, std=127.5 if given.std is None else given.std)
        guessed.append(f"model_mean = {given.mean:g}, model_std = {given.std:g} (values from -1 to 1)")
    given = replace(given, input=tensor_name(given.input), bottleneck=tensor_name(given.bottleneck), logits=tensor_name(given.logits))
    return replace(frozen, description=given, guessed=guessed)


def _likely(nodes: dict[str, Any], what: str, name: str) -> list[str]:
    wanted = {
        "input": ("Placeholder",),
        "bottleneck": (*_POOLING, "Squeeze", "Reshape"),
        "logits": ("BiasAdd", "MatMul", "Reshape", "Softmax"),
    }
    near = difflib.get_close_matches(_node_of(name), nodes, 3)
    by_kind = [node.name for node in nodes.values() if node.op in wanted[what]][-4:]
    return [f"{node}:0" for node in dict.fromkeys([*near, *by_kind])] or ["none"]


def _guess_input(nodes: dict[str, Any]) -> str:
    placeholders = [node.name for node in nodes.values() if node.op in ("Placeholder", "PlaceholderWithDefault")]
    images = [name for name in placeholders if len(_dimensions(nodes[name])) in (0, 4)] or placeholders
    if len(images) != 1:
        raise UserError(f"the model's input cannot be guessed among {images or 'no placeholders'}; say it with model_input = TENSOR")
    return images[0]


def _dimensions(node: Any) -> list[int]:
    return [dimension.size for dimension in node.attr["shape"].shape.dim]


def _size_of(node: Any) -> int:
    dimensions = _dimensions(node)
    return dimensions[1] if len(dimensions) == 4 and dimensions[1] == dimensions[2] and dimensions[1] > 0 else 0


def _before(nodes: dict[str, Any], reached: set[str], name: str) -> str:
    """The node whose output ``name`` works on, or nothing; weights are not meant."""
    return next((_node_of(one) for one in nodes[name].input if _node_of(one) in reached), "")


def _back(nodes: dict[str, Any], reached: set[str], name: str, over: tuple[str, ...]) -> str:
    """From ``name`` back to the first node that is none of the ops ``over``, or nothing."""
    while name and nodes[name].op in over:
        name = _before(nodes, reached, name)
    return name


def _before_softmax(nodes: dict[str, Any], reached: set[str], name: str) -> str:
    """The logits, where ``name`` is what a softmax makes of them; else ``name``."""
    softmax = _back(nodes, reached, name, ("Identity", "Reshape", "Squeeze"))
    return _before(nodes, reached, softmax) if softmax and nodes[softmax].op == "Softmax" else name


def _guess_cut(graph: tf.GraphDef, nodes: dict[str, Any], reached: set[str]) -> tuple[str, str]:
    """The bottleneck, and the end of the classifier behind it if there is one.

    From the end of the graph back: where a dense layer comes before any pooling, it is a classifier's, and what it reads
    is the bottleneck; where a pooling comes first, the graph ends in its features.
    """
    used = {_node_of(name) for node in graph.node for name in node.input}
    for end in (node.name for node in graph.node if node.name not in used and node.name in reached):
        met = _back(nodes, reached, end, _PASSING)
        if not met:
            continue
        if nodes[met].op in _POOLING:
            return end, ""
        read = _before(nodes, reached, met)
        pooled = nodes[met].op == "Conv2D" and _back(nodes, reached, read, _PASSING)
        if nodes[met].op in _DENSE or (pooled and nodes[pooled].op in _POOLING):
            return read, end
    raise UserError(
        "the model's bottleneck cannot be guessed: neither a pooling nor a dense layer at its end; say it with model_bottleneck = TENSOR"
    )


def _reached_from(graph: tf.GraphDef, start: str) -> set[str]:
    """The nodes that depend on ``start``, itself included. GraphDefs may come in any order."""
    users: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(_node_of(name), []).append(node.name)
    reached, pending = {start}, [start]
    while pending:
        for user in users.get(pending.pop(), []):
            if user not in reached:
                reached.add(user)
                pending.append(user)
    return reached


# --- Cutting and thawing ----------------------------------------------------------------------------------------------


def _cut(frozen: Frozen) -> tf.GraphDef:
    """The part of the graph between input and outputs, with the placement forgotten and a batch fixed at 1 undone."""
    from pipeline.tensorflow_v1 import tf

    described = frozen.description
    given = _node_of(described.input)
    graph = tf.GraphDef()
    graph.CopyFrom(frozen.graph)
    for node in graph.node:
        node.device = ""
        node.attr.pop("_class", None)  # it may name nodes that are cut away
        if node.name == given:  # whatever made it: from here on it is where images come in
            del node.input[:]
            node.op = "Placeholder"
            node.attr.clear()
            node.attr["dtype"].type = tf.float32.as_datatype_enum
            shape = node.attr["shape"].shape
            for size in (-1, described.size, described.size, 3):
                shape.dim.add().size = size
    ends = [_node_of(name) for name in (described.bottleneck, described.logits) if name]
    cut = tf.graph_util.extract_sub_graph(graph, ends)
    if given not in {node.name for node in cut.node}:
        raise UserError(
            f"model_bottleneck = {described.bottleneck} does not depend on model_input = {described.input}; correct one of them"
        )
    refuse_dangerous(cut)
    _free_batch(cut)
    return cut


def _free_batch(graph: tf.GraphDef) -> None:
    """Let a Reshape to [1, …] take any number: [-1, …]."""
    from pipeline.tensorflow_v1 import tf

    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        if node.op != "Reshape":
            continue
        shape = nodes.get(_node_of(node.input[1]))
        while shape is not None and shape.op == "Identity":
            shape = nodes.get(_node_of(shape.input[0]))
        if shape is None or shape.op != "Const":
            continue
        values = tf.make_ndarray(shape.attr["value"].tensor)
        if values.ndim == 1 and len(values) > 1 and values[0] == 1 and (values[1:] > 0).all():
            freed = np.concatenate([[-1], values[1:]]).astype(values.dtype)
            shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(freed))


def _dequantized(graph: tf.GraphDef) -> tf.GraphDef:
    """Replace each Dequantize of constants by the floats that it gives."""
    from pipeline.tensorflow_v1 import session, tf

    nodes = {node.name: node for node in graph.node}
    constant = [
        node.name for node in graph.node if node.op == "Dequantize" and all(nodes[_node_of(name)].op == "Const" for name in node.input)
    ]
    if not constant:
        return graph
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = tf.import_graph_def(
            tf.graph_util.extract_sub_graph(graph, constant), return_elements=[f"{n}:0" for n in constant], name=""
        )
        values = dict(zip(constant, running.run(tensors)))
    result = tf.GraphDef()
    result.versions.CopyFrom(graph.versions)
    for node in graph.node:
        if node.name in values:
            made = result.node.add(name=node.name, op="Const")
            made.attr["dtype"].type = tf.float32.as_datatype_enum
            made.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values[node.name]))
        else:
            result.node.add().CopyFrom(node)
    return result


@dataclass(frozen=True)
class Thawed:
    """The network on the default graph: its tensors by name, and the value that each variable is to get."""

    outputs: dict[str, tf.Tensor]
    values: list[tuple[tf.Variable, np.ndarray]]


def thaw(frozen: Frozen) -> Thawed:
    """Build the network on the default graph with its float weights as variables, so that it can be trained on.

    The tensors are ``image`` [batch, size, size, 3], ``bottleneck`` [batch, width] and, where it has a classifier,
    ``logits`` and ``softmax`` [batch, classes]; collections of these names hold them. Constants of one element, and
    those that are not floats, stay constants; moving averages of batch norms become variables that are not trained.
    """
    from pipeline.tensorflow_v1 import tf

    described = frozen.description
    graph = _dequantized(_cut(frozen))
    image = tf.placeholder(tf.float32, [None, described.size, described.size, 3], name="image")
    values, replaced = [], {described.input: image}
    rest = tf.GraphDef()
    rest.versions.CopyFrom(graph.versions)
    rest.library.CopyFrom(graph.library)
    for node in graph.node:
        weights = tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else None
        if weights is None or weights.dtype != np.float32 or weights.size < 2:
            if node.name != _node_of(described.input):
                rest.node.add().CopyFrom(node)
            continue
        variable = tf.get_variable(
            f"{SCOPE}/{node.name}",
            weights.shape,
            initializer=tf.zeros_initializer(),
            use_resource=True,
            trainable=not re.search(r"moving_(mean|variance)|/population_", node.name),
        )
        values.append((variable, weights))
        replaced[f"{node.name}:0"] = variable.value()
    if not values:
        raise UserError(
            f"there are no weights between {described.input} and {described.bottleneck}; name another bottleneck, or another model"
        )
    _keep_only_used(rest, replaced)
    wanted = [name for name in (described.bottleneck, described.logits) if name]
    try:
        found = tf.import_graph_def(rest, replaced, wanted, name=SCOPE)
        bottleneck = tf.reshape(found[0], [-1, _width(found[0])], name="bottleneck")
    except ValueError as error:
        raise UserError(f"the model's graph cannot be used: {str(error).splitlines()[0]}") from error
    outputs = {"input": image, "bottleneck": bottleneck}
    if described.logits:
        logits = tf.reshape(found[1], [-1, _width(found[1])], name="logits")
        outputs |= {"logits": logits, "softmax": tf.nn.softmax(logits, name="softmax")}
    for collection, tensor in outputs.items():
        tf.add_to_collection(collection, tensor)
    return Thawed(outputs, values)


def _keep_only_used(graph: tf.GraphDef, replaced: dict[str, Any]) -> None:
    """``input_map`` may name only tensors that some node reads."""
    used = {name if ":" in name else f"{name}:0" for node in graph.node for name in node.input}
    for name in [name for name in replaced if name not in used]:
        del replaced[name]


def _width(tensor: tf.Tensor) -> int:
    """Features of a tensor [batch, …, features] whose middle dimensions are 1."""
    dimensions = tensor.shape.as_list() if tensor.shape.rank else []
    if len(dimensions) < 2 or None in dimensions[1:]:
        raise UserError(
            f"{tensor.name} has the shape {tensor.shape}, wanted is a vector of known width for each image; name another tensor"
        )
    width = int(np.prod(dimensions[1:]))
    if any(size != 1 for size in dimensions[1:-1]):
        raise UserError(f"{tensor.name} has the shape {tensor.shape}, which is not pooled yet; name the tensor behind the last pooling")
    return width
