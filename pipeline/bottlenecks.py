"""Bottlenecks: one cached vector file per image, and the packed matrix that training reads.

problems = compute(photos, folder, network, cache)      fills the cache; a photo that fails has its reason
pack(photos, cache, folder)                             the cache → bottlenecks.npy, and its statistics as a checkpoint
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import backbones, checkpoint, dataset, files, images
from pipeline.console import Report
from pipeline.dataset import Photo
from pipeline.errors import BadImage, UserError
from pipeline.machine import map_in_threads, usable_cores
from pipeline.tensorflow_v1 import session, tf

PACKED = "bottlenecks.npy"
INDEX = "index.csv"
CHECKPOINT = "bottlenecks.ckpt"

ROWS_PER_CHUNK = 256
"""Statistics are added up a chunk at a time, at fixed rows, so that a resumed run adds the same numbers in the same order."""

CHUNKS_PER_CHECKPOINT = 16

Network = Callable[[bytes], np.ndarray]
"""Encoded image → its bottleneck, float32 [width]. May be called from several threads at once."""


class VectorCache:
    """The vectors of one backbone, a file for each image, named by the hash of the image's bytes.

    A file is a ``.npy`` with four more bytes, the CRC-32 of what stands before them. It is written whole and checked when
    it is read; one that is cut short, altered, of another shape or not finite is no vector.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._folder = folder
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (width,)})
        self._header = header.getvalue()
        self._width = width

    def path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}.npy"

    def read(self, sha256: str) -> np.ndarray | None:
        """The vector of an image, float32 [width], or None where there is none that can be trusted."""
        path = self.path(sha256)
        try:
            status = path.stat()
            # Not opened unless it is a file: a pipe in its place would be waited for, for ever.
            if not stat.S_ISREG(status.st_mode) or status.st_size != len(self._header) + 4 * self._width + 4:
                return None
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != status.st_size or not data.startswith(self._header):
            return None
        if zlib.crc32(data[:-4]).to_bytes(4, "little") != data[-4:]:
            return None
        vector = np.frombuffer(data, "<f4", self._width, len(self._header))
        return vector if np.isfinite(vector).all() else None

    def write(self, sha256: str, vector: np.ndarray) -> None:
        """Keep the vector of an image. Raises ValueError for one of another shape or not finite."""
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise ValueError(f"a vector of shape {vector.shape}, wanted {self._width} finite numbers")
        data = self._header + vector.astype("<f4").tobytes()
        path = self.path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)  # nothing but vectors belongs here
        files.write_atomic(path, data + zlib.crc32(data).to_bytes(4, "little"))


def load_network(folder: Path, output: str = backbones.BOTTLENECK) -> Network:
    """The backbone in ``folder`` behind a call: decode, resize, normalise and network in one graph, an image at a time.

    ``output`` is the tensor that comes out: the bottleneck, or the probabilities of the classes it was trained on.
    On a CPU this, called from one thread per core, is the fastest way; larger batches gain nothing.
    """
    backbone = backbones.load(folder)
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [], name="image_bytes")
        pixels = images.decode_and_resize(encoded, backbone.input_size)
        batch = images.normalise(pixels, backbone.mean, backbone.std)[tf.newaxis]
        graph = backbones.load_graph(folder, output)
        (result,) = tf.import_graph_def(graph, {backbones.INPUT: batch}, [output], name="")
        run = session(threads=usable_cores()).make_callable(result[0], [encoded])

    return naming_bad_images(run)


def naming_bad_images(run: Network) -> Network:
    """``run``, with BadImage for an image that TensorFlow cannot decode."""

    def network(data: bytes) -> np.ndarray:
        try:
            return run(data)
        except tf.errors.InvalidArgumentError as error:
            raise BadImage(f"cannot be decoded, it is damaged or of a rare kind: {_reason(error.message)}") from None

    return network


def _reason(message: str) -> str:
    """What went wrong, without TensorFlow's lines before it that say where in the graph."""
    lines = message.partition("[[{{")[0].split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no reason given")


@dataclass(frozen=True)
class Filled:
    """What filling the cache came to: how many vectors were computed and how many were there, and who failed."""

    computed: int
    cached: int
    damaged: int
    problems: dict[str, str]


def compute(
    photos: Sequence[Photo],
    folder: Path,
    load: Callable[[], Network],
    cache: VectorCache,
    report: Report = lambda done, total: None,
) -> Filled:
    """See to it that the cache has a vector for each photo in ``folder`` that can be decoded.

    A kill at any moment loses at most the photos in flight. ``load`` is called only if something has to be computed.
    The result names by its path each photo that has no vector, and the reason.
    """
    first_paths = {photo.sha256: photo for photo in reversed(photos)}
    unique = list(reversed(first_paths.values()))
    missing: list[Photo] = []
    damaged = 0
    for photo, vector in zip(unique, map_in_threads(lambda photo: cache.read(photo.sha256), unique)):
        if vector is None:
            damaged += cache.path(photo.sha256).exists()
            missing.append(photo)
    reasons: dict[str, str] = {}
    if missing:
        network = load()
        cached = len(unique) - len(missing)
        report(cached, len(unique))
        outcomes = map_in_threads(lambda photo: _compute_one(photo, folder, network, cache), missing)
        for done, (photo, problem) in enumerate(zip(missing, outcomes), 1):
            if problem:
                reasons[photo.sha256] = problem
            report(cached + done, len(unique))
    problems = {photo.path: reasons[photo.sha256] for photo in photos if photo.sha256 in reasons}
    return Filled(len(missing) - len(reasons), len(unique) - len(missing), damaged, problems)


def _compute_one(photo: Photo, folder: Path, network: Network, cache: VectorCache) -> str:
    """Compute and keep one vector. Returns the problem, or nothing."""
    try:
        data = images.read_file(folder / photo.path)
    except BadImage as error:
        return str(error)
    if files.sha256_bytes(data) != photo.sha256:
        return "it changed while the run was going on; the next run takes it as it is then"
    try:
        vector = network(images.readable_bytes(data))
    except BadImage as error:
        return str(error)
    if not np.isfinite(vector).all():
        return "the network gives numbers for it that are not finite"
    cache.write(photo.sha256, vector)
    return ""


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


def pack(photos: Sequence[Photo], cache: VectorCache, width: int, folder: Path, report: Report = lambda done, total: None) -> Statistics:
    """Write ``index.csv`` and, rows in its order, ``bottlenecks.npy`` (float32 [photos, width]) into ``folder``.

    A checkpoint keeps how many rows are packed (``global_step``) and the statistics of the training rows among them
    (``count``, ``mean``, ``sum_of_squares``). Called again after a kill, it cuts the matrix to the rows of the last
    checkpoint and goes on there.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (len(photos), width)})
    row_start, row_bytes = len(header.getvalue()), 4 * width
    folder.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), session(threads=1) as running:
        rows_packed = tf.train.get_or_create_global_step()
        count = tf.get_variable("count", [], tf.int64, tf.zeros_initializer(), use_resource=True, trainable=False)
        mean = tf.get_variable("mean", [width], tf.float64, tf.zeros_initializer(), use_resource=True, trainable=False)
        squares = tf.get_variable("sum_of_squares", [width], tf.float64, tf.zeros_initializer(), use_resource=True, trainable=False)
        variables = [rows_packed, count, mean, squares]
        running.run(tf.global_variables_initializer())
        checkpoints = checkpoint.Checkpoints(folder, CHECKPOINT, max_to_keep=2)
        statistics = Statistics.nothing(width)
        start = 0
        if _same_index(folder / INDEX, photos) and (folder / PACKED).is_file() and checkpoints.restore(running):
            start, statistics.count, statistics.mean, statistics.squares = running.run(variables)
        else:
            dataset.write_photos(folder / INDEX, photos)
            (folder / PACKED).write_bytes(header.getvalue())
        with open(folder / PACKED, "r+b") as packed:
            packed.seek(0, os.SEEK_END)
            if packed.tell() < row_start + start * row_bytes:  # the checkpoint outlived rows that never reached the disk
                start, statistics = 0, Statistics.nothing(width)
            packed.truncate(row_start + start * row_bytes)
            packed.seek(0, os.SEEK_END)
            for first in range(start, len(photos), ROWS_PER_CHUNK):
                rows = photos[first : first + ROWS_PER_CHUNK]
                vectors = _read_rows(rows, cache)
                packed.write(vectors.tobytes())
                statistics.add(vectors[[photo.split == dataset.TRAINING for photo in rows]])
                done = first + len(rows)
                report(done, len(photos))
                if done == len(photos) or (first // ROWS_PER_CHUNK + 1) % CHUNKS_PER_CHECKPOINT == 0:
                    packed.flush()
                    os.fsync(packed.fileno())
                    values = (done, statistics.count, statistics.mean, statistics.squares)
                    running.run([v.initializer for v in variables], {v.initializer.inputs[1]: x for v, x in zip(variables, values)})
                    checkpoints.save(running, done)
    return statistics


def _same_index(path: Path, photos: Sequence[Photo]) -> bool:
    return path.is_file() and dataset.read_photos(path) == list(photos)


def _read_rows(photos: Sequence[Photo], cache: VectorCache) -> np.ndarray:
    vectors = [cache.read(photo.sha256) for photo in photos]
    for photo, vector in zip(photos, vectors):
        if vector is None:
            raise UserError(f"{cache.path(photo.sha256)} went away or was altered during the run; run again")
    return np.stack(vectors)  # type: ignore[arg-type]


def read_statistics(folder: Path) -> Statistics:
    """The statistics of the training rows of the packed bottlenecks in ``folder``, from its checkpoint."""
    count, mean, squares = (checkpoint.read(folder, name) for name in ("count", "mean", "sum_of_squares"))
    return Statistics(int(count), np.asarray(mean), np.asarray(squares))  # type: ignore[call-overload]


def read_packed(folder: Path) -> np.ndarray:
    """The packed bottlenecks in ``folder``, float32 [photos, width], as a read-only map of the file."""
    return np.load(folder / PACKED, mmap_mode="r")
