"""The root of the task graph: looks at the folder of the photos, and publishes what comes of them."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.util import inherits

from pipeline import artifacts, backbones, console, dataset, files, luigi_program, registry, settings, sources, tables
from pipeline.artifacts import QuietTask
from pipeline.console import shown
from pipeline.errors import UserError
from pipeline.settings import switch
from pipeline.tasks import SKIPPED, ExportGraph, FetchImages, FolderOfPhotos, Report, absolute_model, fallback_of

INTERRUPTED = 130  # as shells have it for Ctrl-C


@inherits(Report)
class Export(QuietTask):
    """From a folder of labelled photos to a published classifier. The only task that looks at the folder, once a run."""

    # Not parameters here: what the look at the folder finds, what the model is, and what is started from; all are handed down.
    snapshot = None
    model_identity = None
    init_from_key = None
    allow_fallback = switch(default=True, significant=False, description="use the profile's fallback where the photos cannot be fetched")

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        """Put the profile's values between the command line's and luigi.cfg's."""
        for name in luigi_program.given_empty(cls.get_task_family(), [name for name, _ in params]):
            luigi_program.refuse(f"--{name.replace('_', '-')} is given without a value; give it one, or leave it out")
        try:
            settings.project()
            data = kwargs.get("data") or dict(params)["data"].task_value(cls.get_task_family(), "data")
            values = settings.profile(data).export
        except UserError as error:
            if "no luigi.cfg" in str(error):  # without it Luigi would look for a central scheduler, and exit with 0 in the end
                luigi_program.refuse(str(error))
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
        self._published = False

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
        version = registry.find(self.init_from, settings.exports_of(self.init_from))
        if version.parent == (settings.paths(self.data).exports / self.data).resolve() and version.name != Path(self.init_from).name:
            raise UserError(
                f"init_from = {self.init_from} is another version after each run, so that each run would train anew; name {shown(version)}"
            )
        return version

    @cached_property
    def classifier(self) -> ExportGraph:
        """The task that makes the classifier from the photos as they are now. Looks at the folder the first time."""
        paths = settings.paths(self.data)
        with self.progress("photos read") as report:
            table, memory = self.table, dataset.Memory(paths.scan(self.data))
            photos = dataset.scan_table(table, memory, report) if table else dataset.scan(self.photos_folder, memory, report)
        snapshot = dataset.fingerprint(photos)
        kept = paths.snapshot(self.data, snapshot)
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            dataset.write_photos(kept, photos)
        return self.clone(
            ExportGraph,
            snapshot=snapshot,
            images=str(table.folder if table else self.photos_folder),
            model=absolute_model(self.model),
            model_identity=self.identified_model,
            init_from=str(self.start or ""),
            init_from_key=registry.key_of(self.start) if self.start else "",
        )

    @property
    def report(self) -> Report:
        """The task that evaluates the classifier."""
        return self.classifier.clone(Report, formats=self.formats)

    @property
    def live(self) -> Path | None:
        """The published version, if it is what these photos and settings give."""
        paths = settings.paths(self.data)
        version = registry.live(paths.exports / self.data)
        if version is None or not registry.holds(version, self.classifier.key, self.formats) or files.damage(version):
            return None
        return version if all(files.same_content(version / name, copy) for name, copy in self.copies.items()) else None

    @property
    def copies(self) -> dict[str, Path]:
        """Where further copies of the live version's files are wanted."""
        paths = settings.paths(self.data)
        wanted = {"output_graph.pb": paths.output_graph, "labels.txt": paths.output_labels}
        return {name: path for name, path in wanted.items() if path}

    def complete(self) -> bool:
        if self._published:
            return True  # also where another run, with other settings, made its own version live a moment later
        try:
            self.check()
            if fallback := self.fallback:
                return fallback.complete()
            return sources.has_photos(self.photos_folder) and self.live is not None
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
                return [self.report]
            source = settings.profile(self.data).images
            if self.images or not (source.url or source.draw_per_class):
                return [FolderOfPhotos(images=str(self.photos_folder), remedy=self._remedy())]
            return [FetchImages(data=self.data, images=str(self.photos_folder), allow_fallback=self.allow_fallback)]
        except (UserError, OSError):
            return []  # run() says it

    def _remedy(self) -> str:
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
                if noted and fallback.live and made_before(fallback.live, noted.since):
                    say_up_to_date(fallback)
                return
            yield self.report
            formats = self.report.exported_formats
            for task in (self.classifier, *formats, self.report):
                task.mend()
            exports = settings.paths(self.data).exports / self.data
            before = registry.versions(exports)
            if (was_live := registry.live(exports)) and (damage := files.damage(was_live)):
                console.warn(f"{shown(was_live)} is damaged ({damage}); a new version takes its place")
            version = registry.publish(
                self.classifier.folder, exports, console.note, report=self.report.folder, formats=[task.folder for task in formats]
            )
            for name, copy in self.copies.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(copy, (version / name).read_bytes())
            self._published = True
        if version in before:
            console.say(f"{self.data}: back to {shown(version)}, which was made before with these photos and settings")
        for line in result_lines(self.data, version, self.classifier):
            console.say(line)


def result_lines(data: str, version: Path, classifier: ExportGraph) -> list[str]:
    """What a person wants to know at the end of a run."""
    manifest = files.read_json(version / files.MANIFEST)
    _, _, packed, training = classifier.requires()
    lines = [
        f"{data}: {manifest['photos']} photos in {len(manifest['labels'])} classes, "
        f"{manifest['backbone']['name']}, best at step {manifest['best_step']}",
        f"test accuracy {accuracy_in_words(manifest)}",
        f"graph    {shown(version / 'output_graph.pb')}",
        f"labels   {shown(version / 'labels.txt')}",
        f"curves   {shlex.join([shown(Path(sys.executable).with_name('tensorboard')), '--logdir', shown(training.folder)])}",
        f"predict  {shlex.join([shown(Path(sys.executable)), '-m', 'pipeline', 'predict', data, 'PHOTO.jpg'])}",
        f"report   {shown(version / 'report.html')}",
    ]
    for exported in manifest.get("formats", {}).values():
        if exported.get("problem"):
            lines.append(f"left out {exported['file']}: {exported['problem']}")
    if manifest["skipped"]:
        lines.insert(1, f"left out {manifest['skipped']}, listed with the reasons in {shown(packed.folder / SKIPPED)}")
    return lines


def made_before(version: Path, moment: float) -> bool:
    """Whether a version was finished before ``moment`` (seconds since 1970)."""
    finished = files.read_json(version / files.MANIFEST)["finished"]
    return bool(finished < time.strftime(artifacts.TIME_FORMAT, time.gmtime(moment)))


def accuracy_in_words(manifest: dict[str, Any]) -> str:
    low, high = manifest["test_interval"]
    return (
        f"{100 * manifest['test_accuracy']:.1f} % ({manifest['test_correct']} of {manifest['test_count']} photos, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )


# --- What is said, and when -----------------------------------------------------------------------------------------


@Export.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_nothing_to_do(task: Export) -> None:
    if fallback := task.fallback:
        noted = fallback_of(task.data, task.allow_fallback)
        assert noted
        console.say(f"{task.data}: the photos could not be fetched ({noted.reason}); {noted.instead} stands in until {noted.again}")
        task = fallback
    say_up_to_date(task)


def say_up_to_date(task: Export) -> None:
    if version := task.live:
        manifest = files.read_json(version / files.MANIFEST)
        console.say(f"{task.data}: nothing to do, {shown(version)} is up to date, test accuracy {accuracy_in_words(manifest)}")


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
            console.complain("stopped; run again: it goes on where it was")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, stop)
