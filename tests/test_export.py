from __future__ import annotations

import copy
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_photos
from PIL import Image
from small_models import SIZE, WIDTH, images, make, weights

from pipeline import backbones, bottlenecks, checkpoint, dataset, export, files, final_layer, indexing, network, scan
from pipeline.errors import UserError
from pipeline.export import tflite
from pipeline.export.agreement import Tolerance
from pipeline.fresh_process import FreshProcess
from pipeline.tasks import CHECKING
from pipeline.tensorflow_v1 import session, tf
from pipeline.vector_cache import VectorCache


class Trained:
    """The folders that an export is made from."""

    def __init__(self, root: Path, backbone: Path, average: str = "none") -> None:
        self.average = average
        self.photos, self.packed, self.layer, self.backbone = root / "photos", root / "packed", root / "layer", backbone
        make_photos(self.photos, 8, ("blue", "red"))
        scanned = scan.of_folder(self.photos, scan.Memory(root / "memory.csv"))
        rows = indexing.split(scanned, testing_percentage=25, validation_percentage=25, seed=0)
        cache = VectorCache(root / "vectors", 1280)
        bottlenecks.compute(rows, self.photos, lambda: network.load(backbone, average=average), cache)
        bottlenecks.pack(rows, cache, 1280, self.packed)
        final_layer.train(self.layer, self.packed, final_layer.Options(30, 8, (0.01,), (0.01,), 10, 10, 0))

    @property
    def testing(self) -> list[dataset.Photo]:
        return [photo for photo in dataset.read_photos(self.packed / "index.csv") if photo.split == dataset.TESTING]

    def copied(self, root: Path) -> Trained:
        """The same with photos and final layer of its own, to be changed."""
        copied = copy.copy(self)
        copied.photos, copied.layer = root / "photos", root / "layer"
        shutil.copytree(self.photos, copied.photos)
        shutil.copytree(self.layer, copied.layer)
        return copied

    def export(self, folder: Path, name: str = "final_result") -> dict[str, Any]:
        folder.mkdir()
        with FreshProcess(CHECKING) as fresh:
            return export.export(
                folder,
                self.backbone,
                self.layer,
                self.packed,
                self.photos,
                fresh=fresh,
                final_tensor_name=name,
                average_views=self.average,
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"), backbone_folder)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "graph"
    trained.export(folder)
    return folder


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def test_plain_tensorflow_runs_the_pb_through_both_inputs(exported: Path) -> None:
    photos = [encoded(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "GIF")]
    definition = tf.GraphDef()
    definition.ParseFromString((exported / "output_graph.pb").read_bytes())
    with tf.Graph().as_default(), tf.Session() as running:
        tf.import_graph_def(definition, name="")
        together = running.run("final_result:0", {"image_bytes:0": photos})
        alone = np.concatenate([running.run("final_result:0", {"image_bytes:0": [photo]}) for photo in photos])
        pixels = running.run("image:0", {"image_bytes:0": photos})
        by_pixels = running.run("final_result:0", {"image:0": pixels})
    assert together.shape == (5, 2)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(by_pixels, together, atol=1e-5)
    assert pixels.shape == (5, 224, 224, 3)
    assert 0 <= pixels.min() < 50 < 200 < pixels.max() <= 255


def test_labels_are_in_the_order_of_the_outputs(exported: Path, trained: Trained) -> None:
    assert (exported / "labels.txt").read_text() == "blue\nred\n"


def test_the_manifest_says_how_the_graph_wants_its_input(trained: Trained, tmp_path: Path) -> None:
    says = trained.export(tmp_path / "graph", "scores")
    assert says["inputs"]["image"]["range"] == [0, 255]
    assert says["inputs"]["image"]["shape"] == [None, 224, 224, 3]
    assert says["output"] == {"tensor": "scores:0", "dtype": "float32", "shape": [None, 2]}
    assert says["labels_sha256"] == files.sha256_bytes(b"blue\nred\n")
    for exported in says["formats"].values():
        assert exported["bytes"] > 1e6
        for checked in (exported["checked"], exported["checked_as_pixels"]):
            assert (checked["photos"], checked["changed"], checked["differing"]) == (len(trained.testing), 0, 0)
            assert checked["accuracy"] == checked["training_accuracy"] == checked["named_alike"] == 1
            assert checked["largest_difference"] < 1e-5
    export_graph = tmp_path / "graph" / "output_graph.pb"
    with tf.Graph().as_default():
        assert export.load_graph(export_graph, "scores").probabilities.name == "scores:0"


def test_the_same_bytes_each_time(exported: Path, trained: Trained, tmp_path: Path) -> None:
    trained.export(tmp_path / "again")
    for name in (
        "output_graph.pb",
        "labels.txt",
        "classifier.ckpt.data-00000-of-00001",
        "classifier.ckpt.index",
        "saved_model/saved_model.pb",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_what_disagrees_with_training_is_not_exported_and_where_is_said(trained: Trained, tmp_path: Path) -> None:
    """Training remembers another probability of one photo; another photo has changed since, and is left out."""
    elsewhere = trained.copied(tmp_path / "trained")
    other, changed, *_ = elsewhere.testing
    logits = np.load(elsewhere.layer / "testing_logits.npy")
    logits[0] = logits[0][::-1]
    np.save(elsewhere.layer / "testing_logits.npy", logits)
    (elsewhere.photos / changed.path).write_bytes(encoded("PNG"))
    with pytest.raises(UserError) as caught:
        elsewhere.export(tmp_path / "wrong")
    count = len(elsewhere.testing) - 1
    assert re.search(
        rf"^not exported: output_graph.pb, through image_bytes: 1 of {count} test photos differ from training, where no photo may differ "
        rf"by more than 0.0001 in a probability; {other.path}: (blue|red) has the probability [\d.e-]+ in training and [\d.e-]+ here",
        str(caught.value),
    )


def bottlenecks_of_a_photo_and_its_mirror_image(graph: Path) -> np.ndarray:
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(graph / "output_graph.pb", "final_result")
        pixels = running.run(tensors.image, {tensors.image_bytes: [encoded("PNG")]})
        return running.run(tensors.bottleneck, {tensors.image: np.concatenate([pixels, pixels[:, :, ::-1]])})


def test_what_was_trained_on_a_mean_of_looks_is_exported_so(exported: Path, backbone_folder: Path, tmp_path: Path) -> None:
    averaged = Trained(tmp_path / "trained", backbone_folder, "mirror")
    for said in averaged.export(tmp_path / "graph")["formats"].values():
        assert said["checked"]["largest_difference"] < 1e-4
    photo, mirrored = bottlenecks_of_a_photo_and_its_mirror_image(tmp_path / "graph")
    np.testing.assert_allclose(photo, mirrored, atol=1e-4)
    photo, mirrored = bottlenecks_of_a_photo_and_its_mirror_image(exported)
    assert np.abs(photo - mirrored).max() > 0.1


def test_without_a_test_photo_nothing_is_exported(trained: Trained, tmp_path: Path) -> None:
    trained_elsewhere = copy.copy(trained)
    trained_elsewhere.photos = tmp_path / "moved away"
    with pytest.raises(UserError, match="no test photo can be read"):
        trained_elsewhere.export(tmp_path / "graph")


def test_the_checkpoint_comes_back_in_plain_tensorflow(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    latest = tf.train.latest_checkpoint(str(moved))
    with tf.Graph().as_default(), tf.Session() as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        restored = running.run("final_result:0", {"image_bytes:0": [encoded("PNG")]})
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(exported / "output_graph.pb", "final_result")
        frozen = running.run(tensors.probabilities, {tensors.image_bytes: [encoded("PNG")]})
    np.testing.assert_allclose(restored, frozen, atol=1e-5)


# --- SavedModel and TensorFlow Lite ----------------------------------------------------------------------------------------

ONLY_TENSORFLOW = """
import json, sys
for ours in ("pipeline", "luigi", "PIL"):
    sys.modules[ours] = None  # to import it is an error
import tensorflow as tf

folder, photo, *lite = sys.argv[1:]
model = tf.saved_model.load(folder)
data = open(photo, "rb").read()
pixels = tf.image.resize(tf.io.decode_image(data, channels=3, expand_animations=False), model.signatures["image"].inputs[0].shape[1:3])
found = {
    "bytes": model.signatures["serving_default"](image_bytes=tf.constant([data, data])),
    "image": model.signatures["image"](image=pixels[None]),
}
for path in lite:
    found[path] = tf.lite.Interpreter(path).get_signature_runner()(image=pixels[None].numpy())
plain = {way: {name: value.numpy() if hasattr(value, "numpy") else value for name, value in of.items()} for way, of in found.items()}
print(json.dumps({way: {name: value.astype(str).tolist() for name, value in of.items()} for way, of in plain.items()}))
"""


@pytest.fixture(scope="module")
def lite(exported: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The classifier as each kind of TensorFlow Lite, not yet compared with training."""
    folder = tmp_path_factory.mktemp("lite")
    paths = {kind: folder / f"{kind}.tflite" for kind in tflite.TOLERANCES}
    for kind, path in paths.items():
        photos = tflite.representative(trained.packed, trained.photos, 224)
        path.write_bytes(tflite.convert(exported / "output_graph.pb", "final_result", kind, lambda photos=photos: photos))
    return paths


def test_saved_model_and_lite_run_where_there_is_only_tensorflow(
    exported: Path, trained: Trained, lite: dict[str, Path], tmp_path: Path
) -> None:
    photo = trained.photos / trained.testing[0].path
    arguments = [str(exported / "saved_model"), str(photo), *map(str, lite.values())]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ONLY_TENSORFLOW, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(exported / "output_graph.pb", "final_result")
        fetched = running.run([tensors.probabilities, tensors.bottleneck], {tensors.image_bytes: [photo.read_bytes()]})
    for way, rows in (("bytes", 2), ("image", 1)):
        assert found[way]["classes"] == [["blue", "red"]] * rows
        for name, expected in zip(("scores", "bottleneck"), fetched):
            np.testing.assert_allclose(np.array(found[way][name], float), np.repeat(expected, rows, axis=0), atol=1e-4)
    for kind, path in lite.items():
        scores = np.array(found[str(path)]["scores"], float)
        np.testing.assert_allclose(scores, fetched[0], atol=tflite.TOLERANCES[kind].probability or 0.1)


def test_lite_is_smaller_the_less_exact_it_is(lite: dict[str, Path]) -> None:
    sizes = {kind: path.stat().st_size for kind, path in lite.items()}
    assert sizes["int8"] < 0.35 * sizes["float32"]
    assert sizes["float16"] < 0.55 * sizes["float32"]


def export_lite(trained: Trained, exported: Path, folder: Path, kind: str) -> dict[str, Any]:
    with FreshProcess(CHECKING) as fresh:
        return tflite.export(
            folder,
            kind,
            fresh=fresh,
            graph=exported / "output_graph.pb",
            final_tensor_name="final_result",
            packed=trained.packed,
            training=trained.layer,
            photos=trained.photos,
            precision="float32",
        )


def test_lite_is_fitted_to_all_photos_or_not_made(exported: Path, trained: Trained, tmp_path: Path) -> None:
    photos = tflite.representative(trained.packed, tmp_path / "moved away", 224)
    with pytest.raises(UserError, match=r"cannot be read: No such file or directory, so nothing can be fitted to it; run again"):
        tflite.convert(exported / "output_graph.pb", "final_result", "int8", lambda: photos)


def test_lite_is_compared_with_training_and_says_what_it_takes(
    trained: Trained, exported: Path, lite: dict[str, Path], tmp_path: Path
) -> None:
    said = export_lite(trained, exported, tmp_path, "int8")
    assert (tmp_path / said["file"]).read_bytes() == lite["int8"].read_bytes()
    assert said["bytes"] == lite["int8"].stat().st_size
    assert said["inputs"]["image"] == {**said["inputs"]["image"], "dtype": "float32", "shape": [1, 224, 224, 3], "range": [0, 255]}
    assert said["checked"]["photos"] == len(trained.testing)
    assert said["checked"]["accuracy"] == said["checked"]["named_alike"] == 1
    assert 0 < said["checked"]["largest_difference"] < 0.1
    assert said["problem"] == ""


def test_lite_that_misses_its_tolerance_is_not_there_and_where_is_said(
    trained: Trained, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tflite.TOLERANCES, "float16", Tolerance(probability=0.0))
    said = export_lite(trained, exported, tmp_path, "float16")
    assert said["checked"]["worst"][0]["path"] in said["problem"]
    assert "no photo may differ by more than 0 in a probability" in said["problem"]
    assert list(tmp_path.iterdir()) == []


def test_what_tensorflow_lite_lacks_is_refused_in_one_line(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        encoded_images = tf.placeholder(tf.string, [None], "image_bytes")
        image = tf.placeholder_with_default(tf.zeros([tf.size(encoded_images), 4, 4, 3]), [None, 4, 4, 3], "image")
        flat = tf.identity(tf.reshape(tf.math.bessel_i0e(image), [-1, 48]), "bottleneck")
        tf.nn.softmax(flat, name="final_result")
        (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UserError, match=r"^formats = tflite-float32: the network cannot be converted \(.+\); leave it out of formats$"):
        tflite.convert(tmp_path / "graph.pb", "final_result", "float32", lambda: [])


@pytest.mark.parametrize("kind", tflite.TOLERANCES)
def test_lite_of_a_network_that_takes_whole_pixels(tmp_path: Path, kind: str) -> None:
    with tf.Graph().as_default() as graph:
        whole = tf.cast(tf.placeholder(tf.uint8, [None, SIZE, SIZE, 3]), tf.float32) / 127.5 - 1
        tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(whole, tf.constant(weights(3, 3, 3, WIDTH)), strides=2, padding="SAME")), [1, 2])
        (tmp_path / "whole.pb").write_bytes(graph.as_graph_def().SerializeToString())
    backbone, _ = make(tmp_path / "whole.pb", tmp_path)
    with tf.Graph().as_default() as graph, session(threads=1) as running:
        encoded_images = tf.placeholder(tf.string, [None], "image_bytes")
        image = tf.placeholder_with_default(tf.zeros([tf.size(encoded_images), SIZE, SIZE, 3]), [None, SIZE, SIZE, 3], "image")
        given = {backbones.INPUT: image}
        (features,) = tf.import_graph_def(backbones.load_graph(backbone, backbones.BOTTLENECK), given, [backbones.BOTTLENECK])
        scores = tf.nn.softmax(tf.identity(features, "bottleneck"), name="final_result")
        (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
        own = running.run(scores, {image: images(1)})
    content = tflite.convert(tmp_path / "graph.pb", "final_result", kind, lambda: images(8))
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images(1))
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, own, atol=tflite.TOLERANCES[kind].probability or 0.1)


# --- stop_gradient -------------------------------------------------------------------------------------------------------


def variables_of(scope: str) -> list[tf.Variable]:
    return tf.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, scope)


@pytest.mark.parametrize("stop", [True, False])
def test_no_gradient_passes_the_stop_and_all_pass_without(trained: Trained, stop: bool) -> None:
    with tf.Graph().as_default():
        joined, _ = export.join(trained.backbone, trained.layer, 2, stop_gradient=stop)
        loss = tf.reduce_sum(tf.log(joined.probabilities[:, 0]))
        into_backbone = tf.gradients(loss, [v for v in variables_of("backbone") if "/classes/" not in v.name])
        into_layer = tf.gradients(loss, variables_of("final_layer"))
    assert len(into_backbone) == 98
    assert [gradient is None for gradient in into_backbone] == [stop] * 98
    assert len(into_layer) == 2
    assert None not in into_layer


def test_with_and_without_the_stop_are_the_same_forwards_and_restore_from_one_checkpoint(trained: Trained) -> None:
    results = []
    names = []
    for stop in (True, False):
        with tf.Graph().as_default(), session(threads=1) as running:
            joined, restore = export.join(trained.backbone, trained.layer, 2, stop_gradient=stop)
            restore(running)
            results.append(running.run(joined.probabilities, {joined.image_bytes: [encoded("PNG")]}))
            names.append(sorted(variable.name for variable in tf.global_variables()))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    assert names[0] == names[1]


def test_the_best_weights_are_exported_and_not_the_last(trained: Trained) -> None:
    with tf.Graph().as_default(), session(threads=1) as running:
        _, restore = export.join(trained.backbone, trained.layer, 2)
        restore(running)
        (weights,) = (v for v in variables_of("final_layer") if v.name == "final_layer/weights:0")
        found = running.run(weights)
    np.testing.assert_array_equal(found, checkpoint.read(trained.layer, "chosen/weights"))
    assert backbones.load(trained.backbone).width == found.shape[1]


def test_building_the_graph_leaves_nothing_in_the_temporary_folder(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tf.Graph().as_default():
        export.join(trained.backbone, trained.layer, 2)
    assert list(tmp_path.iterdir()) == []
