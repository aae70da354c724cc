"""``models``: the pretrained networks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import luigi

from pipeline import backbones, console, settings
from pipeline.backbones.catalogue import CATALOGUE
from pipeline.commands import Verbs
from pipeline.console import shown
from pipeline.errors import FAILED
from pipeline.tasks import DownloadModel, absolute_model


def add(verbs: Verbs) -> None:
    models = verbs.add_parser("models", help="the pretrained models").add_subparsers(dest="models_verb", required=True, metavar="VERB")
    models.add_parser("list", help="those that are known by name").set_defaults(run=_list)
    graph = models.add_parser("graph", help="write a model's graph for TensorBoard")
    graph.add_argument("model", metavar="NAME|PATH|URL|HANDLE")
    describes_model(graph)
    graph.set_defaults(run=_graph)


def describes_model(parser: argparse.ArgumentParser) -> None:
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


def backbone(options: argparse.Namespace) -> Path:
    """The folder of a backbone, made where it is not there yet, in a process of its own as in a training."""
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


def _list(_: argparse.Namespace) -> int:
    console.say(f"{'name':<36}{'MB':>6}{'input':>7}{'width':>7}{'top-1 %':>9}  licence     source")
    for name, entry in CATALOGUE.items():
        megabytes, top1 = (f"{figure:.1f}" if figure else "?" for figure in (entry.megabytes, entry.top1))
        figures = f"{megabytes:>6}{entry.description.size:>7}{entry.width:>7}{top1:>9}"
        console.say(f"{name:<36}{figures}  {entry.licence:<12}{entry.source}")
    return 0


def _graph(options: argparse.Namespace) -> int:
    folder = backbone(options)
    logdir = settings.paths().store / "graphs" / folder.name
    backbones.write_graph_summary(folder, logdir)
    console.say(f"look at it with: {shown(Path(sys.executable).with_name('tensorboard'))} --logdir {logdir}")
    return 0
