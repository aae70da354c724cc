"""A backbone behind a call: the bytes of photos → their vectors.

    network = load(folder)
    vector = network(encoded)

One graph decodes, resizes, normalises and runs the network, on a few photos at once, an op to a core. On a CPU that is the
fastest way, with the early layers on each photo by itself; on a GPU the same with more photos at once, and all of them
together from the start, so that some are decoded while others are on the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipeline import backbones, images
from pipeline.backbones.frozen import as_type
from pipeline.backbones.graphs import node_of, type_fed
from pipeline.errors import BadImage, UserError
from pipeline.images import AS_IT_IS
from pipeline.machine import computes_bfloat16, has_nvidia, usable_cores
from pipeline.tensorflow_v1 import has_gpu, placed_on, session, tf

BATCH_ON_CPU, BATCH_ON_GPU = 8, 64
"""Photos at once."""

CALLERS_ON_GPU = 4
"""While one waits for the GPU the others read, decode and write; more are in each other's way, and take GPU memory."""

NARROW = 16
"""A map this many times narrower than the image takes less memory than the weights around it."""

Run = Callable[..., np.ndarray]
"""As many encoded images as a batch has, then how each is distorted → vectors, float32 [batch, width]."""


class Network:
    """Encoded images → vectors, float32 [width] each. May be called from several threads at once.

    A batch is always full, where need be with an image several times: so an image's vector depends on nothing else.
    """

    def __init__(self, run: Run, *, batch: int, threads: int, decode: Callable[..., object] = lambda *one: None) -> None:
        """``threads`` is from how many threads it is called to be fastest, ``decode`` the first part of ``run``, for one image."""
        self._run, self._decode = run, decode
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
                return [_bad(error)]
        # Each is decoded by itself, and the good ones go on together; one by one if decoding is not what failed.
        problems = [self._problem(one, how) for one, how in zip(encoded, drawn)]
        good = [number for number, problem in enumerate(problems) if not problem]
        at_a_time = 1 if len(good) == len(encoded) else self.batch
        vectors: list[np.ndarray | BadImage] = [problem or np.empty(0) for problem in problems]
        for start in range(0, len(good), at_a_time):
            some = good[start : start + at_a_time]
            for number, vector in zip(some, self.vectors([encoded[n] for n in some], [drawn[n] for n in some])):
                vectors[number] = vector
        return vectors

    def _problem(self, encoded: bytes, drawn: np.ndarray) -> BadImage | None:
        try:
            self._decode(encoded, drawn)
        except tf.errors.InvalidArgumentError as error:
            return _bad(error)
        return None


def _bad(error: tf.errors.InvalidArgumentError) -> BadImage:
    return BadImage(f"cannot be decoded, it is damaged or of a rare kind: {_reason(error.message)}")


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
        precision: of the arithmetic in the network, of ``extraction.PRECISIONS``; vectors are float32 always.
        average: the looks at a photo of which the vector is the mean, of ``images.AVERAGES``.
        batch: photos that go through the network together, if not as many as are best on this machine.

    Raises UserError for a precision that this machine does not compute in.
    """
    _refuse_precision(precision)
    backbone = backbones.load(folder)
    return of_graph(
        backbones.load_graph(folder, output),
        given=backbones.INPUT,
        output=output,
        size=backbone.input_size,
        mean=backbone.mean,
        std=backbone.std,
        precision=precision,
        average=average,
        batch=batch,
    )


def _batch() -> int:
    return BATCH_ON_GPU if has_gpu() else BATCH_ON_CPU


def _callers() -> int:
    """Twice as many as cores: one reads and writes files while another has the core. A GPU works for one at a time."""
    return CALLERS_ON_GPU if has_gpu() else 2 * usable_cores()


def _in_parts(pixels: list[tf.Tensor]) -> list[tf.Tensor]:
    """In the graph: photos [size, size, 3] as batches: on a CPU each by itself, for the early layers; to a GPU all in one copy."""
    return [tf.stack(pixels)] if has_gpu() else [one[tf.newaxis] for one in pixels]


def _through(network: tf.GraphDef, given: str, photos: list[tf.Tensor], output: str) -> tf.Tensor:
    """In the graph: what the network takes as ``given``, some photos each, [images, size, size, 3] → its output for all of them.

    Each goes alone through the early layers, whose wide maps leave a core's cache otherwise, and all go together through
    the later ones, whose many weights are then read once for all: on a CPU a tenth less time than either way.
    """
    kind = _type_of(network, given)
    photos = [as_type(photo, kind) for photo in photos]
    first = given
    if len(photos) > 1 and (waist := _waist(network, given, photos[0].shape, output)):
        early = tf.graph_util.extract_sub_graph(_fed(network, given), [node_of(waist)])
        photos = [tf.import_graph_def(early, {first: photo}, [waist], name=f"photo_{n}")[0] for n, photo in enumerate(photos)]
        first = waist
    (found,) = tf.import_graph_def(network, {first: tf.concat(photos, axis=0)}, [output], name="")
    return found


def _waist(network: tf.GraphDef, given: str, shape: tf.TensorShape, output: str) -> str | None:
    """The first map of the network that all of the rest goes through and that is narrow; None where there is none.

    Args:
        shape: of what goes into the network as ``given``, [images, size, size, 3].
    """
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(_type_of(network, given), shape)
        tf.import_graph_def(network, {given: image}, [output], name="")
    operations = graph.get_operations()  # in an order in which each comes after what it takes
    last_use = {tensor.name: place for place, operation in enumerate(operations) for tensor in operation.inputs}
    wanted = {image.name}
    for place, operation in enumerate(operations):
        if wanted.isdisjoint(tensor.name for tensor in operation.inputs):
            continue
        wanted = {name for name in wanted | {tensor.name for tensor in operation.outputs} if last_use.get(name, 0) > place}
        if len(wanted) == 1 and _is_narrow(only := graph.get_tensor_by_name(*wanted), shape[1] // NARROW):
            return str(only.name)
    return None


def _is_narrow(tensor: tf.Tensor, most: int) -> bool:
    """Whether it is a map [any, height, width, channels] of that width at most, and goes into a convolution.

    A bias or an activation that takes it would be one op with the convolution that makes it.
    """
    convolved = any("Conv" in consumer.type for consumer in tensor.consumers())
    return convolved and tensor.shape.rank == 4 and tensor.shape[2] is not None and tensor.shape[2] <= most


def of_graph(
    graph: tf.GraphDef,
    *,
    given: str,
    output: str,
    size: int,
    mean: float = 0.0,
    std: float = 1.0,
    half_pixel_centers: bool = True,
    precision: str = "float32",
    average: str = "none",
    batch: int | None = None,
) -> Network:
    """A frozen graph as a Network.

    Args:
        given: the tensor that takes the images, [batch, size, size, 3] of (pixels - mean) / std, in whatever type it declares.
        output: the tensor that comes out, [batch, width].
        half_pixel_centers: how photos are resized, see ``images.decode_and_resize``.
        precision, average, batch: as of ``load``.
    """
    batch = batch or _batch()
    with tf.Graph().as_default():
        encoded = [tf.placeholder(tf.string, []) for _ in range(batch)]
        drawn = [tf.placeholder(tf.float32, [None]) for _ in range(batch)]
        with placed_on("CPU:0"):
            pixels = [images.decode_view(one, how, size, half_pixel_centers=half_pixel_centers) for one, how in zip(encoded, drawn)]
            photos = _in_parts(pixels)
        seen, counts = zip(*(images.looks(part, average) for part in photos))
        found = images.mean_look(_through(graph, given, [images.normalise(looks, mean, std) for looks in seen], output), counts[0])
        running = session(threads=usable_cores(), precision=precision, gpu=True)
        run, decode = running.make_callable(found, [*encoded, *drawn]), running.make_callable(pixels[0].op, [encoded[0], drawn[0]])
    return Network(run, batch=batch, threads=_callers(), decode=decode)


def _fed(graph: tf.GraphDef, given: str) -> tf.GraphDef:
    """The graph with nothing before the tensor ``given``, which is fed: an export would decode bytes there."""
    fed = tf.GraphDef()
    fed.CopyFrom(graph)
    for node in fed.node:
        if f"{node.name}:0" == given:
            node.Clear()
            node.name, node.op = node_of(given), "Placeholder"
            node.attr["dtype"].type = _type_of(graph, given).as_datatype_enum
    return fed


def _type_of(graph: tf.GraphDef, given: str) -> tf.DType:
    return next(type_fed(node) for node in graph.node if node.name == node_of(given))


def decoder(size: int) -> Callable[[bytes], np.ndarray]:
    """A call: encoded image → pixels, float32 [size, size, 3] in 0..255, before ``images.normalise``."""
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [])
        pixels = images.decode_and_resize(encoded, size)
        run: Callable[[bytes], np.ndarray] = session(threads=usable_cores()).make_callable(pixels, [encoded])
    return run


def unused_gpu() -> str:
    """What keeps TensorFlow from using this machine's GPU, and what to do; nothing where it uses it, or there is none."""
    if has_gpu() or not has_nvidia():
        return ""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES", "0")) in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES = {visible!r} hides the GPU (unset it to use the GPU)"
    if find_spec("nvidia"):  # the packages of CUDA's libraries
        return "TensorFlow cannot use the GPU, although CUDA's libraries are installed (run nvidia-smi: does the driver work?)"
    return "TensorFlow finds no CUDA libraries to use the GPU with (run: pip install 'retraining-pipeline[gpu]' or 'tensorflow[and-cuda]')"


def _refuse_precision(precision: str) -> None:
    if precision == "bfloat16" and not computes_bfloat16():
        raise UserError("precision = bfloat16: this CPU has no avx512_bf16 or amx_bf16, so it would be slower; take float32")
    if precision == "float16" and not has_gpu():
        raise UserError(f"precision = float16: {unused_gpu() or 'there is no GPU'}; take float32, or bfloat16 on a CPU that has it")
