from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos
from PIL import Image

from pipeline import backbones, bottlenecks, checkpoint, dataset, export, final_layer, network
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import session, tf
from pipeline.vector_cache import VectorCache


class Trained:
    """The folders that an export is made from."""

    def __init__(self, root: Path, backbone: Path, average: str = "none") -> None:
        self.average = average
        self.photos, self.packed, self.layer, self.backbone = root / "photos", root / "packed", root / "layer", backbone
        make_photos(self.photos, 8, ("blue", "red"))
        scanned = dataset.scan(self.photos, dataset.Memory(root / "memory.csv"))
        rows = dataset.split(scanned, testing_percentage=25, validation_percentage=25, seed=0)
        cache = VectorCache(root / "vectors", 1280)
        bottlenecks.compute(rows, self.photos, lambda: network.load(backbone, average=average), cache)
        bottlenecks.pack(rows, cache, 1280, self.packed)
        final_layer.train(self.layer, self.packed, final_layer.Options(30, 8, (0.01,), (0.01,), 10, 10, 0))

    def export(self, folder: Path, name: str = "final_result") -> dict[str, object]:
        folder.mkdir()
        return export.export(
            folder, self.backbone, self.layer, self.packed, self.photos, final_tensor_name=name, average_views=self.average
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
    assert says["inputs"]["image"]["range"] == [0, 255]  # type: ignore[index]
    assert says["inputs"]["image"]["shape"] == [None, 224, 224, 3]  # type: ignore[index]
    assert says["output"] == {"tensor": "scores:0", "dtype": "float32", "shape": [None, 2]}
    assert says["checked_photos"] > 0  # type: ignore[operator]
    assert says["largest_difference"] < 1e-5  # type: ignore[operator]
    export_graph = tmp_path / "graph" / "output_graph.pb"
    with tf.Graph().as_default():
        assert export.load_graph(export_graph, "scores").probabilities.name == "scores:0"


def test_the_same_bytes_each_time(exported: Path, trained: Trained, tmp_path: Path) -> None:
    trained.export(tmp_path / "again")
    for name in ("output_graph.pb", "labels.txt", "classifier.ckpt.data-00000-of-00001", "classifier.ckpt.index"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_a_graph_that_disagrees_is_not_exported(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "Packed", lambda folder: np.zeros((16, 1280), np.float32))
    with pytest.raises(UserError, match=r"not exported: the joined session differs from training by [\d.]+ in a probability"):
        trained.export(tmp_path / "wrong")


def bottlenecks_of_a_photo_and_its_mirror_image(graph: Path) -> np.ndarray:
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(graph / "output_graph.pb", "final_result")
        pixels = running.run(tensors.image, {tensors.image_bytes: [encoded("PNG")]})
        return running.run(tensors.bottleneck, {tensors.image: np.concatenate([pixels, pixels[:, :, ::-1]])})


def test_what_was_trained_on_a_mean_of_looks_is_exported_so(exported: Path, backbone_folder: Path, tmp_path: Path) -> None:
    averaged = Trained(tmp_path / "trained", backbone_folder, "mirror")
    assert averaged.export(tmp_path / "graph")["largest_difference"] < 1e-4  # type: ignore[operator]
    photo, mirrored = bottlenecks_of_a_photo_and_its_mirror_image(tmp_path / "graph")
    np.testing.assert_allclose(photo, mirrored, atol=1e-4)
    photo, mirrored = bottlenecks_of_a_photo_and_its_mirror_image(exported)
    assert np.abs(photo - mirrored).max() > 0.1


def test_without_a_test_photo_nothing_is_exported(trained: Trained, tmp_path: Path) -> None:
    trained_elsewhere = object.__new__(Trained)
    trained_elsewhere.__dict__.update(trained.__dict__, photos=tmp_path / "moved away")
    with pytest.raises(UserError, match="no test photo can be read"):
        trained_elsewhere.export(tmp_path / "graph")


def test_the_checkpoint_comes_back_in_plain_tensorflow(exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in exported.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    latest = tf.train.latest_checkpoint(str(moved))
    with tf.Graph().as_default(), tf.Session() as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        restored = running.run("final_result:0", {"image_bytes:0": [encoded("PNG")]})
    with tf.Graph().as_default(), session(threads=1) as running:
        tensors = export.load_graph(exported / "output_graph.pb", "final_result")
        frozen = running.run(tensors.probabilities, {tensors.image_bytes: [encoded("PNG")]})
    np.testing.assert_allclose(restored, frozen, atol=1e-5)


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
