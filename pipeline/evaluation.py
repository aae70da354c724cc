"""Figures from logits and labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset

MEASURED = (dataset.VALIDATION, dataset.TESTING)
"""The splits whose logits are kept, float32 [photos of the split, classes], rows in the order of the index."""


def logits_file(split: str) -> str:
    """The name of the file with the chosen head's logits on a split of MEASURED."""
    return f"{split}_logits.npy"


def read_logits(folder: Path) -> dict[str, np.ndarray]:
    """The chosen head's logits on the splits of MEASURED, from the folder of its training."""
    return {split: np.load(folder / logits_file(split)) for split in MEASURED}


def accuracies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For logits [rows, heads, classes], the share of rows where each head's largest one is at ``labels`` [rows]; float64 [heads]."""
    return np.asarray((logits.argmax(axis=-1) == labels[:, None]).mean(axis=0))


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean cross-entropy in nats of each head, for logits [rows, heads, classes]; float64 [heads].

    Summed in float64 in the order of the rows, so that it decides the same everywhere.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # a head that diverged has the loss nan
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=-1))
    return np.asarray((log_sums - np.take_along_axis(shifted, labels[:, None, None], axis=-1)[..., 0]).mean(axis=0))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows of ``logits`` [rows, classes] whose largest one is at ``labels`` [rows]."""
    return float(accuracies(logits[:, None], labels)[0])


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats for logits [rows, classes]."""
    return float(log_losses(logits[:, None], labels)[0])


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson, 1927): it stays within 0..1 and serves small counts too."""
    if not count:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At either end the bound is exact; the formula misses it by a rounding error.
    low = 0.0 if successes == 0 else (centre - half) / (1 + z * z / count)
    high = 1.0 if successes == count else (centre + half) / (1 + z * z / count)
    return low, high


# --- All figures of one set of photos --------------------------------------------------------------------------------

TOP = (1, 2, 3, 5, 10)
"""The k of top-k accuracy, those that are smaller than the number of classes."""

BINS = 15
"""Bins of the reliability diagram, as many as in Guo et al. (2017)."""

ROWS_AT_ONCE = 4096
"""Rows whose probabilities are in memory at a time."""


@dataclass(frozen=True)
class OfClass:
    """The figures of one class.

    Attributes:
        label: of the class.
        support: photos that are of it.
        predicted: photos that are said to be of it.
        precision: share of those said to be of it that are; None where there are none.
        recall: share of those of it that are said to be; None where there are none.
        f1: the harmonic mean of the two; None where there are no photos of it.
    """

    label: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Bin:
    """Photos whose top label is given a probability in (low, high]: their count, mean probability, and share named rightly."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities are what they say.

    Attributes:
        temperature: what the logits are divided by.
        log_loss: the mean cross-entropy in nats.
        error: the expected calibration error (ECE), the mean distance of ``confidence`` and ``accuracy`` over the photos.
        bins: those of the reliability diagram that have photos.
    """

    temperature: float
    log_loss: float
    error: float
    bins: list[Bin]


@dataclass(frozen=True)
class Confused:
    """A pair of classes: so many photos of ``label`` are taken for ``predicted``, and their share of the photos of ``label``."""

    label: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Evaluation:
    """What a classifier is worth on some photos.

    Attributes:
        labels: in the order of the outputs.
        count, correct: photos, and those named rightly.
        interval: the 95 % interval of the accuracy (Wilson).
        top_k: the share of photos whose label is among the k most probable ones, by k.
        classes: figures of each class, in the order of ``labels``.
        confusion: int [classes, classes], the true label down, the predicted one across.
        calibration: of the probabilities as they are exported.
        calibrated: of the probabilities at the temperature that was fitted on the validation photos.
    """

    labels: list[str]
    count: int
    correct: int
    interval: tuple[float, float]
    top_k: dict[int, float]
    classes: list[OfClass]
    confusion: np.ndarray
    calibration: Calibration
    calibrated: Calibration

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have photos: each class weighs the same."""
        return mean_of([of_class.f1 for of_class in self.classes])

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON has it, the shares beside the counts."""
        plain = dataclasses.asdict(dataclasses.replace(self, confusion=np.zeros(0)))
        return {
            **plain,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "confusion": self.confusion.tolist(),
            "most_confused": [dataclasses.asdict(pair) for pair in most_confused(self, most=100)],
        }


def evaluate(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], temperature: float = 1.0) -> Evaluation:
    """All figures for logits [rows, classes] and the numbers of the true labels, int [rows]; one row or more."""
    ranks = ranks_of(logits, truth)
    correct, classes = int((ranks == 0).sum()), len(labels)
    counts = confusion(logits, truth)
    return Evaluation(
        labels=list(labels),
        count=len(truth),
        correct=correct,
        interval=wilson_interval(correct, len(truth)),
        top_k={k: float((ranks < k).mean()) for k in TOP if k < classes},
        classes=of_classes(counts, labels),
        confusion=counts,
        calibration=calibration(logits, truth, 1.0),
        calibrated=calibration(logits, truth, temperature),
    )


def confusion(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Counts, int [classes, classes]: the true label down, the predicted one across. ``truth`` is int [rows]."""
    counts = np.zeros((logits.shape[1], logits.shape[1]), int)
    np.add.at(counts, (truth, logits.argmax(axis=1)), 1)
    return counts


def ranks_of(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many labels are more probable than the true one, int [rows]; of equal ones the first is, as argmax has it."""
    own = np.take_along_axis(logits, truth[:, None], axis=1)
    before = np.arange(logits.shape[1]) < truth[:, None]
    return np.asarray(((logits > own) | ((logits == own) & before)).sum(axis=1))


def of_classes(confusion: np.ndarray, labels: Sequence[str]) -> list[OfClass]:
    """Precision, recall and F1 of each class, from the counts [true, predicted]."""

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    counts = zip(labels, confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist())
    return [
        OfClass(
            label=label,
            support=support,
            predicted=predicted,
            precision=share(right, predicted),
            recall=share(right, support),
            f1=share(2 * right, support + predicted) if support else None,
        )
        for label, right, support, predicted in counts
    ]


def mean_of(shares: Sequence[float | None]) -> float:
    """The mean of those that there are."""
    there = [share for share in shares if share is not None]
    return sum(there) / len(there) if there else 0.0


def most_confused(evaluation: Evaluation, most: int) -> list[Confused]:
    """The pairs of classes that are taken for one another most often, each in one direction."""
    off = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(evaluation.labels)) for place in order if off.flat[place]]
    labels, support = evaluation.labels, evaluation.confusion.sum(axis=1)
    return [Confused(labels[i], labels[j], int(off[i, j]), float(off[i, j] / support[i])) for i, j in pairs]


def mistakes(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The rows that are named wrongly, int, those first where the wrong label has the most over the true one."""
    rows = np.arange(len(truth))
    margins = logits.max(axis=1) - logits[rows, truth]
    wrong = rows[logits.argmax(axis=1) != truth]
    return wrong[np.argsort(-margins[wrong], kind="stable")]


# --- Calibration ------------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float64, for logits [..., classes] divided by ``temperature``."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def calibration(logits: np.ndarray, truth: np.ndarray, temperature: float) -> Calibration:
    """Log loss, reliability diagram and its error at a temperature, in bins of equal width (Guo et al., 2017)."""
    pieces = [logits[start : start + ROWS_AT_ONCE] for start in range(0, len(logits), ROWS_AT_ONCE)]
    confidences = np.concatenate([softmax(piece, temperature).max(axis=1) for piece in pieces])
    right = logits.argmax(axis=1) == truth
    numbers = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(
            Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), float(confidences[inside].mean()), float(right[inside].mean()))
        )
    error = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / len(truth)
    return Calibration(temperature, log_loss(logits / temperature, truth), error, bins)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """What logits have to be divided by so that their log loss is lowest (temperature scaling, Guo et al., 2017).

    Newton's method on 1 / temperature, in which the loss is convex, between bounds that close in on the minimum. The temperature
    is 1 where there is none: the loss falls towards 0 where no row has a label more probable than its own, and towards infinity
    where the true logits are no larger than the others on average, so that all labels alike is the best that can be said.
    """
    own = np.take_along_axis(logits, truth[:, None], axis=1)[:, 0]
    if (own >= logits.max(axis=1)).all() or own.mean(dtype=np.float64) <= logits.mean(dtype=np.float64):
        return 1.0
    low, inverse, high = 0.0, 1.0, 100.0
    for _ in range(50):
        slope, curvature = _loss_by_inverse(logits, truth, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / max(curvature, 1e-12)
        # With many classes the curvature differs so much that Newton's steps alone can go back and forth for ever.
        last, inverse = inverse, newton if low <= newton <= high else (low + high) / 2
        if abs(inverse - last) < 1e-9 * last:
            break
    return 1 / inverse


def _loss_by_inverse(logits: np.ndarray, truth: np.ndarray, inverse: float) -> tuple[float, float]:
    """The first and the second derivative of the loss of all rows together by 1 / temperature."""
    slope = curvature = 0.0
    for start in range(0, len(truth), ROWS_AT_ONCE):
        piece = logits[start : start + ROWS_AT_ONCE].astype(np.float64)
        shares = softmax(piece * inverse)
        means = (shares * piece).sum(axis=1)
        slope += float((means - np.take_along_axis(piece, truth[start : start + ROWS_AT_ONCE, None], axis=1)[:, 0]).sum())
        curvature += float((shares * (piece - means[:, None]) ** 2).sum())
    return slope, curvature
