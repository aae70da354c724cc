"""Work in a new process, which has loaded nothing of what this one has, and dies with it.

    for result in fresh_process.map_in_order(function, calls):
        …

The process is started anew (``spawn``) and not forked: a fork of a process in which TensorFlow has run hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]  # typeshed lacks it
from typing import Any, TypeVar

from pipeline.errors import UserError

Result = TypeVar("Result")


def map_in_order(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Call ``function`` in one new process, with the arguments of each call, and give the results in order.

    The function, which has to be one of a module, may keep in its process what the next call needs again. An error that it
    raises is raised here. Raises UserError where the process is killed.

    A plain pipe and not a pool: that has semaphores, of which Python would speak on stderr after Ctrl-C.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there,))
    process.start()
    there.close()
    try:
        here.send(function)
        for arguments in calls:
            result, error, where = _ask(here, arguments)
            if error is not None:
                raise error from RemoteTraceback(where)
            yield result
    finally:
        process.kill()  # it has nothing to finish
        process.join()
        here.close()


def _ask(other: Connection, arguments: tuple[Any, ...]) -> Any:
    try:
        other.send(arguments)
        return other.recv()
    except (EOFError, OSError):
        raise UserError("the process that runs what is exported was killed (out of memory?); run again") from None


def _answer(other: Connection) -> None:
    """In the new process: answer calls with a result, or an error and where it was raised, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says so, and takes us along
    die_with_parent()
    function = other.recv()  # only now: its module may take seconds to load
    while True:
        arguments = other.recv()
        try:
            other.send((function(*arguments), None, ""))
        except Exception as error:
            other.send((None, error, f"\n{traceback.format_exc()}"))


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
