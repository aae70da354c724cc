"""Finding one's way in a GraphDef, without running or importing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
"""The ops that are variables."""

_SAME_VALUE = ("Identity", "ReadVariableOp", "Cast", "Reshape", "Enter", "StopGradient")


def node_of(name: str) -> str:
    """The node that makes a tensor, or that a control input names."""
    return name.lstrip("^").partition(":")[0]


def tensor_name(name: str) -> str:
    """A tensor's full name; ``x`` means ``x:0``."""
    return name if not name or ":" in name else f"{name}:0"


functions_of: Callable[[tf.GraphDef], MutableSequence[tf.FunctionDef]] = attrgetter("library.function")
"""The functions that a graph brings along."""


def functions_called(nodes: Iterable[tf.NodeDef], functions: Iterable[tf.FunctionDef]) -> list[tf.FunctionDef]:
    """Those of ``functions`` that ``nodes`` call, and those that these call, each once."""
    known = {function.signature.name: function for function in functions}
    found: dict[str, tf.FunctionDef] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        values = node.attr.values()
        names = [node.op, *(value.func.name for value in values), *(one.name for value in values for one in value.list.func)]
        for name in names:
            if name in known and name not in found:
                found[name] = known[name]
                pending.extend(known[name].node_def)
    return list(found.values())


class Wiring:
    """A graph as its nodes by name, and which of them depend on its input. GraphDefs may come in any order.

    Raises UserError where a node reads what is not there.
    """

    def __init__(self, graph: tf.GraphDef) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self.users: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                if node_of(name) not in self.nodes:
                    raise UserError(f"the model is damaged: its node {node.name!r} reads {name!r}, which is not there; get the file again")
                if not name.startswith("^"):  # an order of execution is no use of a value
                    self.users.setdefault(node_of(name), []).append(node.name)
        self.start = ""
        self.reached: set[str] = set()

    def start_at(self, name: str) -> None:
        """Let ``name`` be the input: what it reaches are the nodes that depend on it, itself included."""
        self.start, self.reached = name, self.after(name)

    def after(self, name: str) -> set[str]:
        """``name`` and the nodes that depend on it."""
        return _closure(name, lambda one: self.users.get(one, []))

    def before_all(self, name: str) -> set[str]:
        """``name`` and the nodes that it depends on."""
        return _closure(name, lambda one: map(node_of, self.nodes[one].input))

    def before(self, name: str) -> str:
        """The node whose output ``name`` works on, or nothing; weights are not meant."""
        return next((one for one in map(node_of, self.nodes[name].input) if one in self.reached), "")

    def back(self, name: str, over: Callable[[tf.NodeDef], bool]) -> list[str]:
        """The way from ``name`` back to the first node that is none of those ``over``, both included, or to a dead end."""
        way = [name]
        while over(self.nodes[way[-1]]) and (next_one := self.before(way[-1])) and next_one not in way:
            way.append(next_one)
        return way

    def weights(self, name: str, over: tuple[str, ...] = _SAME_VALUE) -> tf.NodeDef | None:
        """The constant or variable that the tensor ``name`` is a copy of, if it is one of these."""
        node, seen = self.nodes.get(node_of(name)), set()
        while node is not None and node.op in over and node.name not in seen:
            seen.add(node.name)
            node = self.nodes.get(node_of(node.input[0]))
        return node if node is not None and node.op in ("Const", *VARIABLES) else None

    def shape_of_weights(self, name: str) -> list[int]:
        """The shape of the constant or variable behind the tensor ``name``; empty where there is none."""
        node = self.weights(name, (*_SAME_VALUE, "Dequantize"))
        if node is None:
            return []
        shape = node.attr["value"].tensor.tensor_shape if node.op == "Const" else node.attr["shape"].shape
        return [dimension.size for dimension in shape.dim]

    def constant(self, name: str) -> np.ndarray | None:
        """The value of the constant behind the tensor ``name``, if it is one."""
        node = self.weights(name)
        return value_of(node) if node is not None and node.op == "Const" else None


def value_of(node: tf.NodeDef) -> np.ndarray:
    """The value of a constant. Raises UserError where its bytes and its shape do not agree."""
    from pipeline.tensorflow_v1 import tf

    try:
        return tf.make_ndarray(node.attr["value"].tensor)
    except (ValueError, TypeError) as error:
        raise UserError(f"the model's constant {node.name!r} is damaged ({first_line(error)}); get the file again") from None


def dimensions(node: tf.NodeDef) -> list[int] | None:
    """The shape of a placeholder, -1 where a dimension is open; None where nothing is said of it."""
    if "shape" not in node.attr or node.attr["shape"].shape.unknown_rank:  # looking an attribute up would add it
        return None
    return [dimension.size for dimension in node.attr["shape"].shape.dim]


def type_fed(node: tf.NodeDef) -> tf.DType:
    """The type of what is fed for a node: a placeholder says it, and anything else is fed as float32."""
    from pipeline.tensorflow_v1 import tf

    return tf.as_dtype(node.attr["dtype"].type) if node.op.startswith("Placeholder") else tf.float32


def _closure(start: str, following: Callable[[str], Iterable[str]]) -> set[str]:
    found, pending = {start}, [start]
    while pending:
        for name in following(pending.pop()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found
