from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from benchmarks import classic
from benchmarks.__main__ import choose, main
from benchmarks.bottlenecks import Pipeline, count_right, difference
from benchmarks.measuring import CLASSIC, Cost, contention, take_turns
from pipeline import scan
from pipeline.dataset import Photo


def scanned(folder: Path, per_class: int, **kwargs: int) -> list[Photo]:
    make_photos(folder / "photos", per_class, **kwargs)  # type: ignore[arg-type]
    return scan.of_folder(folder / "photos", scan.Memory(folder / "memory.csv"))


def test_the_classic_network_gives_the_pipelines_vectors(tmp_path: Path, backbone_folder: Path) -> None:
    photos = scanned(tmp_path, 2, size=100)
    vectors = []
    for side, out in ((classic.Bottlenecks(), tmp_path / "classic"), (Pipeline(backbone_folder), tmp_path / "pipeline")):
        side.fill(photos, tmp_path / "photos", out)
        vectors.append(side.read(photos, out))
    unfolded, folded = vectors
    assert unfolded.shape == folded.shape == (6, 1280)
    assert np.linalg.norm(unfolded - folded) < 1e-4 * np.linalg.norm(unfolded)
    assert np.linalg.norm(unfolded[0] - unfolded[-1]) > 0.1 * np.linalg.norm(unfolded[0])  # the photos are told apart
    assert "cosine 1.000000" in difference(folded, unfolded)


def test_both_benchmarks_print_what_they_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(tmp_path, 6)
    assert main(["--photos", str(tmp_path), "--count", "12", "--rounds", "2", "--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"12 photos of 3 classes, mean [\d.]+ KB, median 48 × 48 pixels", out)
    for unit in ("photo", "step"):
        assert re.search(rf"round 2 of 2: classic [\d.]+ ms/{unit} \([\d.]+ CPU-ms\), pipeline [\d.]+ ms/{unit}", out), out
        assert re.search(rf"wall ms/{unit} +best +CPU-ms/{unit}", out)
    assert len(re.findall(r"^ *pipeline( +[\d.]+){4}(  +[\d.]+ \([\d.]+ to [\d.]+\)){2}$", out, re.MULTILINE)) == 2
    assert len(re.findall(r"contended.*GEMM \d+ → \d+ GFLOP/s", out)) == 2
    assert re.search(r"round 2 of 2: .*, float32 floor [\d.]+ ms/photo", out)
    assert re.search(
        r"^pipeline takes [\d.]+ \([\d.]+ to [\d.]+\) times as long as the floor of its round: .* [\d.]+ CPU-ms to decode .*"
        r"; its best pass takes [\d.]+ times the lowest floor$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"pipeline: a linear head on its vectors names [\d.]+% rightly \(\d+ of 12", out)
    assert re.search(r"24 candidates take, in times of one: [\d.]+ \([\d.]+ to [\d.]+\)", out)
    assert re.search(r"classic: [\d.]+ MB of event files in 1 steps", out)


def test_too_few_photos_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(tmp_path, 2)
    assert main(["--photos", str(tmp_path)]) == 30
    assert capsys.readouterr().err.startswith("error: ")


def test_photos_are_taken_from_all_classes_and_once(tmp_path: Path) -> None:
    photos = scanned(tmp_path, 5)
    chosen = choose([*photos, *photos], 9)
    assert [sum(photo.label == label for photo in chosen) for label in ("blue", "green", "red")] == [3, 3, 3]
    assert len({photo.sha256 for photo in chosen}) == 9
    assert chosen == choose(photos, 9)


def test_ratios_are_of_passes_of_one_round(capsys: pytest.CaptureFixture[str]) -> None:
    """Both get slower by the round, as on a machine that fills up; side by side one is twice as fast all along."""
    slower = {CLASSIC: iter([10.0, 20.0, 30.0]), "other": iter([5.0, 10.0, 15.0])}
    passes = {name: (lambda times=times: Cost(*[next(times)] * 2)) for name, times in slower.items()}
    take_turns(passes, rounds=3, seed=0, unit="photo")
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r" *other +10.000 +5.000 +10.000 +5.000 +2.00 \(2.00 to 2.00\) +2.00 \(2.00 to 2.00\)", last)


def test_a_round_is_shown_with_three_digits_or_whole(capsys: pytest.CaptureFixture[str]) -> None:
    take_turns({CLASSIC: lambda: Cost(2249.6, 12.34), "other": lambda: Cost(999.6, 0.01234)}, rounds=1, seed=0, unit="step")
    shown = capsys.readouterr().out.splitlines()[0]
    assert shown == "round 1 of 1: classic 2250 ms/step (12.3 CPU-ms), other 1000 ms/step (0.0123 CPU-ms)"


def test_contention_is_told_by_waiting_or_by_the_peak() -> None:
    assert contention([Cost(5, 10)], 2, (100, 105)).startswith("not contended")
    assert contention([Cost(7, 10)], 2, (100, 105)).startswith("contended")
    assert contention([Cost(5, 10)], 2, (100, 80)).startswith("contended")


def test_the_linear_head_learns_and_does_not_see_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(90) % 3
    apart = np.eye(3)[truth] * 4 + rng.normal(size=(90, 3))
    held_out = np.arange(90) % 5 == 0
    assert count_right(apart, truth, held_out) >= 16
    noise = rng.normal(size=(90, 400))
    assert count_right(noise, truth, held_out) <= 12
