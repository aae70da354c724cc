"""Published classifiers: ``exports/<data>/<version>/``, whole or not there, and ``latest``, replaced in one step.

A version is a counter and the beginning of its key: ``0003-5a1c09e2``. Readers resolve ``latest`` once and then stay with
the folder it named.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError

LATEST = "latest"
REPORTED = ("drawn", "temperature", "evaluation")
"""What the manifest of a version has of its report."""

MERGED = ("formats",)
"""What it has of all its parts."""

_VERSION = re.compile(r"(\d{4,})-[0-9a-f]+")


def versions(exports: Path) -> list[Path]:
    """The published versions of one data set, oldest first."""
    found = [path for path in exports.glob("*-*") if _VERSION.fullmatch(path.name) and files.read_manifest(path)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[0]))


def live(exports: Path) -> Path | None:
    """The folder that ``latest`` names, or None."""
    try:
        folder = exports / os.readlink(exports / LATEST)
    except OSError:
        return None
    return folder if files.read_manifest(folder) else None


def key_of(version: Path) -> str:
    """The key of the classifier in a version's folder."""
    return str(files.read_json(version / files.MANIFEST)["key"])


def holds(version: Path, key: str, formats: Iterable[str]) -> bool:
    """Whether a version has the classifier ``key``, and was made with these formats, and perhaps more."""
    return key_of(version) == key and set(formats) <= set(files.read_json(version / files.MANIFEST).get("formats", ()))


def publish(
    classifier: Path, exports: Path, note_waiting: files.Waiting, *, report: Path | None = None, formats: Sequence[Path] = ()
) -> Path:
    """Put a finished classifier into the next version of a data set and make it the latest; return its folder.

    The files of ``report`` and ``formats`` come to lie beside those of the classifier, and the manifest says what all of them say.

    A classifier that was published before becomes the latest again under its old version, unless that is damaged. Files are
    copied and not linked: a program that writes into a published file must not reach the original.

    Raises UserError where the classifier is damaged.
    """
    key = key_of(classifier)
    with files.locked(exports / ".lock", waiting=note_waiting):
        files.sweep(exports)
        before = versions(exports)
        names = [name for folder in formats for name in files.read_json(folder / files.MANIFEST)["formats"]]
        version = next((folder for folder in before if holds(folder, key, names) and not files.damage(folder, contents=True)), None)
        if version is None:
            # Also past versions that are damaged, or half there from elsewhere: a number is never given twice.
            taken = [int(path.name.partition("-")[0]) for path in exports.glob("*-*") if _VERSION.fullmatch(path.name)]
            number = max(taken, default=0) + 1
            version = exports / f"{number:04d}-{key[:8]}"
            temporary = files.beside(version)
            try:
                shutil.copytree(classifier, temporary)
                if damage := files.damage(temporary, contents=True):
                    raise UserError(f"{classifier} is not published, it is damaged ({damage}); remove it and run again")
                for part in (*formats, *([report] if report else [])):
                    _add(temporary, part)
                files.move_folder(temporary, version)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if (exports / LATEST).is_dir() and not (exports / LATEST).is_symlink():
            raise UserError(f"{exports / LATEST} is a folder where the pointer to the live version belongs; move it away and run again")
        link = files.beside(exports / LATEST)
        link.symlink_to(version.name)
        os.replace(link, exports / LATEST)
    return version


def _add(version: Path, part: Path) -> None:
    """Put the files of a finished folder beside those of a version, and into its manifest what both say."""
    said, added = (files.read_json(folder / files.MANIFEST) for folder in (version, part))
    for name in added["files"]:
        shutil.copy2(part / name, version / name)
    if damage := files.damage(part, contents=True):
        raise UserError(f"{part} is not published, it is damaged ({damage}); remove it and run again")
    merged = {name: {**said.get(name, {}), **added.get(name, {})} for name in MERGED}
    timings = {**said.get("timings", {}), added["task"]: added["seconds"]}
    reported = {name: added[name] for name in REPORTED if name in added}
    files.write_manifest(version, {**reported, **said, **merged, "timings": timings})


def find(name: str, exports: Path) -> Path:
    """The classifier that a person means by ``name``: a folder with an export, or a data set with a published one.

    Raises UserError that lists what there is.
    """
    for folder in (Path(name), Path(name).parent if name.endswith(".pb") else Path(name)):
        if files.read_manifest(folder):
            return folder.resolve()
    if version := live(Path(name)) or live(exports / name):
        return version
    published = sorted(path.name for path in exports.iterdir() if live(path)) if exports.is_dir() else []
    raise UserError(
        f"{name!r} is neither the folder of an export nor a data set that has one; "
        + (f"published are: {', '.join(published)}" if published else "none is published yet: run make retrain first")
    )
