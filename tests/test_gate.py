"""The verdict on a candidate: by its own figures, and against the live model on the same photos."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, make_photos
from scipy.stats import binom

from pipeline import changes, dataset, evaluation, files, gate
from pipeline.classifier import Prediction, Score
from pipeline.console import silent
from pipeline.dataset import Photo
from pipeline.errors import UserError
from pipeline.gate import Limits, Measured, Rival, Verdict, judge, paired, tail

LIMITS = Limits(minimum_accuracy=0, margin=2, class_margin=10, significance=0.2, lost_labels=False, megabytes=0, milliseconds=0)
LABELS = ["ash", "oak", "yew"]
CANDIDATE = Measured(correct=45, photos=50, labels=LABELS, megabytes=20, milliseconds=30)


def rival(*groups: tuple[str, int, str, str], **others: object) -> Rival:
    """A live model compared on groups of photos: label, number, and what candidate and live model take them for."""
    rows = [group for group in groups for _ in range(group[1])]
    truth, candidate, live = ([row[column] for row in rows] for column in (0, 2, 3))
    return dataclasses.replace(Rival("0007-x", LABELS, truth, candidate, live, [True] * len(rows), 0, 0), **others)


def verdict(*groups: tuple[str, int, str, str], limits: Limits = LIMITS, candidate: Measured = CANDIDATE, **others: object) -> Verdict:
    return judge(limits, candidate, rival(*groups, **others))


def within(**values: object) -> Limits:
    return dataclasses.replace(LIMITS, **values)


@pytest.mark.parametrize(("heads", "tosses"), [(0, 0), (3, 3), (7, 9), (60, 100), (5200, 10_000), (0, 7)])
def test_the_tail_of_the_coin_is_the_binomial_one(heads: int, tosses: int) -> None:
    assert tail(heads, tosses) == pytest.approx(binom.sf(heads - 1, tosses, 0.5), rel=1e-9)


def test_a_probability_that_is_a_fraction_of_two_is_met_exactly() -> None:
    assert (tail(3, 4), tail(4, 4), tail(2, 3), tail(9, 10)) == (5 / 16, 1 / 16, 1 / 2, 11 / 1024)


def test_only_photos_that_one_of_two_names_rightly_tell_them_apart() -> None:
    found = paired([True, True, False, False, True], [True, False, True, False, False])
    assert (found.photos, found.candidate_right, found.live_right, found.only_candidate, found.only_live) == (5, 3, 2, 2, 1)
    assert found.points == pytest.approx(20)
    assert found.chance == pytest.approx(0.5)


def test_the_first_version_is_accepted_without_a_comparison() -> None:
    first = judge(LIMITS, CANDIDATE, None)
    assert first.accepted
    assert first.words == "accepted: the first version, so there is nothing to compare it with"


def test_a_worse_candidate_is_rejected_and_the_reason_has_the_figures() -> None:
    found = verdict(("ash", 80, "ash", "ash"), ("oak", 20, "yew", "oak"))
    assert not found.accepted
    assert found.words == (
        "rejected: 80.0 % against 100.0 % of 0007-x on the same 100 photos (0 better, 20 worse: a real difference, p = 9.5e-07), more "
        "than gate_margin = 2 allows; classes that fall by more than gate_class_margin = 10: oak to 0.0 % from 100.0 % of 20 photos"
    )


def test_what_chance_explains_is_no_reason() -> None:
    groups = (("ash", 90, "ash", "ash"), ("oak", 6, "yew", "oak"), ("yew", 4, "yew", "oak"))
    limits = within(class_margin=100)
    assert verdict(*groups, limits=limits).words == (
        "accepted: 94.0 % against 96.0 % of 0007-x on the same 100 photos (4 better, 6 worse: chance explains that, p = 0.38)"
    )
    assert not verdict(*groups, limits=dataclasses.replace(limits, margin=1, significance=0.5)).accepted


def test_a_real_difference_within_the_margin_is_no_reason() -> None:
    groups = (("ash", 980, "ash", "ash"), ("oak", 20, "yew", "oak"))
    assert verdict(*groups, limits=within(class_margin=100)).accepted  # 2 points
    assert not verdict(*groups, limits=within(class_margin=100, margin=1.9)).accepted


def test_a_class_that_falls_is_a_reason_though_the_whole_gains() -> None:
    found = verdict(("ash", 50, "ash", "yew"), ("oak", 40, "oak", "oak"), ("yew", 10, "ash", "yew"))
    assert found.against == ("classes that fall by more than gate_class_margin = 10: yew to 0.0 % from 100.0 % of 10 photos",)
    assert found.findings[0].startswith("90.0 % against 50.0 % of 0007-x on the same 100 photos (50 better, 10 worse: a real difference")


def test_a_fall_is_a_reason_only_where_chance_gives_it_less_often_than_the_limit() -> None:
    groups, chance = (("ash", 4, "ash", "ash"), ("oak", 3, "yew", "oak")), tail(3, 3)
    assert verdict(*groups, limits=within(significance=chance)).words == (
        f"accepted: 57.1 % against 100.0 % of 0007-x on the same 7 photos (0 better, 3 worse: chance explains that, p = {chance:.2g})"
    )
    whole, of_class = verdict(*groups, limits=within(significance=1.01 * chance)).against
    assert "a real difference" in whole and "oak to 0.0 % from 100.0 %" in of_class


def test_the_class_that_falls_most_is_named_first() -> None:
    found = verdict(("ash", 10, "ash", "ash"), ("ash", 10, "oak", "ash"), ("oak", 8, "yew", "oak"))
    assert found.against[-1].endswith(" = 10: oak to 0.0 % from 100.0 % of 8 photos, ash to 50.0 % from 100.0 % of 20 photos")


def test_wrong_labels_in_new_photos_do_not_hide_a_loss_on_the_old_ones() -> None:
    # The new photos are labelled wrongly, the candidate has learned that, and so it looks better on the whole.
    both = rival(("ash", 40, "ash", "ash"), ("oak", 10, "yew", "oak"), ("yew", 30, "yew", "oak"))
    found = judge(within(class_margin=100), CANDIDATE, dataclasses.replace(both, tested=[True] * 50 + [False] * 30))
    assert found.findings[0].startswith("87.5 % against 62.5 % of 0007-x on the same 80 photos")
    assert found.against == (
        "80.0 % against 100.0 % of 0007-x on the same 50 of them that 0007-x was tested on "
        "(0 better, 10 worse: a real difference, p = 0.00098), more than gate_margin = 2 allows",
    )


def test_a_lost_class_is_a_reason_unless_it_is_allowed() -> None:
    fewer = dataclasses.replace(CANDIDATE, labels=["ash", "oak"])
    found = verdict(("ash", 10, "ash", "ash"), candidate=fewer)
    assert found.against == ("classes of the live model that are lost: yew (allowed with gate_lost_labels = true)",)
    allowed = verdict(("ash", 10, "ash", "ash"), candidate=fewer, limits=within(lost_labels=True))
    assert allowed.accepted
    assert allowed.findings[-1] == "classes of the live model that are lost: yew"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"minimum_accuracy": 90.1}, "test accuracy 90.0 % is below gate_minimum_accuracy = 90.1"),
        ({"megabytes": 19.9}, "its graph has 20.0 MB, more than gate_megabytes = 19.9"),
        ({"milliseconds": 29}, "it takes 30.0 ms for a photo, more than gate_milliseconds = 29"),
    ],
)
def test_limits_of_its_own_hold_for_the_first_version_too(limits: dict[str, float], reason: str) -> None:
    for live in (None, rival(("ash", 10, "ash", "ash"))):
        assert judge(within(**limits), CANDIDATE, live).against == (reason,)
    equal = {"minimum_accuracy": 90, "megabytes": 20, "milliseconds": 30}
    assert judge(within(**equal), CANDIDATE, None).accepted


def test_an_accuracy_that_is_exactly_the_limit_is_enough() -> None:
    for correct in range(51):
        measured = dataclasses.replace(CANDIDATE, correct=correct, photos=50)
        assert judge(within(minimum_accuracy=2 * correct), measured, None).accepted, correct


def test_without_photos_to_compare_on_nothing_is_published() -> None:
    found = verdict(learned=7, unknown=3)
    assert found.words == (
        "rejected: it cannot be compared with 0007-x, which has learned from all of its test photos, or knows none of their classes "
        "(gate = false publishes without a comparison)"
    )
    assert "left out of the comparison: 7 photos that the live model learned from, 3 of classes it does not know" in found.findings


def test_a_photo_under_another_label_is_not_one_that_the_live_model_was_tested_on(tmp_path: Path) -> None:
    for name in ("kept", "relabelled", "new"):
        (tmp_path / name).write_text(name)
    photos = [Photo(name, "oak", files.sha256_file(tmp_path / name), split=dataset.TESTING) for name in ("kept", "relabelled", "new")]
    dataset.write_photos(tmp_path / dataset.INDEX, photos)
    changes.write_photos(tmp_path / changes.PHOTOS, [photos[0], photos[1]._replace(label="ash")])
    files.write_json(tmp_path / files.MANIFEST, {"labels": LABELS})
    for split in evaluation.MEASURED:
        np.save(tmp_path / evaluation.logits_file(split), np.eye(3))

    class Live:
        def predict(self, paths: Iterable[Path]) -> list[Prediction]:
            return [Prediction(path, (Score("oak", 1.0),)) for path in paths]

    live: Any = Live()
    folders = [tmp_path] * 4
    found = gate.measure_rival(*folders, LABELS, same_vectors=False, load=lambda _: live, progress=silent)
    assert found == Rival(tmp_path.name, LABELS, ["oak"] * 3, LABELS, ["oak"] * 3, [True, False, False], learned=0, unknown=0)


# --- As its user sees it ------------------------------------------------------------------------------------------------

OTHER = ("--data", "colours", "--how-many-training-steps", "200")


def test_a_rejected_candidate_is_a_result(copy_of_finished: Project) -> None:
    project, before = copy_of_finished, copy_of_finished.live("colours")
    strict = ("--gate-megabytes", "0.1")
    done = project.export(*OTHER, *strict)
    assert done.returncode == 0, done.stderr
    first, _since, second = done.stdout.splitlines()
    assert first.startswith("colours: rejected: its graph has ") and "MB, more than gate_megabytes = 0.1" in first
    page = second.rpartition("report: ")[2]
    assert second == f"colours: exports/colours/{before.name} stays live; report: {page}"
    assert "MB, more than gate_megabytes = 0.1" in (project.root / page).read_text()
    assert project.live("colours") == before

    again = project.export(*OTHER, *strict)
    assert again.returncode == 0
    assert again.stdout.startswith("colours: nothing to do, these photos and settings were rejected: its graph has ")

    told = project.export(*OTHER, *strict, "--fail-if-rejected", "true")
    assert told.returncode == 30
    assert told.stderr.splitlines()[-1].startswith("error: colours: rejected: its graph has ")
    assert "rejected" in project.pipeline("runs", "list").stdout


@pytest.mark.parametrize("lost", ["report.html", "latest"])
def test_no_damage_opens_the_gate(copy_of_finished: Project, lost: str) -> None:
    project, live = copy_of_finished, copy_of_finished.live("colours")
    (live / "report.html" if lost == "report.html" else live.parent / "latest").unlink()
    shutil.rmtree(project.root / "data/colours/red")
    done = project.export(*OTHER)
    assert done.returncode == 0, done.stderr
    rejected, *_, stays = done.stdout.splitlines()
    assert rejected.startswith("colours: rejected: classes of the live model that are lost: red")
    rollback = f"{sys.executable} -m pipeline exports rollback colours VERSION makes"
    damaged = f"exports/colours/{live.name} (damaged, report.html is missing; {rollback}"
    assert (damaged if lost == "report.html" else "colours: nothing stays live") in stays
    assert len(list(live.parent.glob("0*"))) == 1


def test_other_limits_judge_the_same_candidate_again(copy_of_finished: Project) -> None:
    project, before = copy_of_finished, copy_of_finished.live("colours")
    assert "rejected" in project.export(*OTHER, "--gate-megabytes", "0.1").stdout
    trained = project.runs("TrainFinalLayer")
    done = project.export(*OTHER, "--gate", "false")
    assert done.returncode == 0, done.stderr
    assert "verdict  accepted without being judged, as gate = false says" in done.stdout
    assert project.runs("TrainFinalLayer") == trained
    live = project.live("colours")
    assert live != before
    assert json.loads((live / "manifest.json").read_text())["verdict"]["live"] == before.name

    # The settings put back: the version they gave is named, and a person decides.
    back = project.export("--data", "colours", "--how-many-training-steps", "300")
    assert back.returncode == 0
    assert f"exports/colours/{before.name} was made with these photos and settings; it is not live" in back.stdout
    command = back.stdout.strip().rpartition("To make it live: ")[2]
    assert command.endswith(f"-m pipeline exports rollback colours {before.name}")
    assert project.live("colours") == live
    assert project.run(command.split()).returncode == 0
    assert project.live("colours") == before
    assert "is up to date" in project.export("--data", "colours", "--how-many-training-steps", "300").stdout


def test_the_live_model_is_asked_about_photos_it_did_not_learn_from(copy_of_finished: Project) -> None:
    project = copy_of_finished
    before = json.loads((project.live("colours") / "manifest.json").read_text())
    done = project.export("--data", "colours", "--testing-percentage", "60", "--how-many-training-steps", "300")
    assert done.returncode == 0, done.stderr
    says = json.loads((project.live("colours") / "manifest.json").read_text())
    learned = says["splits"]["testing"] - before["splits"]["testing"]  # a larger share for testing holds the smaller one
    assert learned > 0
    assert (
        f"left out of the comparison: {learned} photos that the live model learned from, 0 of classes it does not know"
        in says["verdict"]["findings"]
    )


def test_another_network_is_compared_by_the_photos_themselves(copy_of_finished: Project) -> None:
    project = copy_of_finished
    make_photos(project.root / "data/colours", 12)
    done = project.export("--data", "colours", "--how-many-training-steps", "300", "--average-views", "mirror")
    assert done.returncode == 0, done.stderr
    verdict = json.loads((project.live("colours") / "manifest.json").read_text())["verdict"]
    assert verdict["accepted"]
    assert "of 0001-" in verdict["words"]


GONE_FROM_THE_GATE = """
import luigi, pathlib, pipeline, sys
from pipeline.tasks import Gate
photo, make = pathlib.Path("data/colours", sys.argv[1]), Gate.make

def make_without_it(self, work):
    whole = photo.read_bytes()
    photo.unlink() if sys.argv[2] == "gone" else photo.write_bytes(pathlib.Path("data/colours/red/000.png").read_bytes())
    try:
        return make(self, work)
    finally:
        photo.write_bytes(whole)

Gate.make = make_without_it
luigi.build([pipeline.Export(data="colours", how_many_training_steps=300, average_views="mirror")], local_scheduler=True)
"""


@pytest.mark.parametrize(
    ("how", "reason"), [("gone", "cannot be read: No such file"), ("another", "it changed while the run was going on")]
)
def test_no_verdict_is_kept_that_lacks_a_photo(copy_of_finished: Project, how: str, reason: str) -> None:
    project, before = copy_of_finished, copy_of_finished.live("colours")
    with open(project.runs("ComputeBottlenecks")[0] / "index.csv", newline="") as rows:
        path = next(row["path"] for row in csv.DictReader(rows) if row["split"] == "testing" and row["label"] == "blue")
    done = project.run([sys.executable, "-c", GONE_FROM_THE_GATE, path, how])
    assert re.search(rf"error: \S+{path}: {reason}.*, so the live model cannot be asked about it; run again\n", done.stderr), done.stderr
    assert project.live("colours") == before
    again = project.export("--data", "colours", "--how-many-training-steps", "300", "--average-views", "mirror")
    assert again.returncode == 0, again.stderr
    assert "verdict  accepted: " in again.stdout


def test_what_else_the_machine_does_is_not_the_time_for_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    taken = {b"a": iter([9.0, 2.0, 3.0]), b"b": iter([1.0, 9.0, 9.0]), b"c": iter([9.0, 9.0, 4.0])}

    class Busy:
        def probabilities(self, encoded: bytes) -> None:
            nonlocal clock
            clock += next(taken[encoded]) / 1000

    photos = []
    for content in taken:
        (tmp_path / content.decode()).write_bytes(content)
        photos.append(Photo(content.decode(), "x", hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(gate.time, "perf_counter", lambda: clock)
    assert gate.milliseconds_a_photo(Busy(), photos, tmp_path) == pytest.approx(2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("harm", "words"), [("gone", "cannot be read: No such file"), ("other", "it changed while the run was going on")])
def test_a_photo_that_is_gone_is_not_named_fast(tmp_path: Path, harm: str, words: str) -> None:
    class Idle:
        def probabilities(self, encoded: bytes) -> None:
            pass

    photos = [Photo(name, "x", hashlib.sha256(b"a photo").hexdigest()) for name in ("first", "second")]
    (tmp_path / "first").write_bytes(b"a photo")
    if harm == "other":
        (tmp_path / "second").write_bytes(b"another")
    with pytest.raises(UserError, match=f"second: {words}.*, so the candidate cannot be timed with it; run again"):
        gate.milliseconds_a_photo(Idle(), photos, tmp_path)  # type: ignore[arg-type]


def test_a_class_that_is_gone_does_not_go_live(copy_of_finished: Project) -> None:
    project, before = copy_of_finished, copy_of_finished.live("colours")
    shutil.rmtree(project.root / "data/colours/green")
    arguments = ("--data", "colours", "--how-many-training-steps", "300")
    done = project.export(*arguments)
    assert "classes of the live model that are lost: green (allowed with gate_lost_labels = true)" in done.stdout
    assert project.live("colours") == before
    assert project.export(*arguments, "--gate-lost-labels", "true").returncode == 0
    assert (project.live("colours") / "labels.txt").read_text() == "blue\nred\n"
