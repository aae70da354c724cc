"""The classifier for TensorFlow Lite: pixels of one photo, float32 [1, size, size, 3] in 0..255 → ``scores``, float32 [1, labels].

Interpreters on phones decode no photos, so that is left to the program around them. All kinds take the same input:

float32     computes as the graph does
float16     weights in half the bytes, computes in float32 where there is nothing better
int8        weights and arithmetic in whole numbers, a quarter of the bytes; how the numbers are rounded is fitted to training photos
"""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import bottlenecks, dataset, files, network
from pipeline.console import Report, silent
from pipeline.errors import BadImage, UserError, first_line
from pipeline.export import saved_model
from pipeline.export.agreement import Run, TestSplit, Tolerance, measure
from pipeline.export.graph import IMAGE_INPUT, load_graph, pixels_in_words
from pipeline.fresh_process import FreshProcess
from pipeline.machine import usable_cores
from pipeline.network import Network
from pipeline.tensorflow_v1 import hushed, tf, tf2
from pipeline.words import readable

TOLERANCES = {
    "float32": Tolerance(probability=1e-3),
    "float16": Tolerance(probability=0.05),
    "int8": Tolerance(probability=None, share=0.1),
}
"""The kinds, and how far each may be from training."""

REPRESENTATIVE = 200
"""Training photos that int8 is fitted to; some hundred are usual."""


def export(
    folder: Path,
    kind: str,
    *,
    fresh: FreshProcess,
    graph: Path,
    final_tensor_name: str,
    packed: Path,
    training: Path,
    photos: Path,
    precision: str,
    report: Report = silent,
) -> dict[str, Any]:
    """Write ``classifier_<kind>.tflite`` into ``folder``, made from the exported ``.pb`` ``graph``, if it agrees with training.

    Args:
        kind: of TOLERANCES.
        fresh: the process in which it is checked.
        packed, training, photos: the outputs of the tasks before, and the folder of the photos.
        precision: that the vectors of the training were computed in.

    Returns what the manifest says of it; its ``problem`` is not empty where the file did not agree, and is not there.
    Raises UserError for a network that cannot be converted.
    """
    path = folder / f"classifier_{kind}.tflite"
    test = TestSplit.read(packed, training, photos)
    with tf.Graph().as_default():
        size = int(load_graph(graph, final_tensor_name).image.shape[1])
    files.write_atomic(path, convert(graph, final_tensor_name, kind, lambda: representative(packed, photos, size)))
    (agreement,) = measure([Run(path.name, load_network, (path,), TOLERANCES[kind].towards(precision))], test, fresh, report)
    said = {
        "file": path.name,
        "bytes": files.size(path),
        "inputs": {IMAGE_INPUT: pixels_in_words(1, size)},
        "outputs": {saved_model.SCORES: {"dtype": "float32", "shape": [1, len(test.labels)]}},
        "checked": agreement.as_json(),
        "problem": agreement.problem,
    }
    if agreement.problem:
        path.unlink()
    return said


def convert(graph: Path, final_tensor_name: str, kind: str, fitted_to: Callable[[], Iterable[np.ndarray]]) -> bytes:
    """An exported ``.pb`` as a TensorFlow Lite model of a kind.

    ``fitted_to`` gives pixels of some photos, float32 [size, size, 3] in 0..255, for int8. Raises UserError where TensorFlow
    Lite lacks what the network is made of.
    """
    with tempfile.TemporaryDirectory() as folder, hushed():
        alone = Path(folder) / "alone"
        _write_float_branch(alone, graph, final_tensor_name)
        converter = tf2.lite.TFLiteConverter.from_saved_model(str(alone))
        if kind != "float32":
            converter.optimizations = [tf2.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf2.float16]
        if kind == "int8":
            converter.representative_dataset = lambda: ([pixels[np.newaxis]] for pixels in fitted_to())
            converter.target_spec.supported_ops = [tf2.lite.OpsSet.TFLITE_BUILTINS_INT8]
        try:
            return bytes(converter.convert())
        except UserError:
            raise
        except Exception as error:  # the converter has many kinds
            failure = error
    raise UserError(
        f"formats = tflite-{kind}: the network cannot be converted ({first_line(failure)}); leave it out of formats"
    ) from failure


def _write_float_branch(folder: Path, graph: Path, final_tensor_name: str) -> None:
    """Write a SavedModel of what stands behind the input for pixels, for one photo: a converter takes neither strings nor loops."""
    definition = tf.GraphDef.FromString(graph.read_bytes())
    with tf.Graph().as_default():
        size = int(load_graph(graph, final_tensor_name).image.shape[1])
    with tf.Graph().as_default() as whole:
        image = tf.placeholder(tf.float32, [1, size, size, 3], "pixels")
        (scores,) = tf.import_graph_def(definition, {f"{IMAGE_INPUT}:0": image}, [f"{final_tensor_name}:0"], name="")
        needed = tf.graph_util.extract_sub_graph(whole.as_graph_def(), [scores.op.name])
    with tf.Graph().as_default():
        ends = tf.import_graph_def(needed, return_elements=[image.name, scores.name], name="")
        saved_model.write_signatures(folder, {"serving_default": ({IMAGE_INPUT: ends[0]}, {saved_model.SCORES: ends[1]})})


def representative(packed: Path, folder: Path, size: int) -> Iterator[np.ndarray]:
    """Pixels of training photos of all classes. Raises UserError where one is not as it was: the file would be fitted to fewer."""
    training = [photo for photo in dataset.each_photo(packed / dataset.INDEX) if photo.split == dataset.TRAINING and not photo.view]
    decode = network.decoder(size)
    for photo in training[:: max(1, -(-len(training) // REPRESENTATIVE))]:
        try:
            encoded = bottlenecks.read_encoded(photo, folder)
        except BadImage as error:
            raise UserError(f"{readable(photo.path)}: {error}, so nothing can be fitted to it; run again") from error
        yield decode(encoded)


def load_network(path: Path) -> Network:
    """A ``.tflite`` behind a call: encoded image → scores, float32 [labels]. An interpreter for each core, each on one thread."""
    interpreters: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with hushed():
        for _ in range(usable_cores()):
            interpreter = tf2.lite.Interpreter(str(path), num_threads=1)
            interpreter.allocate_tensors()
            interpreters.put(interpreter)
    (given,), (scores,) = interpreter.get_input_details(), interpreter.get_output_details()
    pixels = network.decoder(int(given["shape"][1]))

    def run(data: bytes, _: np.ndarray) -> np.ndarray:
        decoded = pixels(data)[np.newaxis]
        interpreter = interpreters.get()
        try:
            interpreter.set_tensor(given["index"], decoded)
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(scores["index"]))
        finally:
            interpreters.put(interpreter)

    return Network(run, batch=1, threads=usable_cores())
