"""How far cached vectors go: settings and seeds through the real ``luigi``, as the table of docs/accuracy.md.

    python -m benchmarks.accuracy --data flowers1000 --seeds 5                     all that was tried
    python -m benchmarks.accuracy --data flowers1000 --seeds 5 "--model-size 288"  these settings beside the defaults

Models and vectors are those of the project; what is trained goes to a folder that is removed again, so that no export of
the project changes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import console, dataset, evaluation, files, registry, settings
from pipeline.console import say
from pipeline.errors import UserError

DEFAULTS = ""
"""The row that all others are compared with, photo by photo."""

DISTORTED = "--flip-left-right true --random-crop 10 --random-scale 10 --random-brightness 10"

TRIED = (
    "--average-views mirror",
    "--average-views mirror+crops",
    "--model-size 288",
    "--model-size 320",
    "--model efficientnet-lite2",
    f"{DISTORTED} --distorted-views 4",
    "--hidden-units 256",
    "--model-size 288 --hidden-units 256",
    "--label-smoothing 0.1",
    "--class-weights balanced",
    "--learning-rate-schedule cosine --how-many-training-steps 8000",
    "--learning-rate 0.003,0.01,0.03 --weight-decay 0.001,0.003,0.01,0.03,0.1",
)

HEADING = "| settings | named rightly | 95 % interval | from seed to seed | only here : only by default |\n|---|---|---|---|---|"

Right = dict[tuple[int, str], bool]
"""Whether a test photo was named rightly, by the seed that drew it and its path."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    plain: Right = {}
    say(HEADING)
    try:
        for tried in (DEFAULTS, *(options.tried or TRIED)):
            right = {key: value for seed in range(options.seeds) for key, value in _train(options, tried, seed)}
            plain = plain or right
            say(row(f"`{tried}`" if tried else "", right, plain))
    except UserError as error:
        console.complain(str(error))
        return 30
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.partition(":\n")[0])
    parser.add_argument("--data", required=True, help="name of the data set")
    parser.add_argument("--images", default="", help="its folder, if it is not data/NAME")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row, with the seeds 0, 1, … (default: %(default)s)")
    parser.add_argument("tried", nargs="*", metavar="SETTINGS", help="rows of the table, each in quotes (default: all that was tried)")
    return parser


def _train(options: argparse.Namespace, tried: str, seed: int) -> Iterator[tuple[tuple[int, str], bool]]:
    """Train once; yield each test photo and whether it is named rightly. Raises UserError where ``luigi`` fails."""
    from pipeline import final_layer

    with tempfile.TemporaryDirectory() as scratch:
        luigi = [str(Path(sys.executable).with_name("luigi")), "--module", "pipeline", "Export", "--data", options.data]
        images = ["--images", options.images] if options.images else []
        environment = {**os.environ, "LUIGI_CONFIG_PATH": str(_scratch_paths(Path(scratch)))}
        command = [*luigi, *images, "--seed", str(seed), *shlex.split(tried)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        version = registry.live(Path(scratch) / "exports" / options.data)
        if done.returncode or version is None:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or [f"exit code {done.returncode}"]
            raise UserError(f"{shlex.join(command)} failed: {lines[-1].removeprefix('error: ')}")
        keys = files.read_json(version / files.MANIFEST)["parents"]
        trained, packed = (Path(scratch) / "store" / "runs" / task / keys[task] for task in ("TrainFinalLayer", "ComputeBottlenecks"))
        examples = final_layer.Examples.read(packed)
        named = evaluation.read_logits(trained)[dataset.TESTING].argmax(axis=1) == examples.truth[examples.rows[dataset.TESTING]]
        testing = [photo for photo in dataset.each_photo(packed / dataset.INDEX) if photo.split == dataset.TESTING]
        yield from (((seed, photo.path), bool(right)) for photo, right in zip(testing, named))


def _scratch_paths(scratch: Path) -> Path:
    """A file on top of luigi.cfg: all but models and vectors goes to ``scratch``."""
    paths = settings.paths()
    file = scratch / "scratch.cfg"
    moved = {
        "store": scratch / "store",
        "exports": scratch / "exports",
        "model_dir": paths.model_dir,
        "bottleneck_dir": paths.bottleneck_dir,
    }
    file.write_text("[paths]\n" + "".join(f"{name} = {str(path).replace('%', '%%')}\n" for name, path in moved.items()))
    return file


def row(tried: str, right: Right, plain: Right) -> str:
    """A row of the Markdown table."""
    correct, count = sum(right.values()), len(right)
    by_seed = [[value for (of, _), value in right.items() if of == seed] for seed in sorted({seed for seed, _ in right})]
    shares = [100 * sum(values) / len(values) for values in by_seed]
    low, high = (100 * bound for bound in evaluation.wilson_interval(correct, count))
    both = right.keys() & plain.keys()
    here, there = sum(right[key] > plain[key] for key in both), sum(right[key] < plain[key] for key in both)
    return (
        f"| {tried or 'defaults'} | **{100 * correct / count:.1f} %** ({correct} of {count}) | {low:.1f} to {high:.1f} "
        f"| {min(shares):.1f} to {max(shares):.1f} | {f'{here} : {there}' if tried else '–'} |"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
