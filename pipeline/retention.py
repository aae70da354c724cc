"""What of the store is still needed: by a version, by what a version was made of, or as one of the last runs.

for item in unneeded(store, exports, keep=3): …       found, nothing removed
remove(item)

Models and vectors are not looked at: every data set shares them, and ``cache prune`` looks after the vectors.
"""

from __future__ import annotations

import collections
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, registry
from pipeline.errors import UserError

SECONDS_UNTIL_ABANDONED = 7 * 86400
"""Unfinished work that nobody touched for so long is not gone on with any more."""

CLASSIFIER = "ExportGraph"

_KEY = re.compile(r"[0-9a-f]{16}")
"""Names a folder that is an output, or work on one. What else lies there is not ours to judge."""

_EVALUATION = re.compile(r"(.+)-(\d{4,}-[0-9a-f]+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Item:
    """Something that nothing needs: of a kind (a task's name, or ``snapshots``), and its size in bytes."""

    kind: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class _Output:
    """An output of a task."""

    task: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def data(self) -> str:
        return str(self.manifest.get("data", ""))

    @property
    def parents(self) -> set[str]:
        return set(self.manifest.get("parents", {}).values())


def unneeded(store: Path, exports: Iterable[Path], keep: int, now: float | None = None) -> list[Item]:
    """What of a store no version and none of the last ``keep`` runs of a data set needs.

    Args:
        exports: the folders of versions, one for each data set.

    Raises UserError where a version says no more what it was made from.
    """
    for folder in (exports := list(exports)):
        if problems := registry.problems(folder):
            raise UserError(f"{problems[0]}, and says no more what it was made from; remove it, or make another version live, then prune")
    versions = {
        (folder.name, version.name): files.read_json(version / files.MANIFEST)
        for folder in exports
        for version in registry.versions(folder)
    }
    outputs = list(_outputs(store))
    kept = _kept(outputs, list(versions.values()), keep)
    found = [_item(one.task, one.folder) for one in outputs if one.key not in kept]
    snapshots = {
        f"{manifest['data']}-{manifest['parameters']['snapshot']}.csv"
        for manifest in (*versions.values(), *(one.manifest for one in outputs if one.key in kept))
        if "snapshot" in manifest.get("parameters", {})
    }
    data_sets = {data for data, _ in versions} | {one.data for one in outputs if one.key in kept}
    found += [_item("snapshots", path) for path in _all_but_newest(store / "snapshots", keep) if path.name not in snapshots]
    found += [_item("scans", path) for path in _inside(store / "scans", "*.csv") if path.stem not in data_sets]
    found += [_item("evaluations", path) for path in _inside(store / "evaluations") if _is_of_no_version(path, versions, data_sets)]
    long_ago = (time.time() if now is None else now) - SECONDS_UNTIL_ABANDONED
    work = [path for path in _inside(store / "work", "*/*") if path.is_dir() and _KEY.fullmatch(path.name) and _touched(path) < long_ago]
    return found + [_item("unfinished work", path) for path in work]


def _outputs(store: Path) -> Iterator[_Output]:
    for folder in _inside(store / "runs", "*/*"):
        if folder.is_dir() and _KEY.fullmatch(folder.name):
            yield _Output(folder.parent.name, folder, files.read_manifest(folder) or {})


def _kept(outputs: list[_Output], versions: list[dict[str, Any]], keep: int) -> set[str]:
    """The keys of the outputs that are needed."""
    by_key = {one.key: one for one in outputs}
    needed = {key for manifest in versions for key in (manifest["key"], *manifest.get("parents", {}).values())}
    # Of each task and not of finished runs alone, so that what a run has made so far is there when it goes on.
    groups = collections.defaultdict(list)
    for one in outputs:
        if one.manifest:
            groups[one.task, one.data].append(one)
    for group in groups.values():
        group.sort(key=lambda one: str(one.manifest.get("finished", "")), reverse=True)
        needed.update(one.key for one in group[:keep])
    pending = list(needed)
    while pending:
        made_of = by_key.get(pending.pop())
        more = made_of.parents - needed if made_of else set()
        needed |= more
        pending += more
    classifiers = {key for key in needed if key in by_key and by_key[key].task == CLASSIFIER}
    return needed | {one.key for one in outputs if one.parents & classifiers}


def _inside(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def _all_but_newest(folder: Path, keep: int) -> list[Path]:
    """The snapshots but for the newest of each data set, which a run that has just begun may be about to read."""
    groups = collections.defaultdict(list)
    for path in _inside(folder, "*.csv"):
        groups[path.name.rpartition("-")[0]].append(path)
    return [path for group in groups.values() for path in sorted(group, key=lambda path: path.stat().st_mtime)[:-keep]]


def _is_of_no_version(evaluation: Path, versions: Iterable[tuple[str, str]], data_sets: Iterable[str]) -> bool:
    """Whether an evaluation is of a version that is gone; not of one that these data sets never had."""
    match = _EVALUATION.fullmatch(evaluation.name)
    return bool(match) and match[1] in data_sets and (match[1], match[2]) not in versions  # type: ignore[index]


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _item(kind: str, path: Path) -> Item:
    return Item(kind, path, files.size(path))


def remove(item: Item) -> None:
    """Remove it; a folder's manifest goes first, so that after a kill the rest counts as not there."""
    if item.path.is_dir():
        (item.path / files.MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(item.path)
    else:
        item.path.unlink(missing_ok=True)
