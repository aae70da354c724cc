"""``runs``: finished trainings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.commands import Verbs, manifests
from pipeline.console import shown

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


def all_runs() -> list[Run]:
    from pipeline import runs, settings

    reports = settings.paths().runs("Report")
    data_sets = {manifest["data"] for manifest in manifests("Report")}
    exports = settings.paths().exports
    folders = [folder for folder in exports.iterdir() if folder.is_dir()] if exports.is_dir() else []
    return runs.all_runs([*folders, *(settings.paths(data).exports / data for data in data_sets)], reports)


def _list(_: argparse.Namespace) -> int:
    from pipeline import runs

    found = all_runs()
    if not found:
        console.say("no run yet: make retrain, or luigi --module pipeline Export")
        return 0
    rows = [["run", "", "made", "model", "photos", "test accuracy", "page"]]
    for run in found:
        says = run.manifest
        page = shown(run.page) if run.page.is_file() else ""
        accuracy = runs.percent(says["test_accuracy"])
        rows.append([run.name, run.state, says["finished"][:10], says["backbone"]["name"], str(says["photos"]), accuracy, page])
    for line in runs.aligned(rows):
        console.say(line)
    return 0


def _show(options: argparse.Namespace) -> int:
    from pipeline import runs

    run = runs.find(options.name, all_runs())
    for line in runs.aligned(runs.comparison([run])):
        console.say(line)
    if run.figure("count"):
        console.say(f"suspected labels     {run.figure('suspected_labels')}")
        console.say(f"near-duplicates      {run.figure('near_duplicates')}")
    console.say(f"page                 {shown(run.page) if run.page.is_file() else 'none, it was made before there were pages'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from pipeline import runs, settings

    found = all_runs()
    compared = [runs.find(name, found) for name in options.names]
    rows = runs.comparison(compared)
    for line in runs.aligned(rows):
        console.say(line)
    names = "_".join(run.name.replace("/", "-") for run in compared)
    path = Path(options.output) if options.output else settings.paths().store / "comparisons" / f"{names[:200]}.csv"
    runs.write(path, rows)
    console.say(f"table    {shown(path.resolve())}")
    return 0
