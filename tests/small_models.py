"""What the tests of pretrained models share: small pictures and weights, and the vectors of a backbone made from a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import backbones
from pipeline.backbones import frozen
from pipeline.backbones.frozen import Description
from pipeline.tensorflow_v1 import session, tf

SIZE, WIDTH, CLASSES = 32, 6, 4
TOLERANCE = 1e-5
"""For the vectors of the same weights run by two graphs: single-precision arithmetic in another order."""


AT_SIZE = Description(size=SIZE)


def images(count: int = 3) -> np.ndarray:
    """Pixels in 0..255, [count, SIZE, SIZE, 3]."""
    return np.random.default_rng(0).uniform(0, 255, (count, SIZE, SIZE, 3)).astype(np.float32)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).normal(0, 0.5, shape).astype(np.float32)


def make(model: Path | str, tmp_path: Path, described: Description = frozen.NOTHING_SAID) -> tuple[Path, list[str]]:
    folder = tmp_path / "backbone"
    _, guessed = backbones.make(str(model), folder, tmp_path / "downloads", described)
    return folder, guessed


def vectors(folder: Path, pixels: np.ndarray, output: str = backbones.BOTTLENECK) -> np.ndarray:
    """What the backbone in ``folder`` gives, from its frozen graph; its checkpoint has to agree."""
    backbone = backbones.load(folder)
    batch = (pixels - backbone.mean) / backbone.std
    with tf.Graph().as_default(), session(threads=1) as running:
        tf.import_graph_def(backbones.load_graph(folder, output), name="")
        result = running.run(output, {backbones.INPUT: batch})
    latest = tf.train.latest_checkpoint(str(folder))
    with tf.Graph().as_default(), session(threads=1) as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        (given,) = tf.get_collection("input")
        np.testing.assert_allclose(running.run(output, {given: batch}), result, rtol=TOLERANCE, atol=TOLERANCE)
        assert tf.trainable_variables()
    return result


def assert_same(folder: Path, native: np.ndarray, output: str = backbones.BOTTLENECK) -> None:
    """Batch and single images give the model's own vectors."""
    together = vectors(folder, images(), output)
    np.testing.assert_allclose(together, native, rtol=TOLERANCE, atol=TOLERANCE)
    for i, image in enumerate(images()):
        np.testing.assert_allclose(vectors(folder, image[None], output)[0], native[i], rtol=TOLERANCE, atol=TOLERANCE)
