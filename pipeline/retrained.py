"""Classifiers made by TensorFlow's ``retrain.py``, and frozen graphs like them, which do not say how they want their input.

    classifier, words = load(Path("retrained_graph.pb"), Path("retrained_labels.txt"))

``retrain.py`` resized photos as TensorFlow 1 did, so they are resized that way here, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import export, images, network
from pipeline.backbones import formats, frozen, labels
from pipeline.backbones.frozen import NOTHING_SAID, Description
from pipeline.backbones.graphs import Wiring, dimensions, node_of, tensor_name, type_fed
from pipeline.backbones.guess import is_image, range_of, size_declared
from pipeline.classifier import Classifier
from pipeline.errors import BadImage, UserError, first_line
from pipeline.images import AS_IT_IS
from pipeline.network import Network
from pipeline.tensorflow_v1 import tf

FINAL_RESULT = "final_result"
"""The output of ``retrain.py``, if it was not told another ``--final_tensor_name``."""

ENCODED = "DecodeJpeg/contents"
"""Where the first ``retrain.py`` took a JPEG. Images are decoded here, so that they go in behind it."""


@dataclass(frozen=True)
class _Known:
    """An architecture, known by a node, and what its input is."""

    name: str
    node: str
    input: Description
    half_pixel_centers: bool = False


_KNOWN = (
    _Known(
        "a graph of this pipeline", export.BYTES_INPUT, Description(input=f"{export.IMAGE_INPUT}:0", mean=0, std=1), half_pixel_centers=True
    ),
    _Known("Inception v3", "Mul", Description(input="Mul:0", size=299, mean=128, std=128)),
    _Known("MobileNet", "input", Description(input="input:0", mean=127.5, std=127.5)),
    _Known("a TensorFlow Hub module", "Placeholder", Description(input="Placeholder:0", mean=0, std=255)),
)


def load(graph: Path, names: Path, given: Description = NOTHING_SAID) -> tuple[Classifier, str]:
    """Load a frozen graph whose labels stand in the file ``names``, a label a line, in the order of its outputs.

    ``given`` is what is known of its input (layer, size, mean, std); its ``logits`` are the layer with the probabilities.

    Returns the classifier, and in words how the graph is used, for a person to correct.

    Raises UserError where either file is none, an op does more than compute, or what is not given cannot be guessed.
    """
    for path, kind in ((graph, "frozen graph"), (names, "file of labels")):
        if not path.is_file():
            raise UserError(f"there is no {kind} {path}; name another one")
    if graph.suffix != ".pb":
        raise UserError(f"{graph} is no frozen graph by its name, which would end with .pb; freeze the model first")
    read = formats.read(graph, given, graph.parent)
    wiring = Wiring(read.graph)
    described, known = _described(wiring, given)
    cut = frozen.cut(replace(read, description=described))
    try:
        loaded = network.of_graph(
            cut,
            given=described.input,
            output=described.bottleneck,
            size=described.size,
            mean=described.mean or 0.0,
            std=described.std or 1.0,
            half_pixel_centers=known is not None and known.half_pixel_centers,
        )
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"{graph} cannot be used ({first_line(error)}); correct what --input-layer and --output-layer name") from None
    classes = labels.lines_in(names)  # a number that a label begins with belongs to it: retrain.py wrote none
    if (count := _outputs(loaded, described)) != len(classes):
        raise UserError(
            f"{names} has {len(classes)} labels for {count} outputs of {described.bottleneck}; name the file that goes with the graph"
        )
    words = (
        f"{known.name if known else 'an unknown architecture'}: {described.input} takes {described.size} pixels a side, "
        f"(x - {described.mean:g}) / {described.std:g}; {described.bottleneck} gives the probabilities"
    )
    return Classifier(loaded, classes), words


def _described(wiring: Wiring, given: Description) -> tuple[Description, _Known | None]:
    """All that has to be known; the output is the ``bottleneck``, at which the graph is cut."""
    for flag, name in (("--input-layer", given.input), ("--output-layer", given.logits)):
        if name and node_of(name) not in wiring.nodes:
            raise UserError(f"{flag} = {name!r} is not in the graph; likely are: {', '.join(_likely(wiring, flag)) or 'none'}")
    if given.input and node_of(given.input) == ENCODED:
        given = replace(given, input="")
    known = next(
        (one for one in _KNOWN if one.node in wiring.nodes and node_of(given.input or one.input.input) == node_of(one.input.input)), None
    )
    image = wiring.nodes[node_of(given.input or (known.input.input if known else _only(wiring, "--input-layer")))]
    declared = _size_of_images(image)
    described = _of_whole_pixels(image, given).or_else(known.input if known else NOTHING_SAID)
    wiring.start_at(image.name)
    output = node_of(described.logits) or (FINAL_RESULT if FINAL_RESULT in wiring.nodes else _only(wiring, "--output-layer"))
    if output not in wiring.reached:
        raise UserError(f"{output} does not depend on {image.name}; correct --input-layer or --output-layer")
    size = described.size or declared
    if not size:
        raise UserError(f"the graph does not say how large the images are that {image.name} takes; say it with --input-size PIXELS")
    mean, std, _ = range_of(wiring, image)
    guessed = Description(input=image.name, bottleneck=output, size=size, mean=mean, std=std)
    described = replace(described, bottleneck=output, logits="", size=size).or_else(guessed)
    return replace(described, input=tensor_name(described.input), bottleneck=tensor_name(output)), known


def _size_of_images(image: tf.NodeDef) -> int:
    """Pixels a side that a placeholder declares, 0 where it does not. Raises UserError where it takes no images, or other ones."""
    kind = type_fed(image)
    if not kind.is_floating and not (kind.is_integer and kind.max >= 255):
        raise UserError(f"{image.name} takes {kind.name}, wanted are numbers from 0 to 255; name another --input-layer, or another graph")
    return size_declared(dimensions(image), 0, image.name)


def _of_whole_pixels(image: tf.NodeDef, given: Description) -> Description:
    """What is ``given``, with the range of pixels where a placeholder takes them as whole numbers. UserError if another is given."""
    kind = type_fed(image)
    if not kind.is_integer:
        return given
    for flag, value, only in (("--input-mean", given.mean, 0), ("--input-std", given.std, 1)):
        if value not in (None, only):
            raise UserError(f"{flag} = {value:g}: {image.name} takes whole pixels ({kind.name}), for which it is {only}; leave it out")
    return replace(given, mean=0.0, std=1.0)


def _only(wiring: Wiring, flag: str) -> str:
    likely = _likely(wiring, flag)
    if len(likely) != 1:
        end = "input" if flag == "--input-layer" else "output"
        raise UserError(f"the graph's {end} cannot be guessed among {', '.join(likely) or 'no likely nodes'}; say it with {flag} NAME")
    return likely[0]


def _likely(wiring: Wiring, flag: str) -> list[str]:
    if flag == "--output-layer":
        return [node.name for node in wiring.nodes.values() if node.op == "Softmax"]
    return [node.name for node in wiring.nodes.values() if node.op.startswith("Placeholder") and is_image(node)]


def _outputs(loaded: Network, described: Description) -> int:
    """How many probabilities come out, seen by running the graph once."""
    (found,) = loaded.vectors([images.blank()], [AS_IT_IS])
    if isinstance(found, BadImage):
        raise UserError(f"the graph does not run on images of {described.size} pixels a side ({found}); correct --input-size or the layers")
    if found.ndim != 1:
        raise UserError(f"{described.bottleneck} gives {list(found.shape)} numbers for an image, wanted is a row; correct --output-layer")
    return len(found)
