"""``python -m pipeline``, as a person types it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from conftest import Project, make_photos

from pipeline.__main__ import main


def test_predict_prints_labels_and_probabilities(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 2)
    done = finished.pipeline("predict", "colours", str(tmp_path / "red"), str(tmp_path / "blue/000.png"), "--top-k", "2")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{tmp_path}/red/000.png: red ")
    assert lines[2].startswith(f"{tmp_path}/blue/000.png: blue ")
    assert all(line.count("%") == 2 for line in lines)


def test_predict_takes_an_export_from_outside_a_project(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path, 1, ("green",))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(finished.live("colours")), "green/000.png"]) == 0
    assert capsys.readouterr().out.startswith("green/000.png: green ")
    assert main(["predict", "colours", "green/000.png"]) == 30


def test_predict_finds_an_export_where_the_profile_puts_it(copy_of_finished: Project) -> None:
    shutil.move(copy_of_finished.root / "exports", copy_of_finished.root / "shipped")
    copy_of_finished.profile("colours", "[paths]\nexports = shipped\n")
    done = copy_of_finished.pipeline("predict", "colours", "data/colours/red/000.png")
    assert done.stdout.startswith("data/colours/red/000.png: red "), done.stderr
    copy_of_finished.profile("colours", "[paths]\nexprots = shipped\n")
    done = copy_of_finished.pipeline("predict", "colours", "data/colours/red/000.png")
    assert done.stderr.startswith("error: 'exprots' is unknown in [paths] of ")


def test_a_photo_that_cannot_be_read_shows_in_the_exit_code(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 1, ("red",))
    (tmp_path / "page.jpg").write_text("<html>")
    done = finished.pipeline("predict", "colours", str(tmp_path / "page.jpg"), str(tmp_path / "red/000.png"))
    assert done.returncode == 30
    assert done.stdout.startswith(f"{tmp_path}/red/000.png: red ")
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/page.jpg: not an image that is read here (an HTML page)",
        "error: 1 of 2 photos could not be read",
    ]


def test_a_reader_that_goes_away_is_no_error(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 30, ("red",))
    command = f"{sys.executable} -m pipeline predict colours {tmp_path} | head -1"
    done = finished.run(["sh", "-c", command])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["colors", "x.jpg"], "error: 'colors' is neither the folder of an export nor a data set that has one; published are: colours\n"),
        (["colours", "x.jpg"], "error: there is no file or folder x.jpg; name photos, or folders that hold some\n"),
        (["colours", "x.jpg", "--top-k", "0"], "error: --top-k = 0: 1 or more is allowed\n"),
    ],
)
def test_a_mistake_is_one_line(finished: Project, arguments: list[str], message: str) -> None:
    done = finished.pipeline("predict", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (30, "", message)


def test_a_damaged_model_is_made_again(copy_of_finished: Project, model_dir: Path) -> None:
    graph = copy_of_finished.own_models(model_dir) / "graph.pb"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:1000] + bytes(1000) + whole[2000:])  # no size shows it
    done = copy_of_finished.pipeline("classify", "data/colours/red/000.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"warning: {graph.parent} is damaged (graph.pb was altered); it is made again\n"
    assert graph.read_bytes() == whole


# --- The cache ---------------------------------------------------------------------------------------------------------


def vectors_of(project: Project) -> list[Path]:
    return sorted((project.root / "store/vectors").rglob("*.npy"))


def test_cache_show_counts_files_and_hits_by_model(finished: Project) -> None:
    done = finished.pipeline("cache", "show")
    header, line = done.stdout.splitlines()
    assert header.split() == ["vectors", "of", "files", "MB", "computed", "hits"]
    assert line.startswith("efficientnet-lite0-")
    assert line.split()[1:] == ["30", "0.2", "30", "0"]
    assert (done.returncode, done.stderr) == (0, "")


def test_cache_verify_names_damaged_files(copy_of_finished: Project) -> None:
    assert copy_of_finished.pipeline("cache", "verify").stdout == "30 vectors checked, 0 damaged\n"
    victim = vectors_of(copy_of_finished)[4]
    victim.write_bytes(victim.read_bytes()[:-7])
    done = copy_of_finished.pipeline("cache", "verify")
    assert done.returncode == 30
    assert done.stderr == f"error: {victim}: cut short or altered\n"
    assert done.stdout == "30 vectors checked, 1 damaged; a run that needs them makes them again\n"


def test_cache_prune_removes_only_what_no_index_refers_to_and_only_if_told(copy_of_finished: Project) -> None:
    kept = vectors_of(copy_of_finished)
    stray = kept[0].with_name("ff" * 32 + ".npy")
    stray.write_bytes(kept[0].read_bytes())
    done = copy_of_finished.pipeline("cache", "prune")
    assert done.stdout.startswith("1 vectors (0.0 MB) of photos that are in no index; remove them with: ")
    assert stray.exists()
    assert copy_of_finished.pipeline("cache", "prune", "--delete").stdout.startswith("removed 1 vectors")
    assert vectors_of(copy_of_finished) == kept
