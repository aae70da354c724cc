"""Training on cached vectors: the classic pattern, which reads text files, against ``final_layer.train``.

The classic side makes a twentieth of the steps, and the two are compared by the step.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import measuring
from benchmarks.measuring import CLASSIC, Cost
from pipeline import dataset, indexing
from pipeline.console import say
from pipeline.dataset import Photo, Photos

if TYPE_CHECKING:
    from pipeline.final_layer import Options

CLASSIC_SHARE = 20
"""The classic side makes one step where the pipeline makes so many."""


Side = Callable[[Path, Path, int, int], Cost]

CANDIDATES = {
    "pipeline": (0.001, 0.003, 0.01),
    "one candidate": (0.003,),
    "24 candidates": tuple(round(1e-5 * 10 ** (number / 6), 6) for number in range(24)),
}
"""The weight decays of the pipeline's sides; by default it trains with each of three."""


def run(photos: Sequence[Photo], folder: Path, backbone: Path, work: Path, rounds: int, steps: int, seed: int) -> None:
    """Compute the photos' vectors once, let the sides train on them in turns, and print what it took."""
    split = indexing.split(Photos(photos), testing_percentage=10, validation_percentage=10, seed=seed)
    steps_of = {CLASSIC: max(1, steps // CLASSIC_SHARE), **dict.fromkeys(CANDIDATES, steps)}
    say(f"training: {len(photos)} vectors of {len(Photos(photos).labels()[0])} classes, batches of 100; the pipeline as by default,")
    say("which is a sweep of three candidates, with one candidate, as the classic one has, and with 24")
    say(f"steps: {', '.join(f'{name} {count}' for name, count in steps_of.items())}; below, each by the step")
    with measuring.own_process() as preparing:  # as in a run, where each task has a process of its own
        preparing.submit(_write_vectors, split, folder, backbone, work).result()
    with ExitStack() as open_processes:
        process = {name: open_processes.enter_context(measuring.own_process(default_threads=name == CLASSIC)) for name in steps_of}
        side: dict[str, Side] = {name: functools.partial(_train_ours, decays) for name, decays in CANDIDATES.items()}
        side[CLASSIC] = _train_classic

        def one_pass(name: str, count: int = 0) -> Cost:
            return process[name].submit(side[name], work, work / name, count or steps_of[name], seed).result()

        for name in steps_of:
            one_pass(name, 10)
        before = measuring.gemm_gflops()
        costs = measuring.take_turns({name: functools.partial(one_pass, name) for name in steps_of}, rounds, seed, "step")
        gemm = before, measuring.gemm_gflops()
    say(measuring.contention(costs["pipeline"], 1, gemm))
    shares = [many.wall / one.wall for many, one in zip(costs["24 candidates"], costs["one candidate"])]
    say(f"24 candidates take, in times of one: {measuring.spread(shares)}")
    for name, count in steps_of.items():
        size = event_bytes(work / name)
        say(f"{name}: {size / 1e6:.2f} MB of event files in {count} steps, {size / count / 1000:.2f} KB a step")


def event_bytes(folder: Path) -> int:
    """The size of the event files that a training left."""
    return sum(path.stat().st_size for path in folder.rglob("*tfevents*"))


# --- What runs in the process of a side ---------------------------------------------------------------------------------


def _write_vectors(photos: Sequence[Photo], folder: Path, backbone: Path, work: Path) -> None:
    """The same vectors for both: packed, and as text."""
    from benchmarks import classic
    from benchmarks.bottlenecks import Pipeline

    side = Pipeline(backbone)
    side.fill(photos, folder, work / "packed")
    for photo, vector in zip(photos, side.read(photos, work / "packed")):
        classic.write_text(classic.text_path(work / "text", photo), vector)


def default_options(seed: int, steps: int = 4000, weight_decays: tuple[float, ...] = CANDIDATES["pipeline"]) -> Options:
    """The defaults of the task TrainFinalLayer."""
    from pipeline import final_layer

    return final_layer.Options(
        how_many_training_steps=steps,
        train_batch_size=100,
        learning_rate=(0.03,),
        weight_decay=weight_decays,
        eval_step_interval=50,
        checkpoint_interval=200,
        seed=seed,
    )


def _train_ours(weight_decays: tuple[float, ...], work: Path, out: Path, steps: int, seed: int) -> Cost:
    from pipeline import final_layer

    shutil.rmtree(out, ignore_errors=True)
    options = default_options(seed, steps, weight_decays)
    return measuring.cost(lambda: final_layer.train(out, work / "packed", options), steps)


def _train_classic(work: Path, out: Path, steps: int, seed: int) -> Cost:
    from benchmarks import classic

    shutil.rmtree(out, ignore_errors=True)
    photos = dataset.read_photos(work / "packed" / dataset.INDEX)
    labels = photos.labels()[0]
    texts = {
        split: [(classic.text_path(work / "text", photo), labels.index(photo.label)) for photo in photos if photo.split == split]
        for split in dataset.SPLITS
    }
    training, validation = texts[dataset.TRAINING], texts[dataset.VALIDATION]
    return measuring.cost(lambda: classic.train(training, validation, len(labels), out, steps, seed), steps)
