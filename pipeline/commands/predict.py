"""``predict`` and ``classify``: name photos."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console, dataset
from pipeline.commands import FAILED, Verbs
from pipeline.commands.models import backbone, describes_model
from pipeline.dataset import readable
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.predict import Classifier


def add(verbs: Verbs) -> None:
    predict = verbs.add_parser("predict", help="name photos with an exported classifier")
    predict.add_argument(
        "classifier", metavar="EXPORT|DATA", help="folder of an export, or name of a data set, whose latest export is taken"
    )
    _takes_photos(predict, _predict)

    classify = verbs.add_parser("classify", help="name photos with the classes that a pretrained model was trained on")
    classify.add_argument("--model", default="efficientnet-lite0", metavar="NAME|PATH|URL|HANDLE", help="(default: efficientnet-lite0)")
    describes_model(classify)
    _takes_photos(classify, _classify)


def _takes_photos(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, or folders of photos")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels to name for each photo (default: 5)")
    parser.set_defaults(run=run)


def exported(name: str) -> Path:
    """The folder of the export that a person names."""
    from pipeline import registry, settings

    try:
        settings.project()
    except UserError:  # outside a project a folder can still be named
        return registry.find(name, Path("exports"))
    return registry.find(name, settings.exports_of(name))


def _predict(options: argparse.Namespace) -> int:
    folder = exported(options.classifier)

    def load() -> Classifier:
        from pipeline.predict import load

        return load(folder)

    return _name_photos(options, load)


def _classify(options: argparse.Namespace) -> int:
    folder = backbone(options)

    def load() -> Classifier:
        from pipeline.predict import load_pretrained

        return load_pretrained(folder)

    return _name_photos(options, load)


def _name_photos(options: argparse.Namespace, load: Callable[[], Classifier]) -> int:
    """Print a line for each photo; the exit code says whether all could be read."""
    if options.top_k < 1:
        raise UserError(f"--top-k = {options.top_k}: 1 or more is allowed")
    paths = dataset.photos_in(options.photos)
    failed = 0
    for prediction in load().predict(paths):
        path = readable(str(prediction.path))
        if prediction.problem:
            failed += 1
            console.complain(f"{path}: {prediction.problem}")
        else:
            scores = "; ".join(f"{score.label} {100 * score.probability:.1f} %" for score in prediction.scores[: options.top_k])
            console.say(f"{path}: {scores}")
    if failed and len(paths) > 1:
        console.complain(f"{failed} of {len(paths)} photos could not be read")
    return FAILED if failed else 0
