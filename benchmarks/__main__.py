"""``python -m benchmarks``: run them, on photos of yours or on drawn ones, and print what they find."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bottlenecks, measuring, training
from pipeline import backbones, console, sample, scan
from pipeline.console import say
from pipeline.dataset import Photo, Photos
from pipeline.errors import UserError

SEED = 0
LEAST_PER_CLASS = 3
"""Photos that a class needs so that each split has one."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as work:
            _run(options, Path(work))
    except UserError as error:
        console.complain(str(error))
        return 30
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run the benchmarks, on photos of yours or on drawn ones, and print what they find."
    )
    parser.add_argument("which", nargs="?", choices=("all", "bottlenecks", "training"), default="all")
    parser.add_argument("--photos", type=Path, help="a folder with a folder of photos for each class (default: drawn flowers)")
    parser.add_argument("--count", type=int, default=400, help="photos in a pass (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="training steps in a pass (default: %(default)s)")
    return parser


def _run(options: argparse.Namespace, work: Path) -> None:
    folder = options.photos or work / "photos"
    if not options.photos:
        console.note("drawing flowers; photos of yours tell more: --photos FOLDER")
        sample.draw(folder, -(-options.count // len(sample.KINDS)), SEED)
    photos = choose(scan.of_folder(folder, scan.Memory(work / "memory.csv")), options.count)
    backbones.make("efficientnet-lite0", work / "backbone", work)
    say(measuring.environment())
    if options.which != "training":
        bottlenecks.run(photos, folder, work / "backbone", work / "bottlenecks", options.rounds, SEED)
    if options.which != "bottlenecks":
        training.run(photos, folder, work / "backbone", work / "training", options.rounds, options.steps, SEED)


def choose(scanned: Sequence[Photo], count: int) -> list[Photo]:
    """So many photos, sorted by path, of all classes in turn; each content once, since the pipeline computes it once."""
    contents = {photo.sha256: photo for photo in scanned if not photo.problem}
    shuffled = random.Random(SEED).sample(list(contents.values()), len(contents))
    of_class = {label: [photo for photo in shuffled if photo.label == label] for label in Photos(shuffled).labels()[0]}
    if len(of_class) < 2 or min(len(photos) for photos in of_class.values()) < LEAST_PER_CLASS or count < LEAST_PER_CLASS * len(of_class):
        raise UserError(
            f"{count} photos of {len(of_class)} classes are too few; wanted: two classes or more, {LEAST_PER_CLASS} photos of each"
        )
    in_turn = sorted((turn, photo.path, photo) for photos in of_class.values() for turn, photo in enumerate(photos))
    return sorted([photo for _, _, photo in in_turn[:count]], key=lambda photo: photo.path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
