"""The task graph. Each ``make`` puts together what a task has and calls the library; nothing here imports TensorFlow at the top.

FetchImages ─► IndexImages ─┬─► CheckPhotos    ┌─► CheckDrift                    ┌─► ExportTFLite… ─┐
                            ├─► ComputeBottlenecks ─► TrainFinalLayer ─► ExportGraph ─► Gate ─► Report ─► Export
DownloadModel ──────────────┘

ComputeBottlenecks waits for CheckPhotos, and TrainFinalLayer for CheckDrift, without a key that depends on them; where a check
stops the run, the step does not begin.
"""

from __future__ import annotations

import dataclasses
import glob
import heapq
import itertools
import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi
from luigi import worker
from luigi.parameter import ParameterVisibility, UnconsumedParameterWarning
from luigi.util import inherits, requires

from pipeline import (
    artifacts,
    backbones,
    changes,
    checks,
    console,
    dataset,
    files,
    history,
    images,
    indexing,
    luigi_program,
    scan,
    settings,
    sources,
    tensorflow_import,
)
from pipeline.artifacts import Artifact, QuietTask
from pipeline.console import shown
from pipeline.dataset import Photo, Photos
from pipeline.errors import DataMissing, UserError
from pipeline.extraction import PRECISIONS, Extraction
from pipeline.fresh_process import FreshProcess
from pipeline.images import AVERAGES
from pipeline.settings import choice, choices, number, numbers, switch, text, whole_number
from pipeline.vector_cache import VectorCache
from pipeline.words import readable, shortened

if TYPE_CHECKING:
    from pipeline import bottlenecks, final_layer

CHECKING = "pipeline.export.agreement"
"""What the process that checks an export loads. It is started first in a step, while it can be a fork that TensorFlow has not run in."""

MOST_LEARNED = 0.1
"""The share of the test photos that a layer to start from may have learned from: some change sides where a class is small."""


class FolderOfPhotos(QuietTask, luigi.ExternalTask):
    """Photos that only a person can bring: the data set has no archive and its folder is not there."""

    images = luigi.Parameter(positional=False)
    remedy = luigi.Parameter(positional=False, significant=False)

    @property
    def run(self) -> Callable[[], None] | None:
        """None, so that Luigi calls the photos missing. A worker that stays alive would wait for them for ever: there it is a failure."""
        return self._fail if worker.worker().keep_alive else None

    def _fail(self) -> None:
        raise DataMissing(self.problem)

    @property
    def problem(self) -> str:
        folder = Path(self.images)
        lacking = "" if folder.is_dir() else " (it is a file; unpack it)" if folder.is_file() else " (there is no such folder)"
        return f"no photos in {self.images}{lacking}; {self.remedy}"

    def complete(self) -> bool:
        return sources.has_photos(Path(self.images))


class FetchImages(QuietTask):
    """The photos of a data set that names an archive, or is drawn, in its folder; or a note that its fallback stands in."""

    data = luigi.Parameter(positional=False)
    images = luigi.Parameter(positional=False, significant=False)
    allow_fallback = switch(significant=False)

    def complete(self) -> bool:
        return sources.has_photos(Path(self.images)) or fallback_of(self.data, self.allow_fallback) is not None

    def run(self) -> None:
        source = settings.profile(self.data).images
        folder = Path(self.images)
        lock = folder.parent / f".{folder.name}.lock"
        with artifacts.guarded(), files.locked(lock, waiting=lambda who: console.note(f"FetchImages: waiting for {who}")):
            if self.complete():
                return
            files.sweep(folder.parent, glob.escape(folder.name))
            if source.draw_per_class:
                with self.progress("pictures") as report:
                    sources.draw(folder, source.draw_per_class, source.draw_seed, report)
                return
            self._fetch(source, folder)

    def _fetch(self, source: settings.ImageSource, folder: Path) -> None:
        from pipeline import fetch

        try:
            with self.progress("B") as report:
                sources.fetch_archive(source.url, source.sha256, source.bytes, folder, report)
        except fetch.Unreachable as error:
            if not (source.fallback and self.allow_fallback):
                raise UserError(
                    f"the photos of {self.data} cannot be fetched: {error}; try again when the network is back, "
                    f"or put a folder for each class into {folder}"
                ) from None
            fallback = sources.Fallback(source.fallback, str(error), time.time())
            record = settings.paths(self.data).fallback(self.data)
            sources.write_fallback(record, fallback)
            console.warn(
                f"THE PHOTOS OF {self.data} COULD NOT BE FETCHED: {error}. Going on with {source.fallback}, which is another "
                f"data set, and named so in all that comes of it. The network is tried again after {fallback.again}, or once "
                f"{shown(record)} is removed."
            )


def fallback_of(data: str, allowed: bool) -> sources.Fallback | None:
    """What stands in for a data set at the moment, if anything does."""
    return sources.read_fallback(settings.paths(data).fallback(data), time.time()) if allowed else None


class IndexImages(Artifact):
    """The snapshot of a data set's folder, checked and divided into training, validation and testing."""

    VERSION = "3"
    priority = 10  # what is wrong with the photos is said before any network runs

    data = text(
        settings.DATA_NAME,
        settings.DATA_NAME_IN_WORDS,
        default="flowers",
        description="name of the data set: the folder data/NAME and the profile configs/NAME.cfg",
    )
    snapshot = luigi.Parameter(positional=False)
    testing_percentage = number(0.1, 80, default=10.0, description="photos that only measure the result, in percent")
    validation_percentage = number(0.1, 80, default=10.0, description="photos that choose the best step, in percent")
    seed = whole_number(0, 2**31 - 1, default=0, description="seed of the split and of the mini-batches")
    unreadable_limit = number(0, 100, default=20.0, description="stop where more photos than this cannot be used, in percent")

    def make(self, work: Path) -> dict[str, Any]:
        photos = dataset.read_snapshot(settings.paths().snapshot(self.data, self.snapshot), self.snapshot)
        index = self.index_of(photos)
        for line in index.warnings:
            console.warn(f"{self.data}: {line}")
        dataset.write_photos(work / dataset.INDEX, index.photos)
        dataset.write_skipped(work / dataset.SKIPPED, index.skipped)
        figures = indexing.figures(index)
        splits = ", ".join(f"{count} for {split}" for split, count in figures["splits"].items())
        console.note(f"{self.data}: {len(index.photos)} photos in {len(index.labels)} classes, {splits}")
        return {"data": self.data, **figures}

    def index_of(self, photos: Photos) -> indexing.Index:
        return indexing.make_index(
            photos,
            testing_percentage=self.testing_percentage,
            validation_percentage=self.validation_percentage,
            seed=self.seed,
            unreadable_limit=self.unreadable_limit,
        )


class _Check(Artifact):
    """A comparison with the version that was live when the run began.

    Nothing is made of it, so that no key of a training depends on what was live.
    """

    @property
    def live_folder(self) -> Path:
        return settings.paths(self.data).exports / self.data / self.live_version

    def has_kept(self, name: str) -> bool:
        """Whether there is a live version, with a whole file ``name`` in it. Raises UserError where that cannot be said."""
        damage = files.damage(self.live_folder, contents=True, names=[name]) if self.live_version else ""
        if files.UNREADABLE in damage:
            raise UserError(f"{self.live_folder}: {damage}, so the photos cannot be compared; mend that, then run again")
        return bool(self.live_version) and not damage

    def stop(self, stopping: Sequence[str]) -> None:
        """Raise UserError where a check that is in ``stopping`` came to nothing fine."""
        checks.stop([checks.Outcome.of_json(one) for one in self.output().manifest()["checks"]], stopping)

    def say(self, outcomes: Sequence[checks.Outcome], since: dict[str, Any] | None) -> None:
        """Print what a check came to, unless the photos are the same."""
        for outcome in outcomes if since is None or changes.is_any(since) else ():
            if outcome.check in ("unreadable", "duplicates"):
                continue  # IndexImages has said it
            if not outcome.fine:
                console.warn(f"{self.data}: {outcome.sentence}")
            else:
                console.note(f"{self.data}: {outcome.sentence}")


@requires(IndexImages)
class CheckPhotos(_Check):
    """What changed in the photos since the live version, and the checks that need no vectors."""

    VERSION = "2"
    priority = 10

    live_version = luigi.Parameter(default="", positional=False)
    photos_fall_limit = number(
        0, 100, default=50.0, description="the check photos: how many percent fewer photos than the live version had are too few"
    )
    relabelled_limit = number(
        0, 100, default=10.0, description="the check relabelled: percent of the live version's photos that may have another label now"
    )
    class_share_limit = number(
        0, 100, default=10.0, description="the check shares: by how many percentage points the share of a class may have changed"
    )

    def make(self, work: Path) -> dict[str, Any]:
        index = self.requires()
        live = self.live_folder if self.has_kept(changes.PHOTOS) else None
        if self.live_version and not live:
            console.note(f"{self.data}: the photos are not compared: {self.live_version} does not say what its own were")
        photos = dataset.read_photos(index.folder / dataset.INDEX)
        since, outcomes = checks.since(live, photos, index.output().manifest()["skipped"], checks.Limits.of(self))
        self.say(outcomes, since)
        return {"data": self.data, "since": since, "checks": [outcome.as_json() for outcome in outcomes]}


class _AfterCheck(Artifact):
    """A step that begins when a check is through, and not where that stops the run. What it makes does not depend on the check.

    Export does the same, and for what is made already: but it comes last, and with a central scheduler the steps are then done.
    """

    before_it = luigi.DictParameter(default={}, positional=False, significant=False, visibility=ParameterVisibility.HIDDEN)

    def check(self) -> _Check:
        raise NotImplementedError

    def _requires(self) -> list[luigi.Task]:
        """What Luigi runs first, whereas ``requires`` is what goes into the key."""
        return [*super()._requires(), *([self.check()] if self.before_it else [])]

    def run(self) -> None:
        if self.before_it and (check := self.check()).complete():  # not where a later run mends what was made
            check.stop(self.before_it["stop_on"])
        super().run()


class DownloadModel(Artifact):
    """A backbone: frozen graph, checkpoint and description."""

    VERSION = "3"

    model = luigi.Parameter(
        default="efficientnet-lite0",
        positional=False,
        significant=False,
        description="the pretrained network: a name (python -m pipeline models list), a path, an address or a TensorFlow Hub handle "
        "(efficientnet-lite0 by default)",
    )
    model_identity = luigi.Parameter(positional=False)
    model_input = luigi.Parameter(
        default="", positional=False, description="tensor of the model that takes the images, if it is not guessed"
    )
    model_bottleneck = luigi.Parameter(default="", positional=False, description="tensor (of a Keras model: layer) with the features")
    model_logits = luigi.Parameter(
        default="",
        positional=False,
        description="tensor (of a Keras model: layer or output) with the logits of the classes it was trained on",
    )
    model_size = whole_number(0, 10_000, default=0, description="pixels a side that the model takes; 0 is what it says")
    model_mean = number(-1e6, 1e6, default=None, description="pixels are normalised by (x - mean) / std")
    model_std = number(1e-6, 1e6, default=None, description="pixels are normalised by (x - mean) / std")

    @property
    def folder(self) -> Path:
        return settings.paths().model_dir / f"{backbones.short_name(self.model)}-{self.key}"

    def make(self, work: Path) -> dict[str, Any]:
        described = backbones.Description(
            self.model_input, self.model_bottleneck, self.model_logits, self.model_size, self.model_mean, self.model_std
        )
        with self.progress("B") as report:
            backbone, guessed = backbones.make(self.model, work, settings.paths().store / "downloads", described, report)
        if backbones.is_path(self.model) and backbones.identify(self.model) != self.model_identity:
            raise UserError(f"model = {self.model} changed while it was read; run again")
        if guessed:
            console.warn(f"{backbone.name}: guessed from the model: {', '.join(guessed)}; say otherwise with the parameters of these names")
        return {"backbone": dataclasses.asdict(backbone), "guessed": guessed}


def absolute_model(model: str) -> str:
    """A model's path made absolute, for a worker that may stand elsewhere; a name or an address as it is."""
    return str(Path(model).expanduser().resolve()) if backbones.is_path(model) else model


@requires(IndexImages, DownloadModel)
class ComputeBottlenecks(_AfterCheck):
    """The vectors of all photos, cached one by one and packed into a matrix."""

    VERSION = "2"

    images = luigi.Parameter(default="", positional=False, significant=False, description="folder of the photos, if it is not data/NAME")
    precision = choice(
        PRECISIONS,
        default="float32",
        description="arithmetic in the network; bfloat16 is twice as fast on CPUs that have it, float16 on GPUs, both a little less exact",
    )
    average_views = choice(
        AVERAGES,
        default="none",
        description="looks at a photo whose mean its bottleneck is, in training and in the export; 1, 2 or 10 times the work",
    )
    flip_left_right = switch(default=False, description="train on distorted views too: mirror half of them")
    random_crop = number(0, 90, default=0.0, description="distorted views: percent of margin that is cut off")
    random_scale = number(0, 100, default=0.0, description="distorted views: percent they are enlarged by at most")
    random_brightness = number(0, 100, default=0.0, description="distorted views: percent of brightness up or down")
    random_rotation = number(0, 180, default=0.0, description="distorted views: degrees they are turned by at most, to either side")
    random_colour = number(0, 100, default=0.0, description="distorted views: percent of colour more or less")
    distorted_views = whole_number(1, 1000, default=8, description="distorted views of each training photo, if there are to be any")

    def make(self, work: Path) -> dict[str, Any]:
        from pipeline import bottlenecks

        index_task, model_task = self.requires()
        photos = dataset.read_photos(index_task.folder / dataset.INDEX)
        skipped = dataset.read_skipped(index_task.folder / dataset.SKIPPED)
        backbone = backbones.load(model_task.folder)
        extraction = self.extraction()
        cache = extraction.cache(settings.paths().bottleneck_dir, backbone)
        fills = [self._fill(photos, cache, extraction)]
        while True:  # with fewer photos each time, where one of them has no view
            index = self._index_without({path: problem for filled in fills for path, problem in filled.problems.items()}, photos, skipped)
            views = extraction.views_of(index.photos)
            fills.append(self._fill(views, cache, extraction))
            if not fills[-1].problems:
                break
        for line in index.warnings:
            if line not in index_task.output().manifest()["warnings"]:  # these are said already
                console.warn(f"{self.data}: {line}")
        changed = [path for filled in fills for path in filled.changed]
        self._mark_as_torn(changed)
        dataset.write_skipped(work / dataset.SKIPPED, index.skipped)
        with self.progress("rows") as report:
            bottlenecks.pack(index.photos.followed_by(views), cache, backbone.width, work, report)
        computed_views = sum(filled.computed for filled in fills[1:])
        return {
            "data": self.data,
            "vectors": {
                extraction.key(backbone): {"computed": fills[0].computed, "cached": fills[0].cached},
                **({extraction.views_key(backbone): {"computed": computed_views, "cached": fills[1].cached}} if views else {}),
            },
            "computed": fills[0].computed + computed_views,
            "cached": fills[0].cached + fills[1].cached,
            "damaged": fills[0].damaged + fills[1].damaged,
            "views": len(views),
            "changed": len(changed),
            **indexing.figures(index),
        }

    def _index_without(self, problems: dict[str, str], photos: Photos, skipped: Sequence[Photo]) -> indexing.Index:
        """The photos checked and divided once more: one that failed only now may have been the last of its class in its split."""
        found = (photo._replace(split="", problem=problems.get(photo.path, "")) for photo in photos)
        return self.requires()[0].index_of(Photos(heapq.merge(found, skipped, key=dataset.in_order)))

    @property
    def is_torn(self) -> bool:
        """Whether the output lacks photos that a run could not read as they were when it began."""
        return settings.paths().torn(self.key).exists()

    def _mark_as_torn(self, changed: list[str]) -> None:
        """Mark the output as lacking photos, so that a later run that finds them as they were makes another.

        Where it lacks none, a mark that an earlier try left goes.
        """
        paths = settings.paths(self.data)
        torn = paths.torn(self.key)
        if not changed:
            torn.unlink(missing_ok=True)
            return
        scan.Memory(paths.scan(self.data)).forget(changed)
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.touch()

    def _fill(self, rows: Photos, cache: VectorCache, extraction: Extraction) -> bottlenecks.Filled:
        """Compute what the cache lacks of ``rows``, and say what that came to."""
        from pipeline import bottlenecks, network

        started = time.time()

        def load() -> network.Network:
            nonlocal started
            started = time.time()  # looking through the cache is over
            if lacking := network.unused_gpu():
                console.note(f"computing on the CPU: {lacking}")
            return network.load(self.requires()[1].folder, precision=self.precision, average=self.average_views)

        if not rows:
            return bottlenecks.Filled(0, 0, 0, [], {}, [])
        unit = "views" if rows[0].view else "photos"
        with self.progress("cached vectors") as checked, self.progress(unit) as report:
            filled = bottlenecks.compute(rows, Path(self.images), load, cache, drawn=extraction.drawn, checked=checked, report=report)
        rate = f", {filled.computed / (time.time() - started):.0f} a second" if filled.computed else ""
        of_them = f" ({filled.different} different)" if filled.different != len(rows) else ""
        console.note(f"bottlenecks of {len(rows)} {unit}{of_them}: {filled.cached} from the cache, {filled.computed} computed{rate}")
        if filled.damaged:
            named = shortened([readable(path) for path in filled.damaged])
            console.warn(f"the vectors of {len(filled.damaged)} {unit} were damaged on disk and made again: {named}")
        return filled

    def check(self) -> CheckPhotos:
        return self.clone(CheckPhotos, **self.before_it)

    def statistics(self) -> checks.ClassStatistics:
        """Of the vectors of each class."""
        return checks.statistics(self.folder, next(iter(self.output().manifest()["vectors"])))

    def extraction(self) -> Extraction:
        """How photos become vectors, from the parameters."""
        distortions = images.Distortions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(images.Distortions)})
        views = self.distorted_views if distortions != images.NO_DISTORTIONS else 0
        return Extraction(self.precision, self.average_views, views, distortions, self.seed)


@requires(CheckPhotos, ComputeBottlenecks)
class CheckDrift(_Check):
    """How far the vectors of each class have moved since the live version. Its manifest says what CheckPhotos found, too."""

    VERSION = "1"

    drift_limit = number(
        0,
        1e6,
        default=0.2,
        description="the check drift: how far the vectors of a class may have moved; 1 is as far as its photos lie apart",
    )

    def make(self, work: Path) -> dict[str, Any]:
        photos, packed = self.requires()
        found = photos.output().manifest()
        outcomes = []
        if self.live_version and not self.has_kept(checks.STATISTICS):
            console.note(f"{self.data}: the vectors are not compared: {self.live_version} has no statistics of its own")
        elif self.live_version:
            theirs = checks.ClassStatistics.read(self.live_folder / checks.STATISTICS)
            outcomes = [checks.of_vectors(packed.statistics(), theirs, self.live_version, self.drift_limit)]
        self.say(outcomes, found["since"])
        return {"data": self.data, "since": found["since"], "checks": [*found["checks"], *(outcome.as_json() for outcome in outcomes)]}


@requires(ComputeBottlenecks, DownloadModel)
class TrainFinalLayer(_AfterCheck):
    """The final layer, trained on the packed bottlenecks."""

    VERSION = "4"

    how_many_training_steps = whole_number(1, 10**8, default=4000, description="mini-batches to train on")
    train_batch_size = whole_number(1, 2**16, default=100, description="photos in a mini-batch")
    learning_rate = numbers(
        1e-9,
        1e3,
        default=(0.03,),
        description="learning rate; where it, weight_decay or label_smoothing has several "
        "values, each combination is trained, and the best on validation is kept",
    )
    weight_decay = numbers(0, 1e3, default=(0.001, 0.003, 0.01), description="L2 penalty on the weights")
    label_smoothing = numbers(0, 0.9, default=(0.0,), description="share of the truth that is spread over all classes")
    optimizer = choice(("sgd", "momentum", "adam"), default="momentum", description="kind of gradient descent")
    learning_rate_schedule = choice(
        ("constant", "cosine", "step"), default="constant", description="how the learning rate changes with the steps"
    )
    dropout = number(0, 0.95, default=0.0, description="share of the features that a step does not see")
    hidden_units = whole_number(0, 2**16, default=0, description="units of a hidden layer before the last; 0 is none")
    class_weights = choice(
        ("none", "balanced"), default="none", description="balanced: each class weighs the same, however many photos it has"
    )
    patience = whole_number(0, 10**6, default=0, description="looks without a better result before training stops; 0 is never")
    eval_step_interval = whole_number(1, 10**8, default=50, description="steps between looks at the validation photos")
    checkpoint_interval = whole_number(1, 10**8, default=200, significant=False, description="steps between checkpoints")
    max_to_keep = whole_number(0, 10**6, default=5, significant=False, description="checkpoints of the training that are kept; 0 is all")
    keep_checkpoint_every_n_hours = number(
        1e-6, 1e6, default=10_000.0, significant=False, description="keep a checkpoint for good for each so many hours of training"
    )
    init_from = luigi.Parameter(
        default="", positional=False, significant=False, description="folder of an export whose final layer the training starts from"
    )
    init_from_key = luigi.Parameter(default="", positional=False)

    def make(self, work: Path) -> dict[str, Any]:
        from pipeline import evaluation, final_layer, summaries

        names = [field.name for field in dataclasses.fields(final_layer.Options)]
        options = final_layer.Options(**{name: getattr(self, name) for name in names})
        packed, model_task = self.requires()
        with self.progress("steps") as report:
            result = final_layer.train(work, packed.folder, options, report, self._start())
        size = backbones.load(model_task.folder).input_size
        summaries.write_pictures(
            work / final_layer.SUMMARIES,
            packed.folder,
            result.labels,
            evaluation.read_logits(work),
            Path(self.images),
            summaries.seeing(size, packed.extraction().drawn),
            self.seed,
        )
        return {
            "data": self.data,
            **dataclasses.asdict(result),
            **dataclasses.asdict(result.best),
            "test_accuracy": result.test_accuracy,
        }

    def check(self) -> CheckDrift:
        return self.clone(CheckDrift, **self.before_it)

    def _start(self) -> final_layer.Start | None:
        """The final layer to start from. Raises UserError where it belongs to another network."""
        from pipeline import final_layer

        if not self.init_from:
            return None
        export = Path(self.init_from)
        if damage := files.damage(export, contents=True):
            raise UserError(f"init_from = {export} is damaged ({damage}); name another export")
        manifest = files.read_json(export / files.MANIFEST)
        ours = backbones.load(self.requires()[1].folder)
        if manifest["backbone"]["graph_sha256"] != ours.graph_sha256:
            there = backbones.Backbone(**manifest["backbone"])
            raise UserError(
                f"init_from = {export}: it was trained on {there.name} at {there.input_size} pixels, and this is {ours.name} at "
                f"{ours.input_size}, another graph; name an export of the same model, at the same size"
            )
        self._refuse_learned_tests(export)
        return final_layer.Start.read(export, manifest["labels"])

    def _refuse_learned_tests(self, export: Path) -> None:
        """Raise UserError where many test photos are none to the layer that is started from: another seed divides them otherwise."""
        index = self.requires()[0].folder / dataset.INDEX
        testing = [photo for photo in dataset.each_photo(index) if photo.split == dataset.TESTING]
        learned = changes.learned(export, testing)
        said = f"init_from = {export}: it has learned from {learned} of the {len(testing)} test photos"
        if learned > MOST_LEARNED * len(testing):
            raise UserError(
                f"{said}, so that their accuracy would say nothing; divide the photos as it did "
                "(seed, testing_percentage, validation_percentage), or name another export"
            )
        if learned:
            console.warn(f"{said}; the test accuracy is that much too good at most")


@requires(IndexImages, DownloadModel, ComputeBottlenecks, TrainFinalLayer)
class ExportGraph(Artifact):
    """Backbone and final layer joined, frozen and checked: a graph and a SavedModel."""

    VERSION = "2"

    final_tensor_name = text(
        r"(?!(?:image|image_bytes|bottleneck)$)[A-Za-z0-9.][A-Za-z0-9_.\-]*",
        "a name of letters, digits, '_', '.' and '-' other than image, image_bytes and bottleneck",
        default="final_result",
        description="name of the output in the graph",
    )

    def make(self, work: Path) -> dict[str, Any]:
        _, model_task, packed, training = self.requires()
        with FreshProcess(CHECKING) as fresh, self.progress("answers") as report:
            from pipeline import export

            graph = export.export(
                work,
                model_task.folder,
                training.folder,
                packed.folder,
                Path(self.images),
                fresh=fresh,
                final_tensor_name=self.final_tensor_name,
                average_views=self.average_views,
                precision=self.precision,
                report=report,
            )
        trained = training.output().manifest()
        of_candidate = ("best_step", "validation_loss", "validation_accuracy", "learning_rate", "weight_decay", "label_smoothing")
        kept = (*of_candidate, "test_count", "test_correct", "test_accuracy", "test_interval")
        counted = ("photos", "classes", "splits", "skipped", "reencoded_count", "reencoded")
        return {
            "data": self.data,
            "snapshot": self.snapshot,
            "photos_licence": settings.profile(self.data).images.licence,
            **graph,
            "backbone": dataclasses.asdict(backbones.load(model_task.folder)),
            **{name: trained[name] for name in kept},
            **{name: packed.output().manifest()[name] for name in counted},
            "timings": {task.task_family: task.output().manifest()["seconds"] for task in self.requires()},
        }


@requires(ComputeBottlenecks, TrainFinalLayer, ExportGraph)
class ExportTFLite(Artifact):
    """The classifier for TensorFlow Lite. Subclasses say of which ``KIND``."""

    VERSION = "1"
    KIND: str

    def make(self, work: Path) -> dict[str, Any]:
        packed, training, classifier = self.requires()
        with FreshProcess(CHECKING) as fresh, self.progress("answers") as report:
            from pipeline import export
            from pipeline.export import tflite

            said = tflite.export(
                work,
                self.KIND,
                fresh=fresh,
                graph=classifier.folder / export.GRAPH,
                final_tensor_name=self.final_tensor_name,
                packed=packed.folder,
                training=training.folder,
                photos=Path(self.images),
                precision=self.precision,
                report=report,
            )
        if said["problem"]:
            console.warn(f"{said['file']} is not published: {said['problem']}")
        return {"data": self.data, "formats": {f"tflite-{self.KIND}": said}}


class ExportTFLiteFloat32(ExportTFLite):
    """The classifier for TensorFlow Lite, as the graph computes."""

    KIND = "float32"


class ExportTFLiteFloat16(ExportTFLite):
    """The classifier for TensorFlow Lite, its weights in half the bytes."""

    KIND = "float16"


class ExportTFLiteInt8(ExportTFLite):
    """The classifier for TensorFlow Lite, in whole numbers."""

    KIND = "int8"


FORMATS = {f"tflite-{task.KIND}": task for task in (ExportTFLiteFloat32, ExportTFLiteFloat16, ExportTFLiteInt8)}
"""What is exported on request, by the name that it is asked for with."""


@requires(IndexImages, DownloadModel, ComputeBottlenecks, TrainFinalLayer, ExportGraph)
class Gate(Artifact):
    """The verdict on a classifier: whether it may take the live one's place."""

    VERSION = "1"

    gate = switch(default=True, description="judge a classifier before it goes live; false publishes whatever comes out")
    gate_minimum_accuracy = number(0, 100, default=0.0, description="accuracy on the test photos that it must have, in percent")
    gate_margin = number(0, 100, default=2.0, description="points of accuracy that it may lie below the live one on the same photos")
    gate_class_margin = number(0, 100, default=10.0, description="the same for each class: points of its recall")
    gate_significance = number(
        0, 1, default=0.2, description="a difference counts where chance gives one like it less often (McNemar's test, one-sided)"
    )
    gate_lost_labels = switch(default=False, description="whether a class of the live one may be missing")
    gate_megabytes = number(0, 1e6, default=0.0, description="size of its graph at most; 0 is any")
    gate_milliseconds = number(0, 1e6, default=0.0, description="time for a photo at most, one at a time on this machine; 0 is any")
    live = luigi.Parameter(default="", positional=False, significant=False)
    live_key = luigi.Parameter(default="", positional=False)

    def make(self, work: Path) -> dict[str, Any]:
        verdict = self._verdict() if self.gate else NOT_JUDGED
        return {"data": self.data, "verdict": {**verdict, "live": Path(self.live).name, "live_key": self.live_key}}

    def _verdict(self) -> dict[str, Any]:
        from pipeline import export, gate
        from pipeline.classifier import load

        _, model_task, packed, training, classifier = self.requires()
        says = classifier.output().manifest()
        photos = Path(self.images)
        milliseconds = None
        if self.gate_milliseconds:
            testing = (photo for photo in dataset.each_photo(packed.folder / dataset.INDEX) if photo.split == dataset.TESTING)
            timed = list(itertools.islice(testing, gate.TIMED_PHOTOS))
            milliseconds = gate.milliseconds_a_photo(load(classifier.folder, batch=1), timed, photos)
        rival = None
        if self.live:
            live = files.read_json(Path(self.live) / files.MANIFEST)
            same = ("precision", "average_views")
            with self.progress("photos") as report:
                rival = gate.measure_rival(
                    Path(self.live),
                    packed.folder,
                    training.folder,
                    photos,
                    says["labels"],
                    same_vectors=live["parents"]["DownloadModel"] == model_task.key
                    and all(live["parameters"].get(name) == says["parameters"][name] for name in same),
                    load=load,
                    progress=report,
                )
        names = {field.name: getattr(self, f"gate_{field.name}") for field in dataclasses.fields(gate.Limits)}
        megabytes = (classifier.folder / export.GRAPH).stat().st_size / 1e6
        measured = gate.Measured(says["test_correct"], says["test_count"], says["labels"], megabytes, milliseconds)
        verdict = gate.judge(gate.Limits(**names), measured, rival)
        return {**verdict.as_json(), "words": verdict.words}


NOT_JUDGED = {"accepted": True, "against": [], "findings": [], "words": "accepted without being judged, as gate = false says"}


@inherits(Gate)
class Report(Artifact):
    """What the classifier is worth: its figures on the test photos, a page and a model card; and what the next run compares with."""

    VERSION = "2"

    checked = luigi.Parameter(default="", positional=False, significant=False)
    formats = choices(tuple(FORMATS), default=(), description="formats to export beside the graph and the SavedModel")

    def requires(self) -> list[Artifact]:
        steps = (IndexImages, DownloadModel, ComputeBottlenecks, TrainFinalLayer, ExportGraph, Gate)
        return [*map(self.clone, steps), *self.exported_formats]

    @property
    def exported_formats(self) -> list[Artifact]:
        """The tasks that make the formats that are wanted."""
        return [self.clone(FORMATS[name]) for name in self.formats]

    def make(self, work: Path) -> dict[str, Any]:
        from pipeline import report

        index, _, packed, training, classifier, judged, *formats = self.requires()
        changes.write_photos(work / changes.PHOTOS, self._photos(index, packed))
        packed.statistics().write(work / checks.STATISTICS)
        checked = (files.read_manifest(Path(self.checked)) if self.checked else None) or {}
        found = {"since": checked.get("since"), "checks": checked.get("checks", [])}
        made = report.of_training(
            work,
            packed=packed.folder,
            training=training.folder,
            classifier=classifier.folder,
            formats=[task.folder for task in formats],
            photos=Path(self.images),
            origin=report.Origin(
                data=self.data,
                drawn=self.data if settings.profile(self.data).images.draw_per_class else "",
                settings=self.settings,
                command=self.command,
                timings={task.task_family: task.output().manifest()["seconds"] for task in self.requires()},
                warnings=packed.output().manifest()["warnings"],
                live=Path(self.live) if self.live else None,
                verdict=judged.output().manifest()["verdict"],
                **found,
            ),
        )
        return {**made, **found}

    @staticmethod
    def _photos(index: Artifact, packed: Artifact) -> Iterator[Photo]:
        """The photos that the next run's are compared with: those of the index, but for what went away meanwhile.

        Their splits are those of the training, which were made anew where a photo failed.
        """
        changed = packed.output().manifest()["changed"]
        trained = dataset.each_photo(packed.folder / dataset.INDEX)
        following = next(trained, None)
        for photo in dataset.each_photo(index.folder / dataset.INDEX):
            if following and dataset.in_order(following) == dataset.in_order(photo):
                yield following
                following = next(trained, None)
            elif not changed:
                yield photo

    @property
    def settings(self) -> list[tuple[str, str, bool]]:
        """Name, value, and whether it is the default, of all that a person can set."""
        handed_down = {*history.HANDED_DOWN, "live", "checked", "before_it"}
        found = {"images": str((settings.paths(self.data).image_dir / self.data).resolve())}  # where nobody named another folder
        return [
            (name, parameter.serialize(value := getattr(self, name)), value in (parameter._default, found.get(name, parameter._default)))
            for name, parameter in self.get_params()
            if name not in handed_down and getattr(self, name) is not None
        ]

    @property
    def command(self) -> str:
        """What makes the classifier again, in a project whose own settings are as they were."""
        given = {name: value for name, value, is_default in self.settings if not is_default or name == "data"}
        options = [part for name, value in sorted(given.items()) for part in (f"--{name.replace('_', '-')}", value)]
        return f"{luigi_program.EXPORT} {shlex.join(options)}"


# --- What is loaded, and when ---------------------------------------------------------------------------------------


@ComputeBottlenecks.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
@TrainFinalLayer.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
@ExportGraph.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
@ExportTFLite.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
@Gate.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _import_tensorflow(task: luigi.Task, _: luigi.Task) -> None:
    """In the ``luigi`` program, before the first step that needs it is forked: it takes seconds in each step otherwise.

    Not in other programs: they may be threaded, and Luigi swallows a KeyboardInterrupt here.
    """
    if luigi_program.is_running():
        tensorflow_import.load_for_forks()


# --- What is said, and when -----------------------------------------------------------------------------------------


@FolderOfPhotos.event_handler(luigi.Event.DEPENDENCY_MISSING)
def _say_missing(task: FolderOfPhotos) -> None:
    console.complain(task.problem)


@luigi.Task.event_handler(luigi.Event.FAILURE)
def _say_failure(task: luigi.Task, error: BaseException) -> None:
    if isinstance(error, UserError):
        console.complain(str(error))


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)
def _say_process_failure(task: luigi.Task, message: str) -> None:
    console.complain(
        f"{task.task_family} was killed ({message.rpartition(' with ')[2]}; out of memory?); run again: it goes on where it was"
    )


def _matters(record: logging.LogRecord) -> bool:
    """Luigi's log without what is said above in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, UserError) and "is an external data dependency" not in record.getMessage()


if luigi_program.is_running():
    console.take_over(results_matter=False)
    luigi_program.say_in_one_line()
logging.getLogger("luigi-interface").addFilter(_matters)
warnings.filterwarnings("ignore", category=UnconsumedParameterWarning)  # Export.check makes it an error
