"""Several workers and the central scheduler: who does what, what its page shows, and what happens when a worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from conftest import BIN, REPOSITORY, Project
from selenium.webdriver.common.by import By
from test_report import Browser

WEBHOOK = "http://127.0.0.1:1/T0pS3cret"
WAIT = 600
COUNT = 450
"""Photos of a data set: so many that a worker is seen at work on them several times, every two seconds."""


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def free_port() -> int:
    """None of those that the system gives to whoever asks for any, as other tests do before the scheduler is up."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return int(sock.getsockname()[1])


class Scheduler:
    """The real luigid, as ``make luigid`` starts it, in a project that has the shipped configuration but for the port and the patience."""

    def __init__(self, project: Project) -> None:
        self.project, self.port = project, free_port()
        self.workers: list[subprocess.Popen[str]] = []
        shipped = (REPOSITORY / "configs/luigid.cfg").read_text()
        ours = shipped.replace("8082", str(self.port)).replace("worker_disconnect_delay = 30", "worker_disconnect_delay = 6")
        assert ours.count(str(self.port)) == 2 and "delay = 6" in ours
        # Three attempts are for a scheduler that is up again in ten seconds, which a busy machine may not manage.
        ours = ours.replace("rpc_retry_wait = 5", "rpc_retry_wait = 5\nrpc_retry_attempts = 50")
        (project.root / "configs/luigid.cfg").write_text(ours.replace("ping_interval = 5", "ping_interval = 1"))
        (project.root / ".venv").symlink_to(BIN.parent)
        (project.root / "setup.cfg").touch()
        (project.root / "pyproject.toml").touch()
        self.start()

    def start(self) -> None:
        command = ["make", "-f", str(REPOSITORY / "Makefile"), "-o", ".venv/installed", "luigid", f"PORT={self.port}"]
        log = open(self.project.root / "luigid.log", "a")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=self.project.root, env=self.project.environment(), stdout=log, stderr=log, start_new_session=True
        )
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.tasks("DONE") is not None)
        except OSError:
            return False

    def tasks(self, status: str) -> dict[str, Any]:
        data = quote(json.dumps({"status": status, "upstream_status": ""}))
        with urlopen(f"http://127.0.0.1:{self.port}/api/task_list?data={data}", timeout=60) as answer:
            return json.load(answer)["response"]

    def everything(self) -> str:
        """All that its page can show."""
        parts = []
        for name in ("worker_list", "resource_list"):
            with urlopen(f"http://127.0.0.1:{self.port}/api/{name}?data=%7B%7D", timeout=60) as answer:
                parts.append(answer.read().decode())
        return "\n".join([*parts, *(json.dumps(self.tasks(status)) for status in ("DONE", "FAILED", "PENDING", "RUNNING", "DISABLED"))])

    def worker(self, *arguments: str) -> subprocess.Popen[str]:
        """A worker on one core, the same for all, so that it can be caught at work on any machine."""
        started = subprocess.Popen(
            [str(BIN / "luigi"), "--module", "pipeline", *arguments],
            cwd=self.project.root,
            env=self.project.environment(LUIGI_CONFIG_PATH="configs/luigid.cfg", RETRAIN_WEBHOOK=WEBHOOK),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=one_core,
        )
        self.workers.append(started)
        return started

    def stop(self) -> None:
        for worker in self.workers:  # those that a failed test left at work, or held
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(30)


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def signal_children(pid: int, what: signal.Signals) -> None:
    """To the processes of a worker's tasks, while the worker itself lives on."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    for child, parent in (map(int, line.split()) for line in listed.splitlines()):
        if parent == pid:
            os.kill(child, what)


@pytest.fixture
def scheduler(project: Project) -> Iterator[Scheduler]:
    started = Scheduler(project)
    yield started
    started.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    yield opened
    opened.driver.quit()


def test_workers_share_the_work_show_it_and_take_over_from_one_that_is_killed(scheduler: Scheduler, browser: Browser) -> None:
    project = scheduler.project
    for name, labels in (("one", ("blue", "green", "red")), ("two", ("yellow", "violet", "brown"))):
        project.photos(name, COUNT // 3, labels=labels, size=100)
        project.profile(name, "[Export]\nhow_many_training_steps = 300\n")
    # Of one night, also where midnight comes between them.
    workers = {process.pid: process for process in (scheduler.worker("RetrainAll", "--date", "2026-11-01") for _ in range(2))}

    def at_work() -> dict[int, str]:
        """The workers that compute vectors, and say how far they are, with the data set; held there, so that the page can be looked at."""
        found = {}
        for task in scheduler.tasks("RUNNING").values():
            if task["name"] == "ComputeBottlenecks" and task["progress_percentage"]:
                worker = int(re.search(r"pid=(\d+)", task["worker_running"])[1])  # type: ignore[index]
                signal_children(worker, signal.SIGSTOP)
                found[worker] = task["params"]["data"]
        return found if len(found) == 2 else {}

    at_it = wait_for(at_work)
    assert at_it.keys() == workers.keys()
    assert set(at_it.values()) == {"one", "two"}

    address = f"http://127.0.0.1:{scheduler.port}/static/visualiser/index.html"
    browser.driver.get(f"{address}#tab=workers")
    bars = wait_for(lambda: [bar.text for bar in browser.driver.find_elements(By.CSS_SELECTOR, ".taskProgressBar") if bar.text])
    assert all(re.fullmatch(r"\d+%", text) for text in bars)

    def message() -> Any:
        """The page asks for it half a second after the click, but only if it shows the box by then; else one clicks again."""
        browser.driver.execute_script("document.querySelector('button.statusMessage').click()")
        time.sleep(1)
        return re.search(rf"\d+ of {COUNT} photos", browser.driver.find_element(By.ID, "statusMessageModal").text)

    wait_for(message)

    killed, other = sorted(workers)
    os.killpg(killed, signal.SIGKILL)
    signal_children(other, signal.SIGCONT)
    (survivor,) = (process for pid, process in workers.items() if pid != killed)
    output, _ = survivor.communicate(timeout=WAIT)
    assert survivor.returncode == 0, output
    lines = (output + (workers[killed].communicate()[0] or "")).splitlines()
    for name in ("one", "two"):
        assert (project.live(name) / "report.html").is_file()
        assert len([line for line in lines if line.startswith(f"{name}: {COUNT} photos in 3 classes, ") and "for training" in line]) == 1
        assert json.loads(next((project.root / "store/nights" / name).iterdir()).read_text())["status"] == "published"
    steps = ("IndexImages", "ComputeBottlenecks", "TrainFinalLayer", "ExportGraph", "Report")
    assert [len(project.runs(task)) for task in steps] == [2] * len(steps)
    taken_over = [json.loads((folder / "manifest.json").read_text()) for folder in project.runs("ComputeBottlenecks")]
    (manifest,) = (manifest for manifest in taken_over if manifest["data"] == at_it[killed])
    assert manifest["cached"] > 0  # what the dead worker had computed was not computed again
    assert manifest["cached"] + manifest["computed"] == COUNT

    def links() -> set[str]:
        found = browser.driver.find_elements(By.CSS_SELECTOR, "a[title='Track Progress'], a[data-original-title='Track Progress']")
        return {str(link.get_attribute("href")) for link in found}

    for name in ("one", "two"):
        browser.driver.get(f"{address}?{name}#length=100")
        report = (project.live(name) / "report.html").as_uri()
        wait_for(lambda report=report: report in links())
    assert "T0pS3cret" not in scheduler.everything() + browser.driver.page_source


def test_no_photos_and_a_mistake_end_the_worker(scheduler: Scheduler) -> None:
    """A worker that stays alive for others would otherwise wait for a person."""
    scheduler.project.photos("mine", 4)
    scheduler.project.profile("mine", "[Export]\nlearning_rat = 1\n")
    missing, mistaken = scheduler.worker("Retrain", "--data", "nothing"), scheduler.worker("Retrain", "--data", "mine")
    for process, words in ((missing, "no photos in "), (mistaken, "'learning_rat' is unknown")):
        output, _ = process.communicate(timeout=WAIT)
        assert process.returncode == 30
        assert f"failed: {words}" in output or words in output
        assert "T0pS3cret" not in output


def test_a_check_stops_a_run_before_its_steps_begin(scheduler: Scheduler) -> None:
    """Though all of them are known to the scheduler from the beginning."""
    project = scheduler.project
    project.photos("mine", 12)
    project.profile("mine", "[Export]\nhow_many_training_steps = 50\n")

    def export() -> tuple[int, str]:
        process = scheduler.worker("Export", "--data", "mine")
        output, _ = process.communicate(timeout=WAIT)
        return process.returncode, output

    code, output = export()
    assert code == 0, output
    for photo in sorted((project.root / "data/mine").rglob("*.png"))[::3] + sorted((project.root / "data/mine").rglob("*.png"))[1::3]:
        photo.unlink()
    code, output = export()
    assert code == 30, output
    assert "nothing is trained: " in output and "(stop_on has photos; without it it is a warning)" in output
    assert [len(project.runs(step)) for step in ("CheckPhotos", "ComputeBottlenecks", "TrainFinalLayer")] == [2, 1, 1]


def test_a_worker_whose_scheduler_lost_its_memory_says_that_the_night_failed(scheduler: Scheduler) -> None:
    project = scheduler.project
    project.photos("mine", 12)
    project.profile("mine", "[Export]\nhow_many_training_steps = 50\n")
    worker = scheduler.worker("RetrainAll")
    wait_for(lambda: [task for task in scheduler.tasks("RUNNING").values() if task["name"] == "ComputeBottlenecks"])
    os.killpg(scheduler.process.pid, signal.SIGKILL)
    scheduler.process.wait()
    scheduler.start()
    output, _ = worker.communicate(timeout=WAIT)
    assert worker.returncode == 30, output
    (record,) = (project.root / "store/nights/mine").iterdir()
    said = json.loads(record.read_text())
    assert said["status"] == "failed" and "luigid is away, or was started anew without its memory" in said["reasons"][0]
    assert f"error: mine: failed: {said['reasons'][0]}" in output
