"""The classifier for others to use: joined, frozen, in several formats, and checked before anybody sees it.

export(folder, …)              output_graph.pb, labels.txt, saved_model/ and a checkpoint, always
tflite.export(folder, …)       classifier_float32.tflite, …_float16.tflite, …_int8.tflite, for whoever wants one

Each is loaded again in a fresh process and run over the test photos; what does not agree with training is not exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import backbones, files
from pipeline.backbones import Backbone
from pipeline.checkpoint import Checkpoints
from pipeline.console import Report, silent
from pipeline.errors import UserError
from pipeline.export import graph, saved_model
from pipeline.export.agreement import Agreement, Run, TestSplit, Tolerance, measure
from pipeline.export.graph import BYTES_INPUT, IMAGE_INPUT, Joined, join, load_graph, load_network
from pipeline.fresh_process import FreshProcess
from pipeline.tensorflow_v1 import session, tf

__all__ = [
    "BYTES_INPUT",
    "CHECKPOINT",
    "GRAPH",
    "IMAGE_INPUT",
    "LABELS",
    "SAVED_MODEL",
    "Joined",
    "export",
    "join",
    "load_graph",
    "load_network",
]

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
    fresh: FreshProcess,
    final_tensor_name: str,
    average_views: str = "none",
    precision: str = "float32",
    report: Report = silent,
) -> dict[str, Any]:
    """Write ``output_graph.pb``, ``labels.txt``, ``saved_model`` and the checkpoint of the joined classifier into ``folder``.

    Returns what the manifest says of them. Raises UserError where graph or SavedModel, loaded again in ``fresh``, do not give
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
    checked = _check(folder, final_tensor_name, test, TOLERANCE.towards(precision), fresh, report)
    return _in_words(folder, final_tensor_name, test.labels, backbone, checked)


def _check(
    folder: Path, final_tensor_name: str, test: TestSplit, tolerance: Tolerance, fresh: FreshProcess, report: Report
) -> dict[str, dict[str, Agreement]]:
    """How graph and SavedModel agree with training, by file and input. Raises UserError where one does not."""
    graph_of, model_of = (folder / GRAPH, final_tensor_name), (folder / SAVED_MODEL,)
    runs = [
        Run(GRAPH, load_network, (*graph_of, BYTES_INPUT), tolerance),
        Run(GRAPH, load_network, (*graph_of, IMAGE_INPUT), tolerance, PHOTOS_AS_PIXELS),
        Run(SAVED_MODEL, saved_model.load_network, (*model_of, BYTES_INPUT), tolerance),
        Run(SAVED_MODEL, saved_model.load_network, (*model_of, IMAGE_INPUT), tolerance, PHOTOS_AS_PIXELS),
    ]
    found: dict[str, dict[str, Agreement]] = {GRAPH: {}, SAVED_MODEL: {}}
    for run, agreement in zip(runs, measure(runs, test, fresh, report)):
        given = str(run.arguments[-1])
        if agreement.problem:
            raise UserError(
                f"not exported: {run.called}, through {given}: {agreement.problem}; report it: the program or the machine is at fault"
            )
        found[run.called][given] = agreement
    return found


def _in_words(
    folder: Path, final_tensor_name: str, labels: list[str], backbone: Backbone, checked: dict[str, dict[str, Agreement]]
) -> dict[str, Any]:
    """What the manifest says: tensors, labels, and each format with its size and how it agrees with training."""
    inputs = {
        BYTES_INPUT: {"dtype": "string", "shape": [None], "holds": "encoded images"},
        IMAGE_INPUT: graph.pixels_in_words(None, backbone.input_size),
    }
    probabilities = {"dtype": "float32", "shape": [None, len(labels)]}
    bottleneck = {"dtype": "float32", "shape": [None, backbone.width]}
    classes = {"dtype": "string", "shape": [None, len(labels)]}
    outputs = {saved_model.CLASSES: classes, saved_model.SCORES: probabilities, saved_model.BOTTLENECK: bottleneck}
    signatures = {saved_model.SIGNATURES[name]: {"inputs": {name: said}, "outputs": outputs} for name, said in inputs.items()}

    def exported(file: str) -> dict[str, Any]:
        by_bytes, by_pixels = (checked[file][given].as_json() for given in (BYTES_INPUT, IMAGE_INPUT))
        return {"file": file, "bytes": files.size(folder / file), "checked": by_bytes, "checked_as_pixels": by_pixels}

    return {
        "inputs": {name: {"tensor": f"{name}:0", **said} for name, said in inputs.items()},
        "output": {"tensor": f"{final_tensor_name}:0", **probabilities},
        "bottleneck": {"tensor": f"{graph.BOTTLENECK}:0", **bottleneck},
        "labels": labels,
        "labels_sha256": files.sha256_file(folder / LABELS),
        "graph_sha256": files.sha256_file(folder / GRAPH),
        "formats": {"graph": exported(GRAPH), "saved-model": {**exported(SAVED_MODEL), "signatures": signatures}},
    }
