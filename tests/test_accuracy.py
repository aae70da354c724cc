from __future__ import annotations

import re
import sys

from conftest import REPOSITORY, Project

from benchmarks.accuracy import TRIED, row
from pipeline import Export


def test_a_row_pools_the_seeds_and_compares_photo_by_photo() -> None:
    plain = {(seed, f"{number}.jpg"): number < 6 for seed in (0, 1) for number in range(10)}
    tried = {(seed, f"{number}.jpg"): seed == 1 or number >= 2 for seed in (0, 1) for number in range(10)}
    assert row("", plain, plain) == "| defaults | **60.0 %** (12 of 20) | 38.7 to 78.1 | 60.0 to 60.0 | – |"
    assert row("`--x 1`", tried, plain) == "| `--x 1` | **90.0 %** (18 of 20) | 69.9 to 97.2 | 80.0 to 100.0 | 8 : 2 |"


def test_what_is_tried_can_be_chosen() -> None:
    known = {name for name, _ in Export.get_params()}
    for settings in TRIED:
        assert {name.replace("-", "_") for name in re.findall(r"--([a-z-]+)", settings)} <= known


def test_the_table_comes_from_real_runs_and_the_projects_exports_stay(copy_of_finished: Project) -> None:
    copy_of_finished.profile("colours", "[Export]\nhow_many_training_steps = 50\n")
    before = copy_of_finished.live("colours")
    command = [sys.executable, "-m", "benchmarks.accuracy", "--data", "colours", "--seeds", "1", "--learning-rate 0.1"]
    done = copy_of_finished.run(command, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stderr
    *_, plain, tried = done.stdout.splitlines()
    assert plain.startswith("| defaults | **100.0 %** (") and plain.endswith("| 100.0 to 100.0 | – |")
    assert tried.startswith("| `--learning-rate 0.1` | **100.0 %** (") and tried.endswith("| 0 : 0 |")
    assert copy_of_finished.live("colours") == before
    wrong = copy_of_finished.run([*command[:-1], "--learning-rate fast"], PYTHONPATH=str(REPOSITORY))
    assert (wrong.returncode, "failed: learning_rate = fast: a number" in wrong.stderr) == (30, True)
