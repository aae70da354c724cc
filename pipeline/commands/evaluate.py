"""``evaluate``: figures and a page for new labelled photos."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pipeline import console, dataset, files, new_photos, runs, settings
from pipeline.commands import Verbs
from pipeline.console import shown
from pipeline.errors import UserError
from pipeline.words import accuracy


def add(verbs: Verbs) -> None:
    evaluate = verbs.add_parser("evaluate", help="figures and a page of an exported classifier on new labelled photos")
    evaluate.add_argument("classifier", metavar="EXPORT|DATA", help="as of predict")
    evaluate.add_argument("--images", required=True, metavar="FOLDER", help="a folder for each class, named like the classes")
    evaluate.add_argument("--output", metavar="FOLDER", help="where the page goes (default: a folder in store/evaluations)")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    version, images = settings.export_named(options.classifier), Path(options.images).expanduser()
    photos = new_photos.labelled(version, images)
    if options.output:
        out = Path(options.output).expanduser()
        if files.read_manifest(out):
            raise UserError(
                f"--output = {options.output} is an output of the pipeline, which other files would damage; name another folder"
            )
    else:
        try:
            store = settings.paths().store
        except UserError:
            store = Path()
        out = store / "evaluations" / f"{version.parent.name}-{version.name}-{dataset.fingerprint(photos)[:8]}"

    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()  # what cannot be written is known before the work

    from pipeline.classifier import load  # and TensorFlow with it: what is wrong with the folder is said before

    with console.progress("evaluate", "photos") as report:
        figures = new_photos.evaluate(version, load(version), images, photos, out, report)
    console.say(f"accuracy {accuracy(*(figures[name] for name in ('accuracy', 'correct', 'count', 'interval')))}")
    if figures["learned"]:
        console.warn(
            f"it has learned from {figures['learned']} of these photos: figures on them are better than on photos that it never saw"
        )
    if left_out := sum(not photo.is_folder for photo in photos) - figures["count"]:
        console.say(f"left out {left_out}, listed with the reasons in {shown(out.resolve() / dataset.SKIPPED)}")
    console.say(f"report   {shown(out.resolve() / runs.PAGE)}")
    return 0
