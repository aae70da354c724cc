"""What else could be made of cached vectors: features that the pipeline does not train on, as a table of docs/accuracy.md.

    python -m benchmarks.features --photos data/flowers1000 --seeds 5

Splits, training and comparison are those of the pipeline's defaults; only what the head sees of a photo differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import training
from benchmarks.accuracy import HEADING, Right, row
from pipeline import backbones, bottlenecks, console, dataset, evaluation, final_layer, images, indexing, scan
from pipeline.console import say
from pipeline.dataset import Photo, Photos
from pipeline.errors import UserError
from pipeline.machine import map_in_threads, usable_cores
from pipeline.tensorflow_v1 import session, tf
from pipeline.vector_cache import VectorCache

LITE0, LITE2 = "efficientnet-lite0", "efficientnet-lite2"

EARLIER = ("network/block_4/add:0", "network/block_10/add:0", "network/block_14/add:0")
"""Maps of EfficientNet-Lite0 before its bottleneck, of which the mean over the picture is taken."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder with a folder of photos for each class")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each row, with the seeds 0, 1, … (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as work:
            _run(options.photos, options.seeds, Path(work))
    except UserError as error:
        console.complain(str(error))
        return 30
    return 0


def _run(folder: Path, seeds: int, work: Path) -> None:
    scanned = scan.of_folder(folder, scan.Memory(work / "memory.csv"))
    photos = sorted({photo.sha256: photo for photo in scanned if not photo.problem}.values(), key=dataset.in_order)
    plain, *earlier = features(photos, folder, LITE0, (backbones.BOTTLENECK, *EARLIER), work)
    (lite2,) = features(photos, folder, LITE2, (backbones.BOTTLENECK,), work)
    tried: dict[str, list[list[np.ndarray]]] = {
        "defaults": [[plain]],
        "square root, then L2 norm": [[rooted(plain)]],
        "means of blocks 4, 10 and 14 joined": [[plain, *earlier]],
        "EfficientNet-Lite2 instead": [[lite2]],
        "EfficientNet-Lite2 joined": [[plain, lite2]],
        "mean of the probabilities of two heads, Lite0 and Lite2": [[plain], [lite2]],
    }
    right: dict[str, Right] = {}
    say(HEADING)
    for name, heads in tried.items():
        right[name] = {key: value for seed in range(seeds) for key, value in _named(photos, heads, seed, work).items()}
        say(row(name if len(right) > 1 else "", right[name], right["defaults"]))


def features(photos: Sequence[Photo], folder: Path, model: str, tensors: Sequence[str], work: Path) -> list[np.ndarray]:
    """Some tensors of a network for each photo, float32 [photos, channels] each; of a map, the mean over the picture."""
    backbones.make(model, work / model, work)
    backbone = backbones.load(work / model)
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [])
        given = images.normalise(images.decode_and_resize(encoded, backbone.input_size), backbone.mean, backbone.std)[tf.newaxis]
        graph = backbones.load_graph(work / model, backbones.BOTTLENECK)
        found = tf.import_graph_def(graph, {backbones.INPUT: given}, list(tensors), name="")
        pooled = [tensor[0] if tensor.shape.rank == 2 else tf.reduce_mean(tensor[0], [0, 1]) for tensor in found]
        run = session(threads=usable_cores()).make_callable(pooled, [encoded])
    rows = map_in_threads(lambda photo: run(bottlenecks.read_encoded(photo, folder)), photos)
    return [np.stack(of_all) for of_all in zip(*rows)]


def rooted(vectors: np.ndarray) -> np.ndarray:
    """The square root of each feature, and the vectors made as long as each other: Hellinger's distance becomes Euclid's
    (R. Arandjelović, A. Zisserman, CVPR 2012)."""
    roots = np.sqrt(np.maximum(vectors, 0))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-12))


def joined(parts: Sequence[np.ndarray], training: np.ndarray) -> np.ndarray:
    """Features side by side, each part divided by the deviation that its features have over the training rows."""
    scales = [np.sqrt(part[training].var(axis=0).mean()) for part in parts]
    return np.concatenate([part / scale for part, scale in zip(parts, scales)], axis=1).astype(np.float32)


def _named(photos: Sequence[Photo], heads: Sequence[Sequence[np.ndarray]], seed: int, work: Path) -> Right:
    """Train a head on each of some features; which test photos does the mean of their probabilities name rightly?"""
    split = indexing.split(Photos(photos), testing_percentage=10, validation_percentage=10, seed=seed)
    learned = np.array([photo.split == dataset.TRAINING for photo in split])
    of_heads = [_test_probabilities(split, joined(parts, learned), seed, work) for parts in heads]
    labels = split.labels()[0]
    testing = [photo for photo in split if photo.split == dataset.TESTING]
    named = np.mean(of_heads, axis=0).argmax(axis=1)
    return {(seed, photo.path): labels[number] == photo.label for photo, number in zip(testing, named)}


def _test_probabilities(split: Sequence[Photo], vectors: np.ndarray, seed: int, work: Path) -> np.ndarray:
    """Of the test photos, [photos, classes], by the pipeline's own training."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        cache = VectorCache(Path(scratch) / "vectors", vectors.shape[1])
        for photo, vector in zip(split, vectors):
            cache.write(vector, photo.sha256)
        bottlenecks.pack(split, cache, vectors.shape[1], Path(scratch) / "packed")
        final_layer.train(Path(scratch) / "trained", Path(scratch) / "packed", training.default_options(seed))
        logits = evaluation.read_logits(Path(scratch) / "trained")[dataset.TESTING]
    return evaluation.softmax(logits)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
