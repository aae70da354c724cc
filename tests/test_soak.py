"""Some nights of the soak: killed, wrong labels, a full disk; each ends in a valid live model."""

from __future__ import annotations

import itertools
import random

import pytest
from conftest import Project

from benchmarks import soak


def test_five_nights(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    five = ["added", "killed", "bad labels", "mended", "disk full"]
    soak.play(project.root, five, seed=3)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0].partition(", ")[2] for line in said] == five
    assert "flowers: rejected, 0" in said[2]


def test_every_plan_has_all_that_can_happen_and_mends_what_is_wrong() -> None:
    planned = soak.plan(60, random.Random(0))
    assert set(planned) == set(soak.HAPPENS)
    assert all(after == "mended" for name, after in itertools.pairwise(planned) if name == "bad labels")
    assert planned == soak.plan(60, random.Random(0))
