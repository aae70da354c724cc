"""What of a store is still needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import files, retention
from pipeline.errors import UserError

DAY = 86400


def key_of(name: str) -> str:
    """A key as a task has it, for a short name."""
    return files.sha256_bytes(name.encode())[:16]


class Store:
    """A store of small outputs, a night each: photos → index → vectors → training → classifier → report."""

    def __init__(self, root: Path) -> None:
        self.root, self.exports = root / "store", root / "exports"
        self.names: dict[str, str] = {}

    def output(self, task: str, name: str, finished: str, data: str = "a", **made_of: str) -> Path:
        key, parents = key_of(name), {task: key_of(parent) for task, parent in made_of.items()}
        self.names[key] = name
        folder = self.root / "runs" / task / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "output").write_text("x" * 10)
        manifest = {"task": task, "key": key, "data": data, "finished": finished, "parents": parents, "parameters": {"snapshot": name[-1]}}
        files.write_manifest(folder, manifest)
        return folder

    def night(self, number: int, data: str = "a", published: bool = False) -> None:
        n, finished = f"{data}{number}", f"2026-01-{number:02d}"
        self.output("IndexImages", f"index{n}", finished, data)
        self.output("ComputeBottlenecks", f"vectors{n}", finished, data, IndexImages=f"index{n}")
        self.output("ExportGraph", f"c{n}", finished, data, IndexImages=f"index{n}", ComputeBottlenecks=f"vectors{n}")
        self.output("Report", f"report{n}", finished, data, ExportGraph=f"c{n}")
        snapshot = self.root / "snapshots" / f"{data}-{number}.csv"
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        snapshot.write_text("x")
        os.utime(snapshot, (number * DAY, number * DAY))
        if published:
            version = self.exports / data / f"{number:04d}-abc{number}"
            version.mkdir(parents=True)
            manifest = files.read_json(self.root / "runs/ExportGraph" / key_of(f"c{n}") / files.MANIFEST)
            files.write_manifest(version, manifest)

    def unneeded(self, keep: int, now: float = 0) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        exports = list(self.exports.iterdir()) if self.exports.is_dir() else []
        for item in retention.unneeded(self.root, exports, keep, now):
            found.setdefault(item.kind, []).append(self.names.get(item.path.name, item.path.name))
        return {kind: sorted(names) for kind, names in found.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_versions_and_the_last_runs_are_kept_with_all_they_were_made_of(store: Store) -> None:
    for number in range(1, 6):
        store.night(number, published=number == 2)
    store.night(1, data="b")
    assert store.unneeded(keep=1) == {
        "ComputeBottlenecks": ["vectorsa1", "vectorsa3", "vectorsa4"],
        "ExportGraph": ["ca1", "ca3", "ca4"],
        "IndexImages": ["indexa1", "indexa3", "indexa4"],
        "Report": ["reporta1", "reporta3", "reporta4"],
        "snapshots": ["a-1.csv", "a-3.csv", "a-4.csv"],
    }
    assert store.unneeded(keep=5) == {}


def test_a_run_that_has_not_ended_keeps_what_it_has_made(store: Store) -> None:
    store.night(1)
    store.output("IndexImages", "index_new", "2026-02-01")
    store.output("ComputeBottlenecks", "vectors_new", "2026-02-01", IndexImages="index_new")
    assert store.unneeded(keep=1) == {}  # the last finished run is as old as it may be


def test_old_vectors_of_a_kept_classifier_are_kept(store: Store) -> None:
    """Ten trainings on the same photos: the index is the oldest of all, and needed."""
    store.night(1)
    for number in range(2, 12):
        store.output("ExportGraph", f"t{number}", f"2026-03-{number:02d}", IndexImages="indexa1", ComputeBottlenecks="vectorsa1")
    found = store.unneeded(keep=2)
    assert set(found) == {"ExportGraph"}
    assert found["ExportGraph"] == sorted(f"t{number}" for number in range(2, 10))  # the report of the first is the last one


def test_damaged_outputs_abandoned_work_and_what_belongs_to_nothing_go(store: Store) -> None:
    store.night(1, published=True)
    (store.output("Report", "damaged", "2026-01-01") / files.MANIFEST).write_text("{")
    (store.root / "runs/Records/by hand").mkdir(parents=True)
    for name, touched in (("0" * 16, 0), ("1" * 16, 9 * DAY), ("by hand", 0)):
        work = store.root / "work/TrainFinalLayer" / name
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("x")
        for path in (work / "checkpoint", work):
            os.utime(path, (touched, touched))
    for name in ("a-0001-abc1-12345678", "a-0009-dead-12345678", "elsewhere-0001-abc1-12345678", "mine"):
        (store.root / "evaluations" / name).mkdir(parents=True)
    (store.root / "scans").mkdir()
    for name in ("a.csv", "gone.csv"):
        (store.root / "scans" / name).write_text("x")
    assert store.unneeded(keep=1, now=10 * DAY) == {
        "Report": ["damaged"],
        "scans": ["gone.csv"],
        "evaluations": ["a-0009-dead-12345678"],
        "unfinished work": ["0" * 16],
    }


def test_what_is_removed_is_gone(store: Store) -> None:
    store.night(1)
    store.night(2)
    for item in retention.unneeded(store.root, [], 1):
        assert item.bytes > 0
        retention.remove(item)
    assert store.unneeded(keep=1) == {}
    assert not (store.root / "runs/ExportGraph" / key_of("ca1")).exists()
    assert (store.root / "runs/ExportGraph" / key_of("ca2") / "output").is_file()


def test_where_a_version_says_no_more_what_it_came_from_nothing_is_unneeded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2, 3):
        store.night(number, published=number == 1)
    assert store.unneeded(keep=1)
    (store.exports / "a" / "0001-abc1" / files.MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"0001-abc1 is damaged .* remove it"):
        store.unneeded(keep=1)
