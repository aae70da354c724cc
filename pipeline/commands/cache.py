"""``cache``: the vectors of all photos."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from pathlib import Path

from pipeline import console, dataset, files, settings, vector_cache
from pipeline.commands import Verbs, manifests, nothing_else_running
from pipeline.console import verb
from pipeline.errors import FAILED, UserError


def add(verbs: Verbs) -> None:
    cache = verbs.add_parser("cache", help="the vectors of all photos").add_subparsers(dest="cache_verb", required=True, metavar="VERB")
    cache.add_parser("show", help="vectors, size and hits, by model").set_defaults(run=_show)
    cache.add_parser("verify", help="check every file").set_defaults(run=_verify)
    prune = cache.add_parser("prune", help="find the vectors of photos that are in no index any more")
    prune.add_argument("--delete", action="store_true", help="and remove them; without it nothing is changed")
    prune.set_defaults(run=_prune)


def _show(_: argparse.Namespace) -> int:
    hits: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    for manifest in manifests("ComputeBottlenecks"):
        for key, counts in manifest["vectors"].items():
            hits[key] += counts["cached"]
            computed[key] += counts["computed"]
    console.say(f"{'vectors of':<56}{'files':>10}{'MB':>10}{'computed':>10}{'hits':>10}")
    for found in vector_cache.survey(settings.paths().bottleneck_dir):
        name = found.folder.name
        console.say(f"{name:<56}{found.count:>10}{found.bytes / 1e6:>10.1f}{computed[name]:>10}{hits[name]:>10}")
    return 0


def _verify(_: argparse.Namespace) -> int:
    folders = vector_cache.survey(settings.paths().bottleneck_dir)
    total = sum(found.count for found in folders)
    checked = damaged = 0

    def count() -> None:
        nonlocal checked
        checked += 1
        report(checked, total)

    with console.progress("cache verify", "vectors") as report:
        report(0, total)
        for found in folders:
            for path, problem in vector_cache.verify(found.folder, count):
                damaged += 1
                console.complain(f"{path}: {problem}")
    console.say(f"{total} vectors checked, {damaged} damaged" + ("; a run that needs them makes them again" if damaged else ""))
    return FAILED if damaged else 0


def _prune(options: argparse.Namespace) -> int:
    with nothing_else_running() if options.delete else contextlib.nullcontext():
        return _prune_unused(options.delete)


def _prune_unused(delete: bool) -> int:
    folders = [folder for task in ("IndexImages", "ComputeBottlenecks") for folder in settings.paths().runs(task)]
    for folder in folders:
        if damage := files.damage(folder, contents=True, names=[dataset.INDEX]):
            raise UserError(
                f"{folder} is damaged ({damage}), and says no more which vectors are in use; "
                "remove it (a run that needs it makes it again), then prune once more"
            )
    used = {photo.sha256 for folder in folders for photo in dataset.each_photo(folder / dataset.INDEX)}
    count = size = 0
    for folder in vector_cache.folders(settings.paths().bottleneck_dir):
        for entry in vector_cache.unused(folder, used):
            count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
            if delete:
                vector_cache.remove(Path(entry.path))
    what = f"{count} vectors ({size / 1e6:.1f} MB) of photos that are in no index"
    again = f"; remove them with: {verb('cache', 'prune', '--delete')}" if count else ""
    console.say(f"removed {what}" if delete else f"{what}{again}")
    return 0
