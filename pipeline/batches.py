"""Mini-batches of standardised bottlenecks, as a function of the seed and the step alone.

batches = Batches(packed, rows, *standardisation(statistics), seed, batch_size)
taken = batches.of(0, 50)                what steps 0 to 49 take: step 7 taken.vectors[taken.places[7]]
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.bottlenecks import Statistics
from pipeline.packed import Packed

STEPS_AT_ONCE = 50
"""Steps in one run of the session, where nothing has to be done between them."""

BYTES_AT_ONCE = 32 << 20
"""Of vectors in memory: all of them, where they are no more, or else those of the steps of one run."""


def standardisation(statistics: Statistics) -> tuple[np.ndarray, float]:
    """The mean of each feature, and one scale for all: the root of their mean variance.

    One scale, since dividing each feature by its own deviation blows up those that say little; it cost a point or more of
    accuracy on flowers.
    """
    variance = statistics.squares / max(statistics.count, 1)
    return statistics.mean.astype(np.float32), float(np.sqrt(variance.mean())) or 1.0


def batch_rows(seed: int, start: int, end: int, batch_size: int, count: int) -> np.ndarray:
    """The rows of the mini-batches from step ``start`` to before step ``end``, one after the other.

    A function of its arguments alone, so that a resumed run needs no generator's state. Epoch after epoch each row comes
    once, in another order; a batch may reach over the end of an epoch.
    """
    first, last = start * batch_size, end * batch_size
    epochs = range(first // count, (last - 1) // count + 1)
    return np.concatenate([_epoch(seed, epoch, count)[max(first - epoch * count, 0) : last - epoch * count] for epoch in epochs])


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


class Taken(NamedTuple):
    """What some steps take.

    Attributes:
        vectors: float32 [any, width], standardised.
        places: int32 [steps, batch], which of them a step takes.
        rows: int [steps, batch], where these are in the packed bottlenecks.
    """

    vectors: np.ndarray
    places: np.ndarray
    rows: np.ndarray


class Batches:
    """The mini-batches of some rows of the packed bottlenecks.

    Attributes:
        steps_at_once: how many steps may be asked for at a time.
    """

    def __init__(self, packed: Packed, rows: np.ndarray, mean: np.ndarray, scale: float, seed: int, batch_size: int) -> None:
        self._packed, self._rows, self._mean, self._scale = packed, rows, mean, scale
        self._seed, self._batch_size = seed, batch_size
        row_bytes = 4 * packed.shape[1]
        self._holds_all = len(rows) * row_bytes <= BYTES_AT_ONCE
        self.steps_at_once = STEPS_AT_ONCE if self._holds_all else max(1, min(STEPS_AT_ONCE, BYTES_AT_ONCE // (batch_size * row_bytes)))
        most = len(rows) if self._holds_all else self.steps_at_once * batch_size
        # TensorFlow copies what it is fed unless it begins at a multiple of 64 bytes, as a page does.
        self._vectors = np.frombuffer(mmap.mmap(-1, most * row_bytes), np.float32).reshape(most, -1)
        if self._holds_all:
            self._read(rows)

    def of(self, start: int, end: int) -> Taken:
        """What the steps from ``start`` to before ``end`` take; its vectors are valid until the next call."""
        places = batch_rows(self._seed, start, end, self._batch_size, len(self._rows)).reshape(end - start, -1)
        rows = self._rows[places]
        if not self._holds_all:
            self._read(rows.ravel())
            places = np.arange(rows.size).reshape(rows.shape)
        return Taken(self._vectors, places.astype(np.int32), rows)

    def _read(self, rows: np.ndarray) -> None:
        vectors = self._vectors[: len(rows)]
        np.subtract(self._packed[rows], self._mean, out=vectors)
        vectors /= self._scale
