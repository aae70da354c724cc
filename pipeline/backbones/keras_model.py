"""Keras models, of Keras 3 and, where that refuses them, of Keras 2.

A model is cut in the graph that comes of running it: while it is traced, each layer's output is noted, the layers of
nested models too. So it does not matter how the model was put together, or how often a layer is used in it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files
from pipeline.backbones import guess, labels
from pipeline.backbones.frozen import Description, Frozen
from pipeline.backbones.saved_model import frozen_function
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

_IN_A_HEAD = ("Flatten", "Reshape", "Dense", "Dropout", "Activation", "ReLU", "LeakyReLU", "Softmax", "BatchNormalization", "InputLayer")


def read(path: Path, described: Description) -> Frozen:
    """Read a ``.keras`` or ``.h5`` file. ``described.bottleneck`` names a layer, at any depth.

    Without it the bottleneck is the last pooling of whole images, or, where only a classifier stands behind the last layer
    of images, the average of that one. Raises UserError.
    """
    from pipeline.tensorflow_v1 import tf2

    model = _load(path)
    size, kind = _image(model, described, path)
    calls: list[tuple[Any, tf.Tensor]] = []
    for layer in model._flatten_layers(include_self=False):
        _note_calls(layer, calls)

    def cut(images: tf.Tensor) -> dict[str, tf.Tensor]:
        calls.clear()
        outputs = [one for one in tf2.nest.flatten(model(images, training=False)) if one.dtype.is_floating and not _is_of_pixels(one)]
        number = _bottleneck(calls, described.bottleneck, path)
        features, layers_behind = calls[number][1], [type(layer).__name__ for layer, _ in calls[number + 1 :]]
        logits = [one for one in outputs if one is not features] if {"Dense", "Conv2D"}.intersection(layers_behind) else []
        if _is_of_pixels(features):
            features = tf2.reduce_mean(features, [1, 2])
        return {"bottleneck": features, **({"logits": logits[-1]} if logits else {})}

    spec = tf2.TensorSpec([None, size or None, size or None, 3], kind)
    try:
        function = tf2.function(cut, autograph=False).get_concrete_function(spec)
    except UserError:
        raise
    except Exception as error:  # whatever a layer raises
        raise UserError(f"{path} does not run on a batch of images ({first_line(error)})") from None
    graph, (given,), tensors = frozen_function(function)
    ends = {name: tensor.name for name, tensor in tensors.items()}
    said = replace(described, input="", bottleneck="")
    known = said.or_else(Description(given, ends["bottleneck"], ends.get("logits", ""), size))
    guessed = [] if described.bottleneck else [f"model_bottleneck = {calls[_bottleneck(calls, '', path)][0].name}"]
    return Frozen(graph, known, labels.beside(path.parent), files.sha256_file(path), guessed)


def _image(model: Any, described: Description, path: Path) -> tuple[int, str]:
    """Pixels a side, 0 where any will do, and the type of the one input."""
    inputs = getattr(model, "inputs", None) or []
    shapes = [tuple(one.shape) for one in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(f"{path} takes {shapes or 'nothing known'}; {guess.WANTED}")
    size = guess.size_declared(shapes[0], described.size, str(path))
    kind = str(getattr(inputs[0].dtype, "name", inputs[0].dtype))
    return described.size or size, kind if "int" in kind else "float32"


def _note_calls(layer: Any, calls: list[tuple[Any, tf.Tensor]]) -> None:
    """Let each call of ``layer`` be noted with its output, if that is a tensor."""
    from pipeline.tensorflow_v1 import tf2

    call = layer.call

    @tf2.autograph.experimental.do_not_convert
    def noted(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        if tf2.is_tensor(output):
            calls.append((layer, output))
        return output

    layer.call = noted


def _bottleneck(calls: list[tuple[Any, tf.Tensor]], name: str, path: Path) -> int:
    """Which call gives the features. Raises UserError for an unknown name, or where none can be guessed."""
    names = [layer.name for layer, _ in calls]
    last = ", ".join(list(dict.fromkeys(names))[-8:])
    if name:
        if name not in names:
            raise UserError(f"model_bottleneck = {name!r} is no layer of {path.name}; its last layers are: {last}")
        return len(names) - 1 - names[::-1].index(name)
    if calls[-1][1].shape.rank == 4:
        return len(calls) - 1  # it ends in images, or in one pooled with its dimensions kept
    pooled = images = -1
    for number, (layer, output) in enumerate(calls):
        if "Pooling2D" in type(layer).__name__ and not _is_of_pixels(output):
            pooled = number
        elif _is_of_pixels(output):
            images = number
    behind = [layer for layer, _ in calls[images + 1 :] if not hasattr(layer, "layers")]
    if pooled > images:
        return pooled
    if images < 0 or any(type(layer).__name__ not in _IN_A_HEAD for layer in behind):
        raise UserError(
            f"the bottleneck of {path.name} cannot be guessed; say it with model_bottleneck = LAYER; its last layers are: {last}"
        )
    return images


def _is_of_pixels(output: tf.Tensor) -> bool:
    return output.shape.rank == 4 and tuple(output.shape[1:3]) != (1, 1)


# --- Loading, without running code -----------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    from pipeline.tensorflow_v1 import tf2

    try:
        return tf2.keras.models.load_model(path, compile=False)  # safe_mode is on: no code in a file is run
    except Exception as error:  # Keras raises many kinds
        problem = error
    config = _config_of_keras_2(path)
    if config is not None:
        import tf_keras

        _refuse_code(config, path)
        try:
            return tf_keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            problem = error
    raise UserError(f"{path} is no Keras model that can be loaded ({first_line(problem)})") from None


def _config_of_keras_2(path: Path) -> Any:
    """The architecture in a file that Keras 2 wrote; None for any other file."""
    import h5py

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                version = json.loads(packed.read("metadata.json"))["keras_version"]
                text = packed.read("config.json")
        else:
            with h5py.File(path) as file:
                version, text = str(file.attrs["keras_version"]), file.attrs["model_config"]
        return json.loads(text) if version.startswith("2.") else None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


_TENSOR_FUNCTIONS = re.compile(r"(math|nn|image|__operators__)\.\w+|cast|concat|expand_dims|pad|reshape|reverse|squeeze|stack|transpose")
_NAMES_WITHOUT_CODE = {"Functional", "Model", "Sequential", "Policy", "DTypePolicy", "TensorShape", "TFOpLambda", "SlicingOpLambda"}
_READING_FILES = {"Lambda", "StringLookup", "IntegerLookup", "TextVectorization", "TFSMLayer"}


def _refuse_code(config: Any, path: Path) -> None:
    """Raise UserError where an architecture names anything but the layers of Keras, and functions of tensors.

    Keras 2 would import what a file names.
    """
    import tf_keras

    kinds = (tf_keras.layers, tf_keras.initializers, tf_keras.regularizers, tf_keras.constraints)
    known = {name for kind in kinds for name in dir(kind) if name[:1].isupper()} | _NAMES_WITHOUT_CODE
    for part in _dictionaries(config):
        name, module = part.get("class_name", "Dense"), str(part.get("module") or "keras")
        inner = part.get("config")
        function = inner.get("function", "nn.relu") if isinstance(inner, dict) and str(name).endswith("OpLambda") else "nn.relu"
        if (
            name not in known - _READING_FILES
            or module.split(".")[0] not in ("keras", "tf_keras", "builtins")
            or not isinstance(function, str)
            or not _TENSOR_FUNCTIONS.fullmatch(function)
        ):
            raise UserError(f"{path} is refused: it names {module}.{name}, which is no layer that is known to run no code of the file")


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dictionaries(one)
