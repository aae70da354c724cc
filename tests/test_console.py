from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from pipeline import console
from pipeline.errors import UserError


def test_without_a_terminal_progress_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.progress("Caching", "photos", clock=lambda: now) as report:
        for done in range(101):
            report(done, 100)
            now += 0.25
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"Caching: {done} of 100 photos, 4 a second, 00:{left:02d} left" for done, left in ((20, 20), (40, 15), (60, 10), (80, 5), (100, 0))
    ]


def test_what_an_earlier_run_had_done_does_not_count_for_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.progress("Caching", "photos", clock=lambda: now) as report:
        report(900, 1000)
        now = 10.0
        report(950, 1000)
    assert capsys.readouterr().err == "Caching: 950 of 1000 photos (900 were there), 5 a second, 00:10 left\n"


def test_bytes_are_shown_in_units(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    with console.progress("Fetching", "B", clock=lambda: now) as report:
        report(0, 228_000_000)
        now = 20.0
        report(114_000_000, 228_000_000)
    assert capsys.readouterr().err == "Fetching: 114MB of 228MB, 5.70MB a second, 00:20 left\n"


def test_on_a_terminal_one_job_after_the_other_has_its_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with console.progress("Caching", "cached vectors") as checked, console.progress("Caching", "photos") as report:
        assert capsys.readouterr().err == ""
        checked(1, 2)
        assert "1/2" in capsys.readouterr().err
        checked(2, 2)
        assert capsys.readouterr().err.endswith("\r")  # the line is empty again
        report(2, 8)
        drawn = capsys.readouterr().err
        assert "2/8" in drawn
        assert "\n" not in drawn


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("result")
    console.warn("careful")
    console.complain("wrong")
    assert capsys.readouterr() == ("result\n", "warning: careful\nerror: wrong\n")


def test_what_a_terminal_would_obey_is_shown_to_nobody_and_kept_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("\a\x1b[31mred\n")
    console.complain("\x9bred\r")
    assert capsys.readouterr() == ("\ufffd\ufffd[31mred\ufffd\n", "error: \ufffdred\ufffd\n")
    console.say_as_it_is('"a\nb",red')
    assert capsys.readouterr().out == '"a\nb",red\n'


# --- The streams of a program -------------------------------------------------------------------------------------------


def a_full_disk() -> TextIO:
    return open(os.open("/dev/full", os.O_WRONLY), "w", closefd=False)


def a_pipe_that_nobody_reads() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", closefd=False)


def take_over(
    monkeypatch: pytest.MonkeyPatch, *, stdout: TextIO | None, stderr: TextIO | None = None, results_matter: bool = False
) -> None:
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    console.take_over(results_matter=results_matter)


@pytest.mark.parametrize("broken", [a_full_disk, a_pipe_that_nobody_reads])
def test_where_nothing_can_be_written_the_work_goes_on(broken: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    take_over(monkeypatch, stdout=broken(), stderr=broken())
    for _ in range(2):
        console.say("result")
        console.warn("careful")
        with console.progress("Caching", "photos") as report:
            report(1, 1)
    sys.stdout.flush()  # as Python does at its end, with the exit code 120 where it fails
    sys.stderr.flush()


def test_what_is_closed_is_written_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    take_over(monkeypatch, stdout=None, stderr=None, results_matter=True)
    console.say("result \udcff")
    console.warn("careful \udcff")
    with console.progress("Caching", "photos") as report:
        report(1, 1)


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (a_full_disk, UserError, "standard output cannot be written: No space left on device; make room, or send it elsewhere"),
        (a_pipe_that_nobody_reads, BrokenPipeError, "Broken pipe"),
    ],
)
def test_where_results_matter_it_is_said_once(
    broken: Callable[[], TextIO], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_over(monkeypatch, stdout=broken(), stderr=broken(), results_matter=True)
    console.warn("careful")
    with pytest.raises(error, match=message):
        console.say("result")
    sys.stdout.flush()


@pytest.mark.parametrize(
    ("encoding", "errors", "written"),
    [
        ("ascii", "strict", b"caf\\xe9 \\U0001f339 \xff\n"),
        ("ascii", "surrogateescape", b"caf\\xe9 \\U0001f339 \xff\n"),
        ("latin-1", "strict", b"caf\xe9 \\U0001f339 \xff\n"),
        ("ascii", "replace", b"caf? ? ?\n"),  # as it was asked for
        ("utf-8", "surrogateescape", "café 🌹 ".encode() + b"\xff\n"),
    ],
)
def test_what_the_encoding_lacks_is_an_escape_and_what_it_never_was_goes_through(
    encoding: str, errors: str, written: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "out", "w", encoding=encoding, errors=errors) as file:
        take_over(monkeypatch, stdout=file)
        console.say("café 🌹 \udcff")
    assert (tmp_path / "out").read_bytes() == written
