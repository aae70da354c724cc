"""The command line beside training: ``python -m pipeline predict flowers photo.jpg``."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import console, dataset
from pipeline.dataset import readable
from pipeline.errors import DataMissing, UserError

if TYPE_CHECKING:
    from pipeline.predict import Classifier

FAILED = 30
DATA_MISSING = 20
CUT_OFF = 141  # as shells have it for a broken pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        console.complain(str(error))
        return DATA_MISSING if isinstance(error, DataMissing) else FAILED
    except BrokenPipeError:  # as in `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Use what the pipeline made. Training is `make retrain` or `luigi --module pipeline Export`.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    predict = verbs.add_parser("predict", help="name photos with an exported classifier")
    predict.add_argument(
        "classifier", metavar="EXPORT|DATA", help="folder of an export, or name of a data set, whose latest export is taken"
    )
    _takes_photos(predict, _predict)

    classify = verbs.add_parser("classify", help="name photos with the classes that a pretrained model was trained on")
    classify.add_argument("--model", default="efficientnet-lite0", metavar="NAME|PATH|URL|HANDLE", help="(default: efficientnet-lite0)")
    _describes_model(classify)
    _takes_photos(classify, _classify)

    models = verbs.add_parser("models", help="the pretrained models").add_subparsers(dest="models_verb", required=True, metavar="VERB")
    models.add_parser("list", help="those that are known by name").set_defaults(run=_list_models)
    graph = models.add_parser("graph", help="write a model's graph for TensorBoard")
    graph.add_argument("model", metavar="NAME|PATH|URL|HANDLE")
    _describes_model(graph)
    graph.set_defaults(run=_write_graph)

    cache = verbs.add_parser("cache", help="the vectors of all photos").add_subparsers(dest="cache_verb", required=True, metavar="VERB")
    cache.add_parser("show", help="vectors, size and hits, by model").set_defaults(run=_show_cache)
    cache.add_parser("verify", help="check every file").set_defaults(run=_verify_cache)
    prune = cache.add_parser("prune", help="find the vectors of photos that are in no index any more")
    prune.add_argument("--delete", action="store_true", help="and remove them; without it nothing is changed")
    prune.set_defaults(run=_prune_cache)
    return parser


def _describes_model(parser: argparse.ArgumentParser) -> None:
    """The parameters of the task DownloadModel that say of a model what it does not say itself."""
    said = {
        "input": "tensor that takes the images",
        "bottleneck": "tensor or layer with the features",
        "logits": "tensor with the logits of its classes",
        "size": "pixels a side",
        "mean": "pixels are normalised by (x - mean) / std",
        "std": "see there",
    }
    for name, what in said.items():
        parser.add_argument(f"--model-{name}", metavar=name.upper(), help=f"{what}, where the model does not say it")


def _takes_photos(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="files, or folders of photos")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="labels to name for each photo (default: 5)")
    parser.set_defaults(run=run)


def _predict(options: argparse.Namespace) -> int:
    from pipeline import registry, settings

    try:
        settings.project()
    except UserError:  # outside a project a folder can still be named
        exports = Path("exports")
    else:
        exports = settings.exports_of(options.classifier)
    folder = registry.find(options.classifier, exports)

    def load() -> Classifier:
        from pipeline.predict import load

        return load(folder)

    return _name_photos(options, load)


def _classify(options: argparse.Namespace) -> int:
    folder = _backbone(options)

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


def _backbone(options: argparse.Namespace) -> Path:
    """The folder of a backbone, made where it is not there yet, in a process of its own as in a training."""
    import luigi

    from pipeline import backbones, settings
    from pipeline.tasks import DownloadModel, absolute_model

    described = {
        name: parameter.parse(getattr(options, name))
        for name, parameter in DownloadModel.get_params()
        if name not in ("model", "model_identity") and getattr(options, name, None) is not None
    }
    identity = backbones.identify(options.model)
    task = DownloadModel(model=absolute_model(options.model), model_identity=identity, **described)
    settings.check_parameters(task)
    if not task.complete() and not luigi.build([task], local_scheduler=True):
        raise SystemExit(FAILED)  # the task has said why
    task.mend()
    return task.folder


def _list_models(_: argparse.Namespace) -> int:
    from pipeline.backbones.catalogue import CATALOGUE

    console.say(f"{'name':<36}{'MB':>6}{'input':>7}{'width':>7}{'top-1 %':>9}  licence     source")
    for name, entry in CATALOGUE.items():
        megabytes, top1 = (f"{figure:.1f}" if figure else "?" for figure in (entry.megabytes, entry.top1))
        figures = f"{megabytes:>6}{entry.description.size:>7}{entry.width:>7}{top1:>9}"
        console.say(f"{name:<36}{figures}  {entry.licence:<12}{entry.source}")
    return 0


def _write_graph(options: argparse.Namespace) -> int:
    from pipeline import backbones, settings

    folder = _backbone(options)
    logdir = settings.paths().store / "graphs" / folder.name
    backbones.write_graph_summary(folder, logdir)
    console.say(f"look at it with: tensorboard --logdir {logdir}")
    return 0


def _show_cache(_: argparse.Namespace) -> int:
    from pipeline import settings, vector_cache

    hits: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    for manifest in _manifests("ComputeBottlenecks"):
        for key, counts in manifest["vectors"].items():
            hits[key] += counts["cached"]
            computed[key] += counts["computed"]
    console.say(f"{'vectors of':<56}{'files':>10}{'MB':>10}{'computed':>10}{'hits':>10}")
    for found in vector_cache.survey(settings.paths().bottleneck_dir):
        name = found.folder.name
        console.say(f"{name:<56}{found.count:>10}{found.bytes / 1e6:>10.1f}{computed[name]:>10}{hits[name]:>10}")
    return 0


def _manifests(task: str) -> list[dict[str, Any]]:
    from pipeline import files, settings

    found = [files.read_manifest(folder) for folder in settings.paths().runs(task)]
    return [manifest for manifest in found if manifest]


def _verify_cache(_: argparse.Namespace) -> int:
    from pipeline import settings, vector_cache

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


def _prune_cache(options: argparse.Namespace) -> int:
    from pipeline import settings, vector_cache

    indexes = [folder / "index.csv" for task in ("IndexImages", "ComputeBottlenecks") for folder in settings.paths().runs(task)]
    used = {photo.sha256 for index in indexes if index.is_file() for photo in dataset.each_photo(index)}
    count = size = 0
    for folder in vector_cache.folders(settings.paths().bottleneck_dir):
        for entry in vector_cache.unused(folder, used):
            count, size = count + 1, size + entry.stat(follow_symlinks=False).st_size
            if options.delete:
                vector_cache.remove(Path(entry.path))
    what = f"{count} vectors ({size / 1e6:.1f} MB) of photos that are in no index"
    console.say(f"removed {what}" if options.delete else f"{what}; remove them with: python -m pipeline cache prune --delete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
