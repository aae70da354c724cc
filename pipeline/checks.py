"""Checks of the photos and their vectors before anything is trained, most of them against the version that is live.

changed, outcomes = since(live, photos, skipped, limits)   how many, labels, shares, duplicates, unreadable files
outcomes += [of_vectors(ours, theirs, version, limit)]     how far the vectors of each class have moved
stop(outcomes, {"photos"})                                 raises where one that is to stop the run is not fine

Whether an outcome is a warning or a stop is decided by whoever runs it, each time anew.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import changes, files
from pipeline.dataset import INDEX, LISTED, Photo, Photos, read_photos
from pipeline.errors import UserError
from pipeline.packed import Packed
from pipeline.words import readable, shortened

NAMES = ("photos", "labels", "relabelled", "shares", "drift", "duplicates")
"""The checks that can be a warning or a stop. Unreadable files stop a run above their limit before anything else is looked at."""

STATISTICS = "class_statistics.npz"
"""In a version: count, mean and variance of the vectors of each class, which the next run compares with."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Outcome:
    """What one check came to.

    Attributes:
        check: its name.
        fine: whether it found nothing to stop at.
        sentence: the value, the limit, and where it is not fine the next step.
        classes: figures by class, the LISTED largest, where the check has some.
    """

    check: str
    fine: bool
    sentence: str
    classes: dict[str, float] = dataclasses.field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Outcome:
        return cls(**value)


@dataclass(frozen=True)
class Limits:
    """Above what a check of the photos is not fine.

    Attributes:
        photos_fall: how many percent fewer there are.
        class_share: by how many percentage points the share of a class has changed.
        relabelled: how many percent of the photos of before have another label now.
        unreadable: files that cannot be used, in percent; above it the index has stopped already.
    """

    photos_fall: float
    class_share: float
    relabelled: float
    unreadable: float

    @classmethod
    def of(cls, settings: object) -> Limits:
        """As the attributes ``photos_fall_limit`` and so on have them."""
        return cls(**{field.name: getattr(settings, f"{field.name}_limit") for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Before:
    """What a version was made of: its name, its photos by class, and how many of them have another label now."""

    version: str
    classes: Mapping[str, int]
    relabelled: int

    @classmethod
    def of(cls, version: str, photos: Iterable[Photo], relabelled: int) -> Before:
        return cls(version, collections.Counter(photo.label for photo in photos), relabelled)


def since(live: Path | None, photos: Photos, skipped: int, limits: Limits) -> tuple[dict[str, Any] | None, list[Outcome]]:
    """What changed in the photos since the version ``live``, None without one, and the checks that need no vectors."""
    if live is None:
        return None, of_photos(photos, skipped, None, limits)
    found = changes.between(changes.each_photo(live / changes.PHOTOS), photos)
    before = Before.of(live.name, changes.each_photo(live / changes.PHOTOS), found.relabelled.count)
    return {"version": live.name, **found.as_json()}, of_photos(photos, skipped, before, limits)


def of_photos(photos: Photos, skipped: int, before: Before | None, limits: Limits) -> list[Outcome]:
    """The checks that need no vectors.

    Args:
        photos: those that can be used.
        skipped: how many files cannot.
        before: what they are compared with, if there is something.
    """
    classes = collections.Counter(photos.counts())
    outcomes = [
        _unreadable(skipped, classes.total(), limits.unreadable),
        _duplicates(len({photos[row].sha256 for row in photos.of_several_labels()})),
    ]
    if before:
        fall, shares = _fall(classes, before, limits.photos_fall), _shares(classes, before, limits.class_share)
        outcomes = [fall, _labels(classes, before), _relabelled(before, limits.relabelled), shares, *outcomes]
    return outcomes


def _fall(classes: collections.Counter[str], before: Before, limit: float) -> Outcome:
    now, then = classes.total(), sum(before.classes.values())
    fall = 100 * (then - now) / max(then, 1)
    change = "as many as" if now == then else f"{abs(fall):.1f} % {'fewer' if fall > 0 else 'more'} than"
    sentence = f"{now:,} photos, {change} the {then:,} of {before.version} (limit: {limit:g} % fewer)"
    step = "; look for what is missing, or raise photos_fall_limit if they are meant to be gone"
    return Outcome("photos", fall <= limit, sentence + (step if fall > limit else ""))


def _labels(classes: Mapping[str, int], before: Before) -> Outcome:
    lost, new = (sorted(map(readable, one)) for one in (set(before.classes) - set(classes), set(classes) - set(before.classes)))
    if not lost and not new:
        return Outcome("labels", True, f"the {len(classes)} labels of {before.version}")
    parts = [f"{len(labels)} {what} ({shortened(labels)})" for what, labels in (("lost", lost), ("new", new)) if labels]
    step = "whoever uses the classifier has to know of it; if it is not meant, put the folders or the table right"
    return Outcome("labels", False, f"labels against {before.version}: {', '.join(parts)} (limit: none); {step}")


def _relabelled(before: Before, limit: float) -> Outcome:
    then = sum(before.classes.values())
    share = 100 * before.relabelled / max(then, 1)
    sentence = f"{before.relabelled:,} of the {then:,} photos of {before.version} have another label now, {share:.1f} % (limit {limit:g} %)"
    step = "; look whether folders were mixed up, or raise relabelled_limit if they are meant to have it"
    return Outcome("relabelled", share <= limit, sentence + (step if share > limit else ""))


def _shares(classes: collections.Counter[str], before: Before, limit: float) -> Outcome:
    now, then = max(classes.total(), 1), max(sum(before.classes.values()), 1)
    pairs = {label: (before.classes.get(label, 0), classes[label]) for label in {*classes, *before.classes}}
    # In whole numbers up to the division, so that a change of exactly the limit is none above it.
    points = {label: 100 * abs(new * then - old * now) / (now * then) for label, (old, new) in pairs.items()}
    worst = max(sorted(points), key=points.__getitem__)
    old, new = pairs[worst]
    sentence = (
        f"share of a class against {before.version}: at most {points[worst]:.1f} points "
        f"({readable(worst)}, {100 * old / then:.1f} to {100 * new / now:.1f} %; limit {limit:g})"
    )
    fine = points[worst] <= limit
    step = "" if fine else "; look whether a batch of photos went into the wrong class, or raise class_share_limit"
    return Outcome("shares", fine, sentence + step, _largest_first(points))


def _duplicates(count: int) -> Outcome:
    if not count:
        return Outcome("duplicates", True, "no photo has two labels")
    step = "keep each under the label that is right; IndexImages names the first of them"
    return Outcome("duplicates", False, f"photos under more than one label: {count:,} (limit: none); {step}")


def _unreadable(skipped: int, good: int, limit: float) -> Outcome:
    share = 100 * skipped / max(skipped + good, 1)
    return Outcome("unreadable", True, f"{skipped:,} of {skipped + good:,} files cannot be used, {share:.1f} % (limit {limit:g} %)")


def _largest_first(figures: Mapping[str, float]) -> dict[str, float]:
    return {readable(label): round(figures[label], 4) for label in sorted(figures, key=lambda label: (-figures[label], label))[:LISTED]}


def stop(outcomes: Sequence[Outcome], stopping: Collection[str]) -> None:
    """Raise UserError where a check that is in ``stopping`` is not fine."""
    bad = [outcome for outcome in outcomes if not outcome.fine and outcome.check in stopping]
    if bad:
        others = "without it" if len(bad) == 1 else "without them"
        names = ",".join(outcome.check for outcome in bad)
        raise UserError(
            f"nothing is trained: {'; and '.join(outcome.sentence for outcome in bad)} (stop_on has {names}; {others} it is a warning)"
        )


# --- Vectors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassStatistics:
    """Of the vectors of each class.

    Attributes:
        vectors: names what computed them; those of different networks cannot be compared.
        labels: sorted.
        count: int64 [classes].
        mean, variance: float32 [classes, width].
    """

    vectors: str
    labels: list[str]
    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def write(self, path: Path) -> None:
        with files.open_atomic(path, "wb") as file:
            np.savez(
                file,
                vectors=np.array(self.vectors),
                labels=np.array(self.labels),
                count=self.count,
                mean=self.mean,
                variance=self.variance,
            )

    @classmethod
    def read(cls, path: Path) -> ClassStatistics:
        with np.load(path, allow_pickle=False) as kept:
            return cls(str(kept["vectors"]), kept["labels"].tolist(), kept["count"], kept["mean"], kept["variance"])


def statistics(packed: Path, vectors: str) -> ClassStatistics:
    """The statistics of the packed bottlenecks of all photos, distorted views left out, in one pass over the file.

    What is held is classes × width, however many photos there are.
    """
    matrix = Packed(packed)
    rows = read_photos(packed / INDEX)
    places = np.flatnonzero(rows.column("view") == 0)
    labels, truth = rows.labels()
    truth = truth[places]
    count = np.bincount(truth, minlength=len(labels))
    sums, squares = (np.zeros((len(labels), matrix.shape[1])) for _ in range(2))
    for first in range(0, len(places), ROWS_AT_ONCE):
        chunk = truth[first : first + ROWS_AT_ONCE]
        order = np.argsort(chunk, kind="stable")
        classes, starts = np.unique(chunk[order], return_index=True)
        values = matrix[places[first : first + ROWS_AT_ONCE][order]].astype(np.float64)
        sums[classes] += np.add.reduceat(values, starts)
        squares[classes] += np.add.reduceat(values**2, starts)
    mean = sums / count[:, None]
    variance = np.maximum(squares / count[:, None] - mean**2, 0)
    return ClassStatistics(vectors, labels, count, mean.astype(np.float32), variance.astype(np.float32))


def drift(ours: ClassStatistics, theirs: ClassStatistics) -> dict[str, float]:
    """How far the mean vector of each class has moved, by label: 0 is not at all, 1 is as far as photos of one class lie apart.

    It is the distance of the two means over the root of the variance within the classes (as Cohen's d, over all features at
    once), less what the means of two samples of so many photos differ by where nothing changed.
    """
    within = float((theirs.count[:, None] * theirs.variance).sum() / _freedom(theirs.count).sum()) or np.finfo(np.float32).tiny
    figures = {}
    place = {label: number for number, label in enumerate(theirs.labels)}
    for i, label in enumerate(ours.labels):
        if label not in place:
            continue
        j = place[label]
        moved = np.square(ours.mean[i] - theirs.mean[j], dtype=np.float64).sum()
        by_chance = _by_chance(ours, i) + _by_chance(theirs, j)
        figures[label] = float(np.sqrt(max(moved - by_chance, 0) / within))
    return figures


def _by_chance(statistics: ClassStatistics, number: int) -> float:
    """The squared standard error of the mean of a class, over all features."""
    return float(statistics.variance[number].sum() / _freedom(statistics.count)[number])


def _freedom(count: np.ndarray) -> np.ndarray:
    """Degrees of freedom of so many photos: the variance of few is smaller than that of all, by n - 1 to n (Bessel)."""
    return np.maximum(count - 1, 1)


def of_vectors(ours: ClassStatistics, theirs: ClassStatistics, version: str, limit: float) -> Outcome:
    """Whether the vectors of a class have moved further than the limit since a version."""
    if ours.vectors != theirs.vectors:
        return Outcome("drift", True, f"drift is not compared: the vectors of {version} are another network's")
    figures = drift(ours, theirs)
    if not figures:
        return Outcome("drift", True, f"drift is not compared: no class is one of {version}")
    worst = max(sorted(figures), key=figures.__getitem__)
    fine = figures[worst] <= limit
    step = "" if fine else "; look at what came to that class and what left it, or raise drift_limit"
    sentence = f"drift of the vectors of a class against {version}: at most {figures[worst]:.2f} ({readable(worst)}; limit {limit:g})"
    return Outcome("drift", fine, sentence + step, _largest_first(figures))
