"""Bottlenecks: the vectors of all photos, computed once each, and the packed matrix that training reads.

    filled = compute(rows, folder, load, cache)     fills the cache; a photo that fails has its reason
    pack(rows, cache, width, folder)                the cache → bottlenecks.npy, and its statistics as a checkpoint

A row is a photo, or a distorted view of one.
"""

from __future__ import annotations

import contextlib
import csv
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import checkpoint, dataset, images
from pipeline.console import Report, silent
from pipeline.dataset import Photo, Photos
from pipeline.errors import BadImage, PhotoChanged, UserError
from pipeline.images import AS_IT_IS
from pipeline.machine import map_in_threads
from pipeline.network import Network
from pipeline.packed import PACKED, npy_header
from pipeline.tensorflow_v1 import session, tf
from pipeline.vector_cache import VectorCache

CHECKPOINT = "bottlenecks.ckpt"

PHOTOS_IN_A_STRETCH = 32
"""So many photos are computed as they lie on the disk; the stretches come in a random order, so that runs at the same time
seldom work on the same photo, and share what each has done."""

ROWS_PER_CHUNK = 256
"""Rows that are looked for in the cache, or packed, at a time. Statistics are added up chunk by chunk, at fixed rows, so that a
resumed run adds the same numbers in the same order."""

CHUNKS_PER_CHECKPOINT = 16


@dataclass(frozen=True)
class Filled:
    """What filling the cache came to.

    Attributes:
        different: how many of the rows have a content and a view of their own; the others share a vector with one of them.
        computed, cached: how many vectors were computed, and how many were there or came from another run meanwhile.
        damaged: paths of photos whose vector's file was damaged and made again.
        problems: why a photo has no vector, by its path.
        changed: paths of those among them whose files were not as they were when the run began.
    """

    different: int
    computed: int
    cached: int
    damaged: list[str]
    problems: dict[str, str]
    changed: list[str]


def compute(
    rows: Photos,
    folder: Path,
    load: Callable[[], Network],
    cache: VectorCache,
    *,
    drawn: Callable[[Photo], np.ndarray] = lambda row: AS_IT_IS,
    checked: Report = silent,
    report: Report = silent,
) -> Filled:
    """See to it that the cache has a vector for each row whose photo in ``folder`` can be decoded.

    A kill at any moment loses at most the photos in flight. ``load`` is called only if something has to be computed.
    ``drawn`` says how the photo of a row is distorted; ``checked`` hears how many were looked for in the cache, and
    ``report`` then how many there are.
    """
    unique = np.sort(rows.unique())
    missing = _missing(rows, unique, cache, checked)
    damaged = [row.path for row in map(rows.__getitem__, missing) if os.path.lexists(cache.path(row.sha256, row.view))]
    done = there = len(unique) - len(missing)
    computed = overtaken = 0
    reasons: dict[str, BadImage] = {}
    if len(missing):
        network = load()
        report(done, len(unique))
    while len(missing):
        changed = []
        for number, outcome in _computed(rows, missing, folder, network, drawn, cache):
            if isinstance(outcome, BadImage):
                reasons[rows[number].sha256] = outcome
                changed += [number] if isinstance(outcome, PhotoChanged) else []
            else:
                computed += outcome
                overtaken += not outcome
            done = min(done + 1, len(unique))
            report(done, len(unique))
        missing = _twins(rows, changed)
        for number in missing:
            reasons.pop(rows[number].sha256, None)
    failed = {row.path: reasons[row.sha256] for row in rows if row.sha256 in reasons} if reasons else {}
    problems = {path: str(reason) for path, reason in failed.items()}
    gone = [path for path, reason in failed.items() if isinstance(reason, PhotoChanged)]
    return Filled(len(unique), computed, there + overtaken, damaged, problems, gone)


def _missing(rows: Photos, unique: np.ndarray, cache: VectorCache, checked: Report) -> np.ndarray:
    """Those of the rows ``unique`` whose vectors are not in the cache, or damaged there."""
    chunks = [unique[start : start + ROWS_PER_CHUNK] for start in range(0, len(unique), ROWS_PER_CHUNK)]
    found: list[np.ndarray] = [np.zeros(0, int)]
    looked_at = 0
    checked(looked_at, len(unique))
    for chunk, lacking in zip(chunks, map_in_threads(lambda chunk: [not _is_cached(rows[row], cache) for row in chunk], chunks)):
        found.append(chunk[lacking])
        looked_at += len(chunk)
        checked(looked_at, len(unique))
    return np.concatenate(found)


def _computed(
    rows: Photos, missing: np.ndarray, folder: Path, network: Network, drawn: Callable[[Photo], np.ndarray], cache: VectorCache
) -> Iterator[tuple[int, BadImage | bool]]:
    """Compute and keep the vectors of the rows ``missing``; what came of each, as ``_compute_batch`` says it."""
    batches = _in_batches(missing, network.batch)

    def in_batch(batch: np.ndarray) -> list[BadImage | bool]:
        return _compute_batch([rows[row] for row in batch], folder, network, drawn, cache)

    for batch, outcomes in zip(batches, map_in_threads(in_batch, batches, network.threads)):
        yield from zip(batch.tolist(), outcomes)


def _twins(rows: Photos, changed: Sequence[int]) -> np.ndarray:
    """For each of these rows the next one with the same content, if there is one: its file may still be what it was."""
    of_content = {(rows[number].sha256, rows[number].view): number for number in changed}
    found: dict[tuple[str, int], int] = {}
    for number, row in enumerate(rows if changed else ()):
        content = row.sha256, row.view
        if number > of_content.get(content, len(rows)):
            found.setdefault(content, number)
    return np.array(sorted(found.values()), int)


def _in_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    stretch = max(PHOTOS_IN_A_STRETCH, size)
    stretches = [rows[start : start + stretch] for start in range(0, len(rows), stretch)]
    random.Random().shuffle(stretches)
    return [stretch[start : start + size] for stretch in stretches for start in range(0, len(stretch), size)]


def _is_cached(row: Photo, cache: VectorCache) -> bool:
    return cache.read(row.sha256, row.view) is not None


def _compute_batch(
    rows: Sequence[Photo], folder: Path, network: Network, drawn: Callable[[Photo], np.ndarray], cache: VectorCache
) -> list[BadImage | bool]:
    """Compute and keep some vectors. Returns for each whether it was, and not kept by another run meanwhile; or why it cannot be."""
    outcomes: list[BadImage | bool] = [not _is_cached(row, cache) for row in rows]
    encoded: dict[int, bytes] = {}
    for number, row in enumerate(rows):
        if outcomes[number]:
            try:
                encoded[number] = read_encoded(row, folder)
            except BadImage as error:
                outcomes[number] = error
    if encoded:
        vectors = network.vectors(list(encoded.values()), [drawn(rows[number]) for number in encoded])
        for number, vector in zip(encoded, vectors):
            if isinstance(vector, BadImage):
                outcomes[number] = vector
            elif not np.isfinite(vector).all():
                outcomes[number] = BadImage("the network gives numbers for it that are not finite")
            else:
                cache.write(vector, rows[number].sha256, rows[number].view)
    return outcomes


def read_encoded(row: Photo, folder: Path) -> bytes:
    """The bytes of a row's photo, as TensorFlow reads them rightly. Raises PhotoChanged where they are gone, or others by now."""
    data = dataset.read_as_indexed(row, folder)
    # The scan has looked at the header of these very bytes.
    return images.readable_bytes(data) if row.reencode else data


@dataclass
class Statistics:
    """Count, mean and sum of squared deviations of the training vectors, feature by feature, in float64."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def nothing(cls, width: int) -> Statistics:
        return cls(0, np.zeros(width), np.zeros(width))

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors [rows, width] (Chan, Golub, LeVeque 1983, which loses no digits over many rows)."""
        if not len(vectors):
            return
        rows = vectors.astype(np.float64)
        mean = rows.mean(axis=0)
        total = self.count + len(rows)
        difference = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(axis=0) + difference**2 * (self.count * len(rows) / total)
        self.mean += difference * (len(rows) / total)
        self.count = total


class _Progress(NamedTuple):
    """How many rows of a matrix are packed, the statistics of those for training, and the CRC-32 of the file up to there."""

    done: int
    statistics: Statistics
    checksum: int


class _Kept:
    """The progress of packing, as the variables of a checkpoint."""

    def __init__(self, folder: Path, width: int, running: tf.Session) -> None:
        def variable(name: str, shape: list[int], dtype: tf.DType) -> tf.Variable:
            return tf.get_variable(name, shape, dtype, tf.zeros_initializer(), use_resource=True, trainable=False)

        count, checksum = (variable(name, [], tf.int64) for name in ("count", "checksum"))
        mean_and_squares = [variable(name, [width], tf.float64) for name in ("mean", "sum_of_squares")]
        self._variables = [tf.train.get_or_create_global_step(), count, *mean_and_squares, checksum]
        self._running = running
        running.run(tf.global_variables_initializer())
        self._checkpoints = checkpoint.Checkpoints(folder, CHECKPOINT, max_to_keep=2)

    def restore(self) -> _Progress | None:
        if self._checkpoints.restore(self._running) is None:
            return None
        done, count, mean, squares, checksum = self._running.run(self._variables)
        return _Progress(int(done), Statistics(int(count), mean, squares), int(checksum))

    def save(self, progress: _Progress) -> None:
        done, statistics, checksum = progress
        values = (done, statistics.count, statistics.mean, statistics.squares, checksum)
        fed = {variable.initializer.inputs[1]: value for variable, value in zip(self._variables, values)}
        self._running.run([variable.initializer for variable in self._variables], fed)
        self._checkpoints.save(self._running, done)


def pack(rows: Sequence[Photo], cache: VectorCache, width: int, folder: Path, report: Report = silent) -> Statistics:
    """Write ``index.csv`` and, rows in its order, ``bottlenecks.npy`` (float32 [rows, width]) into ``folder``.

    A checkpoint keeps how many rows are packed (``global_step``), the statistics of the training rows among them
    (``count``, ``mean``, ``sum_of_squares``) and the CRC-32 of the file up to there (``checksum``). Called again after a
    kill, it cuts the matrix to the rows of the last checkpoint and goes on there, if they are what was written.
    """
    header = npy_header(len(rows), width)
    folder.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), session(threads=1, as_built=True) as running:
        kept = _Kept(folder, width, running)
        before = kept.restore() if _same_index(folder / dataset.INDEX, rows) else None
        if before and _crc32(folder / PACKED, len(header) + before.done * 4 * width) == before.checksum:
            start, statistics, checksum = before
        else:
            start, statistics, checksum = 0, Statistics.nothing(width), zlib.crc32(header)
            dataset.write_photos(folder / dataset.INDEX, rows)
            (folder / PACKED).write_bytes(header)
        with open(folder / PACKED, "r+b") as packed:
            packed.truncate(len(header) + start * 4 * width)
            packed.seek(0, os.SEEK_END)
            report(start, len(rows))
            for first in range(start, len(rows), ROWS_PER_CHUNK):
                chunk = rows[first : first + ROWS_PER_CHUNK]
                vectors = _read_rows(chunk, cache)
                data = vectors.tobytes()
                packed.write(data)
                checksum = zlib.crc32(data, checksum)
                statistics.add(vectors[[row.split == dataset.TRAINING for row in chunk]])
                done = first + len(chunk)
                report(done, len(rows))
                if done == len(rows) or (first // ROWS_PER_CHUNK + 1) % CHUNKS_PER_CHECKPOINT == 0:
                    packed.flush()
                    os.fsync(packed.fileno())
                    kept.save(_Progress(done, statistics, checksum))
    return statistics


def _crc32(path: Path, size: int) -> int | None:
    """Of the first ``size`` bytes of a file; None where it has not so many."""
    checksum = 0
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while size and (piece := file.read(min(size, 1 << 20))):
            checksum, size = zlib.crc32(piece, checksum), size - len(piece)
    return None if size else checksum


def _same_index(path: Path, rows: Sequence[Photo]) -> bool:
    try:
        return path.is_file() and all(one == other for one, other in zip_longest(dataset.each_photo(path), rows))
    except (ValueError, csv.Error):  # it was damaged
        return False


def _read_rows(rows: Sequence[Photo], cache: VectorCache) -> np.ndarray:
    vectors = []
    for row in rows:
        vector = cache.read(row.sha256, row.view)
        if vector is None:
            raise UserError(f"{cache.path(row.sha256, row.view)} went away or was altered during the run; run again")
        vectors.append(vector)
    return np.stack(vectors)


def read_statistics(folder: Path) -> Statistics:
    """The statistics of the training rows of the packed bottlenecks in ``folder``, from its checkpoint."""
    count, mean, squares = (checkpoint.read(folder, name) for name in ("count", "mean", "sum_of_squares"))
    return Statistics(int(count), np.asarray(mean), np.asarray(squares))  # type: ignore[call-overload]
