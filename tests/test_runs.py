"""``python -m pipeline runs`` and ``evaluate``: finished trainings side by side, and a classifier on new photos."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Project, make_photos

from pipeline import files, runs, settings
from pipeline.errors import UserError


def test_runs_are_listed_with_their_pages(finished: Project) -> None:
    done = finished.pipeline("runs", "list")
    heading, line = done.stdout.splitlines()
    assert heading.split() == ["run", "made", "model", "photos", "test", "accuracy", "page"]
    name, live, *_, page = line.split()
    assert name == f"colours/{finished.live('colours').name}"
    assert live == "live"
    assert (finished.root / page).is_file()


def test_no_run_is_no_error(project: Project) -> None:
    done = project.pipeline("runs", "list")
    assert (done.returncode, done.stdout) == (0, "no run yet: make retrain, or luigi --module pipeline Export\n")


def test_show_prints_the_essentials_and_where_the_page_lies(finished: Project) -> None:
    name = finished.live("colours").name
    for said in ("colours", name, f"colours/{name}", "0001", name.partition("-")[2], f"exports/colours/{name}"):
        done = finished.pipeline("runs", "show", said)
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        assert (finished.root / done.stdout.splitlines()[-1].split()[-1]).is_file()


def test_an_unknown_run_is_one_line_that_names_the_known(finished: Project) -> None:
    done = finished.pipeline("runs", "show", "colors")
    assert done.returncode == 30
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'colors' is no run") and f"colours/{finished.live('colours').name}" in line


def test_what_differs_between_two_runs_and_why_and_what_is_left_of_the_older(copy_of_finished: Project) -> None:
    project, first = copy_of_finished, copy_of_finished.live("colours").name
    assert project.export("--data", "colours", "--how-many-training-steps", "100").returncode == 0
    done = project.pipeline("runs", "compare", "0001", "0002")
    assert done.returncode == 0, done.stderr
    *table, where = done.stdout.splitlines()
    with open(project.root / where.split()[-1], encoding="utf-8", newline="") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file)}
    assert rows["how_many_training_steps"] == ["300", "100"]
    assert "seed" not in rows  # it is the same
    assert rows["test accuracy"] == ["100.0 %", "100.0 %"]
    assert [line.split("  ")[0].strip() for line in table] == list(rows)

    name, before = project.live("colours").name, project.root / "exports/colours" / first
    why = project.pipeline("runs", "why").stdout.splitlines()
    assert why[0] == f"colours/{name} after colours/{before.name}"
    steps = {line.split()[0]: " ".join(line.split()[1:]) for line in why[1:]}
    assert steps["ComputeBottlenecks"] == "the same output"
    assert steps["TrainFinalLayer"].startswith("made again: how_many_training_steps 300 → 100; ")
    assert steps["ExportGraph"].startswith("made again: another output of TrainFinalLayer; ")
    assert steps["photos"] == "the same photos"
    assert "is the first run of colours: everything was made" in project.pipeline("runs", "why", "0001").stdout

    assert project.pipeline("exports", "prune").stdout == "0 versions (0.0 MB) may go\n"
    may_go = project.pipeline("exports", "prune", "colours", "--keep", "1").stdout
    assert may_go.endswith(f"; remove them with: {sys.executable} -m pipeline exports prune colours --keep 1 --delete\n")
    for name in settings.FOR_LUIGI:  # as the project ships them; they are no profiles
        shutil.copy(REPOSITORY / f"configs/{name}.cfg", project.root / "configs")
    assert project.pipeline("runs", "prune").stdout.startswith("0 outputs")
    may_go = project.pipeline("exports", "prune", "colours", "--keep", "1").stdout
    assert may_go.endswith(f"may go; remove them with: {sys.executable} -m pipeline exports prune colours --keep 1 --delete\n")
    shutil.rmtree(before)
    dry = project.pipeline("runs", "prune", "--keep", "1").stdout.splitlines()
    assert dry[-1].endswith(f"remove them with: {sys.executable} -m pipeline runs prune --keep 1 --delete")
    assert len(project.runs("TrainFinalLayer")) == 2
    for what in (["runs", "prune", "--keep", "1"], ["cache", "prune"]):
        with files.in_use(project.root / "store"):
            assert project.pipeline(*what).returncode == 0
            refused = project.pipeline(*what, "--delete")
        assert refused.returncode == 30
        assert "error: something runs that works in store; prune when it has ended" in refused.stderr
    pruned = project.pipeline("runs", "prune", "--keep", "1", "--delete")
    assert pruned.stdout.splitlines()[-1].startswith("removed 6 outputs"), pruned.stdout  # training, classifier, gate, report, checks
    why = project.pipeline("runs", "why").stdout.splitlines()
    assert why == [f"colours/{project.live('colours').name} was not the first run of colours, but none before it is left to compare with"]
    (training,) = project.runs("TrainFinalLayer")
    assert training.name in files.read_json(project.live("colours") / files.MANIFEST)["parents"].values()
    assert "nothing to do" in project.export("--data", "colours", "--how-many-training-steps", "100").stdout


def test_a_run_that_was_not_published_is_known_too(copy_of_finished: Project) -> None:
    shutil.rmtree(copy_of_finished.root / "exports")
    (report,) = copy_of_finished.runs("Report")
    (run,) = runs.all_runs([], [report])
    assert run.name == f"colours/{run.key[:8]}"
    assert not run.is_live
    assert run.page.is_file()
    assert ["test accuracy", "100.0 %"] in runs.comparison([run])
    shutil.rmtree(copy_of_finished.runs("ExportGraph")[0])
    assert runs.all_runs([], [report]) == []  # its figures went with it


def test_a_name_for_several_runs_is_refused(tmp_path: Path) -> None:
    found = [runs.Run(f"{data}/0001-aa", tmp_path / data, {"key": "aabbccdd"}, False) for data in ("a", "b")]
    with pytest.raises(UserError, match="can be a/0001-aa, b/0001-aa; name one of them in full"):
        runs.find("0001-aa", found)
    assert runs.find("b/0001", found) == found[1]
    assert runs.find("b/0001-aa", found) == found[1]


# --- New photos -----------------------------------------------------------------------------------------------------------


def test_evaluate_gives_the_same_figures_and_page_for_new_photos(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path / "new", 6, ("red", "blue"), size=56)
    (tmp_path / "new/red/005.png").rename(tmp_path / "new/blue/red.png")
    (tmp_path / "new/blue/page.jpg").write_text("<html>")
    (tmp_path / "new/green").mkdir()
    done = finished.pipeline("evaluate", "colours", "--images", str(tmp_path / "new"), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "learned" not in done.stderr
    accuracy, left_out, page = done.stdout.splitlines()
    assert accuracy.startswith("accuracy 91.7 % (11 of 12 photos, 95 % interval ")
    assert left_out.startswith("left out 1, ")
    assert Path(page.split()[-1]) == tmp_path / "out/report.html"
    figures = files.read_json(tmp_path / "out/evaluation.json")
    assert (figures["measured_on"], figures["correct"], figures["count"]) == ("new", 11, 12)
    assert figures["calibrated"]["temperature"] == json.loads((finished.live("colours") / "manifest.json").read_text())["temperature"]
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "of the new photos named rightly: 11 of 12" in html
    assert "blue/red.png" in html and "page.jpg" in html
    assert "It has learned" not in html and "was not trained on them" in html
    assert "labelled" in html  # the red one among the blue ones is suspected
    assert "Sweep" not in html


def test_evaluate_says_which_photos_are_no_test(finished: Project, tmp_path: Path) -> None:
    splits = files.read_json(finished.live("colours") / files.MANIFEST)["splits"]
    done = finished.pipeline("evaluate", "colours", "--images", "data/colours", "--output", str(tmp_path / "out"))
    learned = splits["training"] + splits["validation"]
    assert f"warning: it has learned from {learned} of these photos: " in done.stderr
    assert files.read_json(tmp_path / "out/evaluation.json")["learned"] == learned
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert f"It has learned from {learned} of these photos." in html
    assert f"which has learned from {learned} of them" in html and "not trained on them" not in html


@pytest.mark.parametrize("where", ["latest", "live"])
def test_evaluate_writes_into_no_version(finished: Project, tmp_path: Path, where: str) -> None:
    make_photos(tmp_path / "new", 1, ("red",))
    version = finished.live("colours")
    before = {path.name: path.read_bytes() for path in version.iterdir() if path.is_file()}
    out = f"exports/colours/{version.name if where == 'live' else where}"
    done = finished.pipeline("evaluate", "colours", "--images", str(tmp_path / "new"), "--output", out)
    assert (done.returncode, done.stdout) == (30, "")
    assert f"error: --output = {out} is an output of the pipeline, which other files would damage; name another folder\n" == done.stderr
    assert {path.name: path.read_bytes() for path in version.iterdir() if path.is_file()} == before


def test_evaluate_has_a_place_of_its_own_for_each_set_of_photos(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path / "new", 2, ("green",))
    done = finished.pipeline("evaluate", "colours", "--images", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    page = done.stdout.split()[-1]
    assert page.startswith("store/evaluations/colours-0001-")
    assert (finished.root / page).is_file()


def test_what_is_wrong_with_all_photos_is_said(finished: Project, tmp_path: Path) -> None:
    (tmp_path / "new/red").mkdir(parents=True)
    (tmp_path / "new/red/page.jpg").write_text("<html>")
    done = finished.pipeline("evaluate", "colours", "--images", str(tmp_path / "new"))
    assert done.returncode == 20
    assert re.fullmatch(r"error: none of the 1 photos in \S+ can be used \(the first, red/page.jpg: .*HTML.*\); name others\n", done.stderr)


@pytest.mark.parametrize(
    ("labels", "code", "message"),
    [
        (("crimson",), 30, "'crimson' is no class of 0001-"),
        ((), 20, "no photos in the class folders of"),
    ],
)
def test_a_mistake_of_evaluate_is_one_line(finished: Project, tmp_path: Path, labels: tuple[str, ...], code: int, message: str) -> None:
    (tmp_path / "new").mkdir()
    make_photos(tmp_path / "new", 1, labels)
    done = finished.pipeline("evaluate", "colours", "--images", str(tmp_path / "new"))
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
