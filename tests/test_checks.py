"""What is looked at before anything is trained, and what stops a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Project

from pipeline import checks, dataset, files
from pipeline.checks import Before, Limits
from pipeline.dataset import Photo, Photos
from pipeline.errors import UserError
from pipeline.packed import PACKED
from pipeline.tasks import CheckPhotos

LIMITS = Limits(photos_fall=50, class_share=10, relabelled=10, unreadable=20)


def photos(**classes: int) -> list[Photo]:
    return [
        Photo(f"{label}/{number}", label, files.sha256_bytes(f"{label}{number}".encode()))
        for label, count in classes.items()
        for number in range(count)
    ]


def found(
    now: list[Photo], before: list[Photo], skipped: int = 0, relabelled: int = 0, limits: Limits = LIMITS
) -> dict[str, checks.Outcome]:
    return {one.check: one for one in checks.of_photos(Photos(now), skipped, Before.of("0007-ab", before, relabelled), limits)}


def test_what_is_fine_says_value_and_limit() -> None:
    outcomes = found(photos(a=55, b=50), photos(a=50, b=50), skipped=5, relabelled=10)
    assert all(one.fine for one in outcomes.values())
    assert [one.sentence for one in outcomes.values()] == [
        "105 photos, 5.0 % more than the 100 of 0007-ab (limit: 50 % fewer)",
        "the 2 labels of 0007-ab",
        "10 of the 100 photos of 0007-ab have another label now, 10.0 % (limit 10 %)",
        "share of a class against 0007-ab: at most 2.4 points (a, 50.0 to 52.4 %; limit 10)",
        "5 of 110 files cannot be used, 4.5 % (limit 20 %)",
        "no photo has two labels",
    ]


@pytest.mark.parametrize(
    ("check", "now", "words"),
    [
        ("photos", photos(a=24, b=25), "49 photos, 51.0 % fewer than the 100 of 0007-ab (limit: 50 % fewer); look for what is missing"),
        ("labels", photos(a=50, c=50), "labels against 0007-ab: 1 lost (b), 1 new (c)"),
        ("shares", photos(a=80, b=50), "at most 11.5 points (a, 50.0 to 61.5 %; limit 10); look whether a batch"),
        (
            "duplicates",
            [*photos(a=50, b=50), *(photos(a=8)[7]._replace(path=path, label="b") for path in ("b/again", "b/twice"))],
            "photos under more than one label: 1 (limit: none); keep each",
        ),
    ],
)
def test_what_is_not_fine_says_the_next_step(check: str, now: list[Photo], words: str) -> None:
    outcome = found(now, photos(a=50, b=50))[check]
    assert not outcome.fine
    assert words in outcome.sentence


def test_what_comes_just_to_its_limit_is_fine() -> None:
    now, before = photos(a=5, b=3), photos(a=8, b=8)
    just = Limits(photos_fall=50, class_share=12.5, relabelled=25, unreadable=20)
    assert all(one.fine for one in found(now, before, relabelled=4, limits=just).values())
    below = Limits(photos_fall=49.9, class_share=12.4, relabelled=24.9, unreadable=20)
    above = [one.check for one in found(now, before, relabelled=4, limits=below).values() if not one.fine]
    assert above == ["photos", "relabelled", "shares"]


def test_a_share_that_changes_by_exactly_the_limit_is_fine() -> None:
    outcome = found(photos(a=4, b=6), photos(a=3, b=7))["shares"]
    assert outcome.fine
    assert outcome.sentence.endswith("at most 10.0 points (a, 30.0 to 40.0 %; limit 10)")


def test_folders_that_were_mixed_up_are_noticed() -> None:
    outcome = found(photos(a=50, b=50), photos(a=50, b=50), relabelled=11)["relabelled"]
    assert not outcome.fine
    assert outcome.sentence == (
        "11 of the 100 photos of 0007-ab have another label now, 11.0 % (limit 10 %); look whether folders were mixed up, "
        "or raise relabelled_limit if they are meant to have it"
    )


def test_without_a_live_version_only_the_photos_themselves_are_checked() -> None:
    assert [one.check for one in checks.of_photos(Photos(photos(a=5)), 0, None, LIMITS)] == ["unreadable", "duplicates"]


def test_only_what_is_to_stop_a_run_does() -> None:
    outcomes = list(found(photos(a=10, c=10), photos(a=50, b=50)).values())
    checks.stop(outcomes, ["drift", "duplicates"])
    with pytest.raises(UserError, match=r"^nothing is trained: 20 photos, .* \(stop_on has photos; without it it is a warning\)$"):
        checks.stop(outcomes, ["photos", "drift"])
    with pytest.raises(UserError, match="; and labels against .* .stop_on has photos,labels,shares"):
        checks.stop(outcomes, checks.NAMES)


# --- Vectors ------------------------------------------------------------------------------------------------------------


def packed(folder: Path, vectors: np.ndarray, labels: list[str], views: int = 0) -> checks.ClassStatistics:
    """Statistics of vectors; the last ``views`` are distorted views."""
    folder.mkdir(parents=True)
    rows = [Photo(f"{n}", label, view=int(n >= len(labels) - views)) for n, label in enumerate(labels)]
    dataset.write_photos(folder / dataset.INDEX, rows)
    np.save(folder / PACKED, vectors.astype("<f4"))
    return checks.statistics(folder, "net")


def test_statistics_are_those_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(3, 1, (50, 4)), [str(label) for label in rng.choice(["b", "a", "花"], 50)]
    mine = packed(tmp_path / "packed", np.concatenate([vectors, 1000 + vectors]), labels * 2, views=50)
    assert mine.labels == ["a", "b", "花"]
    for number, label in enumerate(mine.labels):
        of_label = vectors[[one == label for one in labels]]
        assert mine.count[number] == len(of_label)
        np.testing.assert_allclose(mine.mean[number], of_label.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(mine.variance[number], of_label.var(axis=0), rtol=1e-4)
    mine.write(tmp_path / "kept.npz")
    again = checks.ClassStatistics.read(tmp_path / "kept.npz")
    assert (again.vectors, again.labels) == (mine.vectors, mine.labels)
    np.testing.assert_array_equal(again.mean, mine.mean)


def test_drift_is_small_for_two_samples_and_large_for_another_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    apart = np.repeat([[0.0], [1.0]], 200, axis=0) * rng.normal(0, 1, 64)
    labels = ["a"] * 200 + ["b"] * 200
    one, other = (packed(tmp_path / name, apart + rng.normal(0, 1, (400, 64)), labels) for name in ("one", "other"))
    assert checks.of_vectors(other, one, "0007-ab", 0.1).fine
    swapped = packed(tmp_path / "swapped", apart + rng.normal(0, 1, (400, 64)), labels[::-1])
    outcome = checks.of_vectors(swapped, one, "0007-ab", 0.1)
    assert not outcome.fine and "; look at what came to that class" in outcome.sentence
    assert min(outcome.classes.values()) > 0.8
    a_half = packed(tmp_path / "half", apart[::-1] * 0.5 + rng.normal(0, 1, (400, 64)), labels[::-1])
    assert 0.3 < checks.drift(a_half, one)["b"] < checks.drift(swapped, one)["b"]


def one_feature(labels: str, count: list[int], mean: list[float], variance: list[float]) -> checks.ClassStatistics:
    return checks.ClassStatistics("net", list(labels), np.array(count), *(np.array(values)[:, None] for values in (mean, variance)))


def test_drift_is_measured_by_the_variance_of_a_mean_photo_and_fine_just_at_its_limit() -> None:
    before = one_feature("ab", [12, 4], mean=[0, 0], variance=[0, 3.5])  # 4 of 3.5 over 11 + 3 are 1; and no chance in the mean of a
    now = one_feature("ab", [12, 4], mean=[0.5, 0], variance=[0, 3.5])
    assert checks.drift(now, before) == {"a": 0.5, "b": 0}
    assert checks.of_vectors(now, before, "0007-ab", 0.5).fine
    assert not checks.of_vectors(now, before, "0007-ab", 0.49).fine


def test_fewer_photos_on_either_side_leave_more_to_chance() -> None:
    few, many = one_feature("a", [10], mean=[0], variance=[0.9]), one_feature("a", [1000], mean=[1], variance=[0.999])
    more = one_feature("a", [1000], mean=[0], variance=[0.999])
    assert checks.drift(few, many)["a"] == pytest.approx(checks.drift(many, few)["a"])
    assert checks.drift(few, many)["a"] < checks.drift(more, many)["a"] < 1


def test_vectors_of_another_network_are_not_compared(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", np.eye(4), list("aabb"))
    other = checks.ClassStatistics("other", one.labels, one.count, one.mean, one.variance)
    assert checks.of_vectors(one, other, "0007-ab", 0.1).sentence == ("drift is not compared: the vectors of 0007-ab are another network's")


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_a_small_class_of_new_photos_has_not_drifted(count: int) -> None:
    """Two samples of one distribution: what is left beside chance is a small part of the limit of 0.2."""
    random = np.random.default_rng(0)

    def sample() -> checks.ClassStatistics:
        rows = random.normal(size=(count, 1280))
        return checks.ClassStatistics("net", ["a"], np.array([count]), rows.mean(axis=0)[None], rows.var(axis=0)[None])

    assert np.mean([checks.drift(sample(), sample())["a"] for _ in range(30)]) < 0.15


# --- Through the task graph -----------------------------------------------------------------------------------------------


def test_a_fall_in_the_photos_stops_before_the_training_until_it_is_allowed(copy_of_finished: Project) -> None:
    project, live = copy_of_finished, copy_of_finished.live("colours")
    for number in range(4, 10):
        for label in ("blue", "green", "red"):
            (project.root / f"data/colours/{label}/{number:03d}.png").unlink()
    for _ in range(2):  # a rerun is stopped again
        done = project.export("--data", "colours", "--how-many-training-steps", "300")
        assert done.returncode == 30
        (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert f"12 photos, 60.0 % fewer than the 30 of {live.name} (limit: 50 % fewer); look for what is missing" in error
    assert project.live("colours") == live
    assert len(project.runs("ComputeBottlenecks")) == len(project.runs("TrainFinalLayer")) == 1
    done = project.export("--data", "colours", "--how-many-training-steps", "300", "--stop-on", "none")
    assert done.returncode == 0, done.stderr
    version = project.live("colours")
    outcomes = {one["check"]: one for one in files.read_json(version / files.MANIFEST)["checks"]}
    assert list(outcomes) == ["photos", "labels", "relabelled", "shares", "unreadable", "duplicates", "drift"]
    assert [name for name, one in outcomes.items() if not one["fine"]] == ["photos"]
    page = (version / "report.html").read_text(encoding="utf-8")
    assert all(str(one["sentence"]) in page for one in outcomes.values())


def test_labels_that_were_swapped_stop_a_run_that_is_told_to(copy_of_finished: Project) -> None:
    data = copy_of_finished.root / "data/colours"
    (data / "red").rename(data / "x")
    (data / "blue").rename(data / "red")
    (data / "x").rename(data / "blue")
    done = copy_of_finished.export("--data", "colours", "--how-many-training-steps", "300", "--stop-on", "labels,drift")
    assert done.returncode == 30
    assert "error: nothing is trained: drift of the vectors of a class" in done.stderr
    assert len(copy_of_finished.runs("TrainFinalLayer")) == 1
    refused = copy_of_finished.export("--data", "colours", "--stop-on", "photo")
    assert refused.returncode == 30
    assert (
        "error: stop_on = photo: none, or any of photos, labels, relabelled, shares, drift, duplicates with commas between is allowed"
        in refused.stderr
    )


def test_a_disk_that_does_not_answer_is_no_version_without_photos(inside: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison would be kept as one that found nothing."""
    task = CheckPhotos(data="mine", snapshot="0", live_version="0001-0")
    live = inside.root / "exports/mine/0001-0"
    live.mkdir(parents=True)
    (live / "photos.csv.gz").write_bytes(b"a list")
    files.write_manifest(live, {"key": "0"})
    assert task.has_kept("photos.csv.gz")

    def does_not_answer(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "sha256_file", does_not_answer)
    with pytest.raises(UserError, match=r"exports/mine/0001-0: photos.csv.gz cannot be read: .*; mend that, then run again"):
        task.has_kept("photos.csv.gz")
    (live / "photos.csv.gz").unlink()
    assert not task.has_kept("photos.csv.gz")
