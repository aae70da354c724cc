"""What came of each scheduled run: ``store/nights/<data>/<date>.json``.

Each outcome is told by one record. So what was published while nobody looked, or just before the machine died, is told by the
next night's, and a candidate that was rejected is not told of every night.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import changes, files, history
from pipeline.words import percent

PUBLISHED = "published"
REJECTED = "rejected"
NOT_LIVE = "not live"
NOTHING = "nothing to do"
FAILED = "failed"
STATUSES = (PUBLISHED, REJECTED, NOT_LIVE, NOTHING, FAILED)

FIGURES = ("photos", "classes", "skipped", "test_accuracy", "test_interval", "test_count")
"""What a record has of a version's manifest."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        status: one of ``STATUSES``.
        version: name of the version that was published, or is not live; else that of the live one.
        report: where the page lies; from the project's folder where it lies below.
        figures: ``FIGURES`` of the classifier that it is about.
        changed: what is new in that, a sentence each.
        reasons: why it was rejected or failed, a sentence each.
        id: what the outcome is known by.
    """

    status: str
    version: str = ""
    report: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    id: str = ""


@dataclass(frozen=True)
class Record:
    """An outcome as that of a night.

    Attributes:
        stands_in: the data set that was used instead, while the photos cannot be fetched.
        by: host and process of the ``luigi`` that wrote it.
        written: when, in UTC. (The night's date is a name: what ran late has the date that it was run for.)
    """

    data: str
    date: str
    outcome: Outcome
    stands_in: str = ""
    by: str = ""
    written: str = field(default_factory=files.timestamp)

    @property
    def failed(self) -> bool:
        return self.outcome.status == FAILED

    @property
    def sentence(self) -> str:
        """What a person wants to know of it, in a line."""
        outcome = self.outcome
        name = f"{self.data} ({self.stands_in} stands in)" if self.stands_in else self.data
        accuracy = outcome.figures.get("test_accuracy")
        of_version = f"{outcome.version}, test accuracy {percent(accuracy)}" if accuracy is not None else outcome.version
        said = {
            PUBLISHED: f"published {of_version}",
            NOTHING: f"nothing to do, live is {of_version}" if outcome.version else NOTHING,
            REJECTED: f"rejected, {outcome.version or 'nothing'} stays live",
            NOT_LIVE: f"nothing was published, these photos gave {of_version}, which is not live any more",
            FAILED: "failed",
        }[outcome.status]
        details = "; ".join([*outcome.reasons, *outcome.changed])
        return f"{name}: {said}" + (f": {details}" if details else "")


def figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a record has of a version's manifest."""
    return {name: manifest[name] for name in FIGURES if name in manifest}


def what_changed(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """What is new in a classifier, by its manifest and that of the version that was live before."""
    if before is None:
        return ["the first version"]
    found = [changes.sentence(after["since"])] if after.get("since") else []
    was, now = (manifest.get("parameters", {}) for manifest in (before, after))
    settings = [name for name in now if name not in history.HANDED_DOWN and now[name] != was.get(name, now[name])]
    if settings:
        found.append("settings: " + ", ".join(f"{name} = {now[name]} ({was[name]} before)" for name in settings))
    return [*found, f"test accuracy {percent(before['test_accuracy'])} before"]


_OF_THE_RECORD = ("data", "date", "stands_in", "by", "written")


def flat(record: Record) -> dict[str, Any]:
    """A record with its outcome as one dictionary: as it is written and told."""
    said = asdict(record)
    return {**{name: said[name] for name in _OF_THE_RECORD}, **said["outcome"]}


def write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, flat(record))


def read(path: Path) -> Record | None:
    """The record in a file; None where there is none, or none that can be read."""
    try:
        said = files.read_json(path)
        own = {name: said.pop(name) for name in _OF_THE_RECORD}
        return Record(outcome=Outcome(**said), **own)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_told(outcome: Outcome, records: Iterable[Path]) -> bool:
    """Whether one of the records has it already."""
    return any(record.outcome.id == outcome.id for path in records if (record := read(path)))


@dataclass(frozen=True)
class Failure:
    """That a step failed: the data set and the folder of photos that it worked on, where it says them, and why."""

    data: str
    images: str
    line: str

    def concerns(self, data: str, images: str) -> bool:
        """Whether it is in the way of a data set with its photos in the folder ``images``. A model is in everyone's way."""
        return self.data == data if self.data else self.images in ("", images)


def add_failure(path: Path, failure: Failure) -> None:
    """Append to a file that several processes write to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(failure)) + "\n")


def read_failures(path: Path) -> list[Failure]:
    try:
        return [Failure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):
        return []


def worst(records: Sequence[Record]) -> str:
    """The status of several records that matters most."""
    for status in (FAILED, REJECTED, NOT_LIVE, PUBLISHED):
        if any(record.outcome.status == status for record in records):
            return status
    return NOTHING
