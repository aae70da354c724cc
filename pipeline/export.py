"""The classifier: backbone and final layer joined in a fresh graph, frozen, and checked before anybody sees it.

``output_graph.pb`` has two inputs: ``image_bytes`` (string [any number], encoded images) or ``image`` (float32
[batch, size, size, 3], resized, in 0..255), and one output, the probabilities, ``final_result`` [batch, labels].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import backbones, checkpoint, dataset, files, final_layer, images
from pipeline.checkpoint import Checkpoints
from pipeline.errors import BadImage, UserError
from pipeline.packed import INDEX, Packed
from pipeline.tensorflow_v1 import control_flow_v1, session, tf

GRAPH = "output_graph.pb"
LABELS = "labels.txt"
CHECKPOINT = "classifier.ckpt"
BYTES_INPUT = "image_bytes"
IMAGE_INPUT = "image"
BACKBONE_SCOPE = "backbone"

CHECKED_PHOTOS = 64
"""Photos of the test split that the exported graph has to name like the session it was made from."""

TOLERANCE = 1e-4
"""The largest difference of a probability. Frozen and live graphs are optimised differently; 1e-6 is usual."""

ROUNDED_TOLERANCE = 0.25
"""The same between the exported graph, which computes in float32, and vectors computed in bfloat16 or float16."""


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
    with control_flow_v1():
        decoded = tf.map_fn(lambda encoded: images.decode_and_resize(encoded, size), image_bytes, dtype=tf.float32)
    image = tf.placeholder_with_default(tf.ensure_shape(decoded, [None, size, size, 3]), [None, size, size, 3], name=IMAGE_INPUT)
    seen, looks = images.looks(image, average_views)
    restorer = tf.train.import_meta_graph(
        f"{checkpoint.latest(backbone_folder)}.meta",
        import_scope=BACKBONE_SCOPE,
        input_map={backbones.INPUT: images.normalise(seen, backbone.mean, backbone.std)},
    )
    features = tf.get_default_graph().get_tensor_by_name(f"{BACKBONE_SCOPE}/{backbones.BOTTLENECK}")
    bottleneck = tf.identity(images.mean_look(features, looks), name="bottleneck")
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


def export(
    folder: Path,
    backbone_folder: Path,
    final_layer_folder: Path,
    packed: Path,
    photos_folder: Path,
    *,
    final_tensor_name: str,
    average_views: str = "none",
    precision: str = "float32",
) -> dict[str, object]:
    """Write ``output_graph.pb``, ``labels.txt`` and the checkpoint of the joined classifier into ``folder``.

    Returns what the manifest says of them. Raises UserError where the written graph, loaded again, does not give the
    session's own outputs on test photos through both inputs, or these do not agree with training.
    """
    backbone = backbones.load(backbone_folder)
    photos = dataset.read_photos(packed / INDEX)
    labels = dataset.labels_of(photos)
    with tf.Graph().as_default() as graph:
        joined, restore = join(
            backbone_folder, final_layer_folder, len(labels), final_tensor_name=final_tensor_name, average_views=average_views
        )
        with session(threads=1) as running:
            restore(running)
            Checkpoints(folder, CHECKPOINT, max_to_keep=1).save(running)
            frozen = tf.graph_util.convert_variables_to_constants(running, graph.as_graph_def(), [final_tensor_name])
            files.write_atomic(folder / GRAPH, frozen.SerializeToString(deterministic=True))
            files.write_atomic(folder / LABELS, "".join(f"{label}\n" for label in labels).encode())
            rows, encoded = _test_photos(photos, photos_folder)
            own = running.run(joined.probabilities, {joined.image_bytes: encoded})
            pixels = running.run(joined.image, {joined.image_bytes: encoded})
            trained = running.run(joined.probabilities, {joined.bottleneck: Packed(packed)[rows]})
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = load_graph(folder / GRAPH, final_tensor_name)
        through_bytes = running.run(tensors.probabilities, {tensors.image_bytes: encoded})
        through_image = running.run(tensors.probabilities, {tensors.image: pixels})
    differences = {
        f"the graph, through {BYTES_INPUT},": np.abs(through_bytes - own).max(),
        f"the graph, through {IMAGE_INPUT},": np.abs(through_image - own).max(),
        "the joined session": np.abs(own - trained).max(),
    }
    for what, difference in differences.items():
        from_training = "session" in what
        allowed = ROUNDED_TOLERANCE if from_training and precision != "float32" else TOLERANCE
        if not difference <= allowed:
            against = "training" if from_training else "the session it was made from"
            raise UserError(
                f"not exported: {what} differs from {against} by {difference:.2g} in a probability, allowed are {allowed:g}; "
                "this is a fault of the program or the machine: report it"
            )
    return {
        "inputs": {
            BYTES_INPUT: {"tensor": f"{BYTES_INPUT}:0", "dtype": "string", "shape": [None], "holds": "encoded images"},
            IMAGE_INPUT: {
                "tensor": f"{IMAGE_INPUT}:0",
                "dtype": "float32",
                "shape": [None, backbone.input_size, backbone.input_size, 3],
                "range": [0, 255],
                "holds": "RGB, resized bilinearly with half-pixel centres and without antialias",
            },
        },
        "output": {"tensor": f"{final_tensor_name}:0", "dtype": "float32", "shape": [None, len(labels)]},
        "bottleneck": {"tensor": "bottleneck:0", "dtype": "float32", "shape": [None, backbone.width]},
        "labels": labels,
        "graph_sha256": files.sha256_file(folder / GRAPH),
        "checked_photos": len(rows),
        "largest_difference": float(max(differences.values())),
    }


def _test_photos(photos: Sequence[dataset.Photo], folder: Path) -> tuple[list[int], list[bytes]]:
    """Rows and bytes of some test photos of all classes, those that are still as they were."""
    rows, encoded = [], []
    testing = [row for row, photo in enumerate(photos) if photo.split == dataset.TESTING]
    for row in testing[:: max(1, -(-len(testing) // CHECKED_PHOTOS))]:
        try:
            data = (folder / photos[row].path).read_bytes()
            readable = images.readable_bytes(data)
        except (OSError, BadImage):
            continue
        if files.sha256_bytes(data) == photos[row].sha256:
            rows.append(row)
            encoded.append(readable)
    if not rows:
        raise UserError(f"no test photo can be read in {folder} any more, so the export cannot be checked; run again")
    return rows, encoded


def load_graph(path: Path, final_tensor_name: str) -> Joined:
    """Import an exported ``.pb`` into the default graph."""
    definition = tf.GraphDef()
    definition.ParseFromString(path.read_bytes())
    tf.import_graph_def(definition, name="")
    tensor = tf.get_default_graph().get_tensor_by_name
    return Joined(*(tensor(f"{name}:0") for name in (BYTES_INPUT, IMAGE_INPUT, "bottleneck", final_tensor_name)))
