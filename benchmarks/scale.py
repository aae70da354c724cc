"""What more photos cost: time and peak memory of each stage as the rows grow, with generated vectors and tiny pictures.

    python -m benchmarks.scale --rows 1000 10000 100000

Each stage runs in a process of its own, so that its peak of resident memory is its own. A million rows want 20 GB of disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import numpy as np

from pipeline import dataset, indexing, scan
from pipeline.console import say
from pipeline.dataset import Photo, Photos
from pipeline.vector_cache import VectorCache

WIDTH, CLASSES, STEPS = 1280, 10, 1000
ADDED = 10


def label_of(number: int) -> str:
    return f"class {number % CLASSES}"


def rows_of(count: int) -> Photos:
    """An index that was never on a disk: the photos' paths, labels, hashes and splits."""
    splits = [dataset.TRAINING] * 8 + [dataset.VALIDATION, dataset.TESTING]
    names = ((f"{label_of(i)}/{i:07d}.jpg", sha256(str(i).encode()).hexdigest(), splits[i // CLASSES % 10]) for i in range(count))
    return Photos(Photo(path, path.partition("/")[0], digest, 50_000, "JPEG", 320, 240, split=split) for path, digest, split in names)


def tiny_png(number: int) -> bytes:
    """A picture of 2 × 1 pixels that no other number has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + number.to_bytes(6, "big"), 0)) + chunk(b"IEND", b"")


# --- Stages: each does what it has to before, and returns the seconds that count --------------------------------------


def write_vectors(folder: Path, count: int) -> float:
    cache = VectorCache(folder / "vectors", WIDTH)
    rows, rng = rows_of(count), np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    started = time.perf_counter()
    for number, row in enumerate(rows):
        cache.write(centres[number % CLASSES] + rng.standard_normal(WIDTH, np.float32), row.sha256)
    return time.perf_counter() - started


def check_vectors(folder: Path, count: int) -> float:
    from pipeline import bottlenecks

    rows = rows_of(count)
    started = time.perf_counter()
    filled = bottlenecks.compute(rows, folder, _nothing_to_load, VectorCache(folder / "vectors", WIDTH))
    assert filled.cached == count
    return time.perf_counter() - started


def _nothing_to_load() -> NoReturn:
    raise AssertionError("a vector is missing")


def pack(folder: Path, count: int) -> float:
    from pipeline import bottlenecks

    rows = rows_of(count)
    started = time.perf_counter()
    bottlenecks.pack(rows, VectorCache(folder / "vectors", WIDTH), WIDTH, folder / "packed")
    return time.perf_counter() - started


def train(folder: Path, count: int) -> float:
    from pipeline import final_layer

    options = final_layer.Options(
        how_many_training_steps=STEPS,
        train_batch_size=100,
        learning_rate=(0.03,),
        weight_decay=(0.001, 0.003, 0.01),
        eval_step_interval=STEPS,
        checkpoint_interval=STEPS,
        seed=0,
    )
    started = time.perf_counter()
    final_layer.train(folder / "trained", folder / "packed", options)
    return time.perf_counter() - started


def draw_pictures(folder: Path, count: int) -> float:
    started = time.perf_counter()
    for label in range(CLASSES):
        (folder / "photos" / label_of(label)).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / "photos" / label_of(number) / f"{number:07d}.png").write_bytes(tiny_png(number))
    time.sleep(2.1)  # what is younger than this is never remembered
    return time.perf_counter() - started


def look(folder: Path, count: int) -> float:
    started = time.perf_counter()
    photos = scan.of_folder(folder / "photos", scan.Memory(folder / "memory.csv"))
    dataset.fingerprint(photos)
    assert len(photos) == count
    return time.perf_counter() - started


def scan_ten_more(folder: Path, count: int) -> float:
    for number in range(count, count + ADDED):
        (folder / "photos" / label_of(number) / f"{number:07d}.png").write_bytes(tiny_png(number))
    return look(folder, count + ADDED)


def index(folder: Path, count: int) -> float:
    rows = rows_of(count)
    started = time.perf_counter()
    made = indexing.make_index(rows, testing_percentage=10, validation_percentage=10, seed=0, unreadable_limit=20)
    assert len(made.photos) == count
    return time.perf_counter() - started


STAGES: dict[str, Callable[[Path, int], float]] = {
    "vectors written": write_vectors,
    "all vectors checked": check_vectors,
    "packed": pack,
    f"trained, {STEPS} steps": train,
    "pictures drawn": draw_pictures,
    "first scan": look,
    "scan, nothing new": look,
    f"scan, {ADDED} new": scan_ten_more,
    "checked and split": index,
}


def measured(stage: str, folder: Path, count: int) -> tuple[float, float]:
    """Run a stage in this process: seconds, and the peak of resident memory in MB."""
    seconds = STAGES[stage](folder, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Time and memory as the rows grow.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if it is not said")
    options = parser.parse_args()
    table: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for count in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for stage, cells in table.items():
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    seconds, peak = process.submit(measured, stage, Path(folder), count).result()
                cells.append(f"{seconds:.2f} s, {peak:.0f} MB")
                print(f"{count} rows: {stage} {cells[-1]}", file=sys.stderr, flush=True)
    say(f"| rows of {WIDTH} | " + " | ".join(f"{count:,}" for count in options.rows) + " |")
    say("|---" * (len(options.rows) + 1) + "|")
    for stage, cells in table.items():
        say(f"| {stage} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
