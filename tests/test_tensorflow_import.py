"""TensorFlow is loaded once for the steps of a run, in a process that they are forks of; and nothing of it runs in there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project

from pipeline import tensorflow_import
from pipeline.machine import has_nvidia

NOTES_WHO_LOADS = """
import os, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "tensorflow":
            with open(os.environ["LOADED"], "a") as file:
                file.write(f"{os.getpid()}\\n")

sys.meta_path.insert(0, Finder)
"""

FORKS = """
import multiprocessing, os, sys
from pipeline import tensorflow_import
from pipeline.fresh_process import FreshProcess

def product(number):
    from pipeline.tensorflow_v1 import session, tf
    with tf.Graph().as_default(), session(threads=2) as running:
        return float(running.run(tf.reduce_sum(tf.ones([300, 300]) @ tf.ones([300, 300]))) * number)

def product_and_that_of_a_fresh_process(number, answers):
    with FreshProcess("__main__") as fresh:
        first = product(number)
        answers.put([first, *fresh.map_in_order(product, [(number,), (2 * number,)])])

assert not tensorflow_import.may_be_forked()
tensorflow_import.load_for_forks()
assert tensorflow_import.may_be_forked()
threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [0]
answers = multiprocessing.SimpleQueue()
children = [multiprocessing.Process(target=product_and_that_of_a_fresh_process, args=(n, answers)) for n in (1, 2, 3)]
for child in children:
    child.start()
print(len(threads), sorted(answers.get() for _ in children))
for child in children:
    child.join()
"""


STEPS_ARE_FORKS = multiprocessing.get_start_method() == "fork" and not has_nvidia()


def first_on_the_path(tmp_path: Path, module: str, code: str) -> str:
    """A PYTHONPATH on which a module comes before all others of its name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{module}.py").write_text(code)
    return os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])


def who_loads(project: Project, tmp_path: Path, *arguments: str, ends_with: int = 0) -> list[str]:
    """The processes of an export that load TensorFlow."""
    path = first_on_the_path(tmp_path, "sitecustomize", NOTES_WHO_LOADS)
    (tmp_path / "loaded").touch()
    done = project.export("--data", "colours", *arguments, PYTHONPATH=path, LOADED=str(tmp_path / "loaded"))
    assert done.returncode == ends_with, done.stderr
    return (tmp_path / "loaded").read_text().split()


def test_a_run_loads_it_once(copy_of_finished: Project, tmp_path: Path) -> None:
    (copy_of_finished.root / "data" / "colours" / "red" / "000.png").unlink()
    loading = who_loads(copy_of_finished, tmp_path, "--how-many-training-steps", "50")
    assert len(loading) == 1 if STEPS_ARE_FORKS else len(loading) > 1


def test_a_run_with_nothing_to_do_does_not(copy_of_finished: Project, tmp_path: Path) -> None:
    assert who_loads(copy_of_finished, tmp_path, "--how-many-training-steps", "300") == []


def test_a_run_that_stops_for_its_photos_does_not(copy_of_finished: Project, tmp_path: Path) -> None:
    for photo in (copy_of_finished.root / "data" / "colours").glob("*/00[0-6].png"):
        photo.unlink()
    assert who_loads(copy_of_finished, tmp_path, ends_with=30) == []


def test_forks_of_a_process_that_has_only_loaded_it_compute() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's own threads are not meant
    done = subprocess.run([sys.executable, "-c", FORKS], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == f"1 {[[number * 27e6, number * 27e6, number * 54e6] for number in (1, 2, 3)]}\n", done.stderr


def test_a_process_that_has_run_it_by_itself_is_not_forked() -> None:
    lines = ["import tensorflow", "tensorflow.zeros(3)", "from pipeline import tensorflow_import as loaded"]
    lines += ["loaded.load_for_forks()", "print(loaded.may_be_forked())"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "False\n"


def test_ctrl_c_while_it_is_loaded_is_one_line(copy_of_finished: Project, tmp_path: Path) -> None:
    path = first_on_the_path(tmp_path, "tensorflow", "import os, signal, time\nos.killpg(0, signal.SIGINT)\ntime.sleep(600)")
    command = copy_of_finished.command("--data", "colours", "--how-many-training-steps", "50")
    environment = copy_of_finished.environment(PYTHONPATH=path)
    done = subprocess.run(
        command,
        cwd=copy_of_finished.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "error: stopped; run again: it goes on where it was"


@pytest.mark.parametrize(
    ("code", "ends_with", "said"),
    [
        ("import os\nos.abort()", -signal.SIGABRT if STEPS_ARE_FORKS else 30, "Fatal Python error: Aborted"),
        ("raise ImportError('half installed')", 30, "ImportError: half installed"),
    ],
)
def test_where_it_cannot_be_loaded_that_is_said_once(
    copy_of_finished: Project, tmp_path: Path, code: str, ends_with: int, said: str
) -> None:
    path = first_on_the_path(tmp_path, "tensorflow", code)
    done = copy_of_finished.export("--data", "colours", "--how-many-training-steps", "50", PYTHONPATH=path)
    assert done.returncode == ends_with
    assert done.stderr.count(said) == 1, done.stderr


def test_it_is_not_loaded_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow_import, "has_nvidia", lambda: True)
    monkeypatch.setattr(tensorflow_import, "load", lambda: pytest.fail("loaded"))
    tensorflow_import.load_for_forks()
