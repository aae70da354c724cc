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
    from pipeline.runs import Run

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

    evaluate = verbs.add_parser("evaluate", help="figures and a page of an exported classifier on new labelled photos")
    evaluate.add_argument("classifier", metavar="EXPORT|DATA", help="as of predict")
    evaluate.add_argument("--images", required=True, metavar="FOLDER", help="a folder for each class, named like the classes")
    evaluate.add_argument("--output", metavar="FOLDER", help="where the page goes (default: a folder in store/evaluations)")
    evaluate.set_defaults(run=_evaluate)

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

    runs = verbs.add_parser("runs", help="finished trainings").add_subparsers(dest="runs_verb", required=True, metavar="VERB")
    runs.add_parser("list", help="all of them").set_defaults(run=_list_runs)
    show = runs.add_parser("show", help="the essentials of one, and where its page lies")
    show.add_argument("name", metavar="RUN", help="its name as in runs list, a data set (its live version), a folder, or a key's beginning")
    show.set_defaults(run=_show_run)
    compare = runs.add_parser("compare", help="a table of several, printed and written as CSV")
    compare.add_argument("names", metavar="RUN", nargs="+")
    compare.add_argument("--output", metavar="FILE", help="where the table goes (default: a file in store/comparisons)")
    compare.set_defaults(run=_compare_runs)

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


def _exported(name: str) -> Path:
    """The folder of the export that a person names."""
    from pipeline import registry, settings

    try:
        settings.project()
    except UserError:  # outside a project a folder can still be named
        return registry.find(name, Path("exports"))
    return registry.find(name, settings.exports_of(name))


def _predict(options: argparse.Namespace) -> int:
    folder = _exported(options.classifier)

    def load() -> Classifier:
        from pipeline.predict import load

        return load(folder)

    return _name_photos(options, load)


def _evaluate(options: argparse.Namespace) -> int:
    from pipeline import new_photos, settings
    from pipeline.dataset import fingerprint
    from pipeline.tasks import shown

    version, images = _exported(options.classifier), Path(options.images).expanduser()
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
        from pipeline.predict import load

        return load(folder)

    with console.progress("evaluate", "photos") as report:
        figures = new_photos.evaluate(version, images, photos, out, load, report)
    low, high = figures["interval"]
    console.say(
        f"accuracy {100 * figures['accuracy']:.1f} % ({figures['correct']} of {figures['count']} photos, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )
    if left_out := len(photos) - figures["count"]:
        console.say(f"left out {left_out}, listed with the reasons in {shown(out.resolve() / 'skipped.csv')}")
    console.say(f"report   {shown(out.resolve() / 'report.html')}")
    return 0


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


def _runs() -> list[Run]:
    from pipeline import runs, settings

    reports = settings.paths().runs("Report")
    data_sets = {manifest["data"] for manifest in _manifests("Report")}
    exports = settings.paths().exports
    folders = [folder for folder in exports.iterdir() if folder.is_dir()] if exports.is_dir() else []
    return runs.all_runs([*folders, *(settings.paths(data).exports / data for data in data_sets)], reports)


def _list_runs(_: argparse.Namespace) -> int:
    from pipeline import runs
    from pipeline.tasks import shown

    found = _runs()
    if not found:
        console.say("no run yet: make retrain, or luigi --module pipeline Export")
        return 0
    rows = [["run", "", "made", "model", "photos", "test accuracy", "page"]]
    for run in found:
        says = run.manifest
        page = shown(run.page) if run.page.is_file() else ""
        accuracy = runs.percent(says["test_accuracy"])
        rows.append([run.name, "live" * run.is_live, says["finished"][:10], says["backbone"]["name"], str(says["photos"]), accuracy, page])
    for line in runs.aligned(rows):
        console.say(line)
    return 0


def _show_run(options: argparse.Namespace) -> int:
    from pipeline import runs
    from pipeline.tasks import shown

    run = runs.find(options.name, _runs())
    for line in runs.aligned(runs.comparison([run])):
        console.say(line)
    if run.figure("count"):
        console.say(f"suspected labels     {run.figure('suspected_labels')}")
        console.say(f"near-duplicates      {run.figure('near_duplicates')}")
    console.say(f"page                 {shown(run.page) if run.page.is_file() else 'none, it was made before there were pages'}")
    return 0


def _compare_runs(options: argparse.Namespace) -> int:
    from pipeline import runs, settings
    from pipeline.tasks import shown

    found = _runs()
    compared = [runs.find(name, found) for name in options.names]
    rows = runs.comparison(compared)
    for line in runs.aligned(rows):
        console.say(line)
    names = "_".join(run.name.replace("/", "-") for run in compared)
    path = Path(options.output) if options.output else settings.paths().store / "comparisons" / f"{names[:200]}.csv"
    runs.write(path, rows)
    console.say(f"table    {shown(path.resolve())}")
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
