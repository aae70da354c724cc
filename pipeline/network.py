"""A backbone behind a call: the bytes of photos → their vectors.

    network = load(folder)
    vector = network(encoded)

One graph decodes, resizes, normalises and runs the network, on a few photos at once, an op to a core. On a CPU that is the
fastest way; on a GPU the same with more photos at once, so that some are decoded while others are on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline import backbones, images
from pipeline.errors import BadImage, UserError
from pipeline.images import AS_IT_IS
from pipeline.machine import computes_bfloat16, usable_cores
from pipeline.tensorflow_v1 import has_gpu, session, tf

PRECISIONS = ("float32", "bfloat16", "float16")

BATCH_ON_CPU, BATCH_ON_GPU = 4, 64
"""Photos at once. On a CPU the weights are then read from memory once for four photos, which takes a tenth off the time."""

Run = Callable[..., np.ndarray]
"""As many encoded images as a batch has, then how each is distorted → vectors, float32 [batch, width]."""


class Network:
    """Encoded images → vectors, float32 [width] each. May be called from several threads at once.

    A batch is always full, where need be with an image several times: so an image's vector depends on nothing else.
    """

    def __init__(self, run: Run, *, batch: int, threads: int) -> None:
        """``threads`` is from how many threads it is called to be fastest."""
        self._run = run
        self.batch, self.threads = batch, threads

    def __call__(self, encoded: bytes, drawn: np.ndarray = AS_IT_IS) -> np.ndarray:
        """The vector of one image. Raises BadImage where TensorFlow cannot decode it."""
        (found,) = self.vectors([encoded], [drawn])
        if isinstance(found, BadImage):
            raise found
        return found

    def vectors(self, encoded: list[bytes], drawn: list[np.ndarray]) -> list[np.ndarray | BadImage]:
        """The vectors of up to ``batch`` images, or why there is none; ``drawn`` is AS_IT_IS or ``Distortions.drawn`` of each."""
        missing = self.batch - len(encoded)
        try:
            found = self._run(*encoded, *encoded[-1:] * missing, *drawn, *drawn[-1:] * missing)
            return list(found[: len(encoded)])
        except tf.errors.InvalidArgumentError as error:
            if len(encoded) == 1:
                return [BadImage(f"cannot be decoded, it is damaged or of a rare kind: {_reason(error.message)}")]
            return [self.vectors([one], [how])[0] for one, how in zip(encoded, drawn)]


def _reason(message: str) -> str:
    """What went wrong, without TensorFlow's lines before it that say where in the graph."""
    lines = message.partition("[[{{")[0].split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no reason given")


def load(
    folder: Path, output: str = backbones.BOTTLENECK, *, precision: str = "float32", average: str = "none", batch: int | None = None
) -> Network:
    """The backbone in ``folder`` as a Network.

    Args:
        output: the tensor that comes out: the bottleneck, or the probabilities of the classes it was trained on.
        precision: of the arithmetic in the network, of PRECISIONS; vectors are float32 always.
        average: the looks at a photo of which the vector is the mean, of ``images.AVERAGES``.
        batch: photos that go through the network together, if not as many as are best on this machine.

    Raises UserError for a precision that this machine does not compute in.
    """
    _refuse_precision(precision)
    backbone = backbones.load(folder)
    batch = batch or (BATCH_ON_GPU if has_gpu() else BATCH_ON_CPU)
    with tf.Graph().as_default():
        encoded = [tf.placeholder(tf.string, []) for _ in range(batch)]
        drawn = [tf.placeholder(tf.float32, [None]) for _ in range(batch)]
        pixels = tf.stack([images.decode_view(one, how, backbone.input_size) for one, how in zip(encoded, drawn)])
        seen, count = images.looks(pixels, average)
        given = images.normalise(seen, backbone.mean, backbone.std)
        (found,) = tf.import_graph_def(backbones.load_graph(folder, output), {backbones.INPUT: given}, [output], name="")
        running = session(threads=usable_cores(), precision=precision)
        run = running.make_callable(images.mean_look(found, count), [*encoded, *drawn])
    # Twice as many callers as cores: one reads and writes files while another has the core.
    return Network(run, batch=batch, threads=2 * usable_cores())


def of_graph(
    graph: tf.GraphDef,
    *,
    given: str,
    output: str,
    size: int,
    mean: float = 0.0,
    std: float = 1.0,
    half_pixel_centers: bool = True,
    batch: int | None = None,
) -> Network:
    """A frozen graph as a Network.

    Args:
        given: the tensor that takes the images, float32 [batch, size, size, 3] of (pixels - mean) / std.
        output: the tensor that comes out, [batch, width].
        half_pixel_centers: how photos are resized, see ``images.decode_and_resize``.
        batch: as of ``load``.
    """
    batch = batch or (BATCH_ON_GPU if has_gpu() else BATCH_ON_CPU)
    with tf.Graph().as_default():
        encoded = [tf.placeholder(tf.string, []) for _ in range(batch)]
        pixels = tf.stack([images.decode_and_resize(one, size, half_pixel_centers=half_pixel_centers) for one in encoded])
        (found,) = tf.import_graph_def(graph, {given: images.normalise(pixels, mean, std)}, [output], name="")
        run = session(threads=usable_cores()).make_callable(found, encoded)
    return Network(lambda *fed: run(*fed[:batch]), batch=batch, threads=2 * usable_cores())


def decoder(size: int) -> Callable[[bytes], np.ndarray]:
    """A call: encoded image → pixels, float32 [size, size, 3] in 0..255, as they come before ``normalise``."""
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [])
        pixels = images.decode_and_resize(encoded, size)
        run: Callable[[bytes], np.ndarray] = session(threads=usable_cores()).make_callable(pixels, [encoded])
    return run


def _refuse_precision(precision: str) -> None:
    if precision == "bfloat16" and not computes_bfloat16():
        raise UserError("precision = bfloat16: this CPU has no avx512_bf16 or amx_bf16, so it would be slower; take float32")
    if precision == "float16" and not has_gpu():
        raise UserError("precision = float16: there is no GPU; take float32, or bfloat16 on a CPU that has it")
