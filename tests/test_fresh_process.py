from __future__ import annotations

import importlib
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.fresh_process import FreshProcess


def loaded(name: str) -> tuple[int, bool]:
    return os.getpid(), name in sys.modules


def test_calls_are_answered_in_order_by_one_new_process_that_has_loaded_the_module_and_nothing_else() -> None:
    assert "pytest" in sys.modules
    with FreshProcess("cProfile") as fresh:
        answers = list(fresh.map_in_order(loaded, [("tensorflow",), ("cProfile",), ("tensorflow",), ("json",)]))
    assert [is_there for _, is_there in answers] == [False, True, False, True]
    assert len({process for process, _ in answers} - {os.getpid()}) == 1
    assert multiprocessing.active_children() == []


def test_an_error_is_raised_here_and_nothing_is_called_after_it() -> None:
    with FreshProcess("operator") as fresh:
        answers = fresh.map_in_order(operator.truediv, [(6, 3), (1, 0), (1, 1)])
        assert next(answers) == 2
        with pytest.raises(ZeroDivisionError):
            next(answers)
        assert list(answers) == []
        assert list(fresh.map_in_order(operator.add, [(1, 2)])) == [3]
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_one_line() -> None:
    with FreshProcess("os") as fresh, pytest.raises(UserError, match=r"was killed \(out of memory\?\); run again"):
        list(fresh.map_in_order(os._exit, [(9,)]))


STARTS_ONE = """
import os, time
from pipeline.fresh_process import FreshProcess

if __name__ == "__main__":
    with FreshProcess("builtins") as fresh:
        calls = fresh.map_in_order(eval, [("__import__('os').getpid()",), *[("__import__('time').sleep(60)",)] * 3])
        print(next(calls), flush=True)
        next(calls)
"""


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "starts_one.py"
    script.write_text(STARTS_ONE)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] if Path("/proc/self").exists() else ""
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":
            return  # nobody in this container collects it
        time.sleep(0.05)
    pytest.fail("it is still there")


def fail_in_a_session() -> None:
    from pipeline.tensorflow_v1 import session, tf

    with tf.Graph().as_default(), session(threads=1) as running:
        running.run(tf.decode_raw(tf.constant(b"abc"), tf.float32))


def test_an_error_that_cannot_be_pickled_says_the_same() -> None:
    with FreshProcess(__name__) as fresh, pytest.raises(RuntimeError, match=r"(?s)InvalidArgumentError.*length 3 that is not a multiple"):
        list(fresh.map_in_order(fail_in_a_session, [()]))


def test_a_module_that_cannot_be_loaded_is_said_by_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import multiprocessing", "assert not multiprocessing.parent_process(), 'not there'", "def function(): pass"]
    (tmp_path / "loads_here_only.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("loads_here_only").function
    with FreshProcess("loads_here_only") as fresh, pytest.raises(AssertionError, match="not there"):
        list(fresh.map_in_order(function, [()]))
