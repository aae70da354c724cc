"""``evaluate``: figures and a page for new labelled photos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.commands import Verbs
from pipeline.console import shown
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.classifier import Classifier


def add(verbs: Verbs) -> None:
    evaluate = verbs.add_parser("evaluate", help="figures and a page of an exported classifier on new labelled photos")
    evaluate.add_argument("classifier", metavar="EXPORT|DATA", help="as of predict")
    evaluate.add_argument("--images", required=True, metavar="FOLDER", help="a folder for each class, named like the classes")
    evaluate.add_argument("--output", metavar="FOLDER", help="where the page goes (default: a folder in store/evaluations)")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from pipeline import new_photos, settings
    from pipeline.dataset import fingerprint

    version, images = settings.export_named(options.classifier), Path(options.images).expanduser()
    photos = new_photos.labelled(version, images)
    if options.output:
        out = Path(options.output)
    else:
        try:
            store = settings.paths().store
        except UserError:
            store = Path()
        out = store / "evaluations" / f"{version.parent.name}-{version.name}-{fingerprint(photos)[:8]}"

    def load(folder: Path) -> Classifier:
        from pipeline.classifier import load

        return load(folder)

    with console.progress("evaluate", "photos") as report:
        figures = new_photos.evaluate(version, images, photos, out, load, report)
    low, high = figures["interval"]
    console.say(
        f"accuracy {100 * figures['accuracy']:.1f} % ({figures['correct']} of {figures['count']} photos, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )
    if learned := new_photos.learned(version, photos):
        console.warn(f"it has learned from {learned} of these photos: figures on them are better than on photos that it never saw")
    if left_out := len(photos) - figures["count"]:
        console.say(f"left out {left_out}, listed with the reasons in {shown(out.resolve() / 'skipped.csv')}")
    console.say(f"report   {shown(out.resolve() / 'report.html')}")
    return 0
