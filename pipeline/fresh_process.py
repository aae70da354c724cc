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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.errors import UserError

Result = TypeVar("Result")

AHEAD = 2
"""Calls that wait in the process while a result is fetched, so that it is never idle."""


def map_in_order(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    """Call ``function`` in one new process, with the arguments of each call, and give the results in order.

    The function, which has to be one of a module, may keep in its process what the next call needs again. An error that it
    raises is raised here. Raises UserError where the process is killed.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, initializer=_begin)
    waiting: deque[Future[Result]] = deque()
    try:
        for arguments in calls:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a process that was to check the export was killed (out of memory?); run again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says so, and takes us along
    die_with_parent()


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
