from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from pipeline import backbones, images, network
from pipeline.errors import BadImage, UserError
from pipeline.images import Distortions
from pipeline.machine import computes_bfloat16
from pipeline.tensorflow_v1 import has_gpu, session, tf


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("pictures")
    make_photos(folder, 3, size=80)
    return [path.read_bytes() for path in sorted(folder.rglob("*.png"))]


def relative(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_the_same_bytes_from_any_number_of_threads(backbone_folder: Path, pictures: list[bytes]) -> None:
    loaded = network.load(backbone_folder)
    alone = [loaded(data).tobytes() for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        assert [vector.tobytes() for vector in pool.map(loaded, pictures)] == alone


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_is_the_photos_one_by_one(backbone_folder: Path, pictures: list[bytes], batch: int) -> None:
    """To the rounding of a larger product; and what cannot be decoded has a reason of its own, and harms no other."""
    loaded = network.load(backbone_folder)
    assert loaded.batch == (network.BATCH_ON_GPU if has_gpu() else network.BATCH_ON_CPU)
    broken = [pictures[0][:200], b"no picture"]
    vectors = loaded.vectors([pictures[0], broken[0], pictures[1], broken[1], pictures[2]], [images.AS_IT_IS] * 5)
    assert [isinstance(vector, BadImage) for vector in vectors] == [False, True, False, True, False]
    other = network.load(backbone_folder, batch=batch)
    for data, vector in zip(pictures, vectors[::2]):
        assert relative(vector, other(data)) < 1e-5  # type: ignore[arg-type]


def test_a_batch_of_nothing_that_can_be_decoded(backbone_folder: Path) -> None:
    vectors = network.load(backbone_folder).vectors([b"no picture", b"none either"], [images.AS_IT_IS] * 2)
    assert [isinstance(vector, BadImage) for vector in vectors] == [True, True]


def test_early_layers_on_each_photo_alone_change_nothing(
    backbone_folder: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = network.load(backbone_folder)(pictures[0])
    monkeypatch.setattr(network, "_waist", lambda *_: None)
    assert relative(apart, network.load(backbone_folder)(pictures[0])) < 1e-5


def test_a_frozen_graph_is_as_fast_a_network_as_its_backbone(backbone_folder: Path, pictures: list[bytes]) -> None:
    """It goes the same way, so that its vectors have the same bytes."""
    backbone, graph = backbones.load(backbone_folder), backbones.load_graph(backbone_folder, backbones.BOTTLENECK)
    frozen = network.of_graph(
        graph, given=backbones.INPUT, output=backbones.BOTTLENECK, size=backbone.input_size, mean=backbone.mean, std=backbone.std
    )
    assert frozen(pictures[0]).tobytes() == network.load(backbone_folder)(pictures[0]).tobytes()


def test_what_is_before_the_tensor_that_is_fed_is_left_out() -> None:
    with tf.Graph().as_default() as graph:
        decoded = tf.image.decode_png(tf.placeholder(tf.string, [], name="bytes"))
        image = tf.placeholder_with_default(tf.cast(decoded, tf.float32)[tf.newaxis], [None, None, None, 3], name="image")
        tf.reduce_mean(image, [1, 2], name="bottleneck")
    left = tf.graph_util.extract_sub_graph(network._fed(graph.as_graph_def(), "image:0"), ["bottleneck"])
    assert {node.op for node in left.node} == {"Placeholder", "Const", "Mean"}


def convolved(x: tf.Tensor, stride: int, name: str) -> tf.Tensor:
    kernel = tf.ones([1, 1, x.shape[-1], 4])
    return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=stride, padding="SAME"), tf.ones([4])), name=name)


@pytest.mark.parametrize(("around", "waist"), [(False, "narrow:0"), (True, None)])
def test_where_a_network_is_narrow(around: bool, waist: str | None) -> None:
    """Where all of the rest goes through one small map, and not between a convolution and the ops that go into one with it."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None, 32, 32, 3], name="image")
        wide = convolved(image, 8, "wide")
        end = tf.reduce_mean(convolved(convolved(wide, 2, "narrow"), 1, "narrower"), [1, 2])
        tf.add(end, tf.reduce_mean(wide if around else 0.0), name="bottleneck")
    assert network._waist(graph.as_graph_def(), "image:0", tf.TensorShape([1, 32, 32, 3]), "bottleneck:0") == waist


def test_a_network_takes_photos_as_the_type_that_it_declares(pictures: list[bytes]) -> None:
    """Also with its early layers on each photo alone."""

    def of(kind: tf.DType) -> network.Network:
        with tf.Graph().as_default() as graph:
            image = tf.cast(tf.placeholder(kind, [None, 32, 32, 3], name="image"), tf.float32)
            end = convolved(convolved(convolved(image, 8, "wide"), 2, "narrow"), 1, "narrower")
            tf.reduce_mean(end, [1, 2], name="bottleneck")
        assert network._waist(graph.as_graph_def(), "image:0", tf.TensorShape([1, 32, 32, 3]), "bottleneck:0") == "narrow:0"
        return network.of_graph(graph.as_graph_def(), given="image:0", output="bottleneck:0", size=32, batch=2)

    for kind in (tf.uint8, tf.int32, tf.float16, tf.float64):
        assert relative(of(kind)(pictures[0]), of(tf.float32)(pictures[0])) < 1e-2  # whole pixels are rounded


def test_a_vector_does_not_depend_on_the_photos_beside_it(backbone_folder: Path, pictures: list[bytes]) -> None:
    loaded = network.load(backbone_folder)
    together = loaded.vectors(pictures[:4], [images.AS_IT_IS] * 4)
    assert [vector.tobytes() for vector in together] == [loaded(data).tobytes() for data in pictures[:4]]  # type: ignore[union-attr]


def test_a_photo_that_fails_only_when_decoded_has_a_reason(backbone_folder: Path, pictures: list[bytes]) -> None:
    data = bytearray(pictures[0])
    data[200:400] = bytes(200)
    with pytest.raises(BadImage, match="cannot be decoded") as failure:
        network.load(backbone_folder)(bytes(data))
    assert "\n" not in str(failure.value)


def test_an_undistorted_view_is_the_photo(backbone_folder: Path, pictures: list[bytes]) -> None:
    """Two resizing ops agree to a rounding error."""
    loaded = network.load(backbone_folder)
    unchanged = images.NO_DISTORTIONS.drawn("", 1, 0)
    assert relative(loaded(pictures[0], unchanged), loaded(pictures[0])) < 1e-4
    assert relative(loaded(pictures[0], Distortions(random_crop=50).drawn("", 1, 0)), loaded(pictures[0])) > 0.05


@pytest.mark.parametrize(("average", "count"), [("mirror", 2), ("mirror+crops", 10)])
def test_a_mean_of_looks_is_the_mean_of_their_vectors(backbone_folder: Path, pictures: list[bytes], average: str, count: int) -> None:
    backbone = backbones.load(backbone_folder)
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [])
        looks, found = images.looks(images.decode_and_resize(encoded, backbone.input_size)[tf.newaxis], average)
        graph = backbones.load_graph(backbone_folder, backbones.BOTTLENECK)
        normalised = images.normalise(looks, backbone.mean, backbone.std)
        (vectors,) = tf.import_graph_def(graph, {backbones.INPUT: normalised}, [backbones.BOTTLENECK], name="")
        with session(threads=1) as running:
            each = running.run(vectors, {encoded: pictures[0]})
    assert found == len(each) == count
    assert relative(network.load(backbone_folder, average=average)(pictures[0]), each.mean(axis=0)) < 1e-5
    assert relative(each[0], network.load(backbone_folder)(pictures[0])) < 1e-5


def test_precisions(backbone_folder: Path, pictures: list[bytes]) -> None:
    """Where the CPU has it, bfloat16 keeps the direction of a vector; elsewhere it is refused."""
    if not computes_bfloat16():
        with pytest.raises(UserError, match="precision = bfloat16: this CPU has no avx512_bf16 or amx_bf16"):
            network.load(backbone_folder, precision="bfloat16")
        return
    exact = network.load(backbone_folder)(pictures[0])
    rounded = network.load(backbone_folder, precision="bfloat16")(pictures[0])
    assert rounded.dtype == np.float32
    assert 1e-4 < relative(rounded, exact) < 0.2


def test_float16_is_for_gpus(backbone_folder: Path, pictures: list[bytes]) -> None:
    if not has_gpu():
        with pytest.raises(
            UserError, match=re.escape(f"precision = float16: {network.unused_gpu() or 'there is no GPU'}; take float32, or bfloat16")
        ):
            network.load(backbone_folder, precision="float16")
        return
    exact = network.load(backbone_folder)(pictures[0])
    assert 1e-4 < relative(network.load(backbone_folder, precision="float16")(pictures[0]), exact) < 0.1


def test_a_gpu_that_tensorflow_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "has_gpu", lambda: False)
    monkeypatch.setattr(network, "has_nvidia", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(network, "find_spec", lambda name: None)
    assert "pip install 'retraining-pipeline[gpu]'" in network.unused_gpu()
    monkeypatch.setattr(network, "find_spec", lambda name: object())
    assert "run nvidia-smi" in network.unused_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES = '-1' hides the GPU" in network.unused_gpu()
    monkeypatch.setattr(network, "has_gpu", lambda: True)
    assert network.unused_gpu() == ""


def test_photos_go_to_a_gpu_in_one_piece(backbone_folder: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that is built for a GPU gives the same vectors, whatever it runs on."""
    on_cpu = network.load(backbone_folder, average="mirror")
    monkeypatch.setattr(network, "has_gpu", lambda: True)
    on_gpu = network.load(backbone_folder, average="mirror")
    assert (on_gpu.batch, on_gpu.threads) == (network.BATCH_ON_GPU, network.CALLERS_ON_GPU)
    given = (pictures[:5], [images.AS_IT_IS] * 5)
    assert relative(np.stack(on_gpu.vectors(*given)), np.stack(on_cpu.vectors(*given))) < 1e-5  # type: ignore[arg-type]
