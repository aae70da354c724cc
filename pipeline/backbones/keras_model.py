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
    """Read a ``.keras`` or ``.h5`` file. ``described`` names layers, at any depth, and for the logits perhaps an output.

    Without a name the bottleneck is the deepest pooling of whole images, or, where only a classifier stands behind the last
    layer of images, the average of that one. Raises UserError.
    """
    from pipeline.tensorflow_v1 import tf2

    model = _load(path)
    size, kind = _image(model, described, path)
    calls: list[tuple[Any, tf.Tensor]] = []
    guessed: list[str] = []
    for layer in model._flatten_layers(include_self=False):
        _note_calls(layer, calls)

    def cut(images: tf.Tensor) -> dict[str, tf.Tensor]:
        calls.clear()
        outputs = model(images, training=False)
        ends, guessed[:] = _ends(_Calls(calls, path.name), outputs, described)
        return ends

    spec = tf2.TensorSpec([None, size or None, size or None, 3], kind)
    try:
        function = tf2.function(cut, autograph=False).get_concrete_function(spec)
    except UserError:
        raise
    except Exception as error:  # whatever a layer raises
        raise UserError(f"{path} does not run on a batch of images ({first_line(error)})") from None
    graph, (given,), tensors = frozen_function(function)
    ends = {name: tensor.name for name, tensor in tensors.items()}
    known = replace(described, input=given, bottleneck=ends["bottleneck"], logits=ends.get("logits", ""), size=size)
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
        if tf2.is_symbolic_tensor(output):
            calls.append((layer, output))
        return output

    layer.call = noted


# --- Where it is cut ------------------------------------------------------------------------------------------------------


class _Calls:
    """The calls of a model's layers, by number, and which of them depend on which."""

    def __init__(self, calls: list[tuple[Any, tf.Tensor]], file: str) -> None:
        self.file, self.layers, self.outputs = file, [layer for layer, _ in calls], [output for _, output in calls]
        self.names = [layer.name for layer in self.layers]
        made: dict[str, set[int]] = {}
        for number, output in enumerate(self.outputs):
            made.setdefault(output.op.name, set()).add(number)
        self._before: dict[str, set[int]] = {}
        for op in self.outputs[-1].graph.get_operations():  # each stands behind what it depends on
            self._before[op.name] = made.get(op.name, set()).union(*(self._before.get(given.op.name, ()) for given in op.inputs))

    def before(self, tensor: tf.Tensor) -> set[int]:
        """The calls that a tensor depends on, those that made it included."""
        return self._before.get(tensor.op.name, set())

    def behind(self, number: int) -> set[int]:
        """The calls that depend on what a call made; what only passes it on, as a dropout does, is not meant."""
        made = self.outputs[number]
        return {later for later, output in enumerate(self.outputs) if number in self.before(output) and output.op is not made.op}

    def named(self, what: str, name: str) -> int:
        """The last call of a layer. Raises UserError where there is none of this name."""
        if name not in self.names:
            raise UserError(f"model_{what} = {name!r} is no layer of {self.file}; its last layers are: {self.last}")
        return len(self.names) - 1 - self.names[::-1].index(name)

    def name_of(self, tensor: tf.Tensor) -> str:
        """The layer that made a tensor."""
        return next((name for name, output in zip(self.names[::-1], self.outputs[::-1]) if output.op is tensor.op), tensor.op.name)

    @property
    def last(self) -> str:
        return ", ".join(list(dict.fromkeys(self.names))[-8:])


def _ends(calls: _Calls, outputs: Any, described: Description) -> tuple[dict[str, tf.Tensor], list[str]]:
    """The features, the logits if they are known, and what was guessed."""
    from pipeline.tensorflow_v1 import tf2

    guessed = []
    if described.bottleneck:
        number = calls.named("bottleneck", described.bottleneck)
    else:
        number, others = _guess_bottleneck(calls)
        guessed.append(f"model_bottleneck = {calls.names[number]}{_and_not(others)}")
    features = calls.outputs[number]
    named = outputs if isinstance(outputs, dict) else {calls.name_of(one): one for one in tf2.nest.flatten(outputs)}
    if described.logits:
        logits = named[described.logits] if described.logits in named else calls.outputs[calls.named("logits", described.logits)]
    else:
        logits, of_logits = _guess_logits(calls, number, {name: one for name, one in named.items() if _is_vector(one)})
        guessed += of_logits
    ends = {"bottleneck": tf2.reduce_mean(features, [1, 2]) if _is_of_pixels(features) else features}
    return ends if logits is None else {**ends, "logits": logits}, guessed


def _and_not(others: list[str]) -> str:
    return f" (and not {', '.join(others)})" if others else ""


def _guess_bottleneck(calls: _Calls) -> tuple[int, list[str]]:
    """Which call gives the features, and the layers of other heads. Raises UserError where none can be guessed.

    It is the one with most layers before it, of the poolings with no images behind them, which those of
    squeeze-and-excitation have, and of the images that nothing pools.
    """
    if calls.outputs[-1].shape.rank == 4:
        return len(calls.outputs) - 1, []  # it ends in images, or in one pooled with its dimensions kept
    images = {number for number, output in enumerate(calls.outputs) if _is_of_pixels(output)}
    pooled = {number for number, layer in enumerate(calls.layers) if "Pooling2D" in type(layer).__name__} - images
    ends = [number for number in images | pooled if not calls.behind(number) & (images | pooled if number in images else images)]
    best = max(ends, key=lambda number: (len(calls.before(calls.outputs[number])), number), default=-1)
    behind = [calls.layers[number] for number in calls.behind(best) if not hasattr(calls.layers[number], "layers")]
    if not ends or (best in images and any(type(layer).__name__ not in _IN_A_HEAD for layer in behind)):
        raise UserError(
            f"the bottleneck of {calls.file} cannot be guessed; say it with model_bottleneck = LAYER; its last layers are: {calls.last}"
        )
    before = calls.before(calls.outputs[best])
    return best, list(dict.fromkeys(calls.names[number] for number in sorted(ends) if number not in before))


def _guess_logits(calls: _Calls, number: int, outputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor | None, list[str]]:
    """The output that classifies the features of a call, and in words how it was chosen: of several the one with a softmax."""
    behind = {later for later in calls.behind(number) if type(calls.layers[later]).__name__ in ("Dense", "Conv2D")}
    heads = [name for name, output in outputs.items() if behind & calls.before(output)]
    likely = [name for name in heads if _ends_in_softmax(outputs[name])] if len(heads) > 1 else heads
    if len(likely) == 1:
        others = [name for name in outputs if name != likely[0] and outputs[name].op is not calls.outputs[number].op]
        return outputs[likely[0]], [f"model_logits = {likely[0]}{_and_not(others)}"]
    return None, [f"no model_logits (any of {', '.join(likely or heads)} may be meant)"] if heads else []


def _ends_in_softmax(output: tf.Tensor) -> bool:
    op = output.op
    while op.type in ("Identity", "Reshape", "Squeeze", "Cast"):
        op = op.inputs[0].op
    return bool(op.type == "Softmax")


def _is_vector(output: tf.Tensor) -> bool:
    return output.dtype.is_floating and not _is_of_pixels(output)


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
