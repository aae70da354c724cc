"""What a run would do, before it does it: which tasks and why, how many photos go through the network, how much disk it takes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luigi.task import flatten

from pipeline import backbones, disk, files, history, settings
from pipeline.artifacts import Artifact
from pipeline.backbones.catalogue import CATALOGUE
from pipeline.dataset import Photo, Photos
from pipeline.disk import Need
from pipeline.vector_cache import name_of

if TYPE_CHECKING:
    from pipeline.tasks import ComputeBottlenecks, DownloadModel, ExportGraph

WIDTH = 2048
"""Features of a network of which nothing is known yet: the widest of the catalogue."""

MODEL_BYTES = 100_000_000


@dataclass(frozen=True)
class Step:
    """A task: whether its output is there, since when or why not, in words."""

    task: Artifact
    is_done: bool
    words: str


def steps(goals: Iterable[Artifact]) -> list[Step]:
    """The tasks that the goals need, in the order in which they would run."""
    found: dict[str, Step] = {}
    for task in _in_order(goals):
        if task.key in found:
            continue
        manifest = files.read_manifest(task.folder) if task.complete() else None
        words = f"since {manifest['finished']}" if manifest else ", ".join(_reasons(task))
        found[task.key] = Step(task, manifest is not None, words)
    return list(found.values())


def _in_order(tasks: Iterable[Artifact]) -> Iterator[Artifact]:
    for task in tasks:
        yield from _in_order(flatten(task.requires()))
        yield task


def _reasons(task: Artifact) -> list[str]:
    """What differs from the output of an earlier run that differs least."""
    ours = {"code_version": task.VERSION, "parameters": task.to_str_params(only_significant=True), "parents": task.parents}
    inherited = {name for parent in flatten(task.requires()) for name in parent.to_str_params(only_significant=True)}
    if damage := files.damage(task.folder) if task.folder.is_dir() else "":
        return [f"its output is damaged: {damage}"]
    earlier = [manifest for manifest in map(files.read_manifest, _outputs(task)) if manifest]
    if data := ours["parameters"].get("data"):
        earlier = [manifest for manifest in earlier if manifest.get("data") == data]
    earlier.sort(key=lambda manifest: str(manifest.get("finished", "")), reverse=True)
    return min((history.differences(ours, manifest, inherited) for manifest in earlier), key=len, default=["it never ran"])


def _outputs(task: Artifact) -> list[Path]:
    return [path for path in task.folder.parent.iterdir() if path.is_dir()] if task.folder.parent.is_dir() else []


def rows_and_missing(packed: ComputeBottlenecks, photos: Photos) -> tuple[int, int]:
    """Rows of the packed matrix, and how many of their vectors are not in the cache, by the names of its files."""
    extraction, model = packed.extraction(), packed.requires()[1]
    rows = photos.followed_by(extraction.views_of(photos))
    unique = rows.unique()  # folder by folder of the cache, of which there are 256: listed sooner than a million files are asked for
    if not model.complete():
        return len(rows), len(unique)
    cache = extraction.cache(settings.paths().bottleneck_dir, backbones.load(model.folder))

    @functools.lru_cache(maxsize=2)  # photos, and views of them
    def names_in(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def is_there(row: Photo) -> bool:
        return f"{name_of(row.sha256, row.view)}.npy" in names_in(cache.path(row.sha256, row.view).parent)

    return len(rows), sum(not is_there(rows[row]) for row in unique)


def needs(classifier: ExportGraph, photos: Photos, rows: int, missing: int) -> list[Need]:
    """What the tasks that are not done will write."""
    _, model, packed, trained = classifier.requires()
    paths = settings.paths(classifier.data)
    width, graph = _of_model(model)
    trials = len(trained.learning_rate) * len(trained.weight_decay) * len(trained.label_smoothing)
    checkpoints = trained.max_to_keep or trained.how_many_training_steps // trained.checkpoint_interval
    of_training = disk.training(
        classes=len(photos.labels()[0]), width=width, hidden=trained.hidden_units, candidates=trials, checkpoints=checkpoints
    )
    exported = disk.classifier(graph, len(photos))
    found = [] if model.complete() else [Need("the model", paths.model_dir, 3 * graph)]
    if not packed.complete():
        found.append(Need("vectors", paths.bottleneck_dir, disk.vectors(missing, width)))
    for what, task, size in (
        ("the packed matrix", packed, disk.packed(rows, width)),
        ("checkpoints", trained, of_training),
        ("the classifier", classifier, exported),
    ):
        if not task.complete():
            found.append(Need(what, paths.store, size - _written(task)))
    return [*found, Need("the export", paths.exports, exported)]


def _of_model(model: DownloadModel) -> tuple[int, int]:
    """Width and bytes of the graph of a network, as far as they are known before it is there."""
    if model.complete():
        return backbones.load(model.folder).width, (model.folder / backbones.GRAPH).stat().st_size
    if backbones.is_path(model.model) and Path(model.model).exists():
        return WIDTH, files.size(Path(model.model))
    entry: Any = CATALOGUE.get(model.model)
    return getattr(entry, "width", WIDTH), int(1e6 * (getattr(entry, "megabytes", None) or MODEL_BYTES / 1e6))


def _written(task: Artifact) -> int:
    """Bytes that a run that was stopped has left to go on with."""
    work = settings.paths().work(task.task_family, task.key)
    return sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
