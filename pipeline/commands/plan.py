"""``plan``: what a run would do and why, without running it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.commands import Verbs
from pipeline.console import shown
from pipeline.errors import DataMissing

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
    from luigi.cmdline_parser import CmdlineParser

    from pipeline import luigi_program

    luigi_program.say_in_one_line()
    with CmdlineParser.global_instance(["Export", "--module", "pipeline", *options.more]) as parser:
        export = parser.get_task_obj()
        export.check()
        if fallback := export.fallback:
            console.say(f"{export.data}: its photos could not be fetched; {fallback.data} stands in")
            export = fallback
        return _plan_of(export)


def _plan_of(export: Export) -> int:
    from pipeline import disk, forecast, runs, settings, sources
    from pipeline.root import say_nothing_to_do

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
            words += f"; {missing:,} of {rows:,} vectors are computed"
        lines.append([step.task.task_family, "done" if step.is_done else "would run", step.task.key, words])
    for line in runs.aligned(lines):
        console.say(line)
    for system in disk.by_file_system(forecast.needs(export.classifier, index.photos, rows, missing)):
        console.say(f"{'disk' if system.fits else 'would stop, the disk is too full'}: {system.sentence}")
    console.say(f"nothing was run; only {shown(paths.scan(export.data))}, the memory of what was looked at, is brought up to date")
    return 0


def _say_photos(export: Export, index: Index) -> None:
    """The photos, what changed in them since the live version, and what the checks that need no vectors will say of them."""
    from pipeline import changes, checks, files, registry, settings

    live = registry.live(settings.paths(export.data).exports / export.data)
    since, before = "", None
    if live and not files.damage(live, contents=True, names=[changes.PHOTOS]):
        found = changes.between(changes.each_photo(live / changes.PHOTOS), index.photos)
        since = f"; since {live.name}: {changes.sentence(found.as_json())}"
        before = checks.Before.of(live.name, changes.each_photo(live / changes.PHOTOS), found.relabelled.count)
    console.say(f"{export.data}: {len(index.photos):,} photos in {len(index.labels)} classes{since}")
    limits = checks.Limits(export.photos_fall_limit, export.class_share_limit, export.relabelled_limit, export.unreadable_limit)
    for outcome in checks.of_photos(index.photos, len(index.skipped), before, limits):
        if not outcome.fine:
            console.say(f"{'would stop' if outcome.check in export.stop_on else 'would warn'}: {outcome.sentence}")
