"""``plan``: what a run would do and why, without running it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from luigi.cmdline_parser import CmdlineParser

from pipeline import changes, checks, console, disk, files, forecast, luigi_program, registry, settings, sources
from pipeline.commands import Verbs
from pipeline.console import shown
from pipeline.errors import DataMissing
from pipeline.root import say_nothing_to_do
from pipeline.words import aligned

if TYPE_CHECKING:
    from pipeline.indexing import Index
    from pipeline.root import Export


def add(verbs: Verbs) -> None:
    plan = verbs.add_parser(
        "plan",
        help="what a run would do and why, without running it",
        usage="python -m pipeline plan [--data NAME] [the other options of luigi --module pipeline Export]",
        allow_abbrev=False,
    )
    plan.set_defaults(run=_plan, takes_more=True)


def _plan(options: argparse.Namespace) -> int:
    luigi_program.say_in_one_line()
    with CmdlineParser.global_instance(["Export", "--module", "pipeline", *options.more]) as parser:
        export = parser.get_task_obj()
        export.check()
        if fallback := export.fallback:
            console.say(f"{export.data}: its photos could not be fetched; {fallback.data} stands in")
            export = fallback
        return _plan_of(export)


def _plan_of(export: Export) -> int:
    paths = settings.paths(export.data)
    if not sources.has_photos(export.photos_folder):
        source = settings.profile(export.data).images
        if export.images or not (source.url or source.draw_per_class):
            raise DataMissing(f"no photos in {export.photos_folder}; {export.remedy()}")
        what = f"fetches {disk.size(source.bytes)} from {source.url}" if source.url else "draws the pictures"
        console.say(f"FetchImages  would run: {what}; what follows is known when they are there")
        return 0
    photos = export.look()
    export.found = export.found_in(export.snapshot_of(photos))
    if outcome := export.outcome:
        say_nothing_to_do(export, outcome)
        return 0
    index_task, _, packed, _ = export.classifier.requires()
    index = index_task.index_of(photos)
    _say_photos(export, index)
    rows, missing = forecast.rows_and_missing(packed, index.photos)
    lines = []
    for step in forecast.steps(export.goals):
        words = step.words
        if step.task.key == packed.key and not step.is_done:
            words += f"; {missing:,} of {rows:,} vectors would be computed"
        lines.append([step.task.task_family, "done" if step.is_done else "would run", step.task.key, words])
    for line in aligned(lines):
        console.say(line)
    for system in disk.by_file_system(forecast.needs(export.classifier, index.photos, rows, missing)):
        console.say(f"{'disk' if system.fits else 'would stop, the disk is too full'}: {system.sentence}")
    console.say(f"nothing was run; only {shown(paths.scan(export.data))}, the memory of what was looked at, is brought up to date")
    return 0


def _say_photos(export: Export, index: Index) -> None:
    """The photos, what changed in them since the live version, and what the checks that need no vectors will say of them."""
    live = registry.live(settings.paths(export.data).exports / export.data)
    if live and files.damage(live, contents=True, names=[changes.PHOTOS]):
        live = None
    since, outcomes = checks.since(live, index.photos, len(index.skipped), checks.Limits.of(export))
    words = f"; since {since['version']}: {changes.sentence(since)}" if since else ""
    console.say(f"{export.data}: {len(index.photos):,} photos in {len(index.labels)} classes{words}")
    for outcome in outcomes:
        if not outcome.fine:
            console.say(f"{'would stop' if outcome.check in export.stop_on else 'would warn'}: {outcome.sentence}")
