"""Runs that nobody watches: one data set's night, and that of all profiles.

luigi --module pipeline Retrain --data mine
luigi --module pipeline RetrainAll
luigi --module pipeline RangeDaily --of Retrain --of-params '{"data": "mine"}' --param-name date --start 2026-11-01

The date names the record (``pipeline.nights``) and nothing else: what is made has the same keys on every day.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import html
import logging
import multiprocessing
import os
import signal
import smtplib
import socket
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import luigi
from luigi import notifications, rpc
from luigi.task import MixinNaiveBulkComplete

from pipeline import console, files, luigi_program, nights, notify, registry, runs, settings, sources
from pipeline.artifacts import QuietTask, guarded
from pipeline.console import shown
from pipeline.errors import FAILED, UserError, first_line
from pipeline.nights import Outcome, Record
from pipeline.root import Export
from pipeline.tasks import FolderOfPhotos, IndexImages

TODAY = datetime.date.today()


class _Date(luigi.DateParameter):
    """A date; what is none is refused in one line."""

    def parse(self, s: str) -> datetime.date:
        try:
            return super().parse(s)
        except ValueError:
            luigi_program.refuse(f"date = {s}: a day is allowed, as {TODAY}")
            raise


class NightRecord(luigi.Target):
    """The record of a night. One that says that it failed is none: the night can be had again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        record = nights.read(self.path)
        return record is not None and not record.failed


class _OfANight(MixinNaiveBulkComplete, luigi.Task):
    """A task of a date."""

    date = _Date(default=TODAY, description="the night that the record is for (today by default); no result depends on it")

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        luigi_program.refuse_empty(cls, params)
        return super().get_param_values(params, args, kwargs)


class Retrain(_OfANight, QuietTask):
    """Export with a record of the night. Settings come from the profile, luigi.cfg, or as ``--Export-…``."""

    data = IndexImages.data

    @property
    def path(self) -> Path:
        """Where the record lies."""
        return settings.paths().night(self.data, str(self.date))

    def output(self) -> NightRecord:
        return NightRecord(self.path)

    @cached_property
    def export(self) -> Export:
        return Export(data=self.data)

    def requires(self) -> list[luigi.Task]:
        return [self.export]

    def run(self) -> None:
        with guarded():
            instead = self.export.fallback
            outcome = outcome_of(instead or self.export, sorted(self.path.parent.glob("*.json")))
            record = Record(self.data, str(self.date), outcome, instead.data if instead else "", this_luigi())
            nights.write(self.path, record)
        self.point_to(record.sentence, record.outcome.report)


_STATUS = {"live": nights.PUBLISHED, "rejected": nights.REJECTED, "not live": nights.NOT_LIVE}


def outcome_of(task: Export, told: Sequence[Path]) -> Outcome:
    """What a finished task has come to, or that there is nothing new, where a record in ``told`` has that.

    Raises UserError where it is not finished any more.
    """
    found, live = task.outcome, registry.live(task.exports)
    if found is None:
        raise UserError(f"the photos of {task.data} changed while they were looked at; run again")
    verdict = found.verdict or {}
    version, before = found.version or live, task.exports / verdict.get("live", "")
    outcome = Outcome(
        _STATUS[found.status],
        version.name if version else "",
        settings.in_project(found.page),
        nights.figures(found.manifest),
        nights.what_changed(files.read_manifest(before) if verdict.get("live") else None, found.manifest) if verdict else [],
        list(verdict["against"]) if found.status == "rejected" else [],
        f"{found.status} {found.manifest['key']} {found.version.name if found.version else verdict['live_key']}".strip(),
    )
    if not nights.is_told(outcome, told):
        return outcome
    if live is None:
        return Outcome(nights.NOTHING)
    return Outcome(nights.NOTHING, live.name, settings.in_project(live / runs.PAGE), nights.figures(files.read_json(live / files.MANIFEST)))


class PhotosOfAnyProfile(FolderOfPhotos):
    """What only a person can bring where no profile has photos."""

    images = remedy = None

    @property
    def problem(self) -> str:
        return f"no profile in {settings.PROFILES}/ has photos; put a folder for each class into data/NAME, and a NAME.cfg there"

    def complete(self) -> bool:
        return False


class RetrainAll(_OfANight, luigi.WrapperTask):
    """Retrain for each profile in configs/ whose photos are there. One that fails stops no other, and decides the exit code."""

    @cached_property
    def nights(self) -> list[Retrain]:
        """Decided once, since what is fetched meanwhile would change the answer."""
        return [Retrain(date=self.date, data=name) for name in data_sets()]

    def requires(self) -> list[luigi.Task]:
        return list(self.nights) or [PhotosOfAnyProfile()]

    def complete(self) -> bool:
        return bool(self.nights) and all(night.complete() for night in self.nights)


def data_sets() -> list[str]:
    """The profiles that are retrained: those with photos, or with a published version whose photos should be there.

    What only stands in for another data set is left out, and so is what could be fetched but never was: nobody asked for it. A
    profile that cannot be read is among them, so that its run says what is wrong with it.
    """
    profiles: dict[str, settings.Profile | None] = {}
    for name in settings.profiles():
        try:
            profiles[name] = settings.profile(name)
        except UserError:
            profiles[name] = None
    stand_ins = {profile.images.fallback for profile in profiles.values() if profile}
    return [name for name, profile in profiles.items() if name not in stand_ins and (profile is None or _is_used(name))]


def _is_used(data: str) -> bool:
    paths = settings.paths(data)
    try:
        return sources.has_photos(Export(data=data).photos_folder) or registry.live(paths.exports / data) is not None
    except OSError:  # a folder that cannot be read: its own run says so, and the others go on
        return True


# --- Who is told --------------------------------------------------------------------------------------------------------


def tell(records: Sequence[Record]) -> None:
    """Send a summary by e-mail and to the webhook, where they are configured and it is worth it. What does not arrive is a warning."""
    config, by_email = settings.Notify(), True
    try:
        config = settings.notify()
        settings.check_secrets()  # before one of them is used
    except UserError:  # the nights have failed for it, which the webhook can be told of all the same
        by_email = False
    if not records or not notify.is_wanted(config.when, records):
        return
    summary = notify.summary(records, lambda report: settings.address_of(report, config.address))
    if address := os.environ.get(config.webhook_env, "").strip():
        try:
            notify.post(address, summary.payload)
        except (notify.Undelivered, notify.Refused) as error:
            console.warn(f"the webhook of ${config.webhook_env} did not get the summary ({error}); all else is as it would be")
    if by_email and notifications.email().receiver:
        try:
            notify.persistently(lambda: _send_email(summary))
        except (notify.Undelivered, notify.Refused) as error:
            console.warn(
                f"the summary could not be sent by e-mail ({error}); look at [smtp] and [email] of luigi.cfg; all else is as it would be"
            )


def _send_email(summary: notify.Summary) -> None:
    """Send with Luigi's own means. Raises Undelivered or Refused, with the kind of the error alone: what it says may hold a secret."""
    errors: list[BaseException] = []

    def note(record: logging.LogRecord) -> bool:
        """Luigi logs that a mail server is not there, and goes on."""
        found = [argument for argument in record.args or () if isinstance(argument, Exception)]
        errors.extend(found)
        return not found

    if unset := settings.unset_secrets():
        raise notify.Refused(f"{', '.join(unset)} is not set in the environment")
    log, email = logging.getLogger("luigi-interface"), notifications.email()
    text = f"<pre>{html.escape(summary.text)}</pre>" if email.format == "html" else summary.text
    log.addFilter(note)
    try:
        notifications.send_email(summary.subject, text, email.sender, [email.receiver])
    except Exception as error:  # of any of the ways that Luigi knows
        errors.append(error)
    finally:
        log.removeFilter(note)
    if errors:
        refused = isinstance(errors[0], smtplib.SMTPResponseException) and errors[0].smtp_code >= 500
        raise (notify.Refused if refused else notify.Undelivered)(type(errors[0]).__name__)


# --- At the end of a run ------------------------------------------------------------------------------------------------


def this_luigi() -> str:
    """Host and process of the ``luigi`` that this process belongs to."""
    parent = multiprocessing.parent_process()
    return f"{socket.gethostname()}-{parent.pid if parent else os.getpid()}"


class _Run:
    """The nights that this ``luigi`` has to do, and what went wrong in it.

    A step fails in a process of its own, and Luigi does not tell its dependents why. So each failure is noted in a file that
    is named by the process of ``luigi`` itself, which reads it at its end.
    """

    def __init__(self) -> None:
        self.nights: dict[str, Retrain] = {}
        self.scheduler = ""
        self.stopped = ""
        self.is_lost = False

    def watch(self, night: Retrain) -> None:
        if not self.nights:
            self.failures.unlink(missing_ok=True)
            atexit.register(self.end)
            core = luigi.interface.core()  # the command line is known only now
            self.scheduler = core.scheduler_url or f"http://{core.scheduler_host}:{core.scheduler_port}/"
            if luigi_program.is_running():
                for number in (signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored
                        signal.signal(number, self._stop)
        self.nights[night.task_id] = night

    def _stop(self, number: int, _: object) -> None:
        """End by an exception, so that ``end`` comes to its turn; a step just dies."""
        if multiprocessing.parent_process():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopped = f"it was stopped ({signal.Signals(number).name}); run again: it goes on where it was"
        raise SystemExit(128 + number)

    @property
    def failures(self) -> Path:
        return settings.paths().store / "work" / "failures" / f"{this_luigi()}.jsonl"

    def note_failure(self, task: luigi.Task, line: str) -> None:
        with contextlib.suppress(OSError, UserError):  # there is no room, or no project: it is said on stderr all the same
            nights.add_failure(self.failures, nights.Failure(getattr(task, "data", ""), getattr(task, "images", ""), line))

    def end(self) -> None:
        """Write what failed into the records, and say what came of each night."""
        failures = nights.read_failures(self.failures)
        self.failures.unlink(missing_ok=True)
        records = [record for night in self.nights.values() if (record := self._result(night, failures))]
        for record in records:
            (console.complain if record.failed else console.say)(record.sentence)
        tell(records)
        if self.is_lost:  # Luigi, which knows of no failure, would end with 0
            sys.stdout.flush()
            os._exit(FAILED)

    def _result(self, night: Retrain, failures: Sequence[nights.Failure]) -> Record | None:
        """The record of a night, of a failure unless it is written; None where the night belongs to another ``luigi``."""
        record = nights.read(night.path)
        if record and not record.failed:
            return record if record.by == this_luigi() else None
        try:
            images = str(night.export.photos_folder)
        except UserError:  # the profile cannot be read
            images = ""
        reasons = [failure.line for failure in failures if failure.concerns(night.data, images)]
        if self.stopped:
            reasons.append(self.stopped)
        elif not reasons and luigi_program.has_central_scheduler():
            if self._is_with_the_scheduler(night):
                console.note(f"{night.data}: another worker is at it, or gave it up a moment ago; the scheduler's page says which")
                return None
            self.is_lost = True
            reasons.append("luigid is away, or was started anew without its memory, and does not know of it any more; run again")
        outcome = Outcome(nights.FAILED, reasons=list(dict.fromkeys(reasons)) or ["the log of the run says why"])
        record = Record(night.data, str(night.date), outcome, by=this_luigi())
        # A full disk is said in the line; and what cannot name a data set names no folder.
        with contextlib.suppress(OSError, UserError):
            settings.check_name(night.data)
            nights.write(night.path, record)
        return record

    def _is_with_the_scheduler(self, night: Retrain) -> bool:
        """Whether the central scheduler has a night on its list, whatever came of it."""
        try:
            found = rpc.RemoteScheduler(self.scheduler).task_search(night.task_id)
        except rpc.RPCError:
            return False
        return any(night.task_id in tasks for tasks in found.values())


_run = _Run()


@Retrain.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _watch(task: Retrain, _: luigi.Task) -> None:
    _run.watch(task)


@luigi.Task.event_handler(luigi.Event.FAILURE)
def _note_failure(task: luigi.Task, error: BaseException) -> None:
    line = str(error) if isinstance(error, UserError) else f"{type(error).__name__} in {task.task_family}: {first_line(error)}"
    _run.note_failure(task, line)


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)
def _note_kill(task: luigi.Task, _: str) -> None:
    _run.note_failure(task, f"{task.task_family} was killed")


@FolderOfPhotos.event_handler(luigi.Event.DEPENDENCY_MISSING)
def _note_missing(task: FolderOfPhotos) -> None:
    _run.note_failure(task, task.problem)


@Retrain.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_done(task: Retrain) -> None:
    record = nights.read(task.path)
    if record and luigi_program.is_running():
        console.say(
            f"{task.date} is done, {shown(task.path)} has it: {record.sentence}; to do it again: {luigi_program.EXPORT} --data {task.data}"
        )


@RetrainAll.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_all_done(task: RetrainAll) -> None:
    for night in task.nights:
        _say_done(night)
