"""The whole way, through the real ``luigi`` program, as cron or a person starts it; and through its death."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, REPOSITORY, Project, make_photos

from pipeline import artifacts, checkpoint, files
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import tf

FEW_STEPS = ("--how-many-training-steps", "300")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def the_run(project: Project, task: str) -> Path:
    (folder,) = project.runs(task)
    return folder


def vector_files(project: Project) -> list[Path]:
    return sorted((project.root / "store/vectors").rglob("*.npy"))


def exported_bytes(project: Project, name: str) -> dict[str, str]:
    return {file: files.sha256_file(project.live(name) / file) for file in ("output_graph.pb", "labels.txt")}


# --- A run, and the next one ---------------------------------------------------------------------------------------------


def test_the_first_run_prints_what_came_out(finished: Project) -> None:
    output = finished.first_output  # type: ignore[attr-defined]
    lines = output.stdout.splitlines()
    assert lines[0].startswith("colours: 30 photos in 3 classes, efficientnet-lite0, best at step ")
    assert lines[1].startswith("test accuracy ") and "photos, 95 % interval" in lines[1]
    assert lines[2] == "verdict  accepted: the first version, so there is nothing to compare it with"
    for line, name in ((lines[3], "output_graph.pb"), (lines[4], "labels.txt")):
        assert (finished.root / line.split()[1]).is_file() and line.endswith(name)
    assert (finished.root / lines[5].split()[-1] / "summaries").is_dir()
    command = lines[6].removeprefix("predict  ").replace("PHOTO.jpg", "data/colours/red/000.png").split()
    predicted = finished.run(command)
    assert predicted.stdout.startswith("data/colours/red/000.png: red ")
    assert finished.live("colours") / "report.html" == (finished.root / lines[7].split()[1]).resolve()


def test_the_output_is_quiet(finished: Project) -> None:
    lines = finished.first_output.stderr.splitlines()  # type: ignore[attr-defined]
    known = ("settings: ", "warning: colours: ", "colours: ", "bottlenecks of 30 photos: ")
    progress = re.compile(
        r"(ComputeBottlenecks|TrainFinalLayer|ExportGraph): \d+ of \d+ (photos|cached vectors|steps|answers)\b"
    )  # every few seconds, where a machine is that slow
    assert [line for line in lines if not line.startswith(known) and not progress.match(line)] == []
    assert sum(line.startswith("settings: ") for line in lines) == 1
    assert "learning_rate = 0.03" in lines[0]


def test_the_classifier_has_learned_the_colours(finished: Project) -> None:
    figures = manifest(finished.live("colours"))
    assert figures["test_accuracy"] == 1.0
    assert figures["labels"] == ["blue", "green", "red"]
    assert figures["splits"]["testing"] == figures["test_count"]


def test_the_manifest_says_key_parents_parameters_counts_timings_and_versions(finished: Project) -> None:
    for task in ("IndexImages", "ComputeBottlenecks", "TrainFinalLayer", "ExportGraph", "Report"):
        folder = the_run(finished, task)
        says = manifest(folder)
        assert says["key"] == folder.name
        assert says["task"] == task
        assert says["seconds"] >= 0
        assert says["data"] == "colours"
        assert {"python", "tensorflow", "luigi", "numpy"} <= says["versions"].keys()
        assert "images" not in says["parameters"]  # a path of the machine
    exported = manifest(finished.live("colours"))
    made = {task: the_run(finished, task).name for task in ("IndexImages", "ComputeBottlenecks", "TrainFinalLayer")}
    assert exported["parents"] == {"DownloadModel": exported["parents"]["DownloadModel"], **made}
    assert exported["parameters"]["how_many_training_steps"] == "300"
    assert exported["photos"] == 30


def test_a_second_run_does_nothing_and_says_so(copy_of_finished: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copy_of_finished.root / "store").rglob("*.*") if "scans" not in path.parts}
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert done.stdout.startswith("colours: nothing to do, exports/colours/0001-")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "luigi" in imported
    assert "tensorflow" not in imported
    after = {path: path.stat().st_mtime_ns for path in (copy_of_finished.root / "store").rglob("*.*") if "scans" not in path.parts}
    assert after == before


def test_a_moved_folder_of_photos_keeps_split_and_cache(copy_of_finished: Project, tmp_path: Path) -> None:
    shutil.move(copy_of_finished.root / "data/colours", tmp_path / "elsewhere")
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS, "--images", str(tmp_path / "elsewhere"))
    assert done.returncode == 0
    assert "nothing to do" in done.stdout


def test_an_edited_photo_is_computed_again_and_nothing_else(copy_of_finished: Project) -> None:
    split_before = (the_run(copy_of_finished, "IndexImages") / "index.csv").read_text()
    make_photos(copy_of_finished.root / "fresh", 1, ("red",), size=50)
    shutil.copy(copy_of_finished.root / "fresh/red/000.png", copy_of_finished.root / "data/colours/red/003.png")
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert "bottlenecks of 30 photos: 29 from the cache, 1 computed" in done.stderr
    assert copy_of_finished.live("colours").name.startswith("0002-")
    (newest,) = [manifest(folder) for folder in copy_of_finished.runs("ComputeBottlenecks") if manifest(folder)["computed"] == 1]
    assert newest["cached"] == 29
    index = max(copy_of_finished.runs("IndexImages"), key=lambda folder: manifest(folder)["finished"]) / "index.csv"
    moved = set(split_before.splitlines()) ^ set(index.read_text().splitlines())
    # In a class of ten a photo may be lent to a split; the other classes have nothing to do with it.
    assert moved
    assert all(line.startswith("red/") for line in moved)


def test_a_changed_learning_rate_runs_only_training_and_export_again(copy_of_finished: Project) -> None:
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS, "--learning-rate", "0.01")
    assert done.returncode == 0, done.stderr
    counts = {task: len(copy_of_finished.runs(task)) for task in ("IndexImages", "ComputeBottlenecks", "TrainFinalLayer", "ExportGraph")}
    assert counts == {"IndexImages": 1, "ComputeBottlenecks": 1, "TrainFinalLayer": 2, "ExportGraph": 2}
    assert [path.name[:4] for path in sorted((copy_of_finished.root / "exports/colours").glob("0*"))] == ["0001", "0002"]


def test_further_copies_of_the_live_model_are_kept_true(copy_of_finished: Project) -> None:
    copy_of_finished.profile("colours", "[paths]\noutput_graph = out/graph.pb\noutput_labels = out/labels.txt\n")
    assert copy_of_finished.export("--data", "colours", *FEW_STEPS).returncode == 0
    graph = copy_of_finished.root / "out/graph.pb"
    assert files.same_content(graph, copy_of_finished.live("colours") / "output_graph.pb")
    assert "nothing to do" in copy_of_finished.export("--data", "colours", *FEW_STEPS).stdout
    (copy_of_finished.root / "out/labels.txt").write_text("somebody else's\n")
    assert "nothing to do" not in copy_of_finished.export("--data", "colours", *FEW_STEPS).stdout
    assert (copy_of_finished.root / "out/labels.txt").read_text() == "blue\ngreen\nred\n"


def test_a_vector_cut_short_is_found_and_made_again(copy_of_finished: Project) -> None:
    whole = {path: path.read_bytes() for path in vector_files(copy_of_finished)}
    victim, flipped = list(whole)[3], list(whole)[7]
    victim.write_bytes(whole[victim][:1000])
    flipped.write_bytes(whole[flipped][:-9] + bytes([whole[flipped][-9] ^ 1]) + whole[flipped][-8:])
    shutil.rmtree(copy_of_finished.root / "store/runs/ComputeBottlenecks")
    shutil.rmtree(copy_of_finished.root / "store/runs/TrainFinalLayer")
    shutil.rmtree(copy_of_finished.root / "store/runs/ExportGraph")
    before = exported_bytes(copy_of_finished, "colours")
    shutil.rmtree(copy_of_finished.root / "exports")
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert "bottlenecks of 30 photos: 28 from the cache, 2 computed" in done.stderr
    assert "warning: the vectors of 2 photos were damaged on disk and made again: " in done.stderr
    assert {path: path.read_bytes() for path in vector_files(copy_of_finished)} == whole
    assert exported_bytes(copy_of_finished, "colours") == before


def test_distorted_views_are_trained_on_and_cached(copy_of_finished: Project) -> None:
    """Three views of each training photo; the photos' own vectors are those that were there, and a rerun computes nothing."""
    project = copy_of_finished
    before = vector_files(project)
    distorted = ("--flip-left-right", "true", "--random-crop", "10", "--distorted-views", "3", "--average-views", "none")
    done = project.export("--data", "colours", *FEW_STEPS, *distorted)
    assert done.returncode == 0, done.stderr
    assert "bottlenecks of 30 photos: 30 from the cache, 0 computed" in done.stderr
    views = 3 * manifest(project.live("colours"))["splits"]["training"]
    assert f"bottlenecks of {views} views: 0 from the cache, {views} computed" in done.stderr
    assert len(vector_files(project)) == len(before) + views
    assert manifest(project.live("colours"))["photos"] == 30
    again = project.export("--data", "colours", *FEW_STEPS, *distorted, "--learning-rate", "0.01")
    assert again.returncode == 0, again.stderr
    assert "bottlenecks" not in again.stderr
    fewer = project.export("--data", "colours", *FEW_STEPS, *distorted, "--distorted-views", "2", "--random-crop", "10")
    assert f"bottlenecks of {2 * views // 3} views: {2 * views // 3} from the cache, 0 computed" in fewer.stderr


def test_a_profiles_value_reaches_the_training_and_not_another_data_sets(project: Project) -> None:
    project.photos("mine", 4)
    project.photos("other", 4)
    project.profile("mine", "[Export]\nhow_many_training_steps = 20\nlearning_rate = 0.125\n")
    for name in ("mine", "other"):
        assert project.export("--data", name, "--Export-how-many-training-steps", "30").returncode == 0
    found = {manifest(folder)["data"]: manifest(folder)["parameters"] for folder in project.runs("TrainFinalLayer")}
    assert found["mine"]["learning_rate"] == "0.125"
    assert found["other"]["learning_rate"] == "0.03"
    assert found["mine"]["how_many_training_steps"] == found["other"]["how_many_training_steps"] == "30"  # the command line wins


def test_all_four_checkpoints_come_back_after_the_store_was_moved(copy_of_finished: Project, tmp_path: Path, model_dir: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "models")
    shutil.move(copy_of_finished.root / "store", tmp_path / "store")
    moved = Project.__new__(Project)
    moved.root = tmp_path
    (model,) = (path for path in (tmp_path / "models").iterdir() if path.name.startswith("efficientnet-lite0-"))
    folders = [model, *(the_run(moved, task) for task in ("ComputeBottlenecks", "TrainFinalLayer", "ExportGraph"))]
    for folder in folders:
        latest = tf.train.latest_checkpoint(str(folder))
        assert latest is not None, folder
        with tf.Graph().as_default(), tf.Session() as running:
            tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
            values = running.run(tf.global_variables())
        saved = {name for name, _ in tf.train.list_variables(latest)}
        assert len(values) == len(saved) > 0
        assert all(np.isfinite(value).all() for value in values)


# --- Killed --------------------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, f"ended before it could be killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_when(project: Project, arguments: tuple[str, ...], condition: Callable[[], bool], whom: str) -> None:
    """Start the real ``luigi``, and kill -9 the parent alone or its whole group once ``condition`` is seen on disk."""
    process = project.start(*arguments)
    wait_for(condition, process)
    if whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # A worker that outlives its parent notices, and goes; its lock ends with it.
    deadline = time.monotonic() + 30
    while any(is_held(lock) for lock in (project.root / "store/work").rglob("*.lock")):
        assert time.monotonic() < deadline, "a worker outlived its luigi"
        time.sleep(0.05)
    process.communicate()


def is_held(lock: Path) -> bool:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:  # its holder has just removed it
        return False
    return False


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Project:
    """A run never killed, of the photos and settings that the killed ones use."""
    project = Project(tmp_path_factory.mktemp("unbroken") / "project", model_dir)
    project.photos("shapes", 60, size=200)
    done = project.export("--data", "shapes", *LONG)
    assert done.returncode == 0, done.stderr
    return project


LONG = ("--how-many-training-steps", "12000", "--checkpoint-interval", "100")


@pytest.mark.parametrize("whom", ["parent", "group"])
def test_killed_while_caching_and_while_training_it_goes_on_to_the_same_bytes(project: Project, unbroken: Project, whom: str) -> None:
    project.photos("shapes", 60, size=200)
    arguments = ("--data", "shapes", *LONG)

    kill_when(project, arguments, lambda: len(vector_files(project)) >= 20, whom)
    cached = len(vector_files(project))
    assert 20 <= cached < 180
    assert project.runs("ComputeBottlenecks") == []

    def checkpoints() -> list[Path]:
        return list((project.root / "store" / "work" / "TrainFinalLayer").glob("*/final_layer.ckpt-*.index"))

    kill_when(project, arguments, lambda: len(checkpoints()) >= 2, whom)
    packed = manifest(the_run(project, "ComputeBottlenecks"))
    assert (packed["cached"], packed["computed"]) == (cached, 180 - cached)
    (work,) = {path.parent for path in checkpoints()}
    listed = int(checkpoint.latest(work).rpartition("-")[2])
    written = max(int(path.stem.rpartition("-")[2]) for path in checkpoints())  # one more, where the kill came before it was listed
    assert 0 < listed <= written <= listed + 100 < 12000

    done = project.export(*arguments)
    assert done.returncode == 0, done.stderr
    assert "bottlenecks of" not in done.stderr  # not run again
    assert "TrainFinalLayer: goes on where a run stopped before" in done.stderr
    assert exported_bytes(project, "shapes") == exported_bytes(unbroken, "shapes")
    ours, theirs = (checkpoint.latest(the_run(one, "TrainFinalLayer")) for one in (project, unbroken))
    names = [name for name, _ in tf.train.list_variables(theirs)]
    assert [name for name, _ in tf.train.list_variables(ours)] == names
    for name in names:
        assert tf.train.load_variable(ours, name).tobytes() == tf.train.load_variable(theirs, name).tobytes(), name
    restarts = [
        event.step
        for path in the_run(project, "TrainFinalLayer").glob("summaries/events*")
        for event in tf.train.summary_iterator(str(path))
        if event.session_log.status
    ]
    # It went on there, and did not begin again. Whether one that is not listed yet is whole, the moment of the kill decides.
    assert restarts in ([listed + 1], [written + 1])
    assert not work.exists()


def test_ctrl_c_is_one_line(project: Project) -> None:
    project.photos("shapes", 60, size=200)
    process = project.start("--data", "shapes")
    wait_for(lambda: len(vector_files(project)) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert errors.splitlines()[-1] == "error: stopped; run again: it goes on where it was"
    assert "Traceback" not in errors


def test_two_starts_at_once(project: Project) -> None:
    """The same command leaves with 10 and names the holder; another command that needs the same work waits for it."""
    project.photos("shapes", 60, size=200)
    first = project.start("--data", "shapes", *FEW_STEPS)
    wait_for(lambda: len(vector_files(project)) >= 5, first)
    os.killpg(first.pid, signal.SIGSTOP)  # at work for as long as it takes the others to find it there
    same = project.export("--data", "shapes", *FEW_STEPS)
    assert same.returncode == 10
    assert same.stderr.splitlines()[-1] == (
        "error: the same command is running already, in the process named above; wait for it, or stop it and run again"
    )
    assert str(first.pid) in same.stdout + same.stderr
    other = project.start("--data", "shapes", *FEW_STEPS, "--final-tensor-name", "scores")
    assert other.stderr is not None
    assert any("ComputeBottlenecks: waiting for process" in line for line in other.stderr)
    os.killpg(first.pid, signal.SIGCONT)
    for run in (first, other):
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    assert len(project.runs("ComputeBottlenecks")) == len(project.runs("TrainFinalLayer")) == 1
    assert len(project.runs("ExportGraph")) == 2


def test_two_data_sets_share_one_cache_at_once(project: Project) -> None:
    """The same photos under two names, by two programs at a time: whole files, no error, and the same vectors."""
    photos = project.photos("shapes", 40, size=200)
    shutil.copytree(photos, photos.with_name("forms"))
    both = [project.start("--data", data, "--how-many-training-steps", "50") for data in ("shapes", "forms")]
    for run in both:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    packed = project.runs("ComputeBottlenecks")
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in packed]
    count = len(vector_files(project))
    assert count == sum(1 for _ in photos.rglob("*.png"))
    assert [manifest["computed"] + manifest["cached"] for manifest in manifests] == [count, count]
    assert {manifest["data"] for manifest in manifests} == {"shapes", "forms"}
    assert len({(folder / "bottlenecks.npy").read_bytes() for folder in packed}) == 1
    verified = project.pipeline("cache", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


OVERTAKEN = """
import shutil, sys
import luigi, pipeline
from pathlib import Path
from pipeline import files, registry

overtaken = []
publish = registry.publish
(other,) = Path("store/runs/ExportGraph").iterdir()
# The classifier of another run, as far as publishing goes.
third = Path(shutil.copytree(other, "third"))
files.write_manifest(third, {**files.read_manifest(third), "key": "3" * 16})

def publish_beside_another(parts, exports, waiting, **arguments):
    if "before" in sys.argv and not overtaken:
        overtaken.append(publish([third], exports, waiting, instead_of=arguments["instead_of"]))
    version = publish(parts, exports, waiting, **arguments)
    if "after" in sys.argv:
        publish([other.resolve()], exports, waiting, instead_of=registry.key_of(version))
    return version

registry.publish = publish_beside_another
task = pipeline.Export(data="colours", how_many_training_steps=300, final_tensor_name="scores")
print(luigi.build([task], local_scheduler=True, detailed_summary=True).status.name)
"""


def test_overtaken_by_another_publisher_is_no_failure(copy_of_finished: Project) -> None:
    """Two runs with other settings end at once: both have published, and the later one is live."""
    project = copy_of_finished
    before = project.live("colours")
    done = project.run([sys.executable, "-c", OVERTAKEN, "after"])
    assert done.stdout.splitlines()[-1] == "SUCCESS", done.stderr
    assert project.live("colours") == before
    assert len(list((project.root / "exports" / "colours").glob("000*"))) == 2


def test_overtaken_before_it_publishes_it_is_judged_once_more(copy_of_finished: Project) -> None:
    project = copy_of_finished
    done = project.run([sys.executable, "-c", OVERTAKEN, "before"])
    assert done.stdout.splitlines()[-1] == "SUCCESS", done.stderr
    assert "colours: another version went live meanwhile; judged once more, against that one" in done.stderr
    assert project.live("colours").name.startswith("0003-")
    assert manifest(project.live("colours"))["verdict"]["live"] == "0002-33333333"


# --- What goes wrong -----------------------------------------------------------------------------------------------------


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in done.stderr + done.stdout


def test_no_photos_is_20(project: Project) -> None:
    assert_one_line(project.export("--data", "nothing"), 20, "no photos in", "data/nothing", "--images PATH")
    assert_one_line(project.export("--data", "nothing", "--images", "nowhere"), 20, "no photos in", "nowhere (there is no such folder)")
    assert_one_line(project.export("--data", "nothing", "--images", "luigi.cfg"), 20, "luigi.cfg (it is a file; unpack it)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--learning-rate", "fast"), ("learning_rate = fast", "a number from")),
        (("--model", "resnet"), ("model = 'resnet'", "efficientnet-lite0")),
        (("--data", "../x"), ("data = '../x'", "--images")),
    ],
)
def test_a_users_mistake_is_30(project: Project, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    project.photos("flowers", 4)
    assert_one_line(project.export(*arguments), 30, *words)
    assert not (project.root / "store/runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("NoTask",), 30, "No task NoTask; the one to run is: luigi --module pipeline Export"),
        (
            ("TrainFinalLayer",),
            30,
            "TrainFinalLayer is a step of Export, which tells it what to work on; run: luigi --module pipeline Export",
        ),
        (("FetchImages",), 30, "FetchImages is a step of Export"),
        (("Export", "--nosuch", "3"), 2, "unrecognized arguments: --nosuch 3; luigi --module pipeline Export --help lists the options"),
        (("Export", "--learning-rat", "3"), 2, "unrecognized arguments: --learning-rat 3; is --learning-rate meant?"),
        (("Export", "--learning_rate", "3"), 2, "unrecognized arguments: --learning_rate 3; is --learning-rate meant?"),
        (("Retrain", "--data", "flowers", "--learning-rate", "3"), 2, "--learning-rate 3; is --Export-learning-rate meant?"),
        (("Export", "--data", ""), 30, "--data is given without a value; give it one, or leave it out"),
        (("Export", "--Export-learning-rate", ""), 30, "--learning-rate is given without a value"),
        (("Export", "--images="), 30, "--images is given without a value"),
        (("Retrain", "--data", "flowers", "--date="), 30, "--date is given without a value"),
        (("RetrainAll", "--date="), 30, "--date is given without a value"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(project: Project, arguments: tuple[str, ...], code: int, words: str) -> None:
    project.photos("flowers", 4)
    done = project.run([str(BIN / "luigi"), "--module", "pipeline", *arguments])
    assert_one_line(done, code, words)
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_what_is_wrong_with_the_photos_is_said_before_any_network_runs(project: Project) -> None:
    project.photos("lonely", 5, labels=("red",))
    assert_one_line(project.export("--data", "lonely"), 30, "only one class with photos (red)")
    project.photos("few", 2)
    assert_one_line(project.export("--data", "few"), 30, "too few different photos", "blue (2)")
    assert not list((project.root / "store").rglob("*.ckpt*"))


def test_broken_photos_are_listed_and_left_out(project: Project) -> None:
    folder = project.photos("mixed", 10)
    whole = (folder / "red/001.png").read_bytes()
    (folder / "red/001.png").write_bytes(whole[:-100])
    (folder / "red/page.jpg").write_text("<html>404</html>")
    broken = bytearray((folder / "blue/002.png").read_bytes())
    broken[300:600] = bytes(300)  # header and end are whole: only decoding finds it
    (folder / "blue/002.png").write_bytes(broken)
    shutil.copy(folder / "green/000.png", folder / "loose.png")
    (folder / "notes").mkdir()
    done = project.export("--data", "mixed", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    warnings = [line.removeprefix("warning: mixed: ") for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(set(warnings))  # nothing is said twice, though the split is checked again after the decoding
    assert warnings[0] == ("photos of no class are left out: loose.png (the first: it lies beside the class folders; move it into one)")
    assert "classes without a photo that can be used are left out: notes" in warnings
    assert [line.partition(" (")[0] for line in warnings if line.startswith("left out")] == ["left out 2 of 31", "left out 3 of 31"]
    assert "left out 4, listed with the reasons in store/runs/ComputeBottlenecks/" in done.stdout
    with open(the_run(project, "ComputeBottlenecks") / "skipped.csv", newline="") as file:
        reasons = {path: reason for path, _, reason in csv.reader(file)}
    assert reasons.pop("blue/002.png").startswith("cannot be decoded, ")
    assert reasons == {
        "path": "reason",
        "loose.png": "it lies beside the class folders; move it into one",
        "notes/": "the folder holds no photo",
        "red/001.png": "the PNG file is cut short",
        "red/page.jpg": "not an image that is read here (an HTML page)",
    }
    assert manifest(project.live("mixed"))["photos"] == 28


@pytest.mark.parametrize(
    "arguments",
    [
        ("Export",),
        ("Retrain", "--data", "flowers"),
        ("RetrainAll",),
        ("RangeDaily", "--of", "Retrain", "--of-params", '{"data": "flowers"}', "--param-name", "date", "--start", "2026-11-01"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_outside_a_project_nothing_is_done(tmp_path: Path, project: Project, arguments: tuple[str, ...]) -> None:
    def luigi(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "luigi", "--module", "pipeline", *arguments],
            cwd=outside,
            env=project.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    (outside := tmp_path / "outside").mkdir()
    done = luigi(*arguments)
    assert_one_line(done, 30, "no luigi.cfg with a section [paths]", "start from the project's folder")
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    assert luigi(arguments[0], "--help").returncode == 0
    assert list(outside.iterdir()) == []


def test_a_fault_of_the_program_is_35_or_a_traceback_and_never_0(project: Project) -> None:
    folder = project.photos("mine", 5)
    assert folder.is_dir()
    (project.root / "store").write_text("a file where the store belongs")
    done = project.export("--data", "mine")
    assert done.returncode in (30, 35)


def test_a_folder_that_luigi_cannot_write_is_one_line(project: Project) -> None:
    (project.root / ".luigi").write_text("")  # as little use as a folder that may not be written, which root may
    done = project.export()
    assert_one_line(done, 30, ".luigi/", "Not a directory", "lock_pid_dir in [core] of luigi.cfg")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_permission_or_full_disk_is_one_line() -> None:
    for number in (errno.EACCES, errno.EROFS):
        with pytest.raises(UserError, match="/some/file: .*; mend that, then run again"), artifacts.guarded():
            raise OSError(number, os.strerror(number), "/some/file")
    full = os.strerror(errno.ENOSPC)
    for error in (OSError(errno.ENOSPC, full, "/some/file"), tf.errors.ResourceExhaustedError(None, None, f"/some/file; {full}")):
        with pytest.raises(UserError, match="the disk is full; make room, then run again"), artifacts.guarded():
            raise error
    with pytest.raises(ZeroDivisionError), artifacts.guarded():
        raise ZeroDivisionError


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["output_graph.pb", "labels.txt"])
def test_a_damaged_export_is_noticed_and_published_again(copy_of_finished: Project, name: str) -> None:
    before = exported_bytes(copy_of_finished, "colours")
    with open(copy_of_finished.live("colours") / name, "r+b") as file:
        file.truncate(5)  # in place, as a careless program does it
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"warning: exports/colours/0001-\w+ is damaged \({name} has 5 bytes and not [\d,]+\)", done.stderr)
    assert copy_of_finished.live("colours").name.startswith("0002-")
    assert exported_bytes(copy_of_finished, "colours") == before
    assert len(done.stderr.splitlines()) == 2  # the settings, and the warning: nothing was made again

    (copy_of_finished.live("colours") / name).unlink()
    assert "0003-" in copy_of_finished.export("--data", "colours", *FEW_STEPS).stdout
    assert exported_bytes(copy_of_finished, "colours") == before


def test_what_cannot_be_trusted_is_not_published(copy_of_finished: Project) -> None:
    """A change that no size shows: in what is published, and in the original."""
    before = exported_bytes(copy_of_finished, "colours")
    flip_a_byte(copy_of_finished.live("colours") / "output_graph.pb")
    flip_a_byte(the_run(copy_of_finished, "ExportGraph") / "output_graph.pb")
    predicted = copy_of_finished.pipeline("predict", "colours", "data/colours/red/000.png")
    assert_one_line(predicted, 30, "output_graph.pb was altered", "remove it and run the training again")
    shutil.rmtree(copy_of_finished.live("colours"))
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert "is damaged (output_graph.pb was altered); it is made again" in done.stderr
    assert exported_bytes(copy_of_finished, "colours") == before


def test_a_live_version_that_no_size_shows_to_be_damaged_is_named_by_the_next_candidate(copy_of_finished: Project) -> None:
    project, live = copy_of_finished, copy_of_finished.live("colours")
    flip_a_byte(live / "output_graph.pb")
    rejected = project.export("--data", "colours", *FEW_STEPS, "--learning-rate", "0.02", "--gate-megabytes", "0.1")
    stays = f"exports/colours/{live.name} (damaged, output_graph.pb was altered; {sys.executable} -m pipeline exports rollback"
    assert stays in rejected.stdout.splitlines()[-1]
    done = project.export("--data", "colours", *FEW_STEPS, "--learning-rate", "0.01")
    assert f"warning: exports/colours/{live.name} is damaged (output_graph.pb was altered); a new version" in done.stderr


AWAY_FOR_A_MOMENT = """
import luigi, pathlib, pipeline, sys
from pipeline.tasks import ComputeBottlenecks
photo, views = pathlib.Path("data/colours", sys.argv[1]), int(sys.argv[2])
aside, make = pathlib.Path("aside.png"), ComputeBottlenecks.make

def make_without_it(self, work):
    photo.rename(aside)
    try:
        return make(self, work)
    finally:
        aside.rename(photo)

ComputeBottlenecks.make = make_without_it
distorted = dict(flip_left_right=True, distorted_views=views) if views else {}
luigi.build([pipeline.Export(data="colours", how_many_training_steps=300, **distorted)], local_scheduler=True)
"""


def test_a_photo_that_is_away_for_a_moment_is_missing_from_that_run_alone(project: Project, finished: Project) -> None:
    project.photos("colours")
    without = project.run([sys.executable, "-c", AWAY_FOR_A_MOMENT, "red/003.png", "0"])
    first = project.live("colours")
    assert "left out 1 of 30 (the first: red/003.png: cannot be read: No such file or directory)" in without.stderr
    assert manifest(first)["photos"] == 29

    done = project.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert "bottlenecks of 30 photos: 29 from the cache, 1 computed" in done.stderr
    assert done.stdout.splitlines()[1] == f"since    {first.name}: 1 photo added"
    assert (manifest(project.live("colours"))["photos"], manifest(project.live("colours"))["skipped"]) == (30, 0)
    assert exported_bytes(project, "colours") == exported_bytes(finished, "colours")
    assert manifest(first)["key"] != manifest(project.live("colours"))["key"]
    assert "nothing to do" in project.pipeline("plan", "--data", "colours", *FEW_STEPS).stdout
    assert "nothing to do" in project.export("--data", "colours", *FEW_STEPS).stdout


def test_a_photo_whose_views_cannot_be_made_is_left_out(copy_of_finished: Project) -> None:
    project = copy_of_finished
    with open(the_run(project, "ComputeBottlenecks") / "index.csv", newline="") as rows:
        path = next(row["path"] for row in csv.DictReader(rows) if row["split"] == "training" and row["label"] == "red")
    without = project.run([sys.executable, "-c", AWAY_FOR_A_MOMENT, path, "2"])
    version = project.live("colours")
    assert f"left out 1 of 30 (the first: {path}: cannot be read: No such file or directory)" in without.stderr, without.stderr
    assert manifest(version)["photos"] == 29
    views = 2 * manifest(version)["splits"]["training"]
    assert f"bottlenecks of {views} views: {views} from the cache, 0 computed" in without.stderr


def test_outputs_that_are_damaged_or_gone_are_made_again_where_they_are_needed(copy_of_finished: Project, model_dir: Path) -> None:
    project = copy_of_finished
    model = project.own_models(model_dir)
    packed, training, index = (the_run(project, task) for task in ("ComputeBottlenecks", "TrainFinalLayer", "IndexImages"))
    whole = {path: path.read_bytes() for folder in (model, packed, training, index) for path in folder.rglob("*") if path.is_file()}

    shutil.rmtree(index)
    flip_a_byte(model / "graph.pb")  # no size shows it
    os.truncate(packed / "bottlenecks.npy", 1000)
    for path in training.glob("final_layer.ckpt*"):
        path.unlink()
    assert "nothing to do" in project.export("--data", "colours", *FEW_STEPS).stdout  # the export needs none of them

    done = project.export("--data", "colours", *FEW_STEPS, "--final-tensor-name", "scores")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "is damaged" in line]
    assert len(said) == 3, done.stderr
    assert any(f"{model} is damaged (graph.pb was altered); it is made again" in line for line in said)
    timed = ("manifest.json", "events.out")  # hold times
    for path, data in whole.items():
        if not path.name.startswith(timed):
            assert path.read_bytes() == data, path


def test_what_stands_in_an_outputs_place_makes_room_and_a_damaged_live_version_is_named(copy_of_finished: Project) -> None:
    project = copy_of_finished
    training, exports = the_run(project, "TrainFinalLayer"), project.root / "exports/colours"
    live = exports / os.readlink(exports / "latest")
    shutil.rmtree(training)
    training.write_text("a file")
    text = (live / "manifest.json").read_text()
    (live / "manifest.json").write_text(text.replace('"test_count": ', '"test_count": 1'))
    for note in (training.parent.parent / "IndexImages" / ".DS_Store", next((project.root / "store/vectors").iterdir()) / ".DS_Store"):
        note.write_bytes(b"of macOS")
    done = project.export("--data", "colours", *FEW_STEPS, "--final-tensor-name", "scores")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"store/runs/TrainFinalLayer/{training.name} is damaged" in done.stderr
    assert f"exports/colours/{live.name} is damaged (manifest.json is missing or damaged)" in done.stderr
    assert os.readlink(exports / "latest").startswith("0002-")
    for verbs in (("cache", "verify"), ("cache", "prune")):
        done = project.run([sys.executable, "-m", "pipeline", *verbs])
        assert done.returncode == 0, done.stderr
    listed = project.run([sys.executable, "-m", "pipeline", "exports", "list"])
    assert f"{live.name} is damaged" in listed.stderr and "0002-" in listed.stdout


def test_a_layer_that_has_learned_the_test_photos_is_nothing_to_start_from(copy_of_finished: Project) -> None:
    project = copy_of_finished
    before = f"exports/colours/{os.readlink(project.root / 'exports/colours/latest')}"
    arguments = ("--data", "colours", *FEW_STEPS, "--init-from", before)
    assert_one_line(project.export(*arguments, "--seed", "3"), 30, "has learned from", "test photos", "divide the photos as it did")
    done = project.export(*arguments)
    assert done.returncode == 0 and "has learned" not in done.stderr, done.stderr


def test_a_damaged_snapshot_is_one_line_and_then_made_again(copy_of_finished: Project) -> None:
    (snapshot,) = (copy_of_finished.root / "store/snapshots").iterdir()
    lines = snapshot.read_text().splitlines(keepends=True)
    snapshot.write_text("".join(lines[:-5]))
    arguments = ("--data", "colours", *FEW_STEPS, "--seed", "3")
    assert_one_line(copy_of_finished.export(*arguments), 30, str(snapshot), "run again")
    assert copy_of_finished.export(*arguments).returncode == 0
    snapshot.write_text(snapshot.read_text().replace("False", "True"))  # whether photos are re-encoded, which decides their vectors
    arguments = ("--data", "colours", *FEW_STEPS, "--seed", "4")
    assert_one_line(copy_of_finished.export(*arguments), 30, str(snapshot), "run again")
    snapshot.write_bytes(b"")  # as a power cut leaves it
    assert copy_of_finished.export(*arguments).returncode == 0


def test_a_version_that_a_kill_kept_from_going_live_goes_live(copy_of_finished: Project) -> None:
    """Without the note that the kill left it was rolled back, and stays as it is."""
    arguments = ("--data", "colours", *FEW_STEPS, "--final-tensor-name", "scores")
    exports, first = copy_of_finished.root / "exports/colours", copy_of_finished.live("colours")
    assert copy_of_finished.export(*arguments).returncode == 0
    second = copy_of_finished.live("colours")
    for pending in (True, False):
        (exports / "latest").unlink()
        (exports / "latest").symlink_to(first.name)
        if pending:
            (exports / ".pending").write_text(second.name)
        done = copy_of_finished.export(*arguments)
        assert done.returncode == 0, done.stderr
        assert copy_of_finished.live("colours") == (second if pending else first)


def test_a_damaged_manifest_is_an_unfinished_output(copy_of_finished: Project) -> None:
    before = exported_bytes(copy_of_finished, "colours")
    for folder in (
        the_run(copy_of_finished, "TrainFinalLayer"),
        the_run(copy_of_finished, "ExportGraph"),
        copy_of_finished.live("colours"),
    ):
        whole = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(whole[:100])
    done = copy_of_finished.export("--data", "colours", *FEW_STEPS)
    assert done.returncode == 0, done.stderr
    assert copy_of_finished.live("colours").name.startswith("0002-")
    assert exported_bytes(copy_of_finished, "colours") == before


def test_a_name_that_the_graph_has_already_is_refused(copy_of_finished: Project) -> None:
    assert_one_line(
        copy_of_finished.export("--data", "colours", *FEW_STEPS, "--final-tensor-name", "backbone"),
        30,
        "final_tensor_name = backbone",
        "choose another",
    )


# --- Photos that are fetched ---------------------------------------------------------------------------------------------

UNREACHABLE = """
[images]
url = http://127.0.0.1:9/photos.tgz
sha256 = 00
bytes = 10
fallback = drawn
"""
DRAWN = "[images]\ndraw_per_class = 6\ndraw_seed = 1\n"


def test_the_fallback_is_loud_named_and_remembered(project: Project) -> None:
    project.profile("real", UNREACHABLE)
    project.profile("drawn", DRAWN)
    # An empty folder that is kept in git, and lies elsewhere: it makes room for what is drawn.
    (project.root / "elsewhere/drawn").mkdir(parents=True)
    (project.root / "elsewhere/drawn/.gitkeep").write_text("")
    (project.root / "data").mkdir()
    (project.root / "data/drawn").symlink_to("../elsewhere/drawn")
    first = project.export("--data", "real", *FEW_STEPS)
    assert first.returncode == 0, first.stderr
    assert (
        "THE PHOTOS OF real COULD NOT BE FETCHED: 127.0.0.1:9 cannot be reached (connection refused). Going on with drawn" in first.stderr
    )
    assert first.stdout.startswith("drawn: 30 photos in 5 classes")
    assert not (project.root / "exports/real").exists()
    assert manifest(project.live("drawn"))["data"] == "drawn"
    assert {manifest(folder)["data"] for task in ("IndexImages", "ExportGraph") for folder in project.runs(task)} == {"drawn"}

    again = project.export("--data", "real", *FEW_STEPS)
    assert again.returncode == 0
    assert "real: the photos could not be fetched" in again.stdout
    assert "drawn: nothing to do" in again.stdout
    assert "COULD NOT" not in again.stderr

    # Once the network was tried again in vain, there is still nothing to do, and it says so.
    (project.root / "store/fallbacks/real.json").unlink()
    third = project.export("--data", "real", *FEW_STEPS)
    assert "COULD NOT BE FETCHED" in third.stderr
    assert third.stdout.startswith("drawn: nothing to do")

    # The data set of its own name is the same, and was made already.
    assert "nothing to do" in project.export("--data", "drawn", *FEW_STEPS).stdout

    # Without the fallback it is an error that says what to do next; and real photos take over once they are there.
    shutil.copy(REPOSITORY / "configs/cron.cfg", project.root / "configs/cron.cfg")
    cron = project.export("--data", "real", *FEW_STEPS, LUIGI_CONFIG_PATH="configs/cron.cfg")
    assert_one_line(cron, 30, "the photos of real cannot be fetched", "put a folder for each class into")
    project.photos("real", 5)
    real = project.export("--data", "real", *FEW_STEPS)
    assert real.returncode == 0, real.stderr
    assert real.stdout.startswith("real: 15 photos in 3 classes")


def test_the_shipped_profiles_are_valid(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (REPOSITORY / "configs").glob("*.cfg"):
        shutil.copy(file, project.root / "configs")
    dry = project.run([str(BIN / "luigi-deps-tree"), "--module", "pipeline", "Export", "--data", "flowers"])
    assert dry.returncode == 0, dry.stderr
    assert "FetchImages" in dry.stdout
