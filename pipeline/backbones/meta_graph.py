"""A checkpoint with a meta graph, as ``tf.train.Saver`` writes it, and the same inside a SavedModel of TensorFlow 1.

Nothing that stands in the file is run before it was checked, and its own restore ops not at all: they are read for which
variable has which tensor of the checkpoint, and the values are restored by an op of ours.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backbones import guess, labels
from pipeline.backbones.allowed_ops import refuse_others
from pipeline.backbones.frozen import Description, Frozen, become_input
from pipeline.backbones.graphs import VARIABLES, Wiring, functions_of, node_of
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf


def read(prefix: Path, described: Description) -> Frozen:
    """Read the checkpoint ``prefix``; the collections ``input``, ``bottleneck`` and ``logits`` name tensors, where they are there."""
    from google.protobuf.message import DecodeError

    from pipeline.tensorflow_v1 import tf

    path = prefix.with_name(f"{prefix.name}.meta")
    if not path.is_file():
        raise UserError(f"{path} is missing: a checkpoint is read through its meta graph; save it with one")
    try:
        meta = tf.MetaGraphDef.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is no meta graph ({error}); it may be cut short") from None
    named = Description(_in_collection(meta, "input"), _in_collection(meta, "bottleneck"), _in_collection(meta, "logits"))
    found = Frozen(meta.graph_def, described.or_else(named), labels.beside(prefix.parent))
    return freeze(found, meta, prefix)


def _in_collection(meta: tf.MetaGraphDef, name: str) -> str:
    """The only tensor of a collection, or nothing."""
    names = meta.collection_def[name].node_list.value if name in meta.collection_def else []
    return names[0] if len(names) == 1 else ""


def freeze(found: Frozen, meta: tf.MetaGraphDef, prefix: Path) -> Frozen:
    """``found``, whose graph is that of ``meta``, with the part up to its outputs frozen with the values of a checkpoint.

    Where the bottleneck is not known it is guessed, and that is noted. Raises UserError.
    """
    from pipeline.tensorflow_v1 import session, tf

    if not found.description.bottleneck or not {node.name for node in meta.graph_def.node}.issuperset(_ends(found)):
        found = guess.completed(found)  # which raises for a tensor that is not there
    whole = tf.GraphDef()
    whole.CopyFrom(meta.graph_def)
    for node in whole.node:
        node.ClearField("device")
        node.attr.pop("_class", None)
        if node.name == node_of(found.description.input) and not node.op.startswith("Placeholder"):
            become_input(node, found.description.size)  # what makes the images, a queue for instance, is not wanted
    graph = tf.graph_util.extract_sub_graph(whole, _ends(found))
    refuse_others(graph.node, functions_of(graph))
    variables = [node for node in graph.node if node.op in VARIABLES]
    for node in variables:
        # TensorFlow's converter looks for a variable's value at this name.
        if node.op == "VarHandleOp" and f"{node.name}/Read/ReadVariableOp" not in {one.name for one in graph.node}:
            reading = graph.node.add(name=f"{node.name}/Read/ReadVariableOp", op="ReadVariableOp", input=[node.name])
            reading.attr["dtype"].CopyFrom(node.attr["dtype"])
    try:
        with tf.Graph().as_default() as built, session(threads=1) as running, _plainly_named(prefix) as named:
            tf.import_graph_def(graph, name="", producer_op_list=meta.meta_info_def.stripped_op_list)
            kept_as = _kept_as(meta)
            running.run([_restoring(built, node, named, kept_as) for node in variables])
            found.graph = tf.graph_util.convert_variables_to_constants(running, graph, _ends(found))
    except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{prefix} is no checkpoint that can be restored ({first_line(error)})") from None
    return found


@contextlib.contextmanager
def _plainly_named(prefix: Path) -> Iterator[Path]:
    """The checkpoint under a name without brackets and stars: TensorFlow would take them for a pattern."""
    if not re.search(r"[\[\]*?\\]", str(prefix)):
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in prefix.parent.iterdir():
            if path.name.startswith(f"{prefix.name}."):
                (Path(folder) / f"checkpoint{path.name.removeprefix(prefix.name)}").symlink_to(path.resolve())
        yield Path(folder) / "checkpoint"


def _ends(found: Frozen) -> Sequence[str]:
    return [node_of(name) for name in (found.description.bottleneck, found.description.logits) if name]


def _restoring(graph: tf.Graph, node: tf.NodeDef, prefix: Path, kept_as: dict[str, tuple[str, str]]) -> tf.Operation:
    """Our own op that gives a variable its value of the checkpoint."""
    from pipeline.tensorflow_v1 import tf

    name = node.attr["shared_name"].s.decode() if node.op == "VarHandleOp" and "shared_name" in node.attr else ""
    key, part = kept_as.get(node.name, (name or node.name, ""))
    kind = tf.as_dtype(node.attr["dtype"].type)
    (value,) = tf.raw_ops.RestoreV2(prefix=str(prefix), tensor_names=[key], shape_and_slices=[part], dtypes=[kind])
    variable = graph.get_tensor_by_name(f"{node.name}:0")
    if node.op == "VarHandleOp":
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value)
    return tf.raw_ops.Assign(ref=variable, value=value, validate_shape=False).op


def _kept_as(meta: tf.MetaGraphDef) -> dict[str, tuple[str, str]]:
    """For each variable that the file's restore ops restore, the name in the checkpoint and the part of it that is meant."""
    from pipeline.tensorflow_v1 import tf

    end = node_of(meta.saver_def.restore_op_name)
    if end not in {node.name for node in meta.graph_def.node}:
        return {}
    wiring = Wiring(tf.graph_util.extract_sub_graph(meta.graph_def, [end]))
    found = {}
    for node in wiring.nodes.values():
        if node.op not in ("Assign", "AssignVariableOp"):
            continue
        value = node.input[1]
        while (source := wiring.nodes[node_of(value)]).op in ("Identity", "Reshape"):
            value = source.input[0]
        if source.op == "RestoreV2":
            names, parts = wiring.constant(source.input[1]), wiring.constant(source.input[2])
            number = int(value.partition(":")[2] or 0)
            if names is not None and parts is not None and number < min(len(names), len(parts)):
                found[node_of(node.input[0])] = names[number].decode(), parts[number].decode()
    return found
