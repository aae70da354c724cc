"""Work in another process, in which nothing of TensorFlow has run, and which dies with this one.

with FreshProcess("package.module") as fresh:
    …
    for result in fresh.map_in_order(function_of_it, calls):
        …
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]  # typeshed lacks it
from types import TracebackType
from typing import Any, TypeVar

from pipeline import tensorflow_import
from pipeline.errors import UserError

Result = TypeVar("Result")


class FreshProcess:
    """A new process that answers calls while the ``with`` block lasts, and loads a module while this process goes on.

    It is spawned, since a fork of a process in which TensorFlow has run hangs; or a fork, where TensorFlow is imported, which
    takes seconds, and has not run yet.

    A plain pipe and not a pool: that has semaphores, of which Python would speak on stderr after Ctrl-C.
    """

    def __init__(self, module: str) -> None:
        """``module`` is where the functions are that will be called."""
        context: Any = multiprocessing.get_context("fork" if tensorflow_import.may_be_forked() else "spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_answer, args=(there, self._here, module))
        self._process.start()
        there.close()

    def map_in_order(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Call ``function`` there with the arguments of each call, and give the results in order.

        The function, which has to be one of a module, may keep in its process what the next call needs again. An error that
        it raises is raised here, and nothing is called after it. Raises UserError where the process is killed.
        """
        for arguments in calls:
            result, error, where = self._ask(function, arguments)
            if error is not None:
                raise error from RemoteTraceback(where)
            yield result

    def _ask(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            self._here.send((function, arguments))
            return self._here.recv()
        except (EOFError, OSError):
            raise UserError("the process that runs what is exported was killed (out of memory?); run again") from None

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()  # it has nothing to finish
        self._process.join()
        self._here.close()


def _answer(there: Connection, here: Connection, module: str) -> None:
    """In the new process: answer calls with a result, or an error and where it was raised, until nobody asks any more."""
    here.close()  # a fork's copy of the other end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says so, and takes us along
    die_with_parent()
    with contextlib.suppress(Exception):  # the first call says it
        importlib.import_module(module)
    while True:
        try:
            asked = there.recv_bytes()
        except EOFError:
            return  # nobody asks any more
        try:
            function, arguments = pickle.loads(asked)
            there.send((function(*arguments), None, ""))
        except Exception as error:
            there.send((None, _that_travels(error), f"\n{traceback.format_exc()}"))


def _that_travels(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be pickled, as an error of a session cannot."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def die_with_parent() -> None:
    """End this process when the one that started it dies, however it dies; in a process that nobody so started, do nothing.

    Otherwise a worker outlives a ``luigi`` that is killed with -9, and works on beside the next one.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
