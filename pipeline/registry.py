"""Published classifiers: ``exports/<data>/<version>/``, whole or not there, and ``latest``, replaced in one step.

A version is a counter and the beginning of its key: ``0003-5a1c09e2``. Readers resolve ``latest`` once and then stay with
the folder it named.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import files
from pipeline.console import verb
from pipeline.errors import UserError

LATEST = "latest"
PINNED = "pinned"
PENDING = ".pending"
"""Names a version from just before it comes to be until it is live. Without it, one that a kill kept from going live would look
like one that was rolled back, and stay away for good."""

ADDED = ("drawn", "temperature", "evaluation", "verdict", "since", "checks")
"""What the manifest of a version has of its further parts, beside their ``formats``."""

Copies = Mapping[str, Path]
NO_COPIES: Copies = MappingProxyType({})

_VERSION = re.compile(r"(\d{4,})-[0-9a-f]+")


def versions(exports: Path, names: str = "*-*") -> list[Path]:
    """The published versions of one data set, oldest first."""
    found = [path for path in exports.glob(names) if _VERSION.fullmatch(path.name) and files.read_manifest(path)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[0]))


def problems(exports: Path) -> list[str]:
    """What is no version any more, or no pointer to one, though it is named so: a path and what is wrong with it, a line each."""
    lost = [path for path in sorted(exports.glob("*-*")) if _VERSION.fullmatch(path.name) and not files.read_manifest(path)]
    found = [f"{path} is damaged ({files.damage(path)})" for path in lost]
    if os.path.lexists(exports / LATEST) and live(exports) is None:
        found.append(f"{exports / LATEST} names no version that can be read")
    return found


def live(exports: Path) -> Path | None:
    """The folder that ``latest`` names, or None."""
    try:
        folder = exports / os.readlink(exports / LATEST)
        if folder.parent.samefile(exports):  # however the pointer is written: callers look for it among ``versions``
            folder = exports / folder.name
    except OSError:
        return None
    return folder if files.read_manifest(folder) else None


def rival(exports: Path, key: str, names: Sequence[str]) -> Path | None:
    """What the candidate ``key`` is measured against: the live version, or None where there is nothing to compare it with.

    Where that is damaged, or none is live, it is the newest version from then on back whose files ``names`` are whole; not one
    that the candidate itself went into.
    """
    now = live(exports)
    if now and not files.damage(now, contents=True):
        return now
    found = versions(exports)
    older = found[: found.index(now) + 1] if now in found else found
    return next((version for version in reversed(older) if key_of(version) != key and _has_whole(version, names)), None)


def _has_whole(version: Path, names: Sequence[str]) -> bool:
    """Whether the files ``names`` are whole, as far as the version ever had them."""
    listed = files.read_json(version / files.MANIFEST)["files"]
    return not files.damage(version, contents=True, names=[name for name in names if name in listed])


def key_of(version: Path) -> str:
    """The key of the classifier in a version's folder."""
    return str(files.read_json(version / files.MANIFEST)["key"])


def holds(version: Path, key: str, formats: Iterable[str]) -> bool:
    """Whether a version has the classifier ``key``, and was made with these formats, and perhaps more."""
    return key_of(version) == key and set(formats) <= set(files.read_json(version / files.MANIFEST).get("formats", ()))


def version_of(key: str, formats: Iterable[str], exports: Path) -> Path | None:
    """The version that holds the classifier of this key and these formats: the live one, else the newest; or None."""
    found = [version for version in versions(exports, f"*-{key[:8]}") if holds(version, key, formats)]
    now = live(exports)
    return now if now in found else found[-1] if found else None


def is_pending(version: Path) -> bool:
    """Whether a kill came between the publishing of a version and its going live."""
    try:
        return files.read_regular(version.parent / PENDING) == version.name.encode()
    except FileNotFoundError:
        return False


class Overtaken(Exception):
    """Another version went live after the candidate was judged against the one before."""


def publish(parts: Sequence[Path], exports: Path, note_waiting: files.Waiting, *, instead_of: str, copies: Copies = NO_COPIES) -> Path:
    """Put a finished classifier into the next version of a data set and make it the latest; return its folder.

    Args:
        parts: the folder of the classifier, then those whose files come to lie beside it. The manifest says what all say.
        instead_of: key of the classifier that is live and that this one may replace, "" where none is.
        copies: where further copies of the live version's files go, by their names.

    A classifier that was published before becomes the latest again under its old version, unless that is damaged. Files are
    copied and not linked: a program that writes into a published file must not reach the original.

    Raises Overtaken where another classifier is live, UserError where a part is damaged.
    """
    key = key_of(parts[0])
    with files.locked(exports / ".lock", waiting=note_waiting):
        files.sweep(exports)
        now = live(exports)
        if now and files.damage(now, contents=True):
            now = None
        if now and key_of(now) not in (instead_of, key):
            raise Overtaken
        formats = {name for part in parts for name in files.read_json(part / files.MANIFEST).get("formats", ())}
        same = version_of(key, formats, exports)
        if same and not files.damage(same, contents=True):
            _make_live(same, copies)
            return same
        # Also past versions that are damaged, or half there from elsewhere: a number is never given twice.
        taken = [int(path.name.partition("-")[0]) for path in exports.glob("*-*") if _VERSION.fullmatch(path.name)]
        version = exports / f"{max(taken, default=0) + 1:04d}-{key[:8]}"
        temporary = files.beside(version)
        try:
            _merge(parts, temporary)
            files.write_atomic(exports / PENDING, version.name.encode())
            files.move_folder(temporary, version)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _make_live(version, copies)
    return version


def _merge(parts: Sequence[Path], folder: Path) -> None:
    """Copy the files of all parts into one folder, and write the manifest of the first with what the others add."""
    first, *others = (files.read_json(part / files.MANIFEST) for part in parts)
    added: dict[str, Any] = {}
    formats = dict(first.get("formats", {}))
    timings = dict(first.get("timings", {}))
    for part, manifest in zip(parts, (first, *others)):
        if damage := files.damage(part, contents=True):
            raise UserError(f"{part} is not published, it is damaged ({damage}); remove it and run again")
        for name in manifest["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (folder / name).exists():
                raise ValueError(f"two parts of an export have a file {name}")
            shutil.copy2(part / name, folder / name)
        timings[manifest.get("task", "ExportGraph")] = manifest.get("seconds")
    for manifest in others:
        formats |= manifest.get("formats", {})
        added |= {name: manifest[name] for name in ADDED if name in manifest}
    files.write_manifest(folder, {**added, **first, "formats": formats, "timings": timings})


def _make_live(version: Path, copies: Copies) -> None:
    pointer = version.parent / LATEST
    if pointer.is_dir() and not pointer.is_symlink():
        raise UserError(f"{pointer} is a folder where the pointer to the live version belongs; move it away and run again")
    link = files.beside(pointer)
    link.symlink_to(version.name)
    os.replace(link, pointer)
    (version.parent / PENDING).unlink(missing_ok=True)
    for name, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(copy, (version / name).read_bytes())


# --- What a person does with versions -----------------------------------------------------------------------------------


def pinned(exports: Path) -> set[str]:
    """The names of the versions that are never pruned. Raises UserError where they cannot be known."""
    try:
        return set(files.read_regular(exports / PINNED).decode().split())
    except FileNotFoundError:
        return set()
    except UnicodeDecodeError:
        raise UserError(
            f"{exports / PINNED} is damaged, it is not UTF-8; write the versions into it that are to be kept, a line each, or remove it"
        ) from None


def pin(version: Path, keep: bool, note_waiting: files.Waiting) -> None:
    """Keep a version for good, or no longer."""
    exports = version.parent
    with files.locked(exports / ".lock", waiting=note_waiting):
        names = pinned(exports) - {version.name} | ({version.name} if keep else set())
        files.write_atomic(exports / PINNED, "".join(f"{name}\n" for name in sorted(names)).encode())


def roll_back(version: Path, note_waiting: files.Waiting, copies: Copies = NO_COPIES) -> None:
    """Make an older version, or any other, the live one.

    Raises UserError where it is damaged.
    """
    with files.locked(version.parent / ".lock", waiting=note_waiting):
        if damage := files.damage(version, contents=True):
            raise UserError(f"{version} is damaged ({damage}) and does not go live; name another version")
        _make_live(version, copies)


def before_live(exports: Path) -> Path | None:
    """The newest version that is older than the live one, or None."""
    found, now = versions(exports), live(exports)
    return found[found.index(now) - 1] if now in found[1:] else None


def superfluous(exports: Path, keep: int) -> list[Path]:
    """The versions that may go: all but the last ``keep``, the live one and the pinned ones.

    What is newer than the live one stays, too. It was rolled back, and a run that would make it again has to find it, or it would
    go live again, even under the same number. So nothing may go where nothing is live.
    """
    now, kept, found = live(exports), pinned(exports), versions(exports)
    older = found[: found.index(now)] if now in found else []
    last = found[max(len(found) - keep, 0) :]
    return [version for version in older if version not in last and version.name not in kept]


def prune(exports: Path, keep: int, note_waiting: files.Waiting) -> list[Path]:
    """Remove the superfluous versions; return what they were."""
    with files.locked(exports / ".lock", waiting=note_waiting):
        files.sweep(exports)  # what a prune that was killed had renamed
        gone = superfluous(exports, keep)
        for version in gone:
            # Renamed first: a reader finds a version whole or not at all.
            temporary = files.beside(version)
            version.rename(temporary)
            shutil.rmtree(temporary)
    return gone


def find(name: str, exports: Path) -> Path:
    """The classifier that a person means by ``name``: a folder with an export, or a data set with a published one.

    Raises UserError that lists what there is.
    """
    for folder in (Path(name), Path(name).parent if name.endswith(".pb") else Path(name)):
        if files.read_manifest(folder):
            return folder.resolve()
    if version := live(Path(name)) or live(exports / name):
        return version
    if found := versions(exports / name):
        known = ", ".join(version.name for version in found)
        raise UserError(f"no version of {name} is live; make one live with: {verb('exports', 'rollback', name, 'VERSION')} ({known})")
    published = sorted(path.name for path in exports.iterdir() if live(path)) if exports.is_dir() else []
    raise UserError(
        f"{name!r} is neither the folder of an export nor a data set that has one; "
        + (f"published are: {', '.join(published)}" if published else "none is published yet: run make retrain first")
    )
