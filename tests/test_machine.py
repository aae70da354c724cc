from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest

from pipeline import machine


@pytest.mark.parametrize(
    ("name", "text", "cpus"),
    [("cpu.max", "150000 100000", 1.5), ("cpu.max", "max 100000", math.inf), ("nothing", "", math.inf)],
)
def test_quota_of_a_version_2_cgroup(tmp_path: Path, name: str, text: str, cpus: float) -> None:
    (tmp_path / name).write_text(text)
    assert machine._cgroup_quota(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("50000", 0.5), ("-1", math.inf)])
def test_quota_of_a_version_1_cgroup(tmp_path: Path, quota: str, cpus: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert machine._cgroup_quota(tmp_path) == cpus


def test_a_quota_below_one_core_is_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cgroup_quota", lambda root: 0.5)
    assert machine.usable_cores() == 1


def test_map_keeps_the_order_and_looks_ahead_by_little() -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for i in range(100_000):
            taken += 1
            yield i

    results = machine.map_in_threads(lambda i: i * i, items())  # type: ignore[arg-type, attr-defined]
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert taken < 100_000


def test_map_runs_on_other_threads_and_passes_errors_on() -> None:
    assert threading.current_thread() not in set(machine.map_in_threads(lambda _: threading.current_thread(), range(3)))
    with pytest.raises(ZeroDivisionError):
        list(machine.map_in_threads(lambda i: 1 // i, [1, 0]))
