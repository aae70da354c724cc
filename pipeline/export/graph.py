"""The classifier's graph: backbone and final layer joined, frozen into ``output_graph.pb``, and loaded again.

It has two inputs: ``image_bytes`` (string [any number], encoded images) or ``image`` (float32 [batch, size, size, 3], resized, in
0..255), and one output, the probabilities, ``final_result`` [batch, labels].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import backbones, checkpoint, final_layer, images, network
from pipeline.errors import UserError
from pipeline.machine import usable_cores
from pipeline.network import Network
from pipeline.tensorflow_v1 import control_flow_v1, session, tf

BYTES_INPUT = "image_bytes"
IMAGE_INPUT = "image"
BOTTLENECK = "bottleneck"
BACKBONE_SCOPE = "backbone"


@dataclass(frozen=True)
class Joined:
    """The tensors of the joined graph: encoded images, pixels [batch, size, size, 3], bottleneck, probabilities."""

    image_bytes: tf.Tensor
    image: tf.Tensor
    bottleneck: tf.Tensor
    probabilities: tf.Tensor


def join(
    backbone_folder: Path,
    final_layer_folder: Path,
    classes: int,
    *,
    final_tensor_name: str = "final_result",
    average_views: str = "none",
    stop_gradient: bool = True,
) -> tuple[Joined, Callable[[tf.Session], None]]:
    """Build backbone and final layer on the default graph.

    ``average_views`` are the looks at a photo of which its bottleneck is the mean, as in training.

    With ``stop_gradient`` the backbone is an input to the final layer: the same forwards, and no gradient passes
    backwards. Without it the graph has the same variables, so that a checkpoint of the one restores into the other; that
    is how fine-tuning begins.

    Returns the tensors, and a function of a session that restores both from their folders.
    """
    backbone = backbones.load(backbone_folder)
    size = backbone.input_size
    image_bytes = tf.placeholder(tf.string, [None], name=BYTES_INPUT)
    # Or TensorFlow leaves a file with its own version of the function in the temporary folder, with each run.
    decode = tf.autograph.experimental.do_not_convert(lambda encoded: images.decode_and_resize(encoded, size))
    with control_flow_v1():
        decoded = tf.map_fn(decode, image_bytes, dtype=tf.float32)
    image = tf.placeholder_with_default(tf.ensure_shape(decoded, [None, size, size, 3]), [None, size, size, 3], name=IMAGE_INPUT)
    seen, looks = images.looks(image, average_views)
    restorer = tf.train.import_meta_graph(
        f"{checkpoint.latest(backbone_folder)}.meta",
        import_scope=BACKBONE_SCOPE,
        input_map={backbones.INPUT: images.normalise(seen, backbone.mean, backbone.std)},
    )
    features = tf.get_default_graph().get_tensor_by_name(f"{BACKBONE_SCOPE}/{backbones.BOTTLENECK}")
    bottleneck = tf.identity(images.mean_look(features, looks), name=BOTTLENECK)
    logits, layer = final_layer.build(final_layer_folder, tf.stop_gradient(bottleneck) if stop_gradient else bottleneck, classes)
    probabilities = tf.nn.softmax(logits, name=final_tensor_name)
    if probabilities.op.name != final_tensor_name:
        raise UserError(
            f"final_tensor_name = {final_tensor_name}: the graph has a node of this name already; choose another, like final_result"
        )

    def restore(running: tf.Session) -> None:
        restorer.restore(running, checkpoint.latest(backbone_folder))
        final_layer.restore(running, final_layer_folder, layer)

    return Joined(image_bytes, image, bottleneck, probabilities), restore


def pixels_in_words(batch: int | None, size: int) -> dict[str, Any]:
    """What a manifest says of an input that takes pixels; ``batch`` is None where any number of photos will do."""
    holds = "RGB, resized bilinearly with half-pixel centres and without antialias"
    return {"dtype": "float32", "shape": [batch, size, size, 3], "range": [0, 255], "holds": holds}


def load_graph(path: Path, final_tensor_name: str) -> Joined:
    """Import an exported ``.pb`` into the default graph."""
    tf.import_graph_def(tf.GraphDef.FromString(path.read_bytes()), name="")
    tensor = tf.get_default_graph().get_tensor_by_name
    return Joined(*(tensor(f"{name}:0") for name in (BYTES_INPUT, IMAGE_INPUT, BOTTLENECK, final_tensor_name)))


def load_network(path: Path, final_tensor_name: str, given: str = BYTES_INPUT) -> Network:
    """An exported ``.pb`` behind a call: encoded image → probabilities, float32 [labels]; ``given`` is the input that takes it."""
    with tf.Graph().as_default():
        tensors = load_graph(path, final_tensor_name)
        running = session(threads=usable_cores())
    return as_network(running, {BYTES_INPUT: tensors.image_bytes, IMAGE_INPUT: tensors.image}[given], tensors.probabilities)


def as_network(running: tf.Session, given: tf.Tensor, probabilities: tf.Tensor) -> Network:
    """Tensors of a session behind a call. Where ``given`` takes pixels, the photo is decoded for it first."""
    run = running.make_callable(probabilities, [given])
    if given.dtype == tf.string:
        return Network(lambda data, _: run([data]), batch=1, threads=usable_cores())
    pixels = network.decoder(int(given.shape[1]))
    return Network(lambda data, _: run(pixels(data)[np.newaxis]), batch=1, threads=usable_cores())
