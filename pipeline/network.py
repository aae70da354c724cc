"""A backbone behind a call: the bytes of a photo → its vector.

    network = load(folder)
    vector = network(encoded)

On a CPU one graph decodes, resizes, normalises and runs the network, a photo at a time, called from one thread per core:
nothing was faster. On a GPU photos are decoded by many threads and meet in batches.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from pipeline import backbones, images
from pipeline.errors import BadImage, UserError
from pipeline.machine import computes_bfloat16, usable_cores
from pipeline.tensorflow_v1 import has_gpu, session, tf

PRECISIONS = ("float32", "bfloat16", "float16")

BATCH_ON_GPU = 64
SECONDS_TO_WAIT_FOR_A_BATCH = 0.005

AS_IT_IS = np.zeros(0, np.float32)
"""Says that a photo is not distorted, where ``images.Distortions.drawn`` says how it is."""


class Network:
    """Encoded image, and how to distort it → vector, float32 [width]. May be called from ``threads`` threads at once.

    Raises BadImage for an image that TensorFlow cannot decode.
    """

    def __init__(self, run: Callable[[bytes, np.ndarray], np.ndarray], threads: int) -> None:
        self._run = run
        self.threads = threads

    def __call__(self, encoded: bytes, drawn: np.ndarray = AS_IT_IS) -> np.ndarray:
        try:
            return self._run(encoded, drawn)
        except tf.errors.InvalidArgumentError as error:
            raise BadImage(f"cannot be decoded, it is damaged or of a rare kind: {_reason(error.message)}") from None


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
        batch: photos that go through the network together; 1 on a CPU and BATCH_ON_GPU on a GPU, if it is not said.

    Raises UserError for a precision that this machine does not compute in.
    """
    _refuse_precision(precision)
    backbone = backbones.load(folder)
    size = backbone.input_size
    batch = batch or (BATCH_ON_GPU if has_gpu() else 1)

    def vectors(pixels: tf.Tensor) -> tf.Tensor:
        seen, count = images.looks(pixels, average)
        given = images.normalise(seen, backbone.mean, backbone.std)
        (found,) = tf.import_graph_def(backbones.load_graph(folder, output), {backbones.INPUT: given}, [output], name="")
        return images.mean_look(found, count)

    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [], name="image_bytes")
        drawn = tf.placeholder(tf.float32, [None], name="drawn")
        pixels = tf.cond(
            tf.size(drawn) > 0,
            lambda: images.decode_and_distort(encoded, drawn, size),
            lambda: images.decode_and_resize(encoded, size),
        )
        running = session(threads=usable_cores(), precision=precision)
        if batch == 1:
            return Network(running.make_callable(vectors(pixels[tf.newaxis])[0], [encoded, drawn]), usable_cores())
        many = tf.placeholder(tf.float32, [None, size, size, 3])
        prepare = running.make_callable(pixels, [encoded, drawn])
        gather = _Gatherer(running.make_callable(vectors(many), [many]), batch)
        return Network(lambda data, how: gather(prepare(data, how)), 2 * batch)


def _refuse_precision(precision: str) -> None:
    if precision == "bfloat16" and not computes_bfloat16():
        raise UserError("precision = bfloat16: this CPU has no avx512_bf16 or amx_bf16, so it would be slower; take float32")
    if precision == "float16" and not has_gpu():
        raise UserError("precision = float16: there is no GPU; take float32, or bfloat16 on a CPU that has it")


class _Gatherer:
    """Runs in batches what many threads ask for one by one."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], size: int) -> None:
        self._run, self._size = run, size
        self._asked: queue.SimpleQueue[tuple[np.ndarray, Future[np.ndarray]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        answer: Future[np.ndarray] = Future()
        self._asked.put((pixels, answer))
        return answer.result()

    def _work(self) -> None:
        while True:
            asked = [self._asked.get()]
            with contextlib.suppress(queue.Empty):
                while len(asked) < self._size:
                    asked.append(self._asked.get(timeout=SECONDS_TO_WAIT_FOR_A_BATCH))
            try:
                vectors = self._run(np.stack([pixels for pixels, _ in asked]))
            except Exception as error:  # whoever asked has to hear it
                for _, answer in asked:
                    answer.set_exception(error)
            else:
                for (_, answer), vector in zip(asked, vectors):
                    answer.set_result(vector)
