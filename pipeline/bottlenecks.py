"""Bottlenecks: the vectors of all photos, computed once each, and the packed matrix that training reads.

    filled = compute(rows, folder, load, cache)     fills the cache; a photo that fails has its reason
    pack(rows, cache, width, folder)                the cache → bottlenecks.npy, and its statistics as a checkpoint

A row is a photo, or a distorted view of one.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from pipeline import checkpoint, dataset, files, images
from pipeline.console import Report
from pipeline.dataset import Photo, Photos
from pipeline.errors import BadImage, PhotoChanged, UserError
from pipeline.images import AS_IT_IS
from pipeline.machine import map_in_threads
from pipeline.network import Network
from pipeline.packed import INDEX, PACKED
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
        computed, cached: how many vectors were computed, and how many were there or came from another run meanwhile.
        damaged: paths of photos whose vector's file was damaged and made again.
        problems: why a photo has no vector, by its path.
        changed: paths of those among them whose files were not as they were when the run began.
    """

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
    checked: Report = lambda done, total: None,
    report: Report = lambda done, total: None,
) -> Filled:
    """See to it that the cache has a vector for each row whose photo in ``folder`` can be decoded.

    A kill at any moment loses at most the photos in flight. ``load`` is called only if something has to be computed.
    ``drawn`` says how the photo of a row is distorted; ``checked`` hears how many were looked for in the cache, and
    ``report`` then how many there are.
    """
    unique = np.sort(rows.unique())
    chunks = [unique[start : start + ROWS_PER_CHUNK] for start in range(0, len(unique), ROWS_PER_CHUNK)]
    found: list[np.ndarray] = [np.zeros(0, int)]
    looked_at = 0
    checked(looked_at, len(unique))
    for chunk, lacking in zip(chunks, map_in_threads(lambda chunk: [not _is_cached(rows[row], cache) for row in chunk], chunks)):
        found.append(chunk[lacking])
        looked_at += len(chunk)
        checked(looked_at, len(unique))
    missing = np.concatenate(found)
    damaged = [row.path for row in map(rows.__getitem__, missing) if os.path.lexists(cache.path(row.sha256, row.view))]
    there = len(unique) - len(missing)
    computed = overtaken = 0
    reasons: dict[str, BadImage] = {}
    if len(missing):
        network = load()
        report(there, len(unique))
        done = 0
        batches = _in_batches(missing, network.batch)

        def in_batch(batch: np.ndarray) -> list[BadImage | bool]:
            return _compute_batch([rows[row] for row in batch], folder, network, drawn, cache)

        for batch, outcomes in zip(batches, map_in_threads(in_batch, batches, network.threads)):
            for row, outcome in zip(batch, outcomes):
                if isinstance(outcome, BadImage):
                    reasons[rows[row].sha256] = outcome
                else:
                    computed += outcome
                    overtaken += not outcome
            done += len(batch)
            report(there + done, len(unique))
    failed = {row.path: reasons[row.sha256] for row in rows if row.sha256 in reasons} if reasons else {}
    problems = {path: str(reason) for path, reason in failed.items()}
    changed = [path for path, reason in failed.items() if isinstance(reason, PhotoChanged)]
    return Filled(computed, there + overtaken, damaged, problems, changed)


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
    try:
        data = images.read_file(folder / row.path)
    except BadImage as error:
        raise PhotoChanged(str(error)) from error
    if files.sha256_bytes(data) != row.sha256:
        raise PhotoChanged("it changed while the run was going on; the next run takes it as it is then")
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


class _Kept:
    """How far a matrix is packed, and the statistics up to there, as the variables of a checkpoint."""

    def __init__(self, folder: Path, width: int, running: tf.Session) -> None:
        def variable(name: str, shape: list[int], dtype: tf.DType) -> tf.Variable:
            return tf.get_variable(name, shape, dtype, tf.zeros_initializer(), use_resource=True, trainable=False)

        squares_and_mean = [variable(name, [width], tf.float64) for name in ("mean", "sum_of_squares")]
        self._variables = [tf.train.get_or_create_global_step(), variable("count", [], tf.int64), *squares_and_mean]
        self._running = running
        running.run(tf.global_variables_initializer())
        self._checkpoints = checkpoint.Checkpoints(folder, CHECKPOINT, max_to_keep=2)

    def restore(self) -> tuple[int, Statistics] | None:
        if self._checkpoints.restore(self._running) is None:
            return None
        done, count, mean, squares = self._running.run(self._variables)
        return int(done), Statistics(int(count), mean, squares)

    def save(self, done: int, statistics: Statistics) -> None:
        values = (done, statistics.count, statistics.mean, statistics.squares)
        fed = {variable.initializer.inputs[1]: value for variable, value in zip(self._variables, values)}
        self._running.run([variable.initializer for variable in self._variables], fed)
        self._checkpoints.save(self._running, done)


def pack(rows: Sequence[Photo], cache: VectorCache, width: int, folder: Path, report: Report = lambda done, total: None) -> Statistics:
    """Write ``index.csv`` and, rows in its order, ``bottlenecks.npy`` (float32 [rows, width]) into ``folder``.

    A checkpoint keeps how many rows are packed (``global_step``) and the statistics of the training rows among them
    (``count``, ``mean``, ``sum_of_squares``). Called again after a kill, it cuts the matrix to the rows of the last
    checkpoint and goes on there.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (len(rows), width)})
    first_byte, row_bytes = len(header.getvalue()), 4 * width
    folder.mkdir(parents=True, exist_ok=True)
    start, statistics = 0, Statistics.nothing(width)
    with tf.Graph().as_default(), session(threads=1, as_built=True) as running:
        kept = _Kept(folder, width, running)
        if _same_index(folder / INDEX, rows) and (folder / PACKED).is_file() and (before := kept.restore()):
            # Where the checkpoint outlived rows that never reached the disk, it starts over.
            if (folder / PACKED).stat().st_size >= first_byte + before[0] * row_bytes:
                start, statistics = before
        else:
            dataset.write_photos(folder / INDEX, rows)
            (folder / PACKED).write_bytes(header.getvalue())
        with open(folder / PACKED, "r+b") as packed:
            packed.truncate(first_byte + start * row_bytes)
            packed.seek(0, os.SEEK_END)
            report(start, len(rows))
            for first in range(start, len(rows), ROWS_PER_CHUNK):
                chunk = rows[first : first + ROWS_PER_CHUNK]
                vectors = _read_rows(chunk, cache)
                packed.write(vectors.tobytes())
                statistics.add(vectors[[row.split == dataset.TRAINING for row in chunk]])
                done = first + len(chunk)
                report(done, len(rows))
                if done == len(rows) or (first // ROWS_PER_CHUNK + 1) % CHUNKS_PER_CHECKPOINT == 0:
                    packed.flush()
                    os.fsync(packed.fileno())
                    kept.save(done, statistics)
    return statistics


def _same_index(path: Path, rows: Sequence[Photo]) -> bool:
    return path.is_file() and all(one == other for one, other in zip_longest(dataset.each_photo(path), rows))


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
