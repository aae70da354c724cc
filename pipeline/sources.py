"""Where a data set's photos come from: its folder, else a package, an archive or drawing; and what stands in for an archive
whose host cannot be reached."""

from __future__ import annotations

import importlib.util
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import fetch, files
from pipeline.console import Report

HOURS_BETWEEN_TRIES = 6
"""How long a data set that fell back keeps to its fallback before the network is tried again."""


def has_photos(folder: Path) -> bool:
    """Whether ``folder`` is there with anything in it; what is wrong with it is for the scan to say."""
    return files.holds_anything(folder)


def package_folder(package: str) -> Path | None:
    """The folder of a Python package, or one in it (``name/folder``); None where it is not installed.

    It is found and not imported: who knows what that would load.
    """
    name, _, inside = package.partition("/")
    try:
        found = importlib.util.find_spec(name.replace("-", "_"))
    except ImportError:  # a package in one that is not there
        found = None
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) / inside if places else None


def distribution(package: str) -> str:
    """What ``pip install`` calls a package."""
    return package.partition("/")[0].replace("_", "-")


@dataclass(frozen=True)
class Fallback:
    """That a data set's archive could not be had, why, and what is used instead until when (seconds since 1970)."""

    instead: str
    reason: str
    since: float

    @property
    def until(self) -> float:
        return self.since + 3600 * HOURS_BETWEEN_TRIES

    @property
    def again(self) -> str:
        """When the network is tried again, in words."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.until))


def read_fallback(record: Path, now: float) -> Fallback | None:
    """The fallback noted in ``record``, unless there is none or it is time to try the network again."""
    try:
        fallback = Fallback(**files.read_json(record))
        # A note from the future was written before the clock was set back.
        return fallback if fallback.since <= now < fallback.until else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_fallback(record: Path, fallback: Fallback) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(record, asdict(fallback))


def fetch_archive(url: str, sha256: str, size: int, folder: Path, report: Report) -> None:
    """Download an archive of photos beside ``folder``, check it, unpack it into ``folder`` and remove it.

    Raises fetch.Unreachable where its host cannot be reached, UserError for all else.
    """
    archive = folder.parent / f".{folder.name}.archive"
    fetch.download(url, archive, sha256=sha256, size=size, report=report)
    fetch.unpack(archive, folder, fetch.PHOTOS_BYTES)
    archive.unlink()


def draw(folder: Path, per_class: int, seed: int, report: Report) -> None:
    """Draw the flowers so that ``folder`` appears whole."""
    from pipeline import sample

    temporary = files.beside(folder)
    try:
        sample.draw(temporary, per_class, seed, report)
        files.move_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
