"""``python -m pipeline plan``: what a run would do and why, without running it."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import Project, make_photos

STEPS = ("--data", "colours", "--how-many-training-steps", "300")


def files_of(project: Project) -> dict[Path, int]:
    found = (path for path in project.root.rglob("*") if path.is_file() and "scans" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in found}


def plan(project: Project, *arguments: str) -> list[str]:
    done = project.run([sys.executable, "-X", "importtime", "-m", "pipeline", "plan", *arguments])
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "luigi" in imported and "tensorflow" not in imported
    return done.stdout.splitlines()


def test_nothing_to_do_is_said_and_nothing_is_written(finished: Project) -> None:
    before = files_of(finished)
    (line,) = plan(finished, *STEPS)
    assert line.startswith(f"colours: nothing to do, exports/colours/{finished.live('colours').name} is up to date")
    assert files_of(finished) == before


def test_what_would_run_and_why(copy_of_finished: Project) -> None:
    project = copy_of_finished
    make_photos(project.root / "data/colours", 12, ("red",))
    (project.root / "data/colours/blue/001.png").rename(project.root / "data/colours/blue/moved.png")
    before = files_of(project)
    headline, *steps, disk, last = plan(project, *STEPS, "--learning-rate", "0.01,0.1")
    live = project.live("colours").name
    assert headline == f"colours: 32 photos in 3 classes; since {live}: 2 photos added, 1 moved or renamed"
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in steps}
    assert found["IndexImages"].startswith("would run") and found["IndexImages"].endswith("  other photos")
    assert found["DownloadModel"].startswith("done ") and "  since 20" in found["DownloadModel"]
    assert found["ComputeBottlenecks"].endswith("  another output of IndexImages; 2 of 32 vectors would be computed")
    assert found["TrainFinalLayer"].endswith("  learning_rate 0.03 → 0.01,0.1, another output of ComputeBottlenecks")
    assert list(found)[-1] == "Report"
    assert disk.startswith("disk: about ") and "vectors 16 kB" in disk
    assert last.startswith("nothing was run; only store/scans/colours.csv")
    assert files_of(project) == before


def test_a_model_of_ones_own_is_as_large_as_its_file(copy_of_finished: Project) -> None:
    (copy_of_finished.root / "mine.pb").write_bytes(bytes(9_000_000))
    (disk,) = (line for line in plan(copy_of_finished, *STEPS, "--model", "mine.pb") if line.startswith("disk"))
    assert "the model 27.0 MB" in disk  # as its graph and its checkpoint, and while it is made


def test_mistakes_are_named_as_by_the_run_itself(finished: Project) -> None:
    for arguments, code, words in (
        (("--learning-rat", "3"), 2, "unrecognized arguments: --learning-rat 3; is --learning-rate meant?"),
        ((*STEPS, "--learning-rate", "fast"), 30, "learning_rate = fast: a number from"),
        (("--data", "nothing"), 20, "no photos in"),
    ):
        done = finished.pipeline("plan", *arguments)
        assert done.returncode == code
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ") and words in line
    done = finished.pipeline("predict", "colours", "x.jpg", "--nosuch")
    assert done.returncode == 2 and "unrecognized arguments: --nosuch" in done.stderr


def test_photos_that_are_fetched_first_are_said(project: Project) -> None:
    project.profile("drawn", "[images]\ndraw_per_class = 5\n")
    assert plan(project, "--data", "drawn") == ["FetchImages  would run: draws the pictures; what follows is known when they are there"]
    assert not (project.root / "data/drawn").exists()
