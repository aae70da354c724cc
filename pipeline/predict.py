"""Use an exported classifier on photos.

classifier = load(Path("exports/flowers/latest"))
for prediction in classifier.predict(paths):
    print(prediction.path, prediction.scores[0].label)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import backbones, export, files, images, network
from pipeline.errors import BadImage, UserError
from pipeline.machine import map_in_threads
from pipeline.network import Network


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
    """A network with its labels, loaded: encoded image → a probability for each label."""

    def __init__(self, network: Network, labels: list[str]) -> None:
        self._network = network
        self.labels = labels

    def predict(self, paths: Iterable[Path]) -> Iterator[Prediction]:
        """Name photos, in order, on all cores. A photo that cannot be read is a row with its problem."""
        return map_in_threads(self._predict_one, paths, self._network.threads)

    def _predict_one(self, path: Path) -> Prediction:
        try:
            probabilities = self._network(images.readable_bytes(images.read_file(path)))
        except BadImage as error:
            return Prediction(path, problem=str(error))
        scores = (Score(label, float(p)) for label, p in zip(self.labels, probabilities))
        return Prediction(path, tuple(sorted(scores, key=lambda score: -score.probability)))


def load(folder: Path) -> Classifier:
    """Load the export in ``folder``; a pointer like ``latest`` is resolved once.

    Raises UserError where its graph or its labels are not those that were exported.
    """
    folder = folder.resolve()
    if damage := files.damage(folder, contents=True, names=[export.GRAPH, export.LABELS]):
        raise UserError(f"{folder} is not a whole export ({damage}); name another one, or remove it and run the training again")
    manifest = files.read_json(folder / files.MANIFEST)
    labels = (folder / export.LABELS).read_text(encoding="utf-8").split("\n")[:-1]
    graph = export.load_network(folder / export.GRAPH, manifest["output"]["tensor"].partition(":")[0])
    return Classifier(graph, labels)


def load_pretrained(folder: Path) -> Classifier:
    """Load the backbone in ``folder`` as a classifier of the classes that it was trained on.

    Raises UserError where it has no classifier, or its classes have no names.
    """
    labels = backbones.class_names(folder)
    return Classifier(network.load(folder, backbones.SOFTMAX, batch=1), labels)
