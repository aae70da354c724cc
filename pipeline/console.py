"""What a person reads while it runs: results on stdout; progress, warnings and errors on stderr, a line each."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

Report = Callable[[int, int], None]
"""Called with (done, total): once before a job begins, with what is done already, then as often as the caller likes.

Whoever shows it decides how often to show it.
"""

SECONDS_BETWEEN_LOG_LINES = 5.0


def say(line: str) -> None:
    """Print a line of the result."""
    print(line, flush=True)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def one_line(text: str) -> str:
    """The text without what a terminal obeys, as names of files may have it: line breaks, escape sequences."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def note(line: str) -> None:
    """Print a line about the progress of the run; on a terminal, above the bar."""
    line = one_line(line)
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning."""
    note(f"warning: {line}")


def complain(line: str) -> None:
    """Print an error."""
    note(f"error: {line}")


class Pace:
    """How fast a job goes, in words: ``340 of 1000 photos (300 were there), 95 a second, 00:07 left``."""

    def __init__(self, unit: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``unit`` is a plural noun, or ``B`` for bytes."""
        self._unit, self._clock = unit, clock
        self._began: tuple[int, float] | None = None

    def words(self, done: int, total: int) -> str:
        # What the first report finds done, from a cache or by an earlier run, says nothing about the speed of this one.
        there, started = self._began = self._began or (done, self._clock())
        rate = (done - there) / max(self._clock() - started, 1e-9)
        shown = self._shown(done), self._shown(total)
        parts = [f"{shown[0]} of {shown[1]}" + ("" if self._unit == "B" else f" {self._unit}")]
        if there > 0:
            parts[0] += f" ({self._shown(there)} were there)"
        if rate > 0:
            parts.append(f"{self._shown(rate)} a second")
            parts.append(f"{tqdm.format_interval(max(total - done, 0) / rate)} left")
        return ", ".join(parts)

    def _shown(self, number: float) -> str:
        return tqdm.format_sizeof(number, "B") if self._unit == "B" else f"{number:.0f}" if number >= 10 else f"{number:.2g}"


@contextlib.contextmanager
def progress(title: str, unit: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Show the progress of one job: a bar on a terminal, else a line every few seconds, for a log that cron keeps.

    ``unit`` is a plural noun, or ``B`` for bytes.
    """
    if sys.stderr.isatty():
        with contextlib.ExitStack() as stack:
            bar: tqdm[None] | None = None

            def draw(done: int, total: int) -> None:
                nonlocal bar
                if bar is None:  # there is none before the job begins, nor after it ends: another one has the line then
                    kind = {"unit": "B", "unit_scale": True} if unit == "B" else {"unit": f" {unit}"}
                    bar = stack.enter_context(tqdm(desc=title, total=total, initial=done, leave=False, **kind))
                bar.update(done - bar.n)
                if done >= total:
                    bar.close()

            yield draw
        return

    pace = Pace(unit, clock=clock)
    last = None

    def log(done: int, total: int) -> None:
        nonlocal last
        if last is None:
            pace.words(done, total)
            last = clock()
        elif clock() - last >= SECONDS_BETWEEN_LOG_LINES:
            last = clock()
            note(f"{title}: {pace.words(done, total)}")

    yield log


def shown(path: Path) -> str:
    """A path as it is best typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
