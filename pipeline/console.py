"""What a person reads while it runs: results on stdout; progress, warnings and errors on stderr, a line each."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import UserError

Report = Callable[[int, int], None]
"""Called with (done, total): once before a job begins, with what is done already, then as often as the caller likes.

Whoever shows it decides how often to show it.
"""

SECONDS_BETWEEN_LOG_LINES = 5.0


def silent(done: int, total: int) -> None:
    """The Report that nobody reads."""


def say(line: str) -> None:
    """Print a line of the result, for a person."""
    say_as_it_is(one_line(line))


def say_as_it_is(row: str) -> None:
    """Print a row of the result, for a program: its cells are what they are, with the line breaks in them."""
    print(row, flush=True)


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


# --- The streams of a program -------------------------------------------------------------------------------------------


def take_over(*, results_matter: bool) -> None:
    """From here on, stdout and stderr of this program and its forks take whatever is written to them, by any library.

    What is closed, or cannot be written any more, leads nowhere: it is no reason to fail for work that is done all the same. Where
    ``results_matter``, since they are all that the program is for, the first row that cannot be written raises UserError, or
    BrokenPipeError. What the encoding lacks is written as an escape.
    """
    # Where a number is free, the next file that is opened has it, and gets what C++ code says.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    codecs.register_error(_OR_ESCAPED, _as_on_disk_or_escaped)
    for name in ("stdout", "stderr"):
        was = getattr(sys, name)  # None where it is closed
        file = _Stream(was.fileno() if was else number, must_write=results_matter and name == "stdout")
        errors = getattr(was, "errors", "strict")
        setattr(
            sys,
            name,
            io.TextIOWrapper(
                io.BufferedWriter(file),
                encoding=getattr(was, "encoding", "utf-8"),
                errors=_OR_ESCAPED if errors in ("strict", "surrogateescape") else errors,
                line_buffering=True,
            ),
        )


class _Stream(io.FileIO):
    """A standard stream that leads nowhere from the moment when it cannot be written."""

    def __init__(self, number: int, *, must_write: bool) -> None:
        """Where it ``must_write``, that moment raises UserError, or BrokenPipeError."""
        super().__init__(number, "w", closefd=False)
        self._must_write = must_write

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # What is in the buffer goes there, too: where Python cannot write that when it ends, the exit code is 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not self._must_write:
                return len(data)
            if isinstance(error, BrokenPipeError):  # as in `… | head`: nobody reads on
                raise
            raise UserError(f"standard output cannot be written: {error.strerror}; make room, or send it elsewhere") from error


_OR_ESCAPED = "as on disk, or escaped"


def _as_on_disk_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a name that are none of its encoding go through; other characters that the encoding lacks become escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def shown(path: Path) -> str:
    """A path as it is best typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def verb(*words: str) -> str:
    """``python -m pipeline`` with these words, as it can be pasted here."""
    return shlex.join([shown(Path(sys.executable)), "-m", "pipeline", *words])
