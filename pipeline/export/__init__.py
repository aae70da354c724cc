"""The classifier for others to use: joined, frozen, in several formats, and checked before anybody sees it.

export(folder, …)              output_graph.pb, labels.txt, saved_model/ and a checkpoint, always
tflite.export(folder, …)       classifier_float32.tflite, …_float16.tflite, …_int8.tflite, for whoever wants one

Each is loaded again in a fresh process and run over the test photos; what does not agree with training is not exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import backbones, files
from pipeline.checkpoint import Checkpoints
from pipeline.console import Report
from pipeline.errors import UserError
from pipeline.export import graph, saved_model
from pipeline.export.agreement import Run, TestSplit, Tolerance, measure
from pipeline.export.graph import BYTES_INPUT, IMAGE_INPUT, Joined, join, load_graph, load_network
from pipeline.tensorflow_v1 import session, tf

__all__ = ["CHECKPOINT", "GRAPH", "LABELS", "SAVED_MODEL", "Joined", "export", "join", "load_graph", "load_network"]

GRAPH = "output_graph.pb"
LABELS = "labels.txt"
SAVED_MODEL = "saved_model"
CHECKPOINT = "classifier.ckpt"

TOLERANCE = Tolerance(probability=1e-4)
"""The frozen graph is optimised otherwise than the one of training; 1e-6 is usual."""

PHOTOS_AS_PIXELS = 64
"""Test photos that are run through the input for pixels too; behind the decoding it is the same graph."""


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
    report: Report = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``output_graph.pb``, ``labels.txt``, ``saved_model`` and the checkpoint of the joined classifier into ``folder``.

    Returns what the manifest says of them. Raises UserError where graph or SavedModel, loaded again in a fresh process, do not give
    every test photo the probabilities that it had in training.
    """
    backbone = backbones.load(backbone_folder)
    test = TestSplit.read(packed, final_layer_folder, photos_folder)
    with tf.Graph().as_default() as joined_graph:
        _, restore = join(
            backbone_folder, final_layer_folder, len(test.labels), final_tensor_name=final_tensor_name, average_views=average_views
        )
        with session(threads=1) as running:
            restore(running)
            Checkpoints(folder, CHECKPOINT, max_to_keep=1).save(running)
            frozen = tf.graph_util.convert_variables_to_constants(running, joined_graph.as_graph_def(), [final_tensor_name])
    files.write_atomic(folder / GRAPH, frozen.SerializeToString(deterministic=True))
    files.write_atomic(folder / LABELS, "".join(f"{label}\n" for label in test.labels).encode())
    saved_model.write(folder / SAVED_MODEL, folder / GRAPH, final_tensor_name, test.labels)
    tolerance = TOLERANCE.towards(precision)
    runs = [
        Run(called, load, (path, *known, given), tolerance, photos)
        for called, load, path, known in (
            (GRAPH, load_network, folder / GRAPH, (final_tensor_name,)),
            (SAVED_MODEL, saved_model.load_network, folder / SAVED_MODEL, ()),
        )
        for given, photos in ((BYTES_INPUT, 0), (IMAGE_INPUT, PHOTOS_AS_PIXELS))
    ]
    agreements = measure(runs, test, report)
    for run, agreement in zip(runs, agreements):
        if agreement.problem:
            raise UserError(
                f"not exported: {run.called}, through {run.arguments[-1]}: {agreement.problem}; "
                "this is a fault of the program or the machine: report it"
            )
    inputs = {
        BYTES_INPUT: {"dtype": "string", "shape": [None], "holds": "encoded images"},
        IMAGE_INPUT: graph.pixels_in_words(None, backbone.input_size),
    }
    probabilities = {"dtype": "float32", "shape": [None, len(test.labels)]}
    bottleneck = {"dtype": "float32", "shape": [None, backbone.width]}
    classes = {"dtype": "string", "shape": [None, len(test.labels)]}
    outputs = {saved_model.CLASSES: classes, saved_model.SCORES: probabilities, saved_model.BOTTLENECK: bottleneck}
    signatures = {saved_model.SIGNATURES[name]: {"inputs": {name: said}, "outputs": outputs} for name, said in inputs.items()}
    checked = [agreement.as_json() for agreement in agreements]
    return {
        "inputs": {name: {"tensor": f"{name}:0", **said} for name, said in inputs.items()},
        "output": {"tensor": f"{final_tensor_name}:0", **probabilities},
        "bottleneck": {"tensor": f"{graph.BOTTLENECK}:0", **bottleneck},
        "labels": test.labels,
        "labels_sha256": files.sha256_file(folder / LABELS),
        "graph_sha256": files.sha256_file(folder / GRAPH),
        "formats": {
            "graph": {"file": GRAPH, "bytes": files.size(folder / GRAPH), "checked": checked[0], "checked_as_pixels": checked[1]},
            "saved-model": {
                "file": SAVED_MODEL,
                "bytes": files.size(folder / SAVED_MODEL),
                "signatures": signatures,
                "checked": checked[2],
                "checked_as_pixels": checked[3],
            },
        },
    }
