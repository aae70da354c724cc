"""How both benchmarks measure: sides taking turns in processes of their own, and what the machine could do meanwhile."""

from __future__ import annotations

import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.console import say
from pipeline.machine import usable_cores

CLASSIC = "classic"
"""The side that all others are compared with."""

TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
"""What of a CPU decides how fast a network is on it, by Linux's names."""

CONTENDED = 1.3
"""A busy process that has to wait so many times as long as its own work takes has shared its cores."""

MOVED = 0.1
"""The share by which the machine's peak may move between two readings on a quiet machine."""


class Cost(NamedTuple):
    """What one item (a photo, a step) took: wall-clock time, and CPU time of all threads, user and system, in milliseconds."""

    wall: float
    cpu: float


def cost(work: Callable[[], object], items: int) -> Cost:
    """Do the work, which goes through so many items, in this process. CPU time of other processes is not in it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(1000 * (time.perf_counter() - wall) / items, 1000 * (time.process_time() - cpu) / items)


def own_process(default_threads: bool = False) -> ProcessPoolExecutor:
    """A process for one side. TensorFlow's threads belong to the process, so two sides in one would share their settings.

    With ``default_threads`` they are as TensorFlow has them, and not as the pipeline sets them.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _make_threads if default_threads else None)


def _make_threads() -> None:
    """Let TensorFlow make the process its threads. Whoever asks for other ones later gets these."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        tf.Session().close()


def take_turns(passes: dict[str, Callable[[], Cost]], rounds: int, seed: int, unit: str) -> dict[str, list[Cost]]:
    """Let each side make one pass a round, in shuffled order, and print each round as it comes and all at the end.

    Neighbours on the machine come and go within seconds; the ratio of two passes of one round is what outlives them.
    """
    order = random.Random(seed)
    costs: dict[str, list[Cost]] = {name: [] for name in passes}
    for number in range(1, rounds + 1):
        for name in order.sample(list(passes), len(passes)):
            costs[name].append(passes[name]())
        shown = [f"{name} {_short(taken[-1].wall)} ms/{unit} ({_short(taken[-1].cpu)} CPU-ms)" for name, taken in costs.items()]
        say(f"round {number} of {rounds}: {', '.join(shown)}")
    for line in _table(costs, unit):
        say(line)
    return costs


def _short(number: float) -> str:
    """Three digits, or the whole number where it has more."""
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def _table(costs: dict[str, list[Cost]], unit: str) -> list[str]:
    """A row for each side; its two last columns say how many times as long the classic side took in the same round."""
    rows = [["", f"wall ms/{unit}", "best", f"CPU-ms/{unit}", "best", "classic ÷ it, wall", "classic ÷ it, CPU"]]
    for name, taken in costs.items():
        columns = [name]
        for each in (list(times) for times in zip(*taken)):
            columns += [f"{statistics.median(each):.3f}", f"{min(each):.3f}"]
        for before, after in zip(zip(*costs[CLASSIC]), zip(*taken)):
            ratios = [one / other for one, other in zip(before, after)]
            columns.append(spread(ratios))
        rows.append(columns)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def spread(ratios: list[float]) -> str:
    """The median of some ratios, and how far they reach."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def gemm_gflops() -> float:
    """What this machine's cores together reach on products of large float32 matrices, in GFLOP/s: the best of many."""
    one = np.random.default_rng(0).random((1024, 1024), np.float32)
    seconds = min(cost(lambda: one @ one, 1).wall for _ in range(40)) / 1000
    return 2 * 1024**3 / seconds / 1e9


def contention(costs: list[Cost], busy_cores: int, gemm: tuple[float, float]) -> str:
    """A line that says whether the machine was shared while a side kept ``busy_cores`` cores busy, and how it is known."""
    waited = statistics.median(each.wall / (each.cpu / busy_cores) for each in costs)
    moved = abs(gemm[1] / gemm[0] - 1)
    verdict = "contended: trust the ratios only" if waited > CONTENDED or moved > MOVED else "not contended"
    return (
        f"{verdict} (wall / (CPU / cores) {waited:.2f}, more than {CONTENDED} is too much; "
        f"GEMM {gemm[0]:.0f} → {gemm[1]:.0f} GFLOP/s, more than {MOVED:.0%} is too much)"
    )


def environment() -> str:
    """TensorFlow, Python, cores, and the instructions of the CPU that matter."""
    from pipeline.tensorflow_v1 import tf

    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # macOS
        words = set()
    flags = " ".join(flag for flag in TELLING_FLAGS if flag in words) or "of unknown flags"
    return f"TensorFlow {tf.__version__}, Python {platform.python_version()}, {usable_cores()} cores of {platform.machine()} with {flags}"
