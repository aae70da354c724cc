"""What a person reads while it runs: results on stdout; progress, warnings and errors on stderr, a line each."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

Report = Callable[[int, int], None]
"""Called with (done, total) as often as the caller likes; whoever shows it decides how often to show it."""

SECONDS_BETWEEN_LOG_LINES = 10.0


def say(line: str) -> None:
    """Print a line of the result."""
    print(line, flush=True)


def note(line: str) -> None:
    """Print a line about the progress of the run."""
    print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning."""
    note(f"warning: {line}")


def complain(line: str) -> None:
    """Print an error."""
    note(f"error: {line}")


@contextlib.contextmanager
def progress(title: str, unit: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Show the progress of one job: a bar on a terminal, else a line every ten seconds, for a log that cron keeps.

    ``unit`` is a plural noun, or ``B`` for bytes.
    """
    if sys.stderr.isatty():
        with tqdm(desc=title, unit="B" if unit == "B" else f" {unit}", unit_scale=unit == "B", leave=False) as bar:

            def draw(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield draw
        return

    started = last = clock()
    first = 0

    def log(done: int, total: int) -> None:
        nonlocal last, first
        now = clock()
        if now - last < SECONDS_BETWEEN_LOG_LINES:
            first = first or done  # what an earlier run had done already says nothing about the speed of this one
            return
        last = now
        rate = max(done - first, 1) / (now - started)
        left = tqdm.format_interval(max(total - done, 0) / rate)
        shown = [tqdm.format_sizeof(n, "B") if unit == "B" else str(n) for n in (done, total)]
        note(f"{title}: {shown[0]} of {shown[1]}{'' if unit == 'B' else ' ' + unit}, {left} left")

    yield log
