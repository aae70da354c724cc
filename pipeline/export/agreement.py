"""Whether what was exported says of the test photos what training said: loaded in a fresh process, photo by photo.

(agreement,) = measure([Run("output_graph.pb", graph.load_network, (path, "final_result"), tolerance)], test, fresh)
agreement.problem      empty, or where it differs, and by how much
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bottlenecks, dataset, evaluation
from pipeline.console import Report, silent
from pipeline.dataset import Photo, Photos
from pipeline.errors import BadImage, UserError
from pipeline.fresh_process import FreshProcess
from pipeline.machine import map_in_threads, usable_cores
from pipeline.network import Network
from pipeline.words import readable

PHOTOS_AT_ONCE = 64
"""Photos for each core in one call of the process that runs them; between two calls cores wait for the slowest photo."""

ROUNDED = 0.25
"""What a probability may differ by where training had vectors computed in bfloat16 or float16, and the export computes in float32."""

LISTED = 5
"""Photos that a manifest names at most, of those with the largest differences."""


@dataclass(frozen=True)
class Tolerance:
    """How far an exported file may be from training.

    Attributes:
        probability: a photo differs where one of its probabilities differs by more; None: where it gets another name.
        share: of the photos that may differ; where it is not 0, one photo always may.
    """

    probability: float | None
    share: float = 0.0

    def towards(self, precision: str) -> Tolerance:
        """The tolerance towards a training on vectors that were computed in ``precision``."""
        if self.probability is None or precision == "float32":
            return self
        return dataclasses.replace(self, probability=max(self.probability, ROUNDED))

    def differ(self, trained: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Which rows differ, bool [rows], of probabilities [rows, labels]."""
        if self.probability is None:
            return np.asarray((trained.argmax(axis=1) != found.argmax(axis=1)) | ~np.isfinite(found).all(axis=1))
        return np.asarray(~(np.abs(found - trained).max(axis=1) <= self.probability))  # not a number differs, too

    def allowed(self, photos: int) -> int:
        """How many of so many photos may differ."""
        return max(1, int(self.share * photos)) if self.share else 0

    def __str__(self) -> str:
        what = "be named otherwise" if self.probability is None else f"differ by more than {self.probability:g} in a probability"
        return f"{f'{100 * self.share:g} % of the photos' if self.share else 'no photo'} may {what}"


@dataclass(frozen=True)
class TestSplit:
    """The test photos, and what training said of them.

    Attributes:
        folder: of the photos.
        photos: of the split, in the order of the index.
        labels: in the order of the outputs.
        logits: float32 [photos, labels], of the head that is exported.
    """

    __test__ = False  # not one of pytest's

    folder: Path
    photos: Sequence[Photo]
    labels: list[str]
    logits: np.ndarray

    @classmethod
    def read(cls, packed: Path, training: Path, folder: Path) -> TestSplit:
        """From the outputs of the tasks before, without reading more of them than is needed at a time."""
        labels: set[str] = set()
        photos = Photos()
        for photo in dataset.each_photo(packed / dataset.INDEX):
            labels.add(photo.label)
            if photo.split == dataset.TESTING:
                photos.append(photo)
        return cls(folder, photos, sorted(labels), np.load(training / evaluation.logits_file(dataset.TESTING), mmap_mode="r"))


@dataclass(frozen=True)
class Run:
    """An exported file that is to be run over the test photos.

    Attributes:
        called: what an error calls it.
        load, arguments: what loads it, in another process.
        tolerance: how far it may be from training.
        photos: that are run at most, at equal distances; 0 is all.
    """

    called: str
    load: Callable[..., Network]
    arguments: tuple[Hashable, ...]
    tolerance: Tolerance
    photos: int = 0

    def rows(self, count: int) -> np.ndarray:
        """Which of ``count`` test photos are run."""
        return np.arange(0, count, max(1, -(-count // self.photos)) if self.photos else 1)


@dataclass(frozen=True)
class Difference:
    """A photo, and the label whose probability differs most: in training, and as exported."""

    path: str
    label: str
    trained: float
    found: float

    def __str__(self) -> str:
        return f"{self.path}: {self.label} has the probability {self.trained:.6g} in training and {self.found:.6g} here"


@dataclass
class Agreement:
    """What comparing an exported file with training, on test photos, came to.

    Attributes:
        tolerance: what was allowed.
        photos: that were compared.
        changed: photos that were not, since they are gone or others by now.
        correct, trained_correct: photos that it names rightly, and those that training did.
        named_alike: photos that both give the same name.
        differing: photos that differ by more than is tolerated.
        largest_difference: of a probability.
    """

    tolerance: Tolerance
    photos: int = 0
    changed: int = 0
    correct: int = 0
    trained_correct: int = 0
    named_alike: int = 0
    differing: int = 0
    largest_difference: float = 0.0
    _worst: list[tuple[bool, float, Difference]] = field(default_factory=list)

    def add(self, photos: Sequence[Photo], labels: Sequence[str], trained: np.ndarray, found: np.ndarray) -> None:
        """Count some photos with their probabilities [photos, labels]."""
        differ, by = self.tolerance.differ(trained, found), np.nan_to_num(np.abs(found - trained), nan=1.0)
        names, trained_names, found_names = [photo.label for photo in photos], trained.argmax(axis=1), found.argmax(axis=1)
        self.photos += len(photos)
        self.correct += sum(labels[number] == name for number, name in zip(found_names, names))
        self.trained_correct += sum(labels[number] == name for number, name in zip(trained_names, names))
        self.named_alike += int((trained_names == found_names).sum())
        self.differing += int(differ.sum())
        self.largest_difference = max(self.largest_difference, float(by.max()))
        for row in np.lexsort((-by.max(axis=1), ~differ))[:LISTED]:
            place = int(by[row].argmax())
            difference = Difference(readable(photos[row].path), labels[place], float(trained[row, place]), float(found[row, place]))
            self._worst.append((bool(differ[row]), float(by[row, place]), difference))
        self._worst = sorted(self._worst, key=lambda ranked: ranked[:2], reverse=True)[:LISTED]

    @property
    def worst(self) -> list[Difference]:
        """The photos that differ by more than is tolerated, those that differ most first; without any, the one nearest to it."""
        return [one for differs, _, one in self._worst if differs] or [one for _, _, one in self._worst[:1]]

    @property
    def problem(self) -> str:
        """Where it differs by more than is tolerated, in words; empty where it does not."""
        if self.differing <= self.tolerance.allowed(self.photos):
            return ""
        return f"{self.differing} of {self.photos} test photos differ from training, where {self.tolerance}; {self.worst[0]}"

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "photos": self.photos,
            "changed": self.changed,
            "accuracy": self.correct / self.photos,
            "training_accuracy": self.trained_correct / self.photos,
            "named_alike": self.named_alike / self.photos,
            "largest_difference": self.largest_difference,
            "tolerance": str(self.tolerance),
            "differing": self.differing,
            "worst": [dataclasses.asdict(one) for one in self.worst],
        }


def measure(runs: Sequence[Run], test: TestSplit, fresh: FreshProcess, report: Report = silent) -> list[Agreement]:
    """Run exported files over the test photos, one after the other in a fresh process, and compare them with training.

    Raises UserError where no photo is as it was, or an exported file cannot read one that training could.
    """
    step, count = PHOTOS_AT_ONCE * usable_cores(), len(test.photos)
    pieces = [(run, run.rows(count)[start : start + step]) for run in runs for start in range(0, len(run.rows(count)), step)]
    # Nothing comes first: until the process has loaded TensorFlow, there is no speed that a report could tell.
    pieces.insert(0, (runs[0], np.arange(0)))
    calls = ((run, [test.photos[row] for row in rows], test.folder) for run, rows in pieces)
    agreements = {run: Agreement(run.tolerance) for run in runs}
    done, total = 0, sum(len(rows) for _, rows in pieces)
    for (run, rows), outcomes in zip(pieces, fresh.map_in_order(_probabilities, calls)):
        there = [number for number, outcome in enumerate(outcomes) if outcome is not None]
        agreements[run].changed += len(rows) - len(there)
        if there:
            found = np.stack([outcome for outcome in outcomes if outcome is not None])
            photos = [test.photos[row] for row in rows[there]]
            agreements[run].add(photos, test.labels, evaluation.softmax(test.logits[rows[there]]), found)
        done += len(rows)
        report(done, total)
    if not all(agreement.photos for agreement in agreements.values()):
        raise UserError(f"no test photo can be read in {test.folder} any more, so the export cannot be checked; run again")
    return list(agreements.values())


# --- In the other process ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _loaded(load: Callable[..., Network], arguments: tuple[Hashable, ...]) -> Network:
    return load(*arguments)


def _probabilities(run: Run, photos: Sequence[Photo], folder: Path) -> list[np.ndarray | None]:
    """What an exported file says of some photos, float32 [labels] each; None for a photo that is not as it was."""
    network = _loaded(run.load, run.arguments)

    def name(photo: Photo) -> np.ndarray | None:
        try:
            encoded = bottlenecks.read_encoded(photo, folder)
        except BadImage:
            return None
        try:
            return network(encoded)
        except BadImage as error:
            raise UserError(f"not exported: {run.called} cannot read {readable(photo.path)}, which training could: {error}") from None

    return list(map_in_threads(name, photos, network.threads))
