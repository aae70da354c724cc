"""``predict`` and ``classify``: name photos."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console, files, scan, settings
from pipeline.backbones import Description
from pipeline.commands import Verbs
from pipeline.commands.models import backbone, describes_model
from pipeline.console import shown
from pipeline.errors import FAILED, UserError
from pipeline.words import readable

if TYPE_CHECKING:
    from pipeline.classifier import Classifier, Prediction, Score

LIST = "-"
"""The name that stands for a list on standard input."""


def add(verbs: Verbs) -> None:
    predict = verbs.add_parser("predict", help="name photos with an exported classifier")
    classifier = predict.add_argument(
        "classifier", metavar="EXPORT|DATA", help="folder of an export, or name of a data set, whose live version is taken"
    )
    photos = _takes_photos(predict, _predict)
    predict.usage = "%(prog)s [options] EXPORT|DATA PHOTO...\n       %(prog)s [options] --graph GRAPH.pb --labels LABELS.txt PHOTO..."
    _takes_a_graph(predict, classifier, photos)

    classify = verbs.add_parser("classify", help="name photos with the classes that a pretrained model was trained on")
    classify.add_argument("--model", default="efficientnet-lite0", metavar="NAME|PATH|URL|HANDLE", help="(default: efficientnet-lite0)")
    describes_model(classify)
    _takes_photos(classify, _classify)


def _takes_a_graph(parser: argparse.ArgumentParser, classifier: argparse.Action, photos: argparse.Action) -> None:
    """The options for a graph in place of an export; where it is given, the first name is that of a photo."""

    class Graph(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
            classifier.metavar, photos.required = "PHOTO", False
            namespace.graph = value

    group = parser.add_argument_group("graphs made by TensorFlow's retrain.py, and others like them")
    group.add_argument("--graph", action=Graph, metavar="GRAPH.pb", help="a frozen graph, in place of EXPORT|DATA")
    group.add_argument("--labels", metavar="LABELS.txt", help="its labels, one a line, in the order of its outputs")
    described = {
        "input-layer": (str, "NAME", "where images go in"),
        "output-layer": (str, "NAME", "where probabilities come out; final_result by default"),
        "input-size": (int, "PIXELS", "a side"),
        "input-mean": (float, "MEAN", "pixels in 0..255 go in as (x - MEAN) / STD"),
        "input-std": (float, "STD", "see there"),
    }
    for name, (kind, metavar, what) in described.items():
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{what}; guessed where it is not given")


def _takes_photos(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> argparse.Action:
    photos = parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help=f"files, folders of photos, patterns like 'photos/**/*.jpg' in quotes, or {LIST} for a list on standard input, a name a line",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels to name for each photo (default: 5)")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="name labels of this probability or more, 0 to 1 (default: 0)"
    )
    parser.add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="text",
        help="text for people (default), a table (csv), or a JSON object a line (jsonl)",
    )
    parser.epilog = (
        f"A photo that cannot be read is a row with its error, in text a line on standard error; the exit code is then {FAILED}."
    )
    parser.set_defaults(run=run)
    return photos


def _predict(options: argparse.Namespace) -> int:
    if options.graph:
        return _predict_with_graph(options)
    of_graphs = ("labels", "input_layer", "output_layer", "input_size", "input_mean", "input_std")
    for name in of_graphs:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with --graph, and an export says itself how it is used; leave it out")

    folder = settings.export_named(options.classifier)

    def load() -> Classifier:
        from pipeline.classifier import load

        return load(folder)

    return _name_photos(options, load)


def _predict_with_graph(options: argparse.Namespace) -> int:
    options.photos = [options.classifier, *(options.photos or [])]
    if not options.labels:
        raise UserError("--graph needs --labels LABELS.txt, the file that retrain.py wrote beside the graph")
    for name, allowed in (("input_size", (options.input_size or 1) > 0), ("input_std", options.input_std != 0)):
        if not allowed:
            raise UserError(
                f"--{name.replace('_', '-')} = {getattr(options, name):g}: no such thing is possible; leave it out to have it guessed"
            )

    def load() -> Classifier:
        from pipeline import retrained

        given = Description(
            input=options.input_layer or "",
            logits=options.output_layer or "",
            size=options.input_size or 0,
            mean=options.input_mean,
            std=options.input_std,
        )
        classifier, words = retrained.load(Path(options.graph).expanduser(), Path(options.labels).expanduser(), given)
        console.note(f"{shown(Path(options.graph))} is taken for {words}")
        return classifier

    return _name_photos(options, load)


def _classify(options: argparse.Namespace) -> int:
    def load() -> Classifier:
        from pipeline.classifier import load_pretrained

        return load_pretrained(backbone(options))

    return _name_photos(options, load)


def _name_photos(options: argparse.Namespace, load: Callable[[], Classifier]) -> int:
    """Print a row for each photo, in order, as they come; the exit code says whether all could be read."""
    if options.top_k < 1:
        raise UserError(f"--top-k = {options.top_k}: 1 or more is allowed")
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold = {options.threshold:g}: a probability from 0 to 1 is allowed")
    listed = _read_list() if LIST in options.photos else []
    paths = scan.photos_in([name for name in options.photos if name != LIST], listed=listed)
    classifier = load()
    top_k, write = min(options.top_k, len(classifier.labels)), FORMATS[options.format]
    failed = 0
    if write is _csv:
        _say_header(top_k)
    # On a terminal the rows themselves show the progress, and a bar would stand between them.
    with contextlib.nullcontext(console.silent) if sys.stdout.isatty() else console.progress("predict", "photos") as report:
        report(0, len(paths))
        for done, prediction in enumerate(classifier.predict(paths), 1):
            failed += prediction.problem != ""
            write(prediction, [score for score in prediction.scores[:top_k] if score.probability >= options.threshold], top_k)
            report(done, len(paths))
    if failed and len(paths) > 1:
        console.complain(f"{failed} of {len(paths)} photos could not be read")
    return FAILED if failed else 0


def _read_list() -> list[str]:
    """The names on standard input: a line each, or each with a zero byte behind it, as ``find -print0`` has them."""
    if sys.stdin is None:
        raise UserError(f"{LIST} stands for a list on standard input, which is closed; give it one, or name the photos")
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line]


# --- Rows ---------------------------------------------------------------------------------------------------------------


def _text(prediction: Prediction, scores: Sequence[Score], top_k: int) -> None:
    """``photo.jpg: roses 98.1 %; tulips 1.2 %``; what cannot be read is an error on standard error."""
    path = readable(str(prediction.path))
    if prediction.problem:
        console.complain(f"{path}: {prediction.problem}")
    else:
        named = "; ".join(f"{score.label} {100 * score.probability:.1f} %" for score in scores)
        console.say(f"{path}: {named or 'no label is so probable'}")


def _csv(prediction: Prediction, scores: Sequence[Score], top_k: int) -> None:
    """A cell for the path, two for each label that may be named, and one for the error."""
    cells = [cell for score in scores for cell in (score.label, f"{score.probability:.6f}")]
    _say_cells(readable(str(prediction.path)), *cells, *[""] * (2 * top_k - len(cells)), prediction.problem)


def _say_header(top_k: int) -> None:
    _say_cells("path", *(f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "probability")), "error")


def _say_cells(*cells: str) -> None:
    line = io.StringIO()
    files.csv_writer(line).writerow(cells)
    console.say_as_it_is(line.getvalue().removesuffix("\n"))


def _jsonl(prediction: Prediction, scores: Sequence[Score], top_k: int) -> None:
    """``{"path": …, "scores": [{"label": …, "probability": …}, …], "error": null}``"""
    named = [{"label": score.label, "probability": score.probability} for score in scores]
    row = {"path": readable(str(prediction.path)), "scores": named, "error": prediction.problem or None}
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    console.say_as_it_is(json.dumps(row, ensure_ascii=not is_utf8))  # JSON has escapes of its own


FORMATS = {"text": _text, "csv": _csv, "jsonl": _jsonl}
