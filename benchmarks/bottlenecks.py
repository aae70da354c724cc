"""Bottlenecks, end to end: encoded photos on disk → vectors on disk, the classic pattern against the pipeline.

Both have loaded and warmed up their network before the clock starts. The pipeline fills a fresh cache and packs it. In each round
the floor is measured too: what the photos would take if all but decoding were one large matrix product in float32.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks import measuring
from benchmarks.measuring import CLASSIC, Cost
from pipeline import backbones, images, network
from pipeline import bottlenecks as ours
from pipeline.console import say
from pipeline.dataset import Photo, Photos
from pipeline.machine import computes_bfloat16, usable_cores
from pipeline.packed import Packed
from pipeline.vector_cache import VectorCache

GFLOP = 2 * 0.3840
"""Of one photo through EfficientNet-Lite0: 384.0 million multiply-adds."""

FOLDS = 5

PIPELINES: dict[str, dict[str, str]] = {"pipeline": {}, **({"pipeline bfloat16": {"precision": "bfloat16"}} if computes_bfloat16() else {})}
"""The sides beside the classic one: a name, and what ``network.load`` is told."""

FLOOR = "float32 floor"


class Side(Protocol):
    """A way to compute bottlenecks."""

    def fill(self, photos: Sequence[Photo], folder: Path, out: Path) -> None:
        """Leave the vectors of the photos in ``folder`` in the folder ``out``. This is what is measured."""

    def read(self, photos: Sequence[Photo], out: Path) -> np.ndarray:
        """The vectors that ``fill`` left, float32 [photos, width]."""


class Pipeline:
    """The pipeline's way: ``compute`` into a fresh cache, and ``pack``."""

    def __init__(self, backbone: Path, **options: Any) -> None:
        self.width = backbones.load(backbone).width
        self.network = network.load(backbone, **options)

    def fill(self, photos: Sequence[Photo], folder: Path, out: Path) -> None:
        cache = VectorCache(out / "vectors", self.width)
        ours.compute(Photos(photos), folder, lambda: self.network, cache)
        ours.pack(photos, cache, self.width, out)

    def read(self, photos: Sequence[Photo], out: Path) -> np.ndarray:
        return Packed(out)[np.arange(len(photos))]


# --- What runs in the process of a side ---------------------------------------------------------------------------------


@functools.cache
def _side(name: str, backbone: Path) -> Side:
    """The side, loaded once in its process."""
    if name == CLASSIC:
        from benchmarks import classic

        return classic.Bottlenecks()
    return Pipeline(backbone, **PIPELINES[name])


def _fill(name: str, backbone: Path, photos: Sequence[Photo], folder: Path, out: Path) -> Cost:
    """One pass over the photos, into a folder that nothing was in.

    Not into the last pass's, emptied: for some seconds after thousands of files were removed, ext4 takes ten times as long
    to make a new one.
    """
    side = _side(name, backbone)
    return measuring.cost(lambda: side.fill(photos, folder, out), len(photos))


def _read(name: str, backbone: Path, photos: Sequence[Photo], out: Path) -> np.ndarray:
    return _side(name, backbone).read(photos, out)


def _decode(size: int, photos: Sequence[Photo], folder: Path) -> float:
    """CPU-milliseconds to decode and resize a photo, without the network: the part of the floor that is no matrix product."""
    from pipeline.tensorflow_v1 import session, tf

    encoded = [(folder / photo.path).read_bytes() for photo in photos]
    with tf.Graph().as_default(), session(threads=1) as running:
        data = tf.placeholder(tf.string, [])
        decode = running.make_callable(images.decode_and_resize(data, size).op, [data])
        for photo in encoded[:8]:
            decode(photo)
        return measuring.cost(lambda: [decode(photo) for photo in encoded], len(encoded)).cpu


# --- The comparison -----------------------------------------------------------------------------------------------------


def run(photos: Sequence[Photo], folder: Path, backbone: Path, work: Path, rounds: int, seed: int) -> None:
    """Let the sides compute the photos' vectors in turns, and print what it took and how far the vectors differ."""
    names = [CLASSIC, *PIPELINES]
    say(f"bottlenecks: {describe(photos)}; {backbones.load(backbone).name}")
    say(f"threads: classic TensorFlow's default; pipeline {usable_cores()} ops at once, each on one thread; {_dtypes()}")
    with ExitStack() as open_processes:
        process = {name: open_processes.enter_context(measuring.own_process(default_threads=name == CLASSIC)) for name in names}

        filled: dict[str, Path] = {}

        def one_pass(name: str, some: Sequence[Photo] = photos) -> Cost:
            filled[name] = Path(tempfile.mkdtemp(dir=work))
            return process[name].submit(_fill, name, backbone, some, folder, filled[name]).result()

        decoding: list[float] = []

        def floor() -> Cost:
            decoding.append(process["pipeline"].submit(_decode, backbones.load(backbone).input_size, photos, folder).result())
            wall = 1000 * GFLOP / measuring.gemm_gflops() + decoding[-1] / usable_cores()
            return Cost(wall, wall * usable_cores())

        work.mkdir(parents=True, exist_ok=True)
        for name in names:
            one_pass(name, photos[:8])
        before = measuring.gemm_gflops()
        passes = {name: functools.partial(one_pass, name) for name in names}
        costs = measuring.take_turns({**passes, FLOOR: floor}, rounds, seed, "photo")
        gemm = before, measuring.gemm_gflops()
        vectors = {name: process[name].submit(_read, name, backbone, photos, filled[name]).result() for name in names}
    say(measuring.contention(costs["pipeline"], usable_cores(), gemm))
    for name in PIPELINES:
        above = measuring.spread([taken.wall / floor.wall for taken, floor in zip(costs[name], costs[FLOOR])])
        best, lowest = (min(cost.wall for cost in costs[side]) for side in (name, FLOOR))
        say(
            f"{name} takes {above} times as long as the floor of its round: {GFLOP} GFLOP a photo, and {statistics.median(decoding):.2f} "
            f"CPU-ms to decode and resize it on {usable_cores()} cores; its best pass takes {best / lowest:.2f} times the lowest floor"
        )
        say(f"{name}: its vectors differ from the classic ones by {difference(vectors[name], vectors[CLASSIC])}")
    for name in names:
        say(f"{name}: {_accuracy(vectors[name], photos, seed)}")


def describe(photos: Sequence[Photo]) -> str:
    """Number, size in bytes and in pixels of the photos."""
    width, height = (int(statistics.median(side)) for side in ([p.width for p in photos], [p.height for p in photos]))
    size = statistics.mean(photo.bytes for photo in photos)
    return f"{len(photos)} photos of {len(Photos(photos).labels()[0])} classes, mean {size / 1000:.1f} KB, median {width} × {height} pixels"


def _dtypes() -> str:
    return ", ".join(f"{name} {options.get('precision', 'float32')}" for name, options in [(CLASSIC, {}), *PIPELINES.items()])


def difference(vectors: np.ndarray, truth: np.ndarray) -> str:
    """How far vectors [photos, width] lie from the true ones."""
    wanted = truth.astype(np.float64)
    cosines = (vectors * wanted).sum(axis=1) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1))
    relative = np.linalg.norm(vectors - wanted) / np.linalg.norm(wanted)
    return f"{np.abs(vectors - wanted).max():.2g} at most, {relative:.2g} in relative L2, cosine {cosines.min():.6f} at least"


def _accuracy(vectors: np.ndarray, photos: Sequence[Photo], seed: int) -> str:
    labels = Photos(photos).labels()[0]
    truth = np.array([labels.index(photo.label) for photo in photos])
    fold_of = np.random.default_rng(seed).permutation(len(photos)) % FOLDS
    right = sum(count_right(vectors, truth, fold_of == fold) for fold in range(FOLDS))
    return (
        f"a linear head on its vectors names {right / len(photos):.1%} rightly ({right} of {len(photos)}, {FOLDS} folds, the same for all)"
    )


def count_right(vectors: np.ndarray, truth: np.ndarray, held_out: np.ndarray, steps: int = 300) -> int:
    """How many of the held-out rows a softmax layer names rightly that was trained on the others, all at a time.

    Standardised, with momentum and with the L2 penalty, as ``final_layer`` does it.
    """
    mean = vectors[~held_out].mean(axis=0)
    centred = vectors - mean
    rows = centred / np.sqrt((centred[~held_out] ** 2).mean())
    wanted = np.eye(truth.max() + 1)[truth[~held_out]]
    weights, bias = np.zeros((rows.shape[1], wanted.shape[1])), np.zeros(wanted.shape[1])
    pull, push = np.zeros_like(weights), np.zeros_like(bias)
    for _ in range(steps):
        logits = rows[~held_out] @ weights + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (shares / shares.sum(axis=1, keepdims=True) - wanted) / len(wanted)
        pull = 0.9 * pull + rows[~held_out].T @ error + 0.003 * weights
        push = 0.9 * push + error.sum(axis=0)
        weights, bias = weights - 0.03 * pull, bias - 0.03 * push
    return int(((rows[held_out] @ weights + bias).argmax(axis=1) == truth[held_out]).sum())
