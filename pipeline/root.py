"""The root of the task graph: looks at the folder of the photos, and publishes what comes of them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.util import inherits

from pipeline import (
    artifacts,
    backbones,
    changes,
    checks,
    console,
    dataset,
    disk,
    files,
    forecast,
    luigi_program,
    registry,
    runs,
    scan,
    settings,
    sources,
    tables,
    tensorflow_import,
)
from pipeline.artifacts import Artifact, QuietTask
from pipeline.console import shown, verb
from pipeline.dataset import Photos
from pipeline.errors import INTERRUPTED, UserError
from pipeline.settings import choices, switch
from pipeline.tasks import (
    CheckDrift,
    CheckPhotos,
    ComputeBottlenecks,
    ExportGraph,
    FetchImages,
    FolderOfPhotos,
    Report,
    absolute_model,
    fallback_of,
)
from pipeline.words import accuracy

COMPARED = ("output_graph.pb", "labels.txt", changes.PHOTOS)
"""What of a version the gate reads."""


@dataclass(frozen=True)
class Outcome:
    """What the photos and settings of a data set have come to.

    Attributes:
        status: "live", "rejected" by the gate, or "not live": published once, and another version is live now.
        page: the report.
        manifest: that of the version, or of the rejected classifier with what its report adds.
        version: the folder of the version, None of a rejected one.
        verdict: of the gate, None of a version from before there was one.
    """

    status: str
    page: Path
    manifest: dict[str, Any]
    version: Path | None
    verdict: dict[str, Any] | None


@inherits(Report, CheckDrift)
class Export(QuietTask):
    """From a folder of labelled photos to a published classifier. The only task that looks at the folder, once a run."""

    # Not parameters here: what the look at the folder finds, what the model is, what is started from and what is live; all are handed down.
    snapshot = None
    live_version = None
    model_identity = None
    init_from_key = None
    live = None
    live_key = None
    checked = None
    before_it = None
    fail_if_rejected = switch(default=False, significant=False, description="end with exit code 30 where the gate rejects the classifier")
    allow_fallback = switch(default=True, significant=False, description="use the profile's fallback where the photos cannot be fetched")
    stop_on = choices(
        checks.NAMES,
        default=("photos",),
        significant=False,
        description="checks before the training that stop the run where they are not fine; the others warn",
    )

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        """Put the profile's values between the command line's and luigi.cfg's."""
        luigi_program.refuse_empty(cls, params)
        try:
            data = kwargs.get("data") or dict(params)["data"].task_value(cls.get_task_family(), "data")
            values = settings.profile(data).export
        except UserError:
            values = {}  # run() says what is wrong with the profile
        given_globally = getattr(CmdlineParser.get_instance(), "known_args", None)
        for name, parameter in params:
            on_command_line = name in kwargs or getattr(given_globally, f"{cls.get_task_family()}_{name}", None) is not None
            if name in values and not on_command_line:
                kwargs = {**kwargs, name: parameter.parse(values[name])}
        return super().get_param_values(params, args, kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = kwargs
        self._is_done = False

    def check(self) -> None:
        """Raise UserError for a setting that is unknown or not allowed."""
        profile = settings.profile(self.data)
        names = [name for name, _ in self.get_params() if name != "data"]
        settings.check_section(profile.export, names, f"[Export] of {profile.file}")
        settings.check_fallback(profile)
        settings.check_configuration(["data", *names])
        settings.check_parameters(self)
        _ = self.identified_model, self.start  # raise for what cannot be found
        if self.testing_percentage + self.validation_percentage > 90:
            raise UserError(
                f"testing_percentage = {self.testing_percentage:g} and validation_percentage = {self.validation_percentage:g} "
                "leave less than 10 % for training; lower one of them"
            )

    @property
    def photos_folder(self) -> Path:
        """Where the photos are, or will be."""
        folder = Path(self.images).expanduser() if self.images else settings.paths(self.data).image_dir / self.data
        folder = folder.resolve()  # what is fetched moves in from beside it, and a link has another file system beside it
        package = settings.profile(self.data).images.package
        if self.images or not package or sources.has_photos(folder):
            return folder
        return sources.package_folder(package) or folder

    @property
    def table(self) -> tables.Table | None:
        """The table that names the photos, if the profile has one."""
        source = settings.profile(self.data).images
        if not source.table:
            return None
        return tables.Table(
            self.photos_folder / source.table, source.path_column, source.label_column, tables.parse_rule(source.label_rule)
        )

    @property
    def fallback(self) -> Export | None:
        """The task of the data set that stands in, where the photos are not there and their host could not be reached."""
        if self.images or sources.has_photos(self.photos_folder):
            return None
        fallback = fallback_of(self.data, self.allow_fallback)
        return Export(**{**self._given, "data": fallback.instead}) if fallback else None

    @cached_property
    def identified_model(self) -> str:
        """What the model is, for keys. Raises UserError for one that cannot be found."""
        return backbones.identify(self.model)

    @cached_property
    def start(self) -> Path | None:
        """The export whose final layer the training starts from. Raises UserError for one that cannot be found."""
        if not self.init_from:
            return None
        version = registry.find(self.init_from, settings.exports_of(self.init_from)).resolve()
        if version.parent == (settings.paths(self.data).exports / self.data).resolve() and version.name != Path(self.init_from).name:
            raise UserError(
                f"init_from = {self.init_from} is another version after each run, so that each run would train anew; name {shown(version)}"
            )
        return version

    def look(self) -> Photos:
        """The photos as they are now; only what changed is read."""
        memory = scan.Memory(settings.paths(self.data).scan(self.data))
        with self.progress("photos read") as report:
            table = self.table
            return scan.of_table(table, memory, report) if table else scan.of_folder(self.photos_folder, memory, report)

    @cached_property
    def found(self) -> dict[str, Any]:
        """Parameters of the steps that the photos as they are now, the model and the start decide. Looks at the folder the first time."""
        photos = self.look()
        snapshot = self.snapshot_of(photos)
        kept = settings.paths(self.data).snapshot(self.data, snapshot)
        if not kept.is_file() or not kept.stat().st_size:  # empty after a power cut, perhaps
            kept.parent.mkdir(parents=True, exist_ok=True)
            dataset.write_snapshot(kept, photos)
        return self.found_in(snapshot)

    def snapshot_of(self, photos: Photos) -> str:
        """The name of these photos' snapshot: their fingerprint, with a number where an earlier run could not read all of them.

        What that run made lacks some of the photos, and keeps the name; what is made of all of them needs another.
        """
        fingerprint = dataset.fingerprint(photos)
        names = itertools.chain([fingerprint], (f"{fingerprint}.{number}" for number in itertools.count(2)))
        return next(name for name in names if not self.clone(ComputeBottlenecks, **self.found_in(name)).is_torn)

    def found_in(self, snapshot: str) -> dict[str, Any]:
        """The same for the photos of a snapshot."""
        table = self.table
        return {
            "snapshot": snapshot,
            "images": str(table.folder if table else self.photos_folder),
            "model": absolute_model(self.model),
            "model_identity": self.identified_model,
            "init_from": str(self.start or ""),
            "init_from_key": registry.key_of(self.start) if self.start else "",
            "before_it": {
                "stop_on": self.stop_on,
                "live_version": self.live_at_first,
                **{name: getattr(self, name) for name in ("photos_fall_limit", "relabelled_limit", "class_share_limit", "drift_limit")},
            },
        }

    @cached_property
    def live_at_first(self) -> str:
        """The version that was live when the run began, with which the checks compare."""
        live = registry.live(self.exports)
        return live.name if live else ""

    @property
    def classifier(self) -> ExportGraph:
        """The task that makes the classifier from the photos as they are now."""
        return self.clone(ExportGraph, **self.found)

    @property
    def exports(self) -> Path:
        """The folder of the data set's versions."""
        return settings.paths(self.data).exports / self.data

    @property
    def report(self) -> Report:
        """The task that evaluates the classifier, and has it judged against the version that is live now."""
        live = registry.rival(self.exports, self.classifier.key, COMPARED)
        return self.clone(
            Report,
            **self.found,
            checked=str(self.drift_check.folder),
            live=str(live or ""),
            live_key=registry.key_of(live) if live else "",
        )

    @cached_property
    def drift_check(self) -> CheckDrift:
        """The task that compares the vectors, and with its first requirement the photos, with the version live when the run began."""
        return self.clone(CheckDrift, **self.found, live_version=self.live_at_first)

    @property
    def photos_check(self) -> CheckPhotos:
        return self.drift_check.requires()[0]

    @property
    def goals(self) -> list[Artifact]:
        """What has to be made before anything is published, in this order."""
        return [self.photos_check, self.drift_check, self.report]

    def check_disk(self) -> None:
        """Warn where the disk gets tight, from what the tasks that are not done will write. Raises UserError where it cannot fit."""
        index, _, packed, _ = self.classifier.requires()
        if packed.complete():  # what follows is small
            return
        photos = dataset.read_photos(index.folder / dataset.INDEX)
        systems = disk.by_file_system(forecast.needs(self.classifier, photos, *forecast.rows_and_missing(packed, photos)))
        for line in disk.check(systems):
            console.warn(line)

    @property
    def outcome(self) -> Outcome | None:
        """What the photos and settings, as they are now, have come to; None where there is something to do."""
        live = registry.live(self.exports)
        version = registry.version_of(self.classifier.key, self.formats, self.exports)
        if live and version and not files.damage(version):
            if version != live and registry.is_pending(version):
                return None
            if version == live and not all(files.same_content(version / name, copy) for name, copy in settings.copies(self.data).items()):
                return None
            manifest = files.read_json(version / files.MANIFEST)
            status = "live" if version == live else "not live"
            return Outcome(status, version / runs.PAGE, manifest, version, manifest.get("verdict"))
        report = self.report
        if not report.complete():
            return None
        evaluated = report.output().manifest()
        if evaluated["verdict"]["accepted"]:
            return None
        manifest = {**evaluated, **self.classifier.output().manifest()} if self.classifier.complete() else evaluated
        return Outcome("rejected", report.folder / runs.PAGE, manifest, None, evaluated["verdict"])

    def complete(self) -> bool:
        if self._is_done:
            return True  # also where another run made another version live a moment later
        try:
            self.check()
            if fallback := self.fallback:
                return fallback.complete()
            if not sources.has_photos(self.photos_folder):
                return False
            outcome = self.outcome
            return outcome is not None and not (outcome.status == "rejected" and self.fail_if_rejected)
        except (UserError, OSError):
            return False  # run() says it

    def requires(self) -> list[luigi.Task]:
        return self._first

    @cached_property
    def _first(self) -> list[luigi.Task]:
        """What has to be there before anything else is known; decided once, since FetchImages changes the answer."""
        try:
            self.check()
            if sources.has_photos(self.photos_folder):
                # Where its photos are those of an old run: the newest snapshots are what runs prune keeps.
                os.utime(settings.paths(self.data).snapshot(self.data, self.found["snapshot"]))
                # A central scheduler gives a worker only tasks that it was told of at the beginning.
                return list(self.goals) if luigi_program.has_central_scheduler() else [self.photos_check]
            source = settings.profile(self.data).images
            if self.images or not (source.url or source.draw_per_class):
                return [FolderOfPhotos(images=str(self.photos_folder), remedy=self.remedy())]
            return [FetchImages(data=self.data, images=str(self.photos_folder), allow_fallback=self.allow_fallback)]
        except (UserError, OSError):
            return []  # run() says it

    def remedy(self) -> str:
        """What a person can do who has no photos in the folder."""
        source = settings.profile(self.data).images
        if source.package and not self.images:
            package = sources.distribution(source.package)
            pip = shlex.join([shown(Path(sys.executable)), "-m", "pip", "install", package])
            return f"they come with the package {package}, which has to be installed: {pip}"
        what = f"the photos and their table {source.table}" if source.table else "a folder for each class of photos"
        return f"put {what} there, or name another folder with --images PATH"

    def run(self) -> Iterator[luigi.Task]:
        with artifacts.guarded():
            self.check()
            if fallback := self.fallback:
                yield fallback
                noted = fallback_of(self.data, self.allow_fallback)
                outcome = fallback.outcome
                if noted and outcome and made_before(outcome, noted.since):
                    say_nothing_to_do(fallback, outcome)
                return
            for check in (self.photos_check, self.drift_check):
                yield check
                check.stop(self.stop_on)
                self.check_disk()
            version = yield from self._publish()
            self._is_done = True
            self._show_outcome()
        if version:
            headline, *lines = result_lines(self.data, version, self.classifier)
            for line in (headline, *self._since(), *lines):
                console.say(line)

    def _since(self) -> list[str]:
        """A line on what changed in the photos, where there is a version to compare with."""
        since = self.photos_check.output().manifest()["since"]
        return [f"since    {since['version']}: {changes.sentence(since)}"] if since else []

    def _publish(self) -> Generator[luigi.Task, Any, Path | None]:
        """Have the classifier judged, and put it in the live one's place; return the version, None where it is rejected."""
        while True:
            report = self.report
            yield report
            try:
                return self._publish_once(report)
            except registry.Overtaken:
                console.note(f"{self.data}: another version went live meanwhile; judged once more, against that one")

    def _publish_once(self, report: Report) -> Path | None:
        with files.in_use(settings.paths().store):
            parts = [self.classifier, *report.exported_formats, report]
            for task in parts:
                task.mend()
            verdict = report.output().manifest()["verdict"]
            if not verdict["accepted"]:
                self._say_rejected(report.folder, verdict)
                return None
            for problem in registry.problems(self.exports):
                console.warn(f"{problem}; a new version takes its place, and what is damaged can be removed")
            if (was_live := registry.live(self.exports)) and (damage := files.damage(was_live, contents=True)):
                console.warn(f"{shown(was_live)} is damaged ({damage}); a new version takes its place")
            return registry.publish(
                [task.folder for task in parts],
                self.exports,
                console.note,
                instead_of=report.live_key,
                copies=settings.copies(self.data),
            )

    def _show_outcome(self) -> None:
        """On the scheduler's page."""
        if outcome := self.outcome:
            said = f"{outcome.status}, test accuracy {accuracy_in_words(outcome.manifest)}"
            self.point_to(f"{outcome.version.name} {said}" if outcome.version else said, settings.in_project(outcome.page))

    def _say_rejected(self, report: Path, verdict: dict[str, Any]) -> None:
        said = f"{self.data}: {verdict['words']}"
        if self.fail_if_rejected:
            raise UserError(f"{said}; report: {shown(report / runs.PAGE)}")
        for line in (said, *self._since()):
            console.say(line)
        console.say(f"{self.data}: {live_in_words(self)} stays live; report: {shown(report / runs.PAGE)}")


def result_lines(data: str, version: Path, classifier: ExportGraph) -> list[str]:
    """What a person wants to know at the end of a run."""
    manifest = files.read_json(version / files.MANIFEST)
    _, _, packed, training = classifier.requires()
    lines = [
        f"{data}: {manifest['photos']} photos in {len(manifest['labels'])} classes, "
        f"{manifest['backbone']['name']}, best at step {manifest['best_step']}",
        f"test accuracy {accuracy_in_words(manifest)}",
        f"verdict  {manifest['verdict']['words']}",
        f"graph    {shown(version / 'output_graph.pb')}",
        f"labels   {shown(version / 'labels.txt')}",
        f"curves   {shlex.join([shown(Path(sys.executable).with_name('tensorboard')), '--logdir', shown(training.folder)])}",
        f"predict  {verb('predict', data, 'PHOTO.jpg')}",
        f"report   {shown(version / runs.PAGE)}",
    ]
    for exported in manifest.get("formats", {}).values():
        if exported.get("problem"):
            lines.append(f"left out {exported['file']}: {exported['problem']}")
    if manifest["skipped"]:
        lines.insert(1, f"left out {manifest['skipped']}, listed with the reasons in {shown(packed.folder / dataset.SKIPPED)}")
    return lines


def made_before(outcome: Outcome, moment: float) -> bool:
    """Whether it came to that before ``moment`` (seconds since 1970)."""
    finished = outcome.manifest["finished"]
    return bool(finished < files.timestamp(moment))


def accuracy_in_words(manifest: dict[str, Any]) -> str:
    return accuracy(*(manifest[f"test_{name}"] for name in ("accuracy", "correct", "count", "interval")))


# --- What is said, and when -----------------------------------------------------------------------------------------


@Export.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_nothing_to_do(task: Export) -> None:
    if fallback := task.fallback:
        noted = fallback_of(task.data, task.allow_fallback)
        assert noted
        console.say(f"{task.data}: the photos could not be fetched ({noted.reason}); {noted.instead} stands in until {noted.again}")
        task = fallback
    if outcome := task.outcome:
        say_nothing_to_do(task, outcome)


def say_nothing_to_do(task: Export, outcome: Outcome) -> None:
    """Say what is there already, and of what is not live, what can be done about it."""
    if outcome.status == "rejected":
        assert outcome.verdict
        console.say(f"{task.data}: nothing to do, these photos and settings were {outcome.verdict['words']}")
        console.say(f"{task.data}: {live_in_words(task)} is live; report: {shown(outcome.page)}")
    elif outcome.status == "not live":
        assert outcome.version
        console.say(
            f"{task.data}: nothing to do, {shown(outcome.version)} was made with these photos and settings; it is not live, "
            f"{live_in_words(task)} is. To make it live: "
            f"{verb('exports', 'rollback', task.data, outcome.version.name)}"
        )
    else:
        assert outcome.version
        accuracy = accuracy_in_words(outcome.manifest)
        console.say(f"{task.data}: nothing to do, {shown(outcome.version)} is up to date, test accuracy {accuracy}")


def live_in_words(task: Export) -> str:
    """The live version, and what is wrong with it where something is: a rejected candidate does not take its place."""
    live = registry.live(task.exports)
    if live is None:
        return "nothing"
    if damage := files.damage(live, contents=True):
        return f"{shown(live)} (damaged, {damage}; {verb('exports', 'rollback', task.data, 'VERSION')} makes another one live)"
    return shown(live)


@Export.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _say_settings(task: Export, _: luigi.Task) -> None:
    file = settings.profile(task.data).file
    given: list[str] = []
    by_default: list[str] = []
    for name, parameter in task.get_params():
        value = getattr(task, name)
        if value not in ("", None):
            (by_default if name != "data" and value == parameter._default else given).append(f"{name} = {parameter.serialize(value)}")
    console.note(f"settings{f' (with {shown(file)})' if file else ''}: {', '.join(given)}; by default: {', '.join(by_default)}")


@Export.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _stop_in_one_line(task: Export, _: luigi.Task) -> None:
    """Under the ``luigi`` program, Ctrl-C ends in a line, not in the tracebacks of all processes."""
    if CmdlineParser.get_instance() is None or threading.current_thread() is not threading.main_thread():
        return

    def stop(*_: object) -> None:
        if multiprocessing.parent_process() is None:
            tensorflow_import.speak()
            console.complain("stopped; run again: it goes on where it was")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, stop)
