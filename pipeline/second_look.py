"""Photos that deserve a second look, found by their cached vectors: near-duplicates between splits, and suspected wrong labels.

Both take the vectors centred on their mean: what all photos have in common says nothing about two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline import evaluation
from pipeline.packed import Packed

ALIKE = 0.88
"""Cosine from which two photos count as near-duplicates. Of the flower photos, two pictures of one flower have 0.89 and 0.95,
and the nearest of two flowers 0.87."""

ROWS_AT_ONCE = 2048

MOST_PAIRS = 2_000_000_000
"""Pairs of photos that are compared; some minutes on two cores. Beyond that, not all measured photos are."""

MOST_CHECKED, MOST_SCORES = 200_000, 20_000_000
"""Photos whose labels are checked at most, and the same times the classes."""

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the ridge regression, for each photo; the one with the lowest error in cross-validation is taken."""


@dataclass(frozen=True)
class Twin:
    """A row that is nearly the same as one of another split, and the cosine of the two."""

    row: int
    twin: int
    cosine: float


@dataclass(frozen=True)
class Twins:
    """Near-duplicates, the most alike first, and how many rows were looked at of how many."""

    found: list[Twin]
    compared: int
    count: int


@dataclass(frozen=True)
class Suspect:
    """A row whose label is doubted, the number of the label that its vector speaks for, and the probabilities of the two."""

    row: int
    suggested: int
    suggested_probability: float
    label_probability: float


@dataclass(frozen=True)
class Suspects:
    """Suspected wrong labels, the most doubtful first, how many rows were looked at of how many, and how well they are named; and
    the ``absent`` labels."""

    found: list[Suspect]
    checked: int
    count: int
    accuracy: float
    absent: list[int]


def centre(packed: Packed, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of the vectors of some rows, float64 [width], and the root of their mean variance."""
    total, squares = np.zeros(packed.shape[1]), np.zeros(packed.shape[1])
    for piece in _pieces(rows):
        vectors = packed[piece].astype(np.float64)
        total += vectors.sum(axis=0)
        squares += (vectors**2).sum(axis=0)
    mean = total / len(rows)
    return mean, float(np.sqrt(max((squares / len(rows) - mean**2).mean(), 0))) or 1.0


def _pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """So many of the rows at most, at equal distances."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, max(most, 1)).astype(int)]


# --- Near-duplicates ----------------------------------------------------------------------------------------------------


def twins(packed: Packed, splits: Sequence[np.ndarray], mean: np.ndarray) -> Twins:
    """For each row of a split, the row of an earlier split that is most like it, where the two are ``ALIKE``.

    Args:
        packed: the vectors.
        splits: the rows of each, those to train on first.
        mean: of the vectors.

    Vectors are multiplied a block at a time, so that memory stays flat however many there are.
    """
    earlier, found, compared, count = splits[0], [], 0, 0
    for later in splits[1:]:
        looked_at = spread(later, MOST_PAIRS // max(len(earlier), 1))
        for piece in _pieces(looked_at):
            found += _twins_of(packed, piece, earlier, mean)
        compared, count = compared + len(looked_at), count + len(later)
        earlier = np.concatenate([earlier, later])
    return Twins(sorted(found, key=lambda twin: (-twin.cosine, twin.row)), compared, count)


def _twins_of(packed: Packed, rows: np.ndarray, others: np.ndarray, mean: np.ndarray) -> list[Twin]:
    vectors = _directions(packed[rows], mean)
    best, which = np.full(len(rows), -1.0, np.float32), np.zeros(len(rows), int)
    for piece in _pieces(others):
        cosines = vectors @ _directions(packed[piece], mean).T
        nearest = cosines.argmax(axis=1)
        cosine = cosines[np.arange(len(rows)), nearest]
        better = cosine > best
        best[better], which[better] = cosine[better], piece[nearest[better]]
    return [Twin(int(rows[i]), int(which[i]), min(float(best[i]), 1.0)) for i in np.flatnonzero(best >= ALIKE)]


def _directions(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = vectors - mean.astype(np.float32)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12))


# --- Suspected wrong labels -----------------------------------------------------------------------------------------------


def suspects(packed: Packed, rows: np.ndarray, truth: np.ndarray, classes: int) -> Suspects:
    """The rows whose vector speaks against their label, by cross-validation over the vectors.

    Each row is named by a ridge regression on all the others. Leaving one out has a closed form (Allen, 1974), so that no
    head is trained: the cost is that of one product of the vectors with themselves.

    Args:
        packed: the vectors.
        rows: those to look at.
        truth: int [rows of ``packed``], the number of each one's label.
        classes: how many labels there are.
    """
    looked_at = spread(rows, min(MOST_CHECKED, MOST_SCORES // classes))
    scores = _left_out(packed, looked_at, truth[looked_at], classes)
    of_rows = truth[looked_at]
    probabilities = evaluation.softmax(scores, evaluation.fit_temperature(scores, of_rows))
    found = [replace(one, row=int(looked_at[one.row])) for one in doubts(probabilities, of_rows)]
    return Suspects(found, len(looked_at), len(rows), evaluation.accuracy(scores, of_rows), absent(of_rows, classes))


def absent(truth: np.ndarray, classes: int) -> list[int]:
    """The numbers of the labels that no row has. They are never suggested: nothing says how probable they are for rows of theirs."""
    return np.flatnonzero(np.bincount(truth, minlength=classes) == 0).tolist()


def doubts(probabilities: np.ndarray, truth: np.ndarray) -> list[Suspect]:
    """Rows of probabilities [rows, classes], from a model that has not seen them, that speak confidently against their label.

    A row is suspected where another label is the most probable, and at least as probable as it is on average for the rows
    that have that label (confident learning: Northcutt, Jiang and Chuang, 2021).
    """
    rows, classes = probabilities.shape
    own = probabilities[np.arange(rows), truth]
    support = np.bincount(truth, minlength=classes)
    usual = np.bincount(truth, own, minlength=classes) / np.maximum(support, 1)
    best = probabilities.argmax(axis=1)
    top = probabilities[np.arange(rows), best]
    suspected = np.flatnonzero((best != truth) & (top >= usual[best]) & (support[best] > 0))
    order = suspected[np.argsort((own - top)[suspected], kind="stable")]
    return [Suspect(int(row), int(best[row]), float(top[row]), float(own[row])) for row in order]


def _left_out(packed: Packed, rows: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """What a ridge regression on all other rows says of each row, float32 [rows, classes]: 1 stands for its label, 0 for no other.

    With G the sum of x xᵀ over the rows, and h = xᵀ (G + p)⁻¹ x, the row's own share in what is said of it is h, and without
    it the prediction s becomes (s - h y) / (1 - h). In the eigenvectors of G, another penalty p costs next to nothing.
    """
    mean, scale = centre(packed, rows)
    width = packed.shape[1] + 1
    places = list(_pieces(np.arange(len(rows))))

    def inputs(place: np.ndarray) -> np.ndarray:
        return np.hstack([(packed[rows[place]] - mean) / scale, np.ones((len(place), 1))])

    products, sums = np.zeros((width, width)), np.zeros((width, classes))
    for place in places:
        vectors = inputs(place)
        products += vectors.T @ vectors
        sums += vectors.T @ np.eye(classes)[truth[place]]
    values, directions = np.linalg.eigh(products)
    values, sums = np.maximum(values, 0), directions.T @ sums

    def predicted(vectors: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
        shrunk = vectors / (values + penalty * len(rows))
        own = (shrunk * vectors).sum(axis=1, keepdims=True)
        return np.asarray((shrunk @ sums - own * wanted) / np.maximum(1 - own, 1e-6))

    errors = np.zeros(len(PENALTIES))
    for place in places:
        vectors, wanted = inputs(place) @ directions, np.eye(classes)[truth[place]]
        errors += [((predicted(vectors, wanted, penalty) - wanted) ** 2).sum() for penalty in PENALTIES]
    best = PENALTIES[int(np.argmin(errors))]
    scores = [predicted(inputs(place) @ directions, np.eye(classes)[truth[place]], best) for place in places]
    return np.concatenate(scores, dtype=np.float32)
