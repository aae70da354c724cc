"""``exports``: the published versions of each data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import console, files, registry, runs, settings
from pipeline.commands import Verbs, exports_folders
from pipeline.console import shown, verb
from pipeline.errors import UserError
from pipeline.words import aligned, percent

KEPT = 5


def add(verbs: Verbs) -> None:
    exports = verbs.add_parser("exports", help="the published versions").add_subparsers(dest="exports_verb", required=True, metavar="VERB")
    listed = exports.add_parser("list", help="all of them, of one data set or of all")
    listed.add_argument("data", nargs="?", metavar="DATA")
    listed.set_defaults(run=_list)
    show = exports.add_parser("show", help="what one is, and the gate's verdict on it")
    _names_version(show, "the live one")
    show.set_defaults(run=_show)
    pin = exports.add_parser("pin", help="keep one for good: prune leaves it")
    _names_version(pin, "the live one")
    pin.add_argument("--off", action="store_true", help="keep it no longer")
    pin.set_defaults(run=_pin)
    rollback = exports.add_parser("rollback", help="make an older one live, or any other")
    _names_version(rollback, "the one before the live one")
    rollback.set_defaults(run=_roll_back)
    prune = exports.add_parser("prune", help="find those that may go: not the last ones, the live one, what is newer, and the pinned ones")
    prune.add_argument("data", nargs="?", metavar="DATA", help="(default: all data sets)")
    prune.add_argument("--keep", type=int, default=KEPT, metavar="N", help=f"how many of the last ones stay (default: {KEPT})")
    prune.add_argument("--delete", action="store_true", help="and remove them; without it nothing is changed")
    prune.set_defaults(run=_prune)


def _names_version(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("version", nargs="?", metavar="VERSION", help=f"its name, or the beginning of it, as 0003 (default: {default})")


def exports_folder(data: str) -> Path:
    """The folder of a data set's versions. Raises UserError where it has none."""
    folder = settings.paths(data).exports / data
    if not registry.versions(folder):
        known = [folder.name for folder in exports_folders()]
        raise UserError(
            f"{data!r} has no published version; " + (f"those that have: {', '.join(known)}" if known else "run make retrain first")
        )
    return folder


def _version(options: argparse.Namespace, default: Path | None, without_default: str = "") -> Path:
    """The version that a person names."""
    folder = exports_folder(options.data)
    if options.version is None:
        if default is None:
            raise UserError(
                f"{options.data} has no {without_default}; name one of: {', '.join(path.name for path in registry.versions(folder))}"
            )
        return default
    found = [path for path in registry.versions(folder) if path.name.startswith(options.version)]
    if len(found) != 1:
        known = ", ".join(path.name for path in registry.versions(folder))
        what = "is no version" if not found else "can be several versions"
        problems = "".join(f"; {problem}" for problem in registry.problems(folder))
        raise UserError(f"{options.version!r} {what} of {options.data}; there are: {known}{problems}")
    return found[0]


def _list(options: argparse.Namespace) -> int:
    folders = [exports_folder(options.data)] if options.data else exports_folders()
    if not folders:
        console.say("no version yet: make retrain, or luigi --module pipeline Export")
        return 0
    rows = [["version", "", "made", "model", "photos", "test accuracy", "MB"]]
    for folder in folders:
        live, pinned = registry.live(folder), registry.pinned(folder)
        for version in registry.versions(folder):
            says = files.read_json(version / files.MANIFEST)
            state = ", ".join(word for word, holds in (("live", version == live), ("pinned", version.name in pinned)) if holds)
            accuracy = percent(says["test_accuracy"])
            made = [says["finished"][:10], says["backbone"]["name"], str(says["photos"]), accuracy, f"{_megabytes(version):.1f}"]
            rows.append([f"{folder.name}/{version.name}", state, *made])
    for line in aligned(rows):
        console.say(line)
    for folder in folders:
        for problem in registry.problems(folder):
            console.warn(problem)
    return 0


def _megabytes(version: Path) -> float:
    return sum(file["bytes"] for file in files.read_json(version / files.MANIFEST)["files"].values()) / 1e6


def _show(options: argparse.Namespace) -> int:
    folder = exports_folder(options.data)
    version = _version(options, registry.live(folder), "live version")
    says = files.read_json(version / files.MANIFEST)
    verdict = says.get("verdict", {})
    rows = [
        ["version", f"{folder.name}/{version.name}{' (live)' if version == registry.live(folder) else ''}"],
        ["folder", shown(version)],
        ["made", says["finished"]],
        ["model", says["backbone"]["name"]],
        ["photos", str(says["photos"])],
        ["labels", ", ".join(says["labels"])],
        ["test accuracy", percent(says["test_accuracy"])],
        *([["verdict", verdict["words"]]] if verdict else []),
        *(["", finding] for finding in verdict.get("findings", [])[1:]),
        ["whole", files.damage(version, contents=True) or "yes"],
        *([["report", shown(version / runs.PAGE)]] if (version / runs.PAGE).is_file() else []),
    ]
    for line in aligned(rows):
        console.say(line)
    return 0


def _pin(options: argparse.Namespace) -> int:
    folder = exports_folder(options.data)
    version = _version(options, registry.live(folder), "live version")
    registry.pin(version, not options.off, console.note)
    console.say(f"{shown(version)} is {'pinned no longer' if options.off else 'pinned: exports prune leaves it'}")
    return 0


def _roll_back(options: argparse.Namespace) -> int:
    folder = exports_folder(options.data)
    before = registry.live(folder)
    version = _version(options, registry.before_live(folder), "version before the live one")
    registry.roll_back(version, console.note, settings.copies(options.data))
    console.say(f"{shown(version)} is live" + (f"; before it was {before.name}" if before and before != version else ""))
    return 0


def _prune(options: argparse.Namespace) -> int:
    if options.keep < 0:
        raise UserError(f"--keep = {options.keep}: 0 or more is allowed")
    count, megabytes = 0, 0.0
    folders = [exports_folder(options.data)] if options.data else exports_folders()
    found = {folder: registry.superfluous(folder, options.keep) for folder in folders}  # of all, before any goes: it may be refused
    for folder, superfluous in found.items():
        for version in superfluous:
            count, megabytes = count + 1, megabytes + _megabytes(version)
            console.say(shown(version))
        if options.delete:
            registry.prune(folder, options.keep, console.note)
    what = f"{count} versions ({megabytes:.1f} MB)"
    if options.delete:
        console.say(f"removed {what}")
    else:
        again = verb("exports", "prune", *([options.data] if options.data else []), "--keep", str(options.keep), "--delete")
        console.say(f"{what} may go" + (f"; remove them with: {again}" if count else ""))
    return 0
