from __future__ import annotations

import pytest

from pipeline import console


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
