"""A classifier, loaded: photos → their labels with probabilities, on all cores, a few photos at a time.

classifier = load(folder)
for prediction in classifier.predict(paths):
    print(prediction.path, prediction.scores[0].label)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline import backbones, export, files, images, network
from pipeline.errors import BadImage, UserError
from pipeline.images import AS_IT_IS
from pipeline.machine import map_in_threads
from pipeline.network import Network
from pipeline.tensorflow_v1 import tf


@dataclass(frozen=True)
class Score:
    """A label and its probability, 0..1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one photo: all labels, the most probable first, or the problem with the photo."""

    path: Path
    scores: tuple[Score, ...] = ()
    problem: str = ""


class Classifier:
    """A network with its labels. May be used from several threads at once.

    Attributes:
        labels: in the order of the network's outputs.
    """

    def __init__(self, network: Network, labels: list[str]) -> None:
        self._network = network
        self.labels = labels

    def predict(self, photos: str | Path | Iterable[str | Path]) -> Iterator[Prediction]:
        """Name photos, in order, as fast as all cores can. A photo that cannot be read is a row with its problem.

        Photos are read as the rows are asked for, some ahead, so that there may be any number of them.
        """
        paths = map(Path, [photos] if isinstance(photos, (str, Path)) else photos)
        batches = iter(lambda: list(islice(paths, self._network.batch)), [])
        for predictions in map_in_threads(self._predict_batch, batches, self._network.threads):
            yield from predictions

    def probabilities(self, encoded: bytes) -> np.ndarray:
        """The probabilities of one image in any format that is read here, float32 [labels]. Raises BadImage."""
        return self._network(images.readable_bytes(encoded))

    def _predict_batch(self, paths: list[Path]) -> list[Prediction]:
        found: dict[int, bytes | np.ndarray | BadImage] = {}
        for place, path in enumerate(paths):
            try:
                found[place] = images.readable_bytes(images.read_file(path))
            except BadImage as error:
                found[place] = error
        readable = {place: data for place, data in found.items() if isinstance(data, bytes)}
        if readable:
            found.update(zip(readable, self._network.vectors(list(readable.values()), [AS_IT_IS] * len(readable))))
        return [self._prediction(path, found[place]) for place, path in enumerate(paths)]

    def _prediction(self, path: Path, found: bytes | np.ndarray | BadImage) -> Prediction:
        if isinstance(found, BadImage):
            return Prediction(path, problem=str(found))
        scores = (Score(label, float(p)) for label, p in zip(self.labels, found))
        return Prediction(path, tuple(sorted(scores, key=lambda score: -score.probability)))


def load(folder: Path, *, batch: int | None = None) -> Classifier:
    """Load the export in ``folder``; a pointer like ``latest`` is resolved once.

    ``batch`` is how many photos go through the network together, if not as many as are best for many photos.

    Raises UserError where its graph or its labels are not those that were exported.
    """
    folder = folder.resolve()
    if damage := files.damage(folder, contents=True, names=[export.GRAPH, export.LABELS]):
        raise UserError(f"{folder} is not a whole export ({damage}); name another one, or remove it and run the training again")
    manifest = files.read_json(folder / files.MANIFEST)
    labels = (folder / export.LABELS).read_text(encoding="utf-8").split("\n")[:-1]
    image = manifest["inputs"][export.IMAGE_INPUT]
    definition = tf.GraphDef.FromString((folder / export.GRAPH).read_bytes())
    # Its other input, image_bytes, decodes photos one after the other.
    loaded = network.of_graph(definition, given=image["tensor"], output=manifest["output"]["tensor"], size=image["shape"][1], batch=batch)
    return Classifier(loaded, labels)


def load_pretrained(folder: Path) -> Classifier:
    """Load the backbone in ``folder`` as a classifier of the classes that it was trained on.

    Raises UserError where it has no classifier, or its classes have no names.
    """
    labels = backbones.class_names(folder)
    return Classifier(network.load(folder, backbones.SOFTMAX), labels)
