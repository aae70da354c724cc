"""Pretrained models in the forms that people have them in, each read into a frozen graph.

frozen GraphDef     graph.pb
SavedModel          a folder with saved_model.pb: TensorFlow 2, TensorFlow 1, and both formats of TensorFlow Hub
Keras               model.keras, model.h5
checkpoint          a folder or prefix with .meta, .index and .data files
archive             .tgz, .tar.gz, .tar or .zip that holds one of these
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import fetch, files
from pipeline.backbones import frozen, labels
from pipeline.backbones.frozen import Description, Frozen
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

ARCHIVES = (".tgz", ".tar.gz", ".tar", ".zip")
KERAS = (".keras", ".h5", ".hdf5")
WANTED = "a frozen graph (.pb), a SavedModel folder, a Keras model (.keras, .h5), a checkpoint (.meta) or an archive of one (.tgz, .zip)"


def read(path: Path, described: Description, scratch: Path, member: str = "") -> Frozen:
    """Read the model at ``path``, whatever its form.

    An archive is unpacked in the folder ``scratch`` for the time being; ``member`` names the file to take from it.

    Raises UserError that says what was found and what is wanted.
    """
    if path.is_dir():
        return _read_folder(path, described, scratch, member)
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        with tempfile.TemporaryDirectory(dir=scratch) as temporary:
            fetch.unpack(path, Path(temporary) / path.name)
            return _read_folder(Path(temporary) / path.name, described, scratch, member)
    if name == "saved_model.pb":
        return _read_saved_model(path.parent, described)
    if name.endswith(".pb"):
        return _read_graph(path, described)
    if name.endswith(KERAS):
        return _read_keras(path, described)
    if name.endswith(".meta") or path.with_name(f"{path.name}.meta").is_file():
        return _read_checkpoint(Path(str(path).removesuffix(".meta")), described)
    raise UserError(f"{path} is no model that is read here; wanted is {WANTED}")


def _read_folder(folder: Path, described: Description, scratch: Path, member: str) -> Frozen:
    """The one model in a folder, or in the only folder below it that has one."""
    from pipeline.tensorflow_v1 import tf

    if (folder / "saved_model.pb").is_file():
        return _read_saved_model(folder, described)
    if latest := tf.train.latest_checkpoint(str(folder)):
        return _read_checkpoint(Path(latest), described)
    found = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith((".pb", ".meta", *KERAS)) and not _is_hub_note(path)]
    wanted = [path for path in found if path.name == member] or [path for path in found if path.name == "saved_model.pb"] or found
    if len(wanted) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:6]) or "none"
        raise UserError(f"{folder.name} holds {len(found)} models ({names}), wanted is one; name the file itself")
    return read(wanted[0], described, scratch)


def _is_hub_note(path: Path) -> bool:
    return path.name in ("tfhub_module.pb", "keras_metadata.pb", "fingerprint.pb")


def _read_graph(path: Path, described: Description) -> Frozen:
    from google.protobuf.message import DecodeError

    from pipeline.tensorflow_v1 import tf

    graph = tf.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is no frozen graph ({error}); it may be cut short, or of another form") from None
    if not graph.node:
        raise UserError(f"{path} is an empty graph; it may be cut short, or of another form")
    return Frozen(graph, described, labels.beside(path.parent), files.sha256_file(path))


def _read_saved_model(folder: Path, described: Description) -> Frozen:
    from pipeline.tensorflow_v1 import tf2

    size = described.size
    is_hub_v1 = (folder / "tfhub_module.pb").is_file()
    try:
        model = tf2.saved_model.load(str(folder), tags=[] if is_hub_v1 else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} is no SavedModel that can be loaded ({_first_line(error)})") from error
    signatures = getattr(model, "signatures", {})
    function = next((signatures[name] for name in ("serving_default", "default", *signatures) if name in signatures), None)
    if function is None:
        function = _traced(model, size, folder)
    graph, given, outputs = _frozen_function(function)
    if len(given) != 1:
        raise UserError(f"{folder}: its signature takes {len(given)} tensors ({', '.join(given)}), wanted is one batch of images")
    features = {name: tensor for name, tensor in outputs.items() if re.search("bottleneck|feature|embedding|pool", name)}
    known = Description(input=given[0], bottleneck=next(iter(features.values()), "") if len(outputs) > 1 else "")
    if is_hub_v1:
        known = known.or_else(HUB_RANGE)
    return Frozen(graph, described.or_else(known), labels.beside(folder) or labels.beside(folder / "assets"))


HUB_RANGE = Description(mean=0.0, std=255.0)
"""TensorFlow Hub's convention for images: values from 0 to 1 (https://www.tensorflow.org/hub/common_signatures/images)."""


def _traced(model: Any, size: int, folder: Path) -> Any:
    """A function of a SavedModel that can only be called."""
    from pipeline.tensorflow_v1 import tf2

    if not callable(model):
        raise UserError(f"{folder} has neither a signature nor can it be called; export it with one that takes a batch of images")
    spec = tf2.TensorSpec([None, size or None, size or None, 3], tf2.float32)
    for options in ({}, {"training": False}):
        try:
            return tf2.function(lambda images, options=options: model(images, **options)).get_concrete_function(spec)
        except (TypeError, ValueError) as error:
            problem = error
    raise UserError(f"{folder} cannot be called with a batch of images ({_first_line(problem)})")


def _frozen_function(function: Any) -> tuple[tf.GraphDef, list[str], dict[str, str]]:
    """A concrete function as a frozen graph, its inputs, and its outputs by name."""
    from pipeline.tensorflow_v1 import convert_variables_to_constants_v2

    outputs = function.structured_outputs
    names = list(outputs) if isinstance(outputs, dict) else [f"output_{i}" for i in range(len(function.outputs))]
    constant = convert_variables_to_constants_v2(function, lower_control_flow=True)
    given = [tensor.name for tensor in constant.inputs if tensor.dtype.name != "resource"]
    return constant.graph.as_graph_def(), given, dict(zip(sorted(names), (tensor.name for tensor in constant.outputs)))


def _read_keras(path: Path, described: Description) -> Frozen:
    from pipeline.tensorflow_v1 import tf2

    keras = tf2.keras
    try:
        model = keras.models.load_model(path, compile=False)  # safe_mode is on: no code in a file is run
    except Exception as error:  # Keras raises many kinds
        raise UserError(f"{path} is no Keras model that can be loaded ({_first_line(error)})") from error
    size = described.size or (model.inputs[0].shape[1] or 0)
    features, classifier = _cut_keras(model, described, path)
    outputs = {"bottleneck": features, **({"logits": model.outputs[0]} if classifier else {})}
    both = keras.Model(model.inputs, outputs)
    spec = tf2.TensorSpec([None, size or None, size or None, 3], tf2.float32)
    function = tf2.function(lambda images: both(images, training=False)).get_concrete_function(spec)
    graph, (given,), tensors = _frozen_function(function)
    rescales = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    known = Description(given, tensors["bottleneck"], tensors.get("logits", ""), size)
    guessed = ["model_mean = 0, model_std = 1 (the model rescales by itself)"] if rescales and described.mean is None else []
    if rescales:
        known = known.or_else(Description(mean=0.0, std=1.0))
    tensors_known = Description(size=described.size, mean=described.mean, std=described.std)
    return Frozen(graph, tensors_known.or_else(known), labels.beside(path.parent), files.sha256_file(path), guessed)


def _cut_keras(model: Any, described: Description, path: Path) -> tuple[Any, bool]:
    """The features of a Keras model, and whether a classifier stands behind them."""
    from pipeline.tensorflow_v1 import tf2

    layers = tf2.keras.layers
    classifier = isinstance(model.layers[-1], (layers.Dense, layers.Softmax, layers.Activation)) and len(model.outputs[0].shape) == 2
    if described.bottleneck:
        if described.bottleneck not in {layer.name for layer in model.layers}:
            names = ", ".join(layer.name for layer in model.layers[-8:])
            raise UserError(f"model_bottleneck = {described.bottleneck!r} is no layer of {path.name}; its last layers are: {names}")
        features = model.get_layer(described.bottleneck).output
    else:
        pooled = [layer for layer in model.layers if isinstance(layer, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))]
        images = [layer for layer in model.layers if len(getattr(layer.output, "shape", ())) == 4]
        features = (pooled or images)[-1].output
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D()(features)
    return features, classifier


def _read_checkpoint(prefix: Path, described: Description) -> Frozen:
    from pipeline.tensorflow_v1 import session, tf

    meta = prefix.with_name(f"{prefix.name}.meta")
    if not meta.is_file():
        raise UserError(f"{meta} is missing: a checkpoint is read through its meta graph; save it with one")
    with tf.Graph().as_default() as graph, session(threads=1) as running:
        try:
            saver = tf.train.import_meta_graph(str(meta), clear_devices=True)
            saver.restore(running, str(prefix))
        except (tf.errors.OpError, ValueError, KeyError, OSError) as error:
            raise UserError(f"{prefix} is no checkpoint that can be restored ({_first_line(error)})") from error
        named = Description(_in_collection("input"), _in_collection("bottleneck"), _in_collection("logits"))
        known = described.or_else(named)
        definition = graph.as_graph_def()
        if not known.bottleneck:
            known = frozen.completed(Frozen(definition, known)).description
        ends = [name.partition(":")[0] for name in (known.bottleneck, known.logits) if name]
        for name in ends:
            if name not in {node.name for node in definition.node}:
                frozen.completed(Frozen(definition, known))  # raises, with the likely ones
        constant = tf.graph_util.convert_variables_to_constants(running, definition, ends)
    return Frozen(constant, known, labels.beside(prefix.parent))


def _in_collection(name: str) -> str:
    from pipeline.tensorflow_v1 import tf

    tensors = tf.get_collection(name)
    return tensors[0].name if len(tensors) == 1 and hasattr(tensors[0], "name") else ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
