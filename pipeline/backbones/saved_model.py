"""SavedModels: of TensorFlow 2, of TensorFlow 1, and both formats of TensorFlow Hub.

TensorFlow runs a SavedModel's own initialisers while it loads it, so all that could be run is checked before. What saves
and restores is left out of that: no one runs it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones import guess, labels, meta_graph
from pipeline.backbones.allowed_ops import refuse_others
from pipeline.backbones.frozen import Description, Frozen
from pipeline.backbones.graphs import dimensions, functions_of, node_of
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

HUB_RANGE = Description(usual_range=(0.0, 255.0))
"""TensorFlow Hub's convention for images of floats: values from 0 to 1 (https://www.tensorflow.org/hub/common_signatures/images)."""

_FIRST = ("serving_default", "default", "image_feature_vector", "image_classification")
_FEATURES = re.compile(r"feature|vector|embedding|bottleneck|pool", re.IGNORECASE)
_SCORES = re.compile(r"logit|prob|score|class|predict|softmax", re.IGNORECASE)
_SIZES_OF_IMAGENET = (1000, 1001)


def read(folder: Path, described: Description, called: str) -> Frozen:
    """Read the SavedModel in ``folder``.

    Args:
        folder: with ``saved_model.pb`` and ``variables``.
        described: what is known of it.
        called: the name that its user calls it by. Modules of TensorFlow Hub say there what they are: ``…/feature_vector/5``.
    """
    meta = _meta_graph(folder)
    names = labels.beside(folder) or labels.beside(folder / "assets")
    is_evident = bool(names) or "classif" in called
    if not meta.object_graph_def.nodes:
        signature, outputs = _signature_v1(meta, folder)
        declared = [dimensions(node) for node in meta.graph_def.node if node.name == node_of(described.input or signature)]
        guess.size_declared(declared[0] if declared else None, described.size, str(folder))
        known = Description(input=signature).or_else(_ends(outputs, is_evident, called))
        if (folder / "tfhub_module.pb").is_file():
            known = known.or_else(HUB_RANGE)
        found = Frozen(meta.graph_def, described.or_else(known), names)
        return meta_graph.freeze(found, meta, folder / "variables" / "variables")
    _refuse_dangerous(meta)
    model = _load(folder)  # kept by its name, as its functions do not keep its variables
    function = _function(model, described.size, folder)
    guess.size_declared(_shape(function), described.size, str(folder))
    graph, given, tensors = frozen_function(function)
    known = Description(input=given[0]).or_else(_ends({name: _Output.of(tensor) for name, tensor in tensors.items()}, is_evident, called))
    return Frozen(graph, described.or_else(known), names)


def _meta_graph(folder: Path) -> tf.MetaGraphDef:
    """The graph for using the model, of those that are in the file: a module has another one for training it."""
    from google.protobuf.message import DecodeError

    from pipeline.tensorflow_v1 import SavedModel

    path = folder / "saved_model.pb"
    try:
        graphs = list(SavedModel.FromString(path.read_bytes()).meta_graphs)
    except (DecodeError, OSError) as error:
        raise UserError(f"{folder} is no SavedModel that can be loaded ({first_line(error)}); it may be cut short") from None
    wanted = [graph for graph in graphs if "train" not in graph.meta_info_def.tags] or graphs
    if not wanted:
        raise UserError(f"{folder} is no SavedModel that can be loaded (it holds no graph); it may be cut short")
    return next((graph for graph in wanted if "serve" in graph.meta_info_def.tags), wanted[0])


def _refuse_dangerous(meta: tf.MetaGraphDef) -> None:
    """Raise UserError where a function that the model's objects have does more than compute."""
    owned = [function for function in functions_of(meta.graph_def) if function.signature.name in meta.object_graph_def.concrete_functions]
    refuse_others([node for function in owned for node in function.node_def], functions_of(meta.graph_def))


def _load(folder: Path) -> Any:
    from pipeline.tensorflow_v1 import tf, tf2

    try:
        return tf2.saved_model.load(str(folder))
    except (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, tf.errors.OpError) as error:
        raise UserError(f"{folder} is no SavedModel that can be loaded ({first_line(error)}); it may not be whole: get it again") from None


# --- TensorFlow 1: signatures name tensors of one graph ---------------------------------------------------------------------


class _Output:
    """What an output's form says of it: [batch, features], perhaps with dimensions of 1 between; ``size`` 0 where it is not known."""

    def __init__(self, name: str, shape: Sequence[int | None], is_float: bool) -> None:
        self.name = name
        self.is_vector = is_float and (not shape or (len(shape) >= 2 and all(size == 1 for size in shape[1:-1])))
        self.size = shape[-1] or 0 if shape else 0

    @staticmethod
    def of(tensor: Any) -> _Output:
        return _Output(tensor.name, tensor.shape.as_list() if tensor.shape.rank else [], tensor.dtype.is_floating)


def _signature_v1(meta: tf.MetaGraphDef, folder: Path) -> tuple[str, dict[str, _Output]]:
    """The tensor that takes images, and the outputs of all signatures that take them there."""
    from pipeline.tensorflow_v1 import tf

    def is_image(info: Any) -> bool:
        kind, shape = tf.as_dtype(info.dtype), info.tensor_shape
        return (kind.is_floating or kind.is_integer) and (shape.unknown_rank or len(shape.dim) == 4)

    signatures = meta.signature_def
    fitting = [name for name in (*_FIRST, *sorted(signatures)) if name in signatures]
    fitting = [name for name in fitting if [is_image(info) for info in signatures[name].inputs.values()] == [True]]
    if not fitting:
        raise _no_signature(folder, signatures)
    (given,) = (info.name for info in signatures[fitting[0]].inputs.values())
    outputs = {}
    for name in fitting:
        for key, info in signatures[name].outputs.items():
            if [one.name for one in signatures[name].inputs.values()] == [given]:
                shape = [] if info.tensor_shape.unknown_rank else [dimension.size for dimension in info.tensor_shape.dim]
                outputs[f"{name}/{key}"] = _Output(info.name, shape, tf.as_dtype(info.dtype).is_floating)
    return given, outputs


def _no_signature(folder: Path, names: Iterable[str]) -> UserError:
    have = ", ".join(sorted(name for name in names if not name.startswith("__"))) or "none"
    return UserError(
        f"{folder} has no signature that takes one batch of images as numbers (it has: {have}), and cannot be called with one; "
        "export it with one"
    )


# --- TensorFlow 2: signatures and calls are functions -----------------------------------------------------------------------


def _function(model: Any, size: int, folder: Path) -> Any:
    """The concrete function of a SavedModel that takes a batch of images alone: a signature, or what it does when it is called."""
    from pipeline.tensorflow_v1 import tf2

    signatures = getattr(model, "signatures", {})
    for name in dict.fromkeys((*_FIRST, *sorted(signatures))):
        if name in signatures and (function := _of_images_alone(signatures[name])):
            return function
    if not callable(model):
        raise _no_signature(folder, signatures)
    saved = [function for function in getattr(model.__call__, "concrete_functions", []) if _of_images_alone(function)]
    saved.sort(key=_is_for_training)
    if saved and not _is_for_training(saved[0]) and (not size or _size(saved[0]) in (0, size)):
        return saved[0]
    spec = tf2.TensorSpec([None, size or None, size or None, 3], tf2.float32)
    problem: Exception = ValueError("only for training")
    for options in ({"training": False}, {}):
        try:
            return tf2.function(lambda images, options=options: model(images, **options)).get_concrete_function(spec)
        except (TypeError, ValueError) as error:
            problem = error
    raise UserError(f"{folder} cannot be called with a batch of {size or 'any'} images ({first_line(problem)}); say another model_size")


def _inputs(function: Any) -> list[Any]:
    """What a concrete function is to be given: its variables are not."""
    return function.inputs[: len(function.inputs) - len(function.captured_inputs)]


def _of_images_alone(function: Any) -> Any:
    """The function, with a switch for training off where it has one; None where it takes anything but one batch of images."""
    from pipeline.tensorflow_v1 import tf2

    given = _inputs(function)
    images = [one for one in given if (one.dtype.is_floating or one.dtype.is_integer) and one.shape.rank in (None, 4)]
    switches = [one for one in given if one.dtype == tf2.bool and one.shape.rank == 0]
    if len(images) != 1 or len(images) + len(switches) != len(given):
        return None
    _, named = function.structured_input_signature
    if not switches or len(named) != len(given):
        return None if switches else function
    image = next(name for name, spec in named.items() if spec.dtype != tf2.bool)
    fixed = {name: tf2.constant(False) for name in named if name != image}
    return tf2.function(lambda images: function(**{image: images}, **fixed)).get_concrete_function(named[image])


def _is_for_training(function: Any) -> bool:
    """Whether a function was traced with ``training=True``, among whatever else it was called with."""
    arguments, named = function.structured_input_signature
    return any(value is True for value in (*arguments, *named.values()))


def _shape(function: Any) -> list[int | None] | None:
    """The shape of the images that a function takes."""
    (image,) = (one for one in _inputs(function) if one.shape.rank in (None, 4))
    return image.shape.as_list() if image.shape.rank else None


def _size(function: Any) -> int:
    shape = _shape(function)
    return shape[1] or 0 if shape else 0


def frozen_function(function: Any) -> tuple[tf.GraphDef, list[str], dict[str, tf.Tensor]]:
    """A concrete function as a frozen graph, its inputs, and its outputs by name."""
    from pipeline.tensorflow_v1 import convert_variables_to_constants_v2

    outputs = function.structured_outputs
    names = list(outputs) if isinstance(outputs, dict) else [f"output_{i}" for i in range(len(function.outputs))]
    constant = convert_variables_to_constants_v2(function, lower_control_flow=True)
    given = [tensor.name for tensor in constant.inputs if tensor.dtype.name != "resource"]
    return constant.graph.as_graph_def(), given, dict(zip(sorted(names), constant.outputs))


# --- Which output is what ---------------------------------------------------------------------------------------------------


def _ends(outputs: dict[str, _Output], is_evident: bool, called: str) -> Description:
    """The bottleneck and the logits, as far as the names of the outputs say which they are.

    A single output that is called ``feature_vector``, or ``default`` as in TensorFlow Hub, is the bottleneck even where a
    dense layer is the last thing in it; ``default`` may be a classifier's too, where something makes that evident.
    """
    vectors = {name: output for name, output in outputs.items() if output.is_vector}
    features = {output.name: output for name, output in vectors.items() if _FEATURES.search(name)}
    scores = {output.name: output for name, output in vectors.items() if _SCORES.search(name) and not _FEATURES.search(name)}
    if features:
        return Description(bottleneck=next(iter(features)), logits=next(iter(scores), ""))
    if scores or len({output.name for output in vectors.values()}) != 1:
        return Description(logits=next(iter(scores), ""))
    ((name, output),) = list(vectors.items())[:1]
    is_vector = "feature" in called or name.rpartition("/")[2] == "default"
    if is_vector and not is_evident and output.size not in _SIZES_OF_IMAGENET:
        return Description(bottleneck=output.name)
    return Description()
