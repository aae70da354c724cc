"""The classifier as a SavedModel, for TensorFlow Serving and whatever else loads one: the frozen graph with signatures.

==================  =====================================================  =================================
signature           input                                                  outputs
==================  =====================================================  =================================
serving_default     ``image_bytes``, string [batch], encoded images        ``classes``, string [batch, labels]
image               ``image``, float32 [batch, size, size, 3] in 0..255    ``scores``, float32 [batch, labels]
                                                                           ``bottleneck``, float32 [batch, width]
==================  =====================================================  =================================

Both have the same outputs. Scores are in the order of the labels, as ``classes`` says for each photo; so TensorFlow's own classifiers
have it. A server hands over decoded what came as ``{"b64": …}`` to an input whose name ends in ``_bytes``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline import files
from pipeline.export.graph import BYTES_INPUT, IMAGE_INPUT, as_network, load_graph
from pipeline.machine import usable_cores
from pipeline.network import Network
from pipeline.tensorflow_v1 import SavedModel, session, tf

CLASSES, SCORES, BOTTLENECK = "classes", "scores", "bottleneck"

SIGNATURES = {BYTES_INPUT: "serving_default", IMAGE_INPUT: "image"}
"""The signature that takes each input."""


def write(folder: Path, graph: Path, final_tensor_name: str, labels: Sequence[str]) -> None:
    """Write the exported ``.pb`` ``graph`` as the SavedModel ``folder``. The same graph gives the same bytes."""
    with tf.Graph().as_default():
        tensors = load_graph(graph, final_tensor_name)
        classes = tf.tile(tf.constant([[label.encode() for label in labels]]), [tf.shape(tensors.probabilities)[0], 1])
        outputs = {CLASSES: classes, SCORES: tensors.probabilities, BOTTLENECK: tensors.bottleneck}
        inputs = {BYTES_INPUT: tensors.image_bytes, IMAGE_INPUT: tensors.image}
        write_signatures(folder, {SIGNATURES[name]: ({name: tensor}, outputs) for name, tensor in inputs.items()})


def write_signatures(folder: Path, signatures: dict[str, tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]) -> None:
    """Write the default graph, which has no variables, as the SavedModel ``folder``, with inputs and outputs of each signature."""
    shutil.rmtree(folder, ignore_errors=True)  # from a run that was killed
    builder = tf.saved_model.Builder(str(folder))
    with session(threads=1) as running:
        builder.add_meta_graph_and_variables(
            running,
            [tf.saved_model.SERVING],
            {name: tf.saved_model.predict_signature_def(*of) for name, of in signatures.items()},
        )
    builder.save()
    written = folder / "saved_model.pb"
    # The builder does not promise an order of the entries of its maps.
    files.write_atomic(written, SavedModel.FromString(written.read_bytes()).SerializeToString(deterministic=True))
    for path in folder.iterdir():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()  # the variables that there are not; a copy of the files would lack it anyway


def load_network(folder: Path, given: str) -> Network:
    """A SavedModel behind a call, loaded as a server does it: encoded image → scores, float32 [labels]."""
    with tf.Graph().as_default():
        running = session(threads=usable_cores())
        signature = tf.saved_model.load(running, [tf.saved_model.SERVING], str(folder)).signature_def[SIGNATURES[given]]
        given_and_scores = (signature.inputs[given].name, signature.outputs[SCORES].name)
        return as_network(running, *map(running.graph.get_tensor_by_name, given_and_scores))
