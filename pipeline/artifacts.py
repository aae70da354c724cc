"""Tasks whose output is one folder, named by a key of everything that decides its content.

A task works in ``work/<Task>/<key>/`` under a lock; what it finds there from a run that was killed, it goes on with. The
manifest is written last, then the folder becomes the output by one rename. Whoever reads an output has it mended first.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import luigi
from luigi.parameter import MissingParameterException
from luigi.task import flatten

from pipeline import console, files, luigi_program, settings
from pipeline.errors import UserError
from pipeline.fresh_process import die_with_parent

SECONDS_BETWEEN_STATUS = 2.0

_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
_VERSIONS = ("tensorflow", "luigi", "numpy", "pillow", "retraining-pipeline")


class Folder(luigi.Target):
    """An output folder. It is there while it holds the files that its manifest lists, of the size listed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return not files.damage(self.path)

    def manifest(self) -> dict[str, Any]:
        return dict(files.read_json(self.path / files.MANIFEST))

    def __str__(self) -> str:
        return str(self.path)


class QuietTask(luigi.Task):
    """A task that dies with the Luigi that started it, and reports its progress to the terminal and the scheduler."""

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_param_values(params, args, kwargs)
        except MissingParameterException:
            family = cls.get_task_family()
            luigi_program.refuse(f"{family} is a step of Export, which tells it what to work on; run: {luigi_program.EXPORT}")
            raise

    @contextlib.contextmanager
    def progress(self, unit: str) -> Iterator[console.Report]:
        """Show the progress of this task, in ``unit`` (a plural noun, or B for bytes)."""
        last = -math.inf
        pace = console.Pace(unit)
        with console.progress(self.task_family, unit) as show:

            def report(done: int, total: int) -> None:
                nonlocal last
                show(done, total)
                # With a central scheduler each of these is an HTTP request.
                if self.set_progress_percentage and time.monotonic() - last > SECONDS_BETWEEN_STATUS:
                    last = time.monotonic()
                    self.set_progress_percentage(int(100 * done / max(total, 1)))
                    self.set_status_message(pace.words(done, total))

            yield report

    def point_to(self, message: str, report: str) -> None:
        """Show on the scheduler's page what came out, and a link to the report, a path from the project's folder."""
        if self.set_status_message:
            self.set_progress_percentage(100)
            self.set_status_message(message)
            if report:
                self.set_tracking_url(settings.address_of(report, settings.notify().address))


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Around a task's run: exit with the parent, and turn errors of a disk or a file into UserErrors of one line."""
    die_with_parent()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TensorFlow has errors of its own for a full disk
        if any(words in str(error) for words in _FULL):
            where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
            raise UserError(f"{where}the disk is full; make room, then run again: it goes on where it was") from error
        if isinstance(error, OSError) and error.filename:
            # Of a renaming, the second name is the one that a person knows.
            raise UserError(
                f"{error.filename2 or error.filename}: {error.strerror}; mend that, then run again: it goes on where it was"
            ) from error
        raise


class Artifact(QuietTask):
    """A task whose output is one keyed folder. Subclasses say ``VERSION`` and ``make``."""

    VERSION: str
    """Raise it whenever the same inputs would give another output."""

    @cached_property
    def key(self) -> str:
        """A hash of the task, its version, its significant parameters and the keys of what it requires."""
        deciding = [self.task_family, self.VERSION, self.to_str_params(only_significant=True), self.parents]
        return files.sha256_bytes(json.dumps(deciding, sort_keys=True).encode())[:16]

    @property
    def parents(self) -> dict[str, str]:
        return {task.task_family: task.key for task in flatten(self.requires())}

    @property
    def folder(self) -> Path:
        """Where the output lies."""
        return settings.paths().run(self.task_family, self.key)

    def output(self) -> Folder:
        return Folder(self.folder)

    def make(self, work: Path) -> dict[str, Any]:
        """Write the output into ``work``, going on with what is there; return what the manifest says of it."""
        raise NotImplementedError

    def run(self) -> None:
        work = settings.paths().work(self.task_family, self.key)
        with guarded(), files.in_use(settings.paths().store):
            for task in flatten(self.requires()):
                task.mend()
            with files.locked(work.with_name(f"{work.name}.lock"), waiting=self._note_waiting):
                damage = files.damage(self.folder, contents=True)
                if not damage:  # the holder before us made it
                    return
                if os.path.lexists(self.folder):
                    console.warn(f"{self.folder} is damaged ({damage}); it is made again")
                self._finish(work)
                files.remove(self.folder)
                files.move_folder(work, self.folder)

    def _finish(self, work: Path) -> None:
        """Make the output in ``work``, and write its manifest."""
        work.mkdir(parents=True, exist_ok=True)
        for folder in (work, *[path for path in work.rglob("*") if path.is_dir()]):
            files.sweep(folder)
        if any(work.iterdir()):
            console.note(f"{self.task_family}: goes on where a run stopped before")
        started = time.time()
        results = self.make(work)
        manifest = {
            "task": self.task_family,
            "key": self.key,
            "code_version": self.VERSION,
            "parameters": self.to_str_params(only_significant=True),
            "parents": self.parents,
            **results,
            "finished": files.timestamp(),
            "seconds": round(time.time() - started, 2),
            "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONS}},
        }
        files.write_manifest(work, manifest)

    def mend(self) -> None:
        """Make the output again, here and now, where its files are not what they were: whoever reads it next relies on them.

        Luigi, which looks at their sizes alone, has no way back to a task that it found complete.
        """
        if files.damage(self.folder, contents=True):
            self.run()

    def _note_waiting(self, holder: str) -> None:
        console.note(f"{self.task_family}: waiting for {holder}, which is at it already")
