"""Nights: their records, one data set and all of them, through the real ``luigi`` as cron, systemd and RangeDaily start it."""

from __future__ import annotations

import configparser
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, REPOSITORY, Project, make_photos

from pipeline import nights, schedule, sources
from pipeline.__main__ import main

SETTINGS = "[Export]\nhow_many_training_steps = 300\n"


@pytest.fixture
def colours(copy_of_finished: Project) -> Project:
    """A project with ``colours`` exported, and a profile with the settings that it was exported with."""
    copy_of_finished.profile("colours", SETTINGS)
    return copy_of_finished


def luigi(project: Project, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return project.run([str(BIN / "luigi"), "--module", "pipeline", *arguments], **variables)


def cpu_seconds(run: Callable[[], subprocess.CompletedProcess[str]]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """What a program takes of the CPU, and what it came to."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), done


def record(project: Project, data: str, date: str) -> dict[str, Any]:
    return json.loads((project.root / "store/nights" / data / f"{date}.json").read_text())


def keys(project: Project) -> list[str]:
    return sorted(str(path.relative_to(project.root)) for path in (project.root / "store/runs").glob("*/*"))


def test_a_night_is_recorded_and_one_without_news_costs_nothing(colours: Project) -> None:
    made = keys(colours)
    first = luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-01")
    assert first.returncode == 0, first.stderr
    version = colours.live("colours").name
    said = record(colours, "colours", "2026-11-01")
    assert (said["status"], said["version"], said["figures"]["photos"]) == ("published", version, 30)  # no night has told of it
    assert (colours.root / said["report"]).is_file()

    ours, luigi_alone = [], []
    for date in ("2026-11-02", "2026-11-03"):  # by turns: what else a machine does can make a program's CPU seconds twice as many
        taken, night = cpu_seconds(lambda date=date: luigi(colours, "Retrain", "--data", "colours", "--date", date))
        ours.append(taken)
        luigi_alone.append(cpu_seconds(lambda: subprocess.run([sys.executable, "-c", "import luigi"], check=True))[0])
        assert night.returncode == 0, night.stderr
        assert record(colours, "colours", date)["status"] == "nothing to do"
        assert night.stdout.splitlines()[-1].startswith(f"colours: nothing to do, live is {version}, test accuracy 100.0 %")
    assert min(ours) < 5 * max(luigi_alone)  # TensorFlow alone would take ten times as long

    again = luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-02", PYTHONPROFILEIMPORTTIME="1")
    assert again.returncode == 0
    assert again.stdout.startswith("2026-11-02 is done, store/nights/colours/2026-11-02.json has it: colours: nothing to do")
    third = luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-04", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in third.stderr.splitlines() if line.startswith("import time:")}
    assert "luigi" in imported
    assert "tensorflow" not in imported
    assert keys(colours) == made  # the date is in no key


def test_a_night_that_published_says_what_changed_and_one_that_failed_is_done_again(colours: Project) -> None:
    make_photos(colours.root / "fresh", 3, ("red", "violet"), size=50)
    for label in ("red", "violet"):
        for photo in (colours.root / "fresh" / label).iterdir():
            (colours.root / "data/colours" / label).mkdir(exist_ok=True)
            shutil.copy(photo, colours.root / "data/colours" / label / f"new-{photo.name}")
    away = colours.root / "away"
    (colours.root / "data/colours").rename(away)
    missing = luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-01")
    assert missing.returncode == 20
    assert "error: colours: failed: no photos in " in missing.stderr
    said = record(colours, "colours", "2026-11-01")
    assert (said["status"], said["version"]) == ("failed", "")
    assert said["reasons"][0].startswith("no photos in ")

    away.rename(colours.root / "data/colours")
    done = luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-01")
    assert done.returncode == 0, done.stderr
    said = record(colours, "colours", "2026-11-01")
    assert (said["status"], said["version"]) == ("published", colours.live("colours").name)
    assert said["changed"] == ["6 photos added; new classes: 1 (violet)", "test accuracy 100.0 % before"]
    assert list((colours.root / "store/work").rglob("*.jsonl")) == []


def test_a_night_that_is_stopped_is_recorded_and_goes_on(colours: Project) -> None:
    colours.profile("colours", "[Export]\nhow_many_training_steps = 10000000\n")
    command = [str(BIN / "luigi"), "--module", "pipeline", "Retrain", "--data", "colours", "--date", "2026-11-01"]
    with subprocess.Popen(command, cwd=colours.root, env=colours.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        while not list((colours.root / "store").glob("work/TrainFinalLayer/*/checkpoint")):
            assert started.poll() is None
            time.sleep(0.1)
        started.terminate()
        _, errors = started.communicate(timeout=60)
    assert started.returncode == 143
    reason = "it was stopped (SIGTERM); run again: it goes on where it was"
    assert f"error: colours: failed: {reason}" in errors.decode() and "Traceback" not in errors.decode()
    said = record(colours, "colours", "2026-11-01")
    assert (said["status"], said["reasons"]) == ("failed", [reason])


@pytest.mark.parametrize("streams", [">/dev/full", ">&- 2>&-"])
def test_a_night_is_what_happened_also_where_nobody_can_be_told(colours: Project, streams: str) -> None:
    shutil.rmtree(colours.root / "exports")
    command = f"{BIN}/luigi --module pipeline Retrain --data colours --date 2026-11-01 {streams}"
    done = colours.run(["sh", "-c", command])
    assert (done.returncode, record(colours, "colours", "2026-11-01")["status"]) == (0, "published"), done.stderr
    assert "Exception ignored" not in done.stderr
    assert colours.live("colours").is_dir()


def test_all_profiles_are_retrained_and_one_that_fails_stops_no_other(colours: Project) -> None:
    colours.profile("aaa-broken", "[Export]\nlearning_rat = 0.1\n")
    colours.photos("aaa-broken", 4)
    colours.profile("gone", SETTINGS)
    shutil.copytree(colours.root / "exports/colours", colours.root / "exports/gone", symlinks=True)
    (colours.root / "configs/unreadable.cfg").write_text("no section\n")
    colours.profile("never-fetched", "[images]\ndraw_per_class = 3\n")  # nobody asked for it
    colours.profile("fallible", "[images]\nurl = http://127.0.0.1:9/x.tgz\nsha256 = 00\nbytes = 1\nfallback = stand-in\n")
    colours.profile("stand-in", SETTINGS)
    colours.photos("stand-in", 4)
    shutil.copy(REPOSITORY / "configs/cron.cfg", colours.root / "configs")
    done = luigi(colours, "RetrainAll", "--date", "2026-11-01", LUIGI_CONFIG_PATH="configs/cron.cfg")
    assert done.returncode == 30, done.stderr
    statuses = {path.parent.name: json.loads(path.read_text())["status"] for path in colours.root.glob("store/nights/*/*.json")}
    assert statuses == {"aaa-broken": "failed", "colours": "published", "gone": "failed", "unreadable": "failed"}
    said = [line for line in done.stderr.splitlines() if ": failed: " in line]
    assert sorted(line.partition(": failed: ")[0] for line in said) == ["error: aaa-broken", "error: gone", "error: unreadable"]
    assert "'learning_rat' is unknown" in record(colours, "aaa-broken", "2026-11-01")["reasons"][0]
    assert "no photos in" in record(colours, "gone", "2026-11-01")["reasons"][0]
    assert "begins without a section" in record(colours, "unreadable", "2026-11-01")["reasons"][0]


def test_a_folder_that_cannot_be_read_is_for_its_own_run_to_say(inside: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("healthy", "locked"):
        inside.profile(name, SETTINGS)
        inside.photos(name, 4)
    has_photos = sources.has_photos

    def refusing(folder: Path) -> bool:
        if folder.name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return has_photos(folder)

    monkeypatch.setattr(sources, "has_photos", refusing)
    assert schedule.data_sets() == ["healthy", "locked"]


def test_without_any_photos_all_is_said_to_be_missing(project: Project) -> None:
    done = luigi(project, "RetrainAll")
    assert done.returncode == 20
    assert "error: no profile in configs/ has photos; " in done.stderr
    bad_name = luigi(project, "Retrain", "--data", "../x")
    assert bad_name.returncode == 30
    assert "error: ../x: failed: data = '../x' cannot name a data set" in bad_name.stderr
    bad_date = luigi(project, "RetrainAll", "--date", "2026-13-45")
    assert bad_date.returncode == 30
    assert re.fullmatch(r"error: date = 2026-13-45: a day is allowed, as [\d-]+\n", bad_date.stderr)
    assert not list(project.root.rglob("*.json"))


def test_range_daily_makes_up_for_the_nights_that_are_missing(colours: Project) -> None:
    what = ("--of-params", '{"data": "colours"}', "--param-name", "date", "--start", "2026-11-01", "--stop", "2026-11-04")
    now = ("--now", "1793800000")  # 2026-11-04
    assert luigi(colours, "Retrain", "--data", "colours", "--date", "2026-11-02").returncode == 0
    done = luigi(colours, "RangeDaily", "--of", "Retrain", *what, *now)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in colours.root.glob("store/nights/colours/*")) == [f"2026-11-0{day}.json" for day in (1, 2, 3)]
    written = {path: path.stat().st_mtime_ns for path in colours.root.glob("store/nights/colours/*")}
    assert luigi(colours, "RangeDaily", "--of", "Retrain", *what, *now).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    days = ("--start", "2026-11-03", "--stop", "2026-11-06", "--now", "1793970000")
    assert luigi(colours, "RangeDaily", "--of", "RetrainAll", *days).returncode == 0  # the date is the first positional parameter
    assert len(list(colours.root.glob("store/nights/colours/*"))) == 5


def test_the_crontab_and_the_systemd_unit_run_as_they_stand_there(colours: Project) -> None:
    shutil.copy(REPOSITORY / "configs/cron.cfg", colours.root / "configs")
    (colours.root / ".venv").symlink_to(BIN.parent)
    (colours.root / ".secrets").write_text("RETRAIN_NOTHING=x\n")
    (line,) = [line for line in (REPOSITORY / "docs/deploy/crontab").read_text().splitlines() if not line.startswith("#")]
    command = line.split(None, 5)[5].replace("/srv/retrain", str(colours.root))
    assert colours.run(["sh", "-c", command]).returncode == 0
    assert "colours: published 0001-" in (colours.root / "retrain.log").read_text()

    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(REPOSITORY / "docs/deploy/retrain.service")
    service = unit["Service"]
    start = service["ExecStart"].replace("/srv/retrain", str(colours.root)).split()
    name, _, value = service["Environment"].partition("=")
    done = colours.run([*start, "--date", "2026-11-02"], **{name: value})
    assert done.returncode == 0, done.stderr
    assert "colours: nothing to do" in done.stdout
    assert record(colours, "colours", "2026-11-02")["status"] == "nothing to do"


def test_what_is_published_once_more_is_told_once_more(colours: Project) -> None:
    def night(date: str) -> tuple[str, str]:
        done = luigi(colours, "Retrain", "--data", "colours", "--date", date)
        assert done.returncode == 0, done.stderr
        said = record(colours, "colours", date)
        return said["status"], said["version"]

    first = colours.live("colours")
    assert night("2026-11-01") == ("published", first.name)
    os.truncate(first / "labels.txt", 1)  # what is damaged is made again, as another version of the same key
    status, second = night("2026-11-02")
    assert (status, second) == ("published", colours.live("colours").name)
    assert second.partition("-")[2] == first.name.partition("-")[2] and second != first.name
    assert night("2026-11-03") == ("nothing to do", second)


@pytest.mark.parametrize("task", [["Export", "--data", "mine"], ["Retrain", "--data", "mine"], ["RetrainAll"]])
def test_without_its_paths_nothing_begins(project: Project, task: list[str]) -> None:
    config = project.root / "luigi.cfg"
    config.write_text(re.sub("(?m)^store =", "stor =", config.read_text()))
    done = luigi(project, *task)
    assert (done.returncode, done.stderr) == (30, "error: 'stor' is unknown in [paths] of luigi.cfg; is store meant?\n")


def test_an_outcome_is_told_once(tmp_path: Path) -> None:
    told = [tmp_path / "1.json", tmp_path / "2.json"]
    outcome = nights.Outcome(nights.REJECTED, "0002-aa", reasons=["it is worse"], id="rejected aa")
    assert not nights.is_told(outcome, told)
    nights.write(told[0], nights.Record("mine", "2026-11-01", outcome))
    told[1].write_text("{")  # cut short: as if it were not there
    assert nights.read(told[0]) == nights.Record("mine", "2026-11-01", outcome, written=json.loads(told[0].read_text())["written"])
    assert nights.read(told[1]) is None
    assert nights.is_told(outcome, told)
    assert not nights.is_told(nights.Outcome(nights.PUBLISHED, id="live aa"), told)


def test_the_page_on_operations_names_nothing_that_is_not_there() -> None:
    page = REPOSITORY / "docs/operations.md"
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / path).exists(), path
    for target in re.findall(r"(?:^|`|&& )make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), target
    verbs = re.findall(r"python -m pipeline (\w+) (\w+)", text)
    assert ("exports", "prune") in verbs
    for verb in verbs:
        with pytest.raises(SystemExit) as left:
            main([*verb, "--help"])
        assert left.value.code == 0, verb
