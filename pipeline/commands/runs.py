"""``runs``: finished trainings."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import changes, console, history, retention, runs, settings
from pipeline.commands import Verbs, exports_folders, nothing_else_running
from pipeline.console import shown, verb
from pipeline.errors import UserError
from pipeline.words import aligned, percent

if TYPE_CHECKING:
    from pipeline.runs import Run


def add(verbs: Verbs) -> None:
    runs = verbs.add_parser("runs", help="finished trainings").add_subparsers(dest="runs_verb", required=True, metavar="VERB")
    runs.add_parser("list", help="all of them").set_defaults(run=_list)
    show = runs.add_parser("show", help="the essentials of one, and where its page lies")
    show.add_argument("name", metavar="RUN", help="its name as in runs list, a data set (its live version), a folder, or a key's beginning")
    show.set_defaults(run=_show)
    compare = runs.add_parser("compare", help="a table of several, printed and written as CSV")
    compare.add_argument("names", metavar="RUN", nargs="+")
    compare.add_argument("--output", metavar="FILE", help="where the table goes (default: a file in store/comparisons)")
    compare.set_defaults(run=_compare)
    why = runs.add_parser("why", help="what one computed, and what differed from the run before it")
    why.add_argument("name", metavar="RUN", nargs="?", help="as of show (default: the one finished last)")
    why.set_defaults(run=_why)
    prune = runs.add_parser("prune", help="find what of the store no version and none of the last runs needs")
    prune.add_argument("--keep", type=int, default=3, metavar="N", help="runs of each data set that are kept (default: 3)")
    prune.add_argument("--delete", action="store_true", help="and remove it; without it nothing is changed")
    prune.set_defaults(run=_prune)


def all_runs() -> list[Run]:
    return runs.all_runs(exports_folders(), settings.paths().runs("Report"))


def _list(_: argparse.Namespace) -> int:
    found = all_runs()
    if not found:
        console.say("no run yet: make retrain, or luigi --module pipeline Export")
        return 0
    rows = [["run", "", "made", "model", "photos", "test accuracy", "page"]]
    for run in found:
        says = run.manifest
        page = shown(run.page) if run.page.is_file() else ""
        accuracy = percent(says["test_accuracy"])
        rows.append([run.name, run.state, says["finished"][:10], says["backbone"]["name"], str(says["photos"]), accuracy, page])
    for line in aligned(rows):
        console.say(line)
    return 0


def _show(options: argparse.Namespace) -> int:
    run = runs.find(options.name, all_runs())
    for line in aligned(runs.comparison([run])):
        console.say(line)
    if run.figure("count"):
        console.say(f"suspected labels     {run.figure('suspected_labels')}")
        console.say(f"near-duplicates      {run.figure('near_duplicates')}")
    console.say(f"page                 {shown(run.page) if run.page.is_file() else 'none, it was made before there were pages'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    found = all_runs()
    compared = [runs.find(name, found) for name in options.names]
    rows = runs.comparison(compared)
    for line in aligned(rows):
        console.say(line)
    names = "_".join(run.name.replace("/", "-") for run in compared)
    path = Path(options.output).expanduser() if options.output else settings.paths().store / "comparisons" / f"{names[:200]}.csv"
    runs.write(path, rows)
    console.say(f"table    {shown(path.resolve())}")
    return 0


def _why(options: argparse.Namespace) -> int:
    found = all_runs()
    newest = max(found, key=lambda run: run.finished, default=None)
    if newest is None:
        raise UserError("there is no run yet: make retrain, or luigi --module pipeline Export")
    run = runs.find(options.name, found) if options.name else newest
    earlier = history.before(run, found)
    if earlier is None:
        if run.manifest.get("verdict", {}).get("live"):
            console.say(f"{run.name} was not the first run of {run.manifest['data']}, but none before it is left to compare with")
        else:
            console.say(f"{run.name} is the first run of {run.manifest['data']}: everything was made")
        return 0
    console.say(f"{run.name} after {earlier.name}")
    paths = settings.paths()
    folders = [*paths.store.glob("runs/*/*"), *paths.model_dir.glob("*")]
    rows = [[step.task, step.words] for step in history.steps(run, earlier, folders)]
    changed = history.changed_photos(run, earlier)
    rows += _photos_rows(changed) if changed else [["photos", "not known: one of the two does not say what its photos were"]]
    for line in aligned(rows):
        console.say(line)
    return 0


def _photos_rows(changed: dict[str, Any]) -> list[list[str]]:
    """What changed in the photos, and the first of them by name."""
    rows = [["photos", changes.sentence(changed)]]
    for name, words in changes.WORDS.items():
        rows += [["", f"{words}: {first}"] for first in changed[name]["first"]]
        if (more := changed[name]["count"] - len(changed[name]["first"])) > 0:
            rows.append(["", f"{words}: and {more:,} more"])
    return rows


def _prune(options: argparse.Namespace) -> int:
    if options.keep < 1:
        raise UserError(f"--keep = {options.keep}: 1 or more is allowed")
    store = settings.paths().store
    # A profile that cannot be read may have moved its versions: asking each for its paths refuses before anything is removed.
    exports = [*exports_folders(), *(settings.paths(data).exports / data for data in settings.profiles())]
    with nothing_else_running() if options.delete else contextlib.nullcontext():
        found = retention.unneeded(store, exports, options.keep)
        for item in found if options.delete else ():
            retention.remove(item)
    rows = []
    for kind in dict.fromkeys(item.kind for item in found):
        sizes = [item.bytes for item in found if item.kind == kind]
        rows.append([kind, str(len(sizes)), megabytes(sum(sizes))])
    for line in aligned(rows):
        console.say(line)
    size = megabytes(sum(item.bytes for item in found))
    what = f"{len(found)} outputs ({size}) that no version and none of the last {options.keep} runs needs"
    again = verb("runs", "prune", "--keep", str(options.keep), "--delete")
    if options.delete:
        console.say(f"removed {what}; then the vectors of their photos: {verb('cache', 'prune')}")
    else:
        console.say(f"{what}; remove them with: {again}" if found else what)
    return 0


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
