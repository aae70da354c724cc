"""The gate: whether a candidate may take the place of the live model, and why, in words.

Both are measured on the same photos: the candidate's test photos, without those that the live model learned from and those
of classes it does not know; and once more on those of them that the live model was tested on itself, since a batch of wrong
labels makes a candidate that has learned them look good on its own part of the test photos.

Whether a difference is real says a paired test (McNemar, "Note on the sampling error of the difference between correlated
proportions or percentages", Psychometrika 12, 1947), in its exact form and one-sided.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import changes, dataset, evaluation, files
from pipeline.console import Report
from pipeline.dataset import Photo
from pipeline.errors import PhotoChanged, UserError
from pipeline.packed import Packed
from pipeline.words import percent, readable, shortened

if TYPE_CHECKING:
    from pipeline.classifier import Classifier

ROWS_AT_ONCE = 4096
TIMED_PHOTOS, TIMES = 20, 3


@dataclass(frozen=True)
class Limits:
    """What a candidate has to keep to.

    Attributes:
        minimum_accuracy: on its test photos, in percent.
        margin: points of accuracy, in percent, by which it may lie below the live model.
        class_margin: the same for the recall of each class.
        significance: a difference is taken for real where chance gives one like it less often than this, 0..1.
        lost_labels: whether a class of the live model may be missing.
        megabytes: size of its graph at most; 0 is any.
        milliseconds: time for a photo at most, one at a time; 0 is any.
    """

    minimum_accuracy: float
    margin: float
    class_margin: float
    significance: float
    lost_labels: bool
    megabytes: float
    milliseconds: float


@dataclass(frozen=True)
class Paired:
    """Two models on the same photos."""

    photos: int
    candidate_right: int
    live_right: int
    only_candidate: int
    only_live: int

    @property
    def points(self) -> float:
        """By how much the candidate is better, in percent of the photos."""
        return 100 * (self.only_candidate - self.only_live) / self.photos

    @property
    def chance(self) -> float:
        """How often two equally good models would differ so much, or more, in the direction that these do; 0..1."""
        return tail(max(self.only_candidate, self.only_live), self.only_candidate + self.only_live)


def tail(heads: int, tosses: int) -> float:
    """The probability that a fair coin shows heads ``heads`` times or more often, in whole numbers up to the last division."""
    ways = total = math.comb(tosses, heads)
    for count in range(heads, tosses):
        ways = ways * (tosses - count) // (count + 1)
        total += ways
    return total / 2**tosses


def paired(candidate: Sequence[bool], live: Sequence[bool]) -> Paired:
    """Compare which photos the candidate and the live model named rightly."""
    only = [(ours, theirs) for ours, theirs in zip(candidate, live)]
    return Paired(len(only), sum(candidate), sum(live), only.count((True, False)), only.count((False, True)))


@dataclass(frozen=True)
class Measured:
    """What the gate knows of a candidate.

    Attributes:
        correct, photos: how many of its test photos it names rightly, and how many there are.
        labels: its classes.
        megabytes: size of its graph.
        milliseconds: for a photo; None where there is no limit.
    """

    correct: int
    photos: int
    labels: Sequence[str]
    megabytes: float
    milliseconds: float | None

    @property
    def accuracy(self) -> float:
        """In percent. Of the counts, since 100 times a rounded share can lie below a limit that is met exactly."""
        return 100 * self.correct / self.photos


@dataclass(frozen=True)
class Rival:
    """The live model, measured for the comparison.

    Attributes:
        name: of its version.
        labels: its classes.
        truth, candidate, live: the label of each photo that both are compared on, and what each model takes it for.
        tested: whether the live model was tested on that photo itself, under the same label.
        learned: test photos of the candidate that were left out, since the live model learned from them.
        unknown: those left out because the live model does not know their class.
    """

    name: str
    labels: Sequence[str]
    truth: Sequence[str]
    candidate: Sequence[str]
    live: Sequence[str]
    tested: Sequence[bool]
    learned: int
    unknown: int


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is accepted; what speaks against it; and all that was looked at. Sentences without a full stop."""

    accepted: bool
    against: tuple[str, ...]
    findings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def words(self) -> str:
        """In one line."""
        return f"accepted: {self.findings[0]}" if self.accepted else f"rejected: {'; '.join(self.against)}"


def judge(limits: Limits, candidate: Measured, rival: Rival | None) -> Verdict:
    """Judge a candidate by its own figures and, where there is one, against the live model."""
    against = list(_by_itself(limits, candidate))
    if rival is None:
        return Verdict(not against, tuple(against), ("the first version, so there is nothing to compare it with", *against))
    findings = []
    lost = sorted(set(rival.labels) - set(candidate.labels))
    if lost:
        said = f"classes of the live model that are lost: {shortened([readable(label) for label in lost])}"
        findings.append(said)
        if not limits.lost_labels:
            against.append(f"{said} (allowed with gate_lost_labels = true)")
    if rival.truth:
        for said, is_against in _compare(limits, rival):
            findings.append(said)
            if is_against:
                against.append(said)
        # What people read first is the comparison.
        findings = findings[bool(lost) :] + findings[: bool(lost)]
    else:
        against.append(
            f"it cannot be compared with {rival.name}, which has learned from all of its test photos, or knows none of their classes "
            "(gate = false publishes without a comparison)"
        )
    if rival.learned or rival.unknown:
        findings.append(
            f"left out of the comparison: {rival.learned} photos that the live model learned from, "
            f"{rival.unknown} of classes it does not know"
        )
    return Verdict(not against, tuple(against), (*findings, *(said for said in against if said not in findings)))


def _by_itself(limits: Limits, candidate: Measured) -> list[str]:
    against = []
    if candidate.accuracy < limits.minimum_accuracy:
        against.append(f"test accuracy {candidate.accuracy:.1f} % is below gate_minimum_accuracy = {limits.minimum_accuracy:g}")
    if limits.megabytes and candidate.megabytes > limits.megabytes:
        against.append(f"its graph has {candidate.megabytes:.1f} MB, more than gate_megabytes = {limits.megabytes:g}")
    if limits.milliseconds and candidate.milliseconds is not None and candidate.milliseconds > limits.milliseconds:
        against.append(f"it takes {candidate.milliseconds:.1f} ms for a photo, more than gate_milliseconds = {limits.milliseconds:g}")
    return against


def _compare(limits: Limits, rival: Rival) -> list[tuple[str, bool]]:
    """Sentences on the comparison, each with whether it speaks against the candidate."""
    everywhere = range(len(rival.truth))
    tested = [row for row in everywhere if rival.tested[row]]
    told = [_accuracies(limits, rival, everywhere, f"{len(rival.truth)} photos" if len(rival.truth) != 1 else "photo")]
    if 0 < len(tested) < len(rival.truth):
        told.append(_accuracies(limits, rival, tested, f"{len(tested)} of them that {rival.name} was tested on"))
    if fallen := _fallen(limits, rival):
        told.append((f"classes that fall by more than gate_class_margin = {limits.class_margin:g}: {shortened(fallen)}", True))
    return told


def _fallen(limits: Limits, rival: Rival) -> list[str]:
    """The classes that fall by more than they may, the one that falls most first."""
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(rival.truth):
        rows_of.setdefault(label, []).append(row)
    found = sorted(((label, _paired(rival, rows)) for label, rows in rows_of.items()), key=lambda one: one[1].points)
    return [
        f"{readable(label)} to {percent(of_class.candidate_right / of_class.photos)} from {percent(of_class.live_right / of_class.photos)} "
        f"of {of_class.photos} photos"
        for label, of_class in found
        if of_class.points < -limits.class_margin and of_class.chance < limits.significance
    ]


def _accuracies(limits: Limits, rival: Rival, rows: Sequence[int], which: str) -> tuple[str, bool]:
    found = _paired(rival, rows)
    is_worse = found.points < -limits.margin and found.chance < limits.significance
    said = (
        f"{percent(found.candidate_right / found.photos)} against {percent(found.live_right / found.photos)} of {rival.name} "
        f"on the same {which} ({_difference(found, limits)})"
    )
    return (f"{said}, more than gate_margin = {limits.margin:g} allows" if is_worse else said), is_worse


def _paired(rival: Rival, rows: Sequence[int]) -> Paired:
    return paired([rival.candidate[row] == rival.truth[row] for row in rows], [rival.live[row] == rival.truth[row] for row in rows])


def _difference(found: Paired, limits: Limits) -> str:
    if found.only_candidate == found.only_live:
        return "no difference"
    means = "a real difference" if found.chance < limits.significance else "chance explains that"
    return f"{found.only_candidate} better, {found.only_live} worse: {means}, p = {found.chance:.2g}"


# --- The measuring ------------------------------------------------------------------------------------------------------


def measure_rival(
    version: Path,
    packed: Path,
    training: Path,
    photos_folder: Path,
    labels: Sequence[str],
    *,
    same_vectors: bool,
    load: Callable[[Path], Classifier],
    progress: Report,
) -> Rival:
    """Ask the live model about the candidate's test photos.

    Args:
        version: the folder of the live version.
        packed, training: outputs of the candidate's ComputeBottlenecks and TrainFinalLayer.
        photos_folder: where the photos are.
        labels: the candidate's, in the order of its outputs.
        same_vectors: whether the live model would compute the same bottlenecks as those in ``packed``, so that they serve it.
        load: the classifier of a folder, for where they do not.

    Raises UserError where it is asked by the photos and one of them is not as it was when the run began.
    """
    manifest = files.read_json(version / files.MANIFEST)
    testing = [(row, photo) for row, photo in enumerate(dataset.each_photo(packed / dataset.INDEX)) if photo.split == dataset.TESTING]
    guesses = evaluation.read_logits(training)[dataset.TESTING].argmax(axis=1)
    before = _photos_of(version, {photo.sha256 for _, photo in testing})
    learned = {sha256 for sha256, photo in before.items() if photo.split != dataset.TESTING}
    known = set(manifest["labels"])
    asked = [
        (row, photo, labels[guess]) for (row, photo), guess in zip(testing, guesses) if photo.sha256 not in learned and photo.label in known
    ]
    photos = [photo for _, photo, _ in asked]
    if same_vectors:
        theirs = _from_vectors(version, manifest, Packed(packed), [row for row, _, _ in asked])
    else:
        theirs = _from_photos(load(version), photos, photos_folder, progress)
    left_out = sum(photo.sha256 in learned for _, photo in testing)
    return Rival(
        name=version.name,
        labels=manifest["labels"],
        truth=[photo.label for photo in photos],
        candidate=[guess for _, _, guess in asked],
        live=theirs,
        tested=[photo.sha256 in before and before[photo.sha256].label == photo.label for photo in photos],
        learned=left_out,
        unknown=len(testing) - left_out - len(asked),
    )


def _photos_of(version: Path, contents: Collection[str]) -> dict[str, Photo]:
    """Those of the version's own photos that have one of these contents, by content."""
    if not (version / changes.PHOTOS).is_file():
        return {}
    return {photo.sha256: photo for photo in changes.each_photo(version / changes.PHOTOS) if photo.sha256 in contents}


def _from_vectors(version: Path, manifest: dict[str, Any], packed: Packed, rows: Sequence[int]) -> list[str]:
    from pipeline import export
    from pipeline.tensorflow_v1 import session, tf

    answers: list[str] = []
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(version / export.GRAPH, manifest["output"]["tensor"].partition(":")[0])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            vectors = packed[list(rows[start : start + ROWS_AT_ONCE])]
            numbers = running.run(tensors.probabilities, {tensors.bottleneck: vectors}).argmax(axis=1)
            answers += [manifest["labels"][number] for number in numbers]
    return answers


def _from_photos(classifier: Classifier, photos: Sequence[Photo], folder: Path, progress: Report) -> list[str]:
    """The label of each photo. Raises UserError where one is not as it was: a verdict without it would be kept."""
    answers: list[str] = []
    progress(0, len(photos))
    for photo, prediction in zip(photos, classifier.predict(folder / photo.path for photo in photos)):
        if prediction.problem or files.sha256_file(prediction.path) != photo.sha256:
            problem = prediction.problem or "it changed while the run was going on"
            raise UserError(f"{readable(str(prediction.path))}: {problem}, so the live model cannot be asked about it; run again")
        answers.append(prediction.scores[0].label)
        progress(len(answers), len(photos))
    return answers


def milliseconds_a_photo(classifier: Classifier, photos: Sequence[Photo], folder: Path) -> float:
    """The median time for a photo, from its bytes, one at a time: of TIMES runs each the fastest, to leave out other load.

    Raises UserError where one is not as it was: there would be nothing to name, which is fast.
    """

    def once(encoded: bytes) -> float:
        started = time.perf_counter()
        classifier.probabilities(encoded)
        return 1000 * (time.perf_counter() - started)

    fastest = []
    for photo in photos:
        try:
            encoded = dataset.read_as_indexed(photo, folder)
        except PhotoChanged as error:
            raise UserError(
                f"{readable(str(folder / photo.path))}: {error}, so the candidate cannot be timed with it; run again"
            ) from error
        fastest.append(min(once(encoded) for _ in range(TIMES)))
    return statistics.median(fastest)
