"""Why something was computed, or would be: what differs from the run before, from what manifests say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import changes, files
from pipeline.runs import Run

HANDED_DOWN = {
    "snapshot": "other photos",
    "model_identity": "another pretrained model",
    "init_from_key": "another export to start from",
    "live_version": "another live version",
    "live_key": "another live version",
}
"""Parameters that no person sets, in words."""


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], inherited: Collection[str] = ()) -> list[str]:
    """In what two outputs of one task differ: its code, its own parameters, what it was made of.

    Args:
        ours, theirs: ``code_version``, ``parameters`` and ``parents``, as in a manifest; theirs is the older.
        inherited: parameters that one of the tasks it was made of has too, and answers for.
    """
    found = []
    old, new = theirs.get("code_version"), ours.get("code_version")
    if old != new:
        found.append(f"the code of the task {old} → {new}")
    before, now = theirs.get("parameters", {}), ours.get("parameters", {})
    for name in dict.fromkeys([*before, *now]):
        if name not in inherited and before.get(name) != now.get(name):
            found.append(HANDED_DOWN.get(name) or f"{name} {_value(before.get(name))} → {_value(now.get(name))}")
    others = [task for task, key in ours.get("parents", {}).items() if theirs.get("parents", {}).get(task) != key]
    return [*found, *([f"another output of {', '.join(others)}"] if others else [])]


def _value(text: str | None) -> str:
    return "not set" if text in (None, "") else str(text)


@dataclass(frozen=True)
class Step:
    """A task of a run: why its output is another than in the run before, or nothing where it is the same; and its manifest."""

    task: str
    reasons: list[str]
    manifest: Mapping[str, Any] | None

    @property
    def words(self) -> str:
        if not self.reasons:
            return "the same output"
        says = self.manifest or {}
        parts = [f"made again: {', '.join(self.reasons)}"]
        parts += [f"{says['computed']} vectors computed, {says['cached']} from the cache"] if "computed" in says else []
        parts += [f"{says['seconds']:g} s"] if "seconds" in says else []
        return "; ".join(parts)


def before(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run of the same data set that was finished last before ``run``."""
    of_data = [one for one in runs if one.manifest.get("data") == run.manifest.get("data") and one.key != run.key]
    earlier = [one for one in of_data if one.finished <= run.finished]
    return max(earlier, key=lambda one: one.finished, default=None)


def steps(run: Run, earlier: Run, folders: Iterable[Path]) -> list[Step]:
    """What the tasks of a run made anew, and why.

    Args:
        folders: the outputs of tasks that are still there, each named by its key or ending in it.
    """
    found = {folder.name.rpartition("-")[2]: folder for folder in folders}
    ours, theirs = ({**one.manifest["parents"], one.manifest["task"]: one.key} for one in (run, earlier))
    manifests = {key: files.read_manifest(found[key]) for key in {*ours.values(), *theirs.values()} if key in found}
    for one in (run, earlier):
        manifests.setdefault(one.key, one.manifest)
    made = []
    for task, key in ours.items():
        new, old = manifests.get(key), manifests.get(theirs.get(task, ""))
        reasons: list[str] = []
        if key != theirs.get(task):
            parents = [manifests.get(parent) or {} for parent in (new or {}).get("parents", {}).values()]
            inherited = {name for parent in parents for name in parent.get("parameters", {})}
            known = differences(new, old, inherited) if new and old else []
            reasons = known or ["its output, or the one before, is no longer in the store, which would say it"]
        made.append(Step(task, reasons, new))
    return made


def changed_photos(run: Run, earlier: Run) -> dict[str, Any] | None:
    """What changed in the photos from one run to the next; None where one of them does not say what its photos were."""
    lists = [one.folder / changes.PHOTOS for one in (earlier, run)]
    if any(files.damage(path.parent, contents=True, names=[path.name]) for path in lists):
        return None
    return changes.between(*map(changes.each_photo, lists)).as_json()
