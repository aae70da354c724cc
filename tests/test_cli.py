"""``python -m pipeline``, as a person types it."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Project, make_photos

from pipeline import settings
from pipeline.__main__ import main
from pipeline.classifier import Prediction, Score
from pipeline.commands.predict import FORMATS


def but_progress(stderr: str) -> str:
    """What a program says, without the lines on how far it is: on a machine with much else to do, five seconds are over soon."""
    return re.sub(r"(?m)^predict: \d+ of \d+ photos.*\n", "", stderr)


def test_predict_prints_labels_and_probabilities(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 2)
    done = finished.pipeline("predict", "colours", str(tmp_path / "red"), str(tmp_path / "blue/000.png"), "--top-k", "2")
    assert done.returncode == 0
    assert but_progress(done.stderr) == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{tmp_path}/red/000.png: red ")
    assert lines[2].startswith(f"{tmp_path}/blue/000.png: blue ")
    assert all(line.count("%") == 2 for line in lines)


def test_a_name_that_a_terminal_would_obey_is_one_line_of_text(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 1, ("red",))
    (tmp_path / "red/000.png").rename(tmp_path / "red/\x1b[31m\n.png")
    (tmp_path / "red/empty\r.png").write_bytes(b"")
    done = finished.pipeline("predict", "colours", str(tmp_path / "red"))
    assert done.stdout.startswith(f"{tmp_path}/red/\ufffd[31m\ufffd.png: red ")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.splitlines()[-2] == f"error: {tmp_path}/red/empty\ufffd.png: the file is empty"


def test_predict_takes_an_export_from_outside_a_project(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path, 1, ("green",))
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(finished.live("colours")), "green/000.png"]) == 0
    assert capsys.readouterr().out.startswith("green/000.png: green ")
    assert main(["predict", "colours", "green/000.png"]) == 30
    assert re.fullmatch(
        r"error: 'colours' is not the folder of an export, nor a data set: no luigi.cfg .*; start from .*\n", capsys.readouterr().err
    )


def test_ctrl_c_is_one_line(finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "export_named", interrupted)
    assert main(["predict", "colours", "x.jpg"]) == 130
    assert capsys.readouterr() == ("", "error: stopped\n")


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
    assert but_progress(done.stderr).splitlines() == [
        f"error: {tmp_path}/page.jpg: not an image that is read here (an HTML page)",
        "error: 1 of 2 photos could not be read",
    ]


def test_a_table_has_a_row_for_each_photo_also_for_a_bad_one(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 1, ("red", "blue"))
    (tmp_path / "a,\nb.jpg").write_text("<html>")
    done = finished.pipeline("predict", "colours", "--format", "csv", "--top-k", "2", f"{tmp_path}/a*.jpg", str(tmp_path / "red"), "-")
    assert (done.returncode, but_progress(done.stderr)) == (30, "error: 1 of 2 photos could not be read\n")
    bad, red = csv.DictReader(io.StringIO(done.stdout))
    assert bad == {
        **dict.fromkeys(["label_1", "probability_1", "label_2", "probability_2"], ""),
        "path": f"{tmp_path}/a,\nb.jpg",
        "error": "not an image that is read here (an HTML page)",
    }
    assert (red["path"], red["label_1"], red["error"]) == (f"{tmp_path}/red/000.png", "red", "")
    assert 1 >= float(red["probability_1"]) > float(red["probability_2"]) >= 0


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_json_lines_of_a_list_on_standard_input_in_its_order(finished: Project, tmp_path: Path, separator: str) -> None:
    make_photos(tmp_path, 3, ("red", "blue"))
    name = "new\nline.png" if separator == "\0" else "caf\u00e9.png"
    (tmp_path / "red/002.png").rename(tmp_path / name)
    listed = separator.join(f"{tmp_path}/{one}" for one in ("red/001.png", "gone.png", "blue", name))
    done = finished.pipeline("predict", "colours", "-", "--format", "jsonl", "--threshold", "0.5", given=listed)
    assert done.returncode == 30
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"].removeprefix(f"{tmp_path}/") for row in rows] == [
        "red/001.png",
        "gone.png",
        "blue/000.png",
        "blue/001.png",
        "blue/002.png",
        name,
    ]
    assert [[score["label"] for score in row["scores"]] for row in rows] == [["red"], [], ["blue"], ["blue"], ["blue"], ["red"]]
    assert [row["error"] for row in rows] == [None, "cannot be read: No such file or directory", None, None, None, None]


def test_patterns_are_looked_up_where_the_shell_has_not(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path / "deep/er", 2, ("red",))
    (tmp_path / "[odd].png").write_bytes((tmp_path / "deep/er/red/000.png").read_bytes())
    done = finished.pipeline("predict", "colours", f"{tmp_path}/deep/**/*.png", f"{tmp_path}/[odd].png")
    names = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    assert names == [f"{tmp_path}/deep/er/red/000.png", f"{tmp_path}/deep/er/red/001.png", f"{tmp_path}/[odd].png"]


def test_a_label_below_the_threshold_is_not_named(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Doubtful:
        labels = ("a", "b")

        def predict(self, paths: list[Path]) -> Iterator[Prediction]:
            return (Prediction(path, (Score("a", 0.5), Score("b", 0.3))) for path in paths)

    make_photos(tmp_path, 1, ("green",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.classifier.load", lambda folder: Doubtful())
    for threshold in ("0.3", "0.4", "0.6"):
        assert main(["predict", str(finished.live("colours")), "green", "--threshold", threshold]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "green/000.png: a 50.0 %; b 30.0 %",
        "green/000.png: a 50.0 %",
        "green/000.png: no label is so probable",
    ]


def test_a_bar_shows_the_progress_where_the_rows_do_not(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 2, ("red",))
    (tmp_path / "red/empty.png").write_bytes(b"")

    def seen(shown: str) -> str:
        """What a terminal shows of a run whose standard error, or both outputs, it is."""
        terminal, inner = os.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        command = [sys.executable, "-m", "pipeline", "predict", "colours", str(tmp_path)]
        out = subprocess.DEVNULL if shown == "stderr" else inner
        subprocess.run(command, cwd=finished.root, env=finished.environment(), stdout=out, stderr=inner, timeout=300, check=False)
        os.close(inner)
        text = b""
        with contextlib.suppress(OSError):  # EIO at its end
            while piece := os.read(terminal, 10_000):
                text += piece
        os.close(terminal)
        return text.decode()

    with_bar, with_rows = seen("stderr"), seen("both")
    assert "predict: " in with_bar and "/3 [" in with_bar
    assert "\nerror: " in with_bar.replace("\r", "\n")  # on a line of its own
    assert "predict: " not in with_rows
    assert with_rows.count("red 9") + with_rows.count("red 100") == 2


def test_a_reader_that_goes_away_is_no_error(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 30, ("red",))
    command = f"{sys.executable} -m pipeline predict colours {tmp_path} | head -1"
    done = finished.run(["sh", "-c", command])
    assert done.stdout.count("\n") == 1
    assert but_progress(done.stderr) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["colors", "x.jpg"], "error: 'colors' is neither the folder of an export nor a data set that has one; published are: colours\n"),
        (["colours", "x.jpg"], "error: there is no file or folder x.jpg; name photos, or folders that hold some\n"),
        (["colours", "x*.jpg"], "error: there is no file or folder x*.jpg; name photos, or folders that hold some\n"),
        (["colours", "-"], "error: there are no photos in the folders named; name photos, or folders that hold some\n"),
        (["colours", "x.jpg", "--threshold", "50"], "error: --threshold = 50: a probability from 0 to 1 is allowed\n"),
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
    assert but_progress(done.stderr) == f"warning: {graph.parent} is damaged (graph.pb was altered); it is made again\n"
    assert graph.read_bytes() == whole


def test_what_cannot_be_said_is_one_line(finished: Project) -> None:
    pipeline = f"{sys.executable} -m pipeline"
    full = finished.run(["sh", "-c", f"{pipeline} exports show colours >/dev/full"])
    assert full.returncode == 30
    assert full.stderr == "error: standard output cannot be written: No space left on device; make room, or send it elsewhere\n"
    closed = finished.run(["sh", "-c", f"{pipeline} predict colours - <&-"])
    assert closed.returncode == 30
    assert closed.stderr == "error: - stands for a list on standard input, which is closed; give it one, or name the photos\n"


def test_json_lines_are_json_where_the_output_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Score("caf\u00e9", 1.0)
    with open(tmp_path / "out", "w", encoding="ascii", errors="backslashreplace") as out:
        monkeypatch.setattr(sys, "stdout", out)
        FORMATS["jsonl"](Prediction(Path("\N{ROSE}.jpg"), (score,)), [score], 1)
    row = json.loads((tmp_path / "out").read_bytes())
    assert (row["path"], row["scores"]) == ("\N{ROSE}.jpg", [{"label": "caf\u00e9", "probability": 1.0}])


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
    assert copy_of_finished.pipeline("cache", "prune").stdout == "0 vectors (0.0 MB) of photos that are in no index\n"


def test_cache_prune_does_not_trust_a_damaged_index(copy_of_finished: Project) -> None:
    kept = vectors_of(copy_of_finished)
    packed = copy_of_finished.runs("ComputeBottlenecks")[0]
    os.truncate(packed / "index.csv", 0)
    done = copy_of_finished.pipeline("cache", "prune", "--delete")
    assert done.returncode == 30
    assert done.stderr.startswith(f"error: {packed} is damaged (index.csv has 0 bytes and not ")
    assert len(done.stderr.splitlines()) == 1 and "remove it" in done.stderr
    assert vectors_of(copy_of_finished) == kept


def test_a_file_that_cannot_be_written_is_one_line(copy_of_finished: Project) -> None:
    lock = copy_of_finished.root / "exports/colours/.lock"
    lock.mkdir()  # as little use as a folder that may not be written, which root may
    for verb in ("pin", "rollback"):
        done = copy_of_finished.pipeline("exports", verb, "colours", "0001")
        assert done.returncode == 30
        assert done.stderr == f"error: {lock}: Is a directory; mend that, then run again\n"
