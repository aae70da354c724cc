"""What was found of a classifier on some photos, before it is told to anybody."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline import evaluation
from pipeline.dataset import Photo
from pipeline.evaluation import Evaluation


@dataclass(frozen=True)
class Mistake:
    """A photo that is named wrongly, with the three most probable labels and their probabilities."""

    photo: Photo
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Suspected:
    """A photo whose label is doubted."""

    photo: Photo
    suggested: str
    suggested_probability: float
    label_probability: float


@dataclass(frozen=True)
class TwinPhotos:
    """A photo that is nearly the same as one of another split."""

    photo: Photo
    twin: Photo
    cosine: float


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        data: name of the data set that the classifier is of.
        measured_on: what the measured photos are: "test", or "new".
        photos_folder: where the photos lie.
        measured, logits, truth: the photos that were measured, float32 [photos, labels], and the numbers of their labels.
        evaluation: the figures of these.
        all_photos: those of the other splits too.
        suspects: photos whose labels are doubted, the most doubtful first.
        checked: photos whose labels were looked at.
        not_suggested: labels that none of these has, and that therefore cannot be suggested.
        by_cross_validation: whether that was by a model of its own, or by the classifier, which has not seen the photos.
        twins: near-duplicates between splits; None where there are no splits.
        compared: photos for which a near-duplicate was looked for, and those for which one could have been.
        skipped: files that were left out, each with its problem.
        drawn: name of the data set, where its pictures are drawn.
        learned: how many of the measured photos the classifier has learned from.
    """

    data: str
    measured_on: str
    photos_folder: Path
    measured: Sequence[Photo]
    logits: np.ndarray
    truth: np.ndarray
    evaluation: Evaluation
    all_photos: Sequence[Photo]
    suspects: Sequence[Suspected]
    checked: int
    not_suggested: Sequence[str]
    by_cross_validation: bool
    twins: Sequence[TwinPhotos] | None
    compared: tuple[int, int]
    skipped: Sequence[Photo]
    drawn: str
    learned: int = 0

    @cached_property
    def in_split(self) -> collections.Counter[str]:
        """How many of all photos each split has."""
        return collections.Counter(photo.split for photo in self.all_photos)

    def mistakes(self, most: int | None = None) -> Iterator[Mistake]:
        """The photos that are named wrongly, the surest mistakes first."""
        for row in evaluation.mistakes(self.logits, self.truth)[:most]:
            shares = evaluation.softmax(self.logits[row])
            best = np.argsort(-shares, kind="stable")[:3]
            yield Mistake(self.measured[row], [(self.evaluation.labels[i], float(shares[i])) for i in best])

    @property
    def accuracy_without_twins(self) -> float | None:
        """The accuracy on the measured photos that are not nearly the same as one of another split, if there are some."""
        if not self.twins:
            return None
        paths = {one.photo.path for one in self.twins} | {one.twin.path for one in self.twins}
        kept = np.array([photo.path not in paths for photo in self.measured])
        return evaluation.accuracy(self.logits[kept], self.truth[kept]) if kept.any() else None
