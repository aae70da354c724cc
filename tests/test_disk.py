"""Disk space: estimated and checked before a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Project, make_photos

from pipeline import disk
from pipeline.disk import Need
from pipeline.errors import UserError


def test_needs_on_one_file_system_are_put_together(tmp_path: Path) -> None:
    needs = [Need("vectors", tmp_path / "not/there", 700), Need("nothing", tmp_path, 0), Need("the export", tmp_path, 200)]
    (one,) = disk.by_file_system(needs, free=lambda path: 2000)
    assert one.bytes == 900
    assert one.sentence == f"about 900 B are needed in {tmp_path}/not/there and beside it (vectors 700 B, the export 200 B), 2 kB are free"
    assert disk.by_file_system([], free=lambda path: 0) == []


@pytest.mark.parametrize(("free", "outcome"), [(1000, []), (999, ["tight"]), (900, ["tight"]), (899, "stop")])
def test_what_fits_what_is_tight_and_what_cannot_fit(tmp_path: Path, free: int, outcome: object) -> None:
    systems = disk.by_file_system([Need("vectors", tmp_path, 900)], free=lambda path: free)
    if outcome == "stop":
        with pytest.raises(UserError, match=r"^the disk is too full for this run: about 900 B .* 899 B are free; make room \(\S+ -m"):
            disk.check(systems)
    else:
        assert len(disk.check(systems)) == len(outcome)  # type: ignore[arg-type]


def test_the_estimate_is_what_is_written_and_not_much_more(finished: Project) -> None:
    packed, training = (finished.runs(task)[0] for task in ("ComputeBottlenecks", "TrainFinalLayer"))
    size = sum((packed / name).stat().st_size for name in ("bottlenecks.npy", "index.csv"))
    assert size <= disk.packed(30, 1280) <= 1.3 * size
    size = sum(path.stat().st_size for path in training.glob("*.data-*"))
    count = len(list(training.glob("*.data-*")))
    assert size <= disk.training(classes=3, width=1280, hidden=0, candidates=3, checkpoints=count) <= 3 * size
    version = finished.live("colours")
    size = sum(path.stat().st_size for path in version.iterdir())
    assert size <= disk.classifier((version / "output_graph.pb").stat().st_size, 30) <= 2 * size


FULL = """
import luigi, shutil, pipeline
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6)
print(luigi.build([pipeline.Export(data="colours", how_many_training_steps=300)], local_scheduler=True))
"""


def test_a_run_that_cannot_fit_stops_before_the_network(copy_of_finished: Project) -> None:
    make_photos(copy_of_finished.root / "data/colours", 2, ("yellow",))
    make_photos(copy_of_finished.root / "data/colours", 4, ("yellow",), size=60)
    before = len(list((copy_of_finished.root / "store/vectors").rglob("*.npy")))
    done = copy_of_finished.run([sys.executable, "-c", FULL])
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "the disk is too full for this run: about " in error and "1.0 MB are free; make room" in error
    assert "vectors 33 kB" in error  # of four new photos, two blocks each
    assert len(list((copy_of_finished.root / "store/vectors").rglob("*.npy"))) == before
