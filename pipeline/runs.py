"""Finished trainings: the published versions of all data sets, and those that were evaluated and not published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, registry
from pipeline.errors import UserError
from pipeline.words import decimals, percent, shortened

PAGE = "report.html"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        name: ``flowers/0003-5a1c09e2``; without the counter where it was not published.
        folder: with its page and its figures.
        manifest: what is known of it.
        is_live: whether it is the live version of its data set.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]
    is_live: bool

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def finished(self) -> str:
        """When, as a time that sorts; nothing where it does not say."""
        return str(self.manifest.get("finished", ""))

    @property
    def state(self) -> str:
        """In a word, if there is one."""
        return "live" if self.is_live else "" if self.manifest.get("verdict", {}).get("accepted", True) else "rejected"

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    def figure(self, name: str) -> Any:
        """A figure of its evaluation; None where it has none, as versions from before there were reports."""
        return self.manifest.get("evaluation", {}).get(name)


def all_runs(exports: Iterable[Path], reports: Iterable[Path]) -> list[Run]:
    """All runs, by data set and then the oldest first.

    Args:
        exports: the folders of versions, one for each data set.
        reports: the outputs of the task Report; each with the keys of what it came from.
    """
    found = []
    for folder in sorted(set(exports)):
        live = registry.live(folder)
        for version in registry.versions(folder):
            manifest = files.read_json(version / files.MANIFEST)
            found.append(Run(f"{folder.name}/{version.name}", version, manifest, version == live))
    published = {run.key for run in found}
    for folder in reports:
        evaluated = files.read_manifest(folder)
        key = evaluated.get("parents", {}).get("ExportGraph", "") if evaluated else ""
        classifier = files.read_manifest(folder.parent.parent / "ExportGraph" / key) if key not in published else None
        if evaluated and classifier:  # where it was removed, most of what a run is known by is gone
            found.append(Run(f"{evaluated['data']}/{key[:8]}", folder, {**evaluated, **classifier, "key": key}, False))
    return found


def find(name: str, runs: Sequence[Run]) -> Run:
    """The run that a person means: by its name, the end or the beginning of it (as mine/0001), a data set (its live version), a folder,
    or the beginning of a key.

    Raises UserError where there is none, or more than one.
    """
    folder = Path(name).resolve()
    ways: list[Callable[[Run], bool]] = [
        lambda run: name in (run.name, run.name.partition("/")[2]) or run.folder.resolve() == folder,
        lambda run: run.is_live and run.name.partition("/")[0] == name,
        lambda run: len(name) >= 4 and (run.key.startswith(name) or run.name.partition("/")[2].startswith(name)),
        lambda run: "/" in name and run.name.startswith(name),
    ]
    for way in ways:
        found = [run for run in runs if way(run)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{name!r} can be {shortened([run.name for run in found])}; name one of them in full")
    known = shortened([run.name for run in reversed(runs)]) if runs else "none yet: run make retrain first"
    raise UserError(f"{name!r} is no run, no data set with a live version, and no beginning of a key; there are: {known}")


# --- Side by side -------------------------------------------------------------------------------------------------------


def comparison(runs: Sequence[Run]) -> list[list[str]]:
    """A table: a column for each run; figures, and the settings in which the runs differ."""
    low_high = [run.manifest["test_interval"] for run in runs]
    rows = [
        ["", *(run.name + (" (live)" if run.is_live else "") for run in runs)],
        ["made", *(run.finished[:10] for run in runs)],
        ["model", *(run.manifest["backbone"]["name"] for run in runs)],
        ["photos", *(str(run.manifest["photos"]) for run in runs)],
        ["test photos", *(str(run.manifest["test_count"]) for run in runs)],
        ["verdict", *(run.manifest.get("verdict", {}).get("words", "") for run in runs)],
        ["test accuracy", *(percent(run.manifest["test_accuracy"]) for run in runs)],
        ["95 % interval", *(f"{percent(low)} to {percent(high)}" for low, high in low_high)],
        ["mean F1", *(percent(run.figure("macro_f1")) for run in runs)],
        ["log loss", *(decimals(run.figure("log_loss")) for run in runs)],
        ["calibration error", *(percent(run.figure("calibration_error")) for run in runs)],
        ["validation accuracy", *(percent(run.manifest["validation_accuracy"]) for run in runs)],
    ]
    settings = [run.manifest["parameters"] for run in runs]
    for name in dict.fromkeys(name for given in settings for name in given):
        values = [str(given.get(name, "")) for given in settings]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_csv(path, rows)
