"""Every form of a pretrained model, made small by the tests themselves: its vectors against the model run in its own way."""

from __future__ import annotations

import http.server
import io
import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, make_photos
from small_models import AT_SIZE, CLASSES, SIZE, TOLERANCE, WIDTH, assert_same, images, make, vectors, weights

from pipeline import backbones, fetch, files
from pipeline.backbones import hub_cache, labels
from pipeline.backbones.frozen import Description
from pipeline.errors import UserError
from pipeline.tasks import DownloadModel
from pipeline.tensorflow_v1 import tf, tf2

# --- Frozen graphs -----------------------------------------------------------------------------------------------------


def classic_mobilenet(folder: Path, name: str) -> Path:
    """A graph in the very form of Google's MobileNet archives: names, a batch fixed at 1, batch norm, two members, labels."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, SIZE, SIZE, 3], name="input")
        x = tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, WIDTH), name="Conv2d_0/weights"), strides=2, padding="SAME")
        x = x * tf.constant(weights(WIDTH), name="gamma") + tf.constant(weights(WIDTH), name="BatchNorm/moving_mean")
        x = tf.nn.relu6(x)
        pooled = tf.nn.avg_pool2d(x, SIZE // 2, 1, "VALID", name="MobilenetV1/Logits/AvgPool_1a/AvgPool")
        x = tf.nn.conv2d(pooled, tf.constant(weights(1, 1, WIDTH, CLASSES), name="Conv2d_1c/weights"), strides=1, padding="SAME")
        x = tf.squeeze(x, [1, 2])
        logits = tf.reshape(x, tf.constant([1, CLASSES]), name="MobilenetV1/Predictions/Reshape")
        tf.nn.softmax(logits, name="MobilenetV1/Predictions/Softmax")
        data = graph.as_graph_def().SerializeToString()
    lines = "".join(f"{i}:class {i}, of four\n" for i in range(CLASSES)).encode()
    members = {f"{name}/frozen_graph.pb": data, f"{name}/quantized_graph.pb": data, f"{name}/labels.txt": lines}
    path = folder / f"{name}_frozen.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def native_graph(data: bytes, output: str, given: str, pixels: np.ndarray, *, one_at_a_time: bool = False) -> np.ndarray:
    definition = tf.GraphDef.FromString(data)
    with tf.Graph().as_default(), tf.Session() as running:
        tf.import_graph_def(definition, name="")
        if one_at_a_time:
            return np.concatenate([running.run(output, {given: image[None]}).reshape(1, -1) for image in pixels])
        return running.run(output, {given: pixels})


def frozen_member(path: Path, name: str) -> bytes:
    with tarfile.open(path) as tar:
        member = tar.extractfile(name)
        assert member
        return member.read()


@pytest.fixture
def mobilenet(tmp_path: Path) -> Path:
    return classic_mobilenet(tmp_path, "mobilenet_v1_0.25_128")


def test_a_classic_mobilenet_archive(mobilenet: Path, tmp_path: Path) -> None:
    folder, guessed = make(mobilenet, tmp_path, AT_SIZE)
    assert guessed == []  # known by the name of its file
    data = frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb")
    normalised = (images() - 127.5) / 127.5
    assert_same(folder, native_graph(data, "MobilenetV1/Logits/AvgPool_1a/AvgPool:0", "input:0", normalised, one_at_a_time=True))
    softmax = native_graph(data, "MobilenetV1/Predictions/Softmax:0", "input:0", normalised, one_at_a_time=True)
    assert_same(folder, softmax, backbones.SOFTMAX)
    assert backbones.class_names(folder) == [f"class {i}, of four" for i in range(CLASSES)]
    assert backbones.load(folder).weights_sha256 == files.sha256_file(mobilenet)
    assert backbones.load(folder).licence == ""  # only its name says that it is Google's


def test_the_classics_logits_as_the_bottleneck(mobilenet: Path, tmp_path: Path) -> None:
    folder, _ = make(mobilenet, tmp_path, Description(bottleneck="MobilenetV1/Predictions/Reshape", size=SIZE))
    assert backbones.load(folder).width == CLASSES


def classic_inception(folder: Path) -> Path:
    """A graph in the form of inception-2015-12-05.tgz: a decoder before ``Mul``, a reshape to one image, two label maps."""
    with tf.Graph().as_default() as graph:
        contents = tf.constant(b"", name="DecodeJpeg/contents")
        decoded = tf.expand_dims(tf.cast(tf.image.decode_jpeg(contents, channels=3), tf.float32), 0)
        resized = tf.raw_ops.ResizeBilinear(images=decoded, size=[SIZE, SIZE])
        image = tf.multiply(resized - 128.0, 1 / 128.0, name="Mul")
        x = tf.nn.relu(tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, WIDTH)), strides=2, padding="SAME"))
        pooled = tf.nn.avg_pool2d(x, SIZE // 2, 1, "VALID", name="pool_3")
        flat = tf.reshape(pooled, tf.constant([1, WIDTH]), name="pool_3/_reshape")
        logits = tf.add(tf.matmul(flat, tf.constant(weights(WIDTH, CLASSES))), weights(CLASSES), name="softmax/logits")
        tf.nn.softmax(logits, name="softmax")
        data = graph.as_graph_def().SerializeToString()
    maps = "".join(f'entry {{\n  target_class: {i}\n  target_class_string: "n0000000{i}"\n}}\n' for i in range(1, CLASSES))
    human = "n00000001\tdaisy\nn00000002\tgiant panda, panda\nn00000003\ttench, Tinca tinca\nn99999999\tunused\n"
    members = {"classify_image_graph_def.pb": data, labels.SYNSETS: maps.encode(), labels.HUMAN: human.encode(), "LICENSE": b"x"}
    path = folder / "inception-2015-12-05.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_the_inception_archive_of_2015(tmp_path: Path) -> None:
    path = classic_inception(tmp_path)
    folder, guessed = make(path, tmp_path, AT_SIZE)
    assert guessed == []
    native = native_graph(
        frozen_member(path, "classify_image_graph_def.pb"), "pool_3/_reshape:0", "Mul:0", (images() - 128) / 128, one_at_a_time=True
    )
    assert_same(folder, native)
    assert backbones.class_names(folder) == ["class 0 (none)", "daisy", "giant panda, panda", "tench, Tinca tinca"]


def test_a_bare_graph_is_guessed_and_says_so(mobilenet: Path, tmp_path: Path) -> None:
    data = frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb")
    (tmp_path / "mine.pb").write_bytes(data)
    folder, guessed = make(tmp_path / "mine.pb", tmp_path)
    assert guessed == [
        "model_input = input:0",
        "model_bottleneck = MobilenetV1/Logits/AvgPool_1a/AvgPool:0",
        "model_logits = MobilenetV1/Predictions/Reshape:0",
        f"model_size = {SIZE}",
        "model_mean = 127.5, model_std = 127.5 "
        "(values from -1 to 1, as most networks take them; the model does not say: compare with how it was trained)",
    ]
    native = native_graph(data, "MobilenetV1/Logits/AvgPool_1a/AvgPool:0", "input:0", (images() - 127.5) / 127.5, one_at_a_time=True)
    assert_same(folder, native)
    with pytest.raises(UserError, match="4 classes without names; put a labels.txt beside"):
        backbones.class_names(folder)


def test_the_description_goes_before_the_guess(mobilenet: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pb").write_bytes(frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb"))
    folder, guessed = make(tmp_path / "mine.pb", tmp_path, Description(mean=0.0, std=255.0, size=SIZE, input="input"))
    assert [line.split(" ")[0] for line in guessed] == ["model_bottleneck", "model_logits"]
    assert (backbones.load(folder).mean, backbones.load(folder).std) == (0, 255)


def test_a_graph_that_ends_in_its_features_has_no_classifier(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        convolved = tf.nn.relu(tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, WIDTH)), strides=2, padding="SAME"))
        tf.identity(tf.reduce_mean(convolved, [1, 2]), name="features")
        (tmp_path / "features.pb").write_bytes(graph.as_graph_def().SerializeToString())
    folder, guessed = make(tmp_path / "features.pb", tmp_path)
    assert "model_bottleneck = features:0" in guessed
    assert backbones.load(folder).classes == 0
    with pytest.raises(UserError, match="has no classifier of its own"):
        backbones.class_names(folder)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            Description(bottleneck="MobilenetV1/Logits/AvgPol"),
            "model_bottleneck = .* is not in the model's graph; likely are: MobilenetV1/Logits/AvgPool_1a/AvgPool:0",
        ),
        (Description(input="image"), "model_input = 'image' is not in the model's graph; likely are: input:0"),
        (Description(bottleneck="gamma"), "does not depend on model_input"),
        (Description(bottleneck="Relu6"), "which is not pooled yet"),
        (Description(size=SIZE + 6), "the model does not run on two images|cannot be used|is not pooled yet"),
    ],
)
def test_a_wrong_description_gets_a_remedy(mobilenet: Path, tmp_path: Path, described: Description, message: str) -> None:
    (tmp_path / "mine.pb").write_bytes(frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb"))
    with pytest.raises(UserError, match=message) as error:
        make(tmp_path / "mine.pb", tmp_path, described)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["reads a file", "writes a file", "runs Python", "in a function"])
def test_a_graph_that_does_more_than_compute_is_refused(tmp_path: Path, kind: str) -> None:
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        features = tf.reduce_mean(image, [1, 2])
        if kind == "reads a file":
            features += tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)
        elif kind == "writes a file":
            with tf.control_dependencies([tf.io.write_file(str(tmp_path / "written"), "x")]):
                features = tf.identity(features)
        elif kind == "runs Python":
            features = tf.reshape(tf.py_func(lambda x: x, [features], tf.float32), [-1, 3])
        else:

            @tf2.function
            def hidden(x: Any) -> Any:
                return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/passwd")), tf.float32)

            features = hidden(features)
        tf.identity(features, name="features")
        (tmp_path / "evil.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UserError, match=r"the model is refused: its node .* is a \w+"):
        make(tmp_path / "evil.pb", tmp_path, Description(bottleneck="features", size=SIZE))
    assert not (tmp_path / "written").exists()


def test_a_network_that_mixes_its_batch_is_refused(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        features = tf.reduce_mean(tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, WIDTH)), strides=2, padding="SAME"), [1, 2])
        tf.subtract(features, tf.reduce_mean(features, 0), name="features")
        (tmp_path / "mixing.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UserError, match="another vector in a batch than alone"):
        make(tmp_path / "mixing.pb", tmp_path, Description(bottleneck="features", size=SIZE))


def test_a_quantized_weight_becomes_the_floats_it_stands_for(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (3, 3, 3, WIDTH)).astype(np.uint8)
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, SIZE, SIZE, 3], name="x")
        kernel = tf.quantization.dequantize(tf.bitcast(tf.constant(codes), tf.quint8), -1.0, 1.0, name="w")
        features = tf.reduce_mean(tf.nn.conv2d(image, kernel, strides=2, padding="SAME"), [1, 2], keepdims=True, name="features")
        of_classes = tf.quantization.dequantize(tf.bitcast(tf.constant(codes[:1, :1, :1].repeat(WIDTH, 2)), tf.quint8), -1.0, 1.0)
        tf.nn.softmax(tf.squeeze(tf.nn.conv2d(features, of_classes, strides=1, padding="SAME"), [1, 2]))
        definition = graph.as_graph_def()
    # In such files the codes are constants of the type itself.
    for node in definition.node:
        if node.op == "Bitcast":
            tensor = next(n for n in definition.node if n.name == node.input[0]).attr["value"].tensor
            tensor.dtype = tf.quint8.as_datatype_enum
            node.op = "Const"
            del node.input[:]
            node.attr.clear()
            node.attr["dtype"].type = tf.quint8.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tensor)
    (tmp_path / "quantized.pb").write_bytes(definition.SerializeToString())
    folder, _ = make(tmp_path / "quantized.pb", tmp_path, Description(mean=127.5, std=127.5))
    assert_same(folder, native_graph(definition.SerializeToString(), "features:0", "x:0", (images() - 127.5) / 127.5, one_at_a_time=True))


def test_a_graph_as_old_as_inception_keeps_its_version(tmp_path: Path) -> None:
    """Its batch norm is an op that newer GraphDefs may not hold; it lives on as long as the version is kept."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, SIZE, SIZE, 3], name="x")
        tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, WIDTH)), strides=2, padding="SAME", name="conv")
        for number, name in enumerate(("mean", "variance", "beta", "gamma")):
            tf.constant(np.abs(weights(WIDTH)) + number, name=name)
        normed = tf.identity(graph.get_tensor_by_name("conv:0"), name="norm")
        tf.reduce_mean(tf.nn.relu(normed), [1, 2], name="features")
        definition = graph.as_graph_def()
    (norm,) = (node for node in definition.node if node.name == "norm")
    norm.op = "BatchNormWithGlobalNormalization"
    del norm.input[:]
    norm.input.extend(["conv", "mean", "variance", "beta", "gamma"])
    norm.attr["variance_epsilon"].f = 1e-3
    norm.attr["scale_after_normalization"].b = True
    definition.versions.producer = 8
    (tmp_path / "old.pb").write_bytes(definition.SerializeToString())
    folder, _ = make(tmp_path / "old.pb", tmp_path, Description(mean=127.5, std=127.5))
    native = native_graph(definition.SerializeToString(), "features:0", "x:0", (images() - 127.5) / 127.5, one_at_a_time=True)
    assert_same(folder, native)


# --- SavedModels and TensorFlow Hub -------------------------------------------------------------------------------------


class Network(tf2.Module):  # type: ignore[misc]
    """A TensorFlow 2 network: features, or the logits of a classifier behind them."""

    def __init__(self, classifier: bool) -> None:
        super().__init__()
        self.kernel = tf2.Variable(weights(3, 3, 3, WIDTH))
        self.dense = tf2.Variable(weights(WIDTH, CLASSES)) if classifier else None

    @tf2.function
    def __call__(self, images: Any) -> Any:
        features = tf2.reduce_mean(tf2.nn.relu(tf2.nn.conv2d(images, self.kernel, 2, "SAME")), [1, 2])
        return features if self.dense is None else tf2.matmul(features, self.dense)


def saved_model(folder: Path, *, classifier: bool = False, signature: bool = True) -> np.ndarray:
    """Save a network; returns the features it gives for the images in 0..1."""
    module = Network(classifier)
    spec = tf2.TensorSpec([None, SIZE, SIZE, 3], tf2.float32)
    tf2.saved_model.save(module, str(folder), signatures=module.__call__.get_concrete_function(spec) if signature else None)
    if not signature:
        module(images() / 255)
        tf2.saved_model.save(module, str(folder))
    return Network(False)(images() / 255).numpy()


HUB_INPUT = Description(mean=0.0, std=255.0)


@pytest.mark.parametrize("classifier", [False, True])
def test_a_saved_model(tmp_path: Path, classifier: bool) -> None:
    native = saved_model(tmp_path / "saved", classifier=classifier)
    folder, _ = make(tmp_path / "saved", tmp_path, HUB_INPUT)
    assert_same(folder, native)
    assert backbones.load(folder).classes == (CLASSES if classifier else 0)
    (moved := tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "saved", moved / "other name")
    assert backbones.identify(str(moved / "other name")).startswith("sha256:")


def test_a_saved_model_that_can_only_be_called(tmp_path: Path) -> None:
    native = saved_model(tmp_path / "saved", signature=False)
    folder, _ = make(tmp_path / "saved", tmp_path, HUB_INPUT.or_else(AT_SIZE))
    assert_same(folder, native)


def hub_module_v1(folder: Path) -> np.ndarray:
    """A module in TensorFlow 1's hub format: tags [], a signature 'default' from images to default, a note of its format."""
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH), use_resource=True)
        features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2])
        running.run(tf.global_variables_initializer())
        signature = tf.saved_model.predict_signature_def({"images": image}, {"default": features})
        builder = tf.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(running, [], {"default": signature})
        builder.save()
        native = running.run(features, {image: images() / 255})
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return native


def test_a_hub_module_of_tensorflow_1_takes_values_from_0_to_1(tmp_path: Path) -> None:
    native = hub_module_v1(tmp_path / "module")
    folder, guessed = make(tmp_path / "module", tmp_path)
    assert_same(folder, native)
    assert not any("model_mean" in line for line in guessed)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which a web server on loopback serves it."""
    (root := tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_handle_through_hubs_cache(tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, address = served
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    native = saved_model(tmp_path / "saved")
    with tarfile.open(root / "features", "w:gz") as tar:
        tar.add(tmp_path / "saved", ".")
    handle = f"{address}/features"
    folder, guessed = make(handle, tmp_path)
    assert_same(folder, native)
    assert not any("model_mean" in line for line in guessed)
    (cached,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())

    assert backbones.load(folder).weights_sha256 == files.sha256_folder(cached)

    # Half a module in the cache is noticed and fetched again; a whole one needs no network.
    shutil.rmtree(cached / "variables")
    assert_same(make(handle, tmp_path, HUB_INPUT)[0], native)
    assert hub_cache.is_whole(cached)
    (root / "features").unlink()
    assert_same(make(handle, tmp_path, HUB_INPUT)[0], native)
    assert not list((tmp_path / "downloads").glob("*features"))
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    for wrong, reason in ((f"{address}/other", "answers 404"), ("http://127.0.0.1:9/x", "cannot be reached .*; try again when")):
        with pytest.raises(UserError, match=reason):
            make(wrong, tmp_path)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("saved_model.pb", None),
        ("saved_model.pb", 0),
        ("saved_model.pb", 2),
        ("saved_model.pb", 500),
        ("variables", None),
        ("variables/variables.index", None),
        ("variables/variables.index", 50),
        ("variables/variables.data-00000-of-00001", None),
        ("variables/variables.data-00000-of-00001", 100),
    ],
)
def test_half_a_hub_module_is_not_whole(tmp_path: Path, name: str, left: int | None) -> None:
    """``left`` bytes are left of it."""
    for module, write in ((tmp_path / "v1", hub_module_v1), (tmp_path / "v2", saved_model)):
        write(module)
        assert hub_cache.is_whole(module)
        broken = module / name
        if left is not None:
            broken.write_bytes(broken.read_bytes()[:left])
        elif broken.is_dir():
            shutil.rmtree(broken)
        else:
            broken.unlink()
        assert not hub_cache.is_whole(module)


def test_a_hub_module_of_constants_is_whole_without_variables(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        signature = tf.saved_model.predict_signature_def({"images": image}, {"default": tf.reduce_mean(image, [1, 2])})
        builder = tf.saved_model.Builder(str(tmp_path / "module"))
        builder.add_meta_graph_and_variables(running, [], {"default": signature})
        builder.save()
    shutil.rmtree(tmp_path / "module/variables", ignore_errors=True)
    assert hub_cache.is_whole(tmp_path / "module")


def test_a_hub_that_does_not_answer_or_has_no_module(tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, address = served
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with monkeypatch.context() as impatient, socket.create_server(("127.0.0.1", 0)) as silent:
        impatient.setattr(fetch, "READ_SECONDS", 0.1)  # and not with the server below, which answers when this machine lets it
        with pytest.raises(UserError, match=r"did not answer within 0\.1 s"):
            make(f"http://127.0.0.1:{silent.getsockname()[1]}/module", tmp_path)
    (root / "page").write_text("<html>log in</html>")
    with pytest.raises(UserError, match="/page brought no TensorFlow Hub module"):
        make(f"{address}/page", tmp_path)
    saved_model(tmp_path / "saved")
    with tarfile.open(root / "half", "w:gz") as tar:
        tar.add(tmp_path / "saved" / "saved_model.pb", "saved_model.pb")
    with pytest.raises(UserError, match="/half brought a TensorFlow Hub module without its graph or all of its variables"):
        make(f"{address}/half", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "from_hub"),
    [
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5", True),
        ("https://tfhub.dev/google/imagenet/x/5.tar.gz", True),
        ("https://www.kaggle.com/models/google/x/1.tar.gz", True),
        ("https://storage.googleapis.com/tfhub-modules/google/imagenet/x/5.tar.gz", True),
        ("https://example.org/x.tar.gz?tf-hub-format=compressed", True),
        ("gs://bucket/x.tar.gz", True),
        ("https://example.org/x.tar.gz", False),
        ("x.tar.gz", False),
        ("http://[bad", False),
    ],
)
def test_addresses_of_hub_modules(model: str, from_hub: bool) -> None:
    assert backbones._is_from_hub(model) == from_hub


def test_a_lock_of_a_dead_download_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = hub_cache.place("http://x/y").with_suffix(".lock")
    for pid, stays in ((ended.pid, False), (os.getpid(), True)):
        lock.write_text(f"{socket.gethostname()}.{pid}.abcdef")
        hub_cache.remove_stale_lock("http://x/y")
        assert lock.exists() == stays


@pytest.mark.parametrize("name", ["features.tar.gz", "features"], ids=["address", "handle"])
def test_what_was_fetched_is_pinned_on_first_use(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root, address = served
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    native = saved_model(tmp_path / "saved")
    model, archive = f"{address}/{name}", root / name

    archive.write_text("<html>log in</html>")  # is pinned to nobody's loss: it is no model
    with pytest.raises(UserError, match="is no archive that can be unpacked"):
        make(model, tmp_path, HUB_INPUT)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "saved", "features")
    folder, _ = make(model, tmp_path, HUB_INPUT)
    assert_same(folder, native)
    (pin,) = tmp_path.rglob("*.sha256")
    os.truncate(pin, 0)  # as a power cut leaves it
    assert_same(make(model, tmp_path, HUB_INPUT)[0], native)
    first = backbones.load(folder).weights_sha256
    assert first == (files.sha256_file(archive) if name.endswith("gz") else files.sha256_folder(tmp_path / "saved"))

    (tmp_path / "saved/assets").mkdir(exist_ok=True)
    (tmp_path / "saved/assets/other.txt").write_text("another version")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "saved", "features")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    with pytest.raises(UserError, match=f"is not what it was: .* and was {first} .* remove .*sha256 and run again") as error:
        make(model, tmp_path, HUB_INPUT)
    Path(str(error.value).split("remove ")[1].removesuffix(" and run again")).unlink()
    assert_same(make(model, tmp_path, HUB_INPUT)[0], native)


def test_a_model_that_changes_while_it_is_read_has_no_key(inside: Project, tmp_path: Path) -> None:
    saved_model(tmp_path / "saved")
    named = {"model": str(tmp_path / "saved"), "model_mean": 0.0, "model_std": 255.0}
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"model = \S+/saved changed while it was read; run again"):
        DownloadModel(model_identity="sha256:of another", **named).make(tmp_path / "work")
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").mkdir()
    made = DownloadModel(model_identity=backbones.identify(named["model"]), **named).make(tmp_path / "work")
    assert made["backbone"]["name"] == "saved"


def test_a_hub_module_by_the_address_of_its_archive_takes_values_from_0_to_1(tmp_path: Path, served: tuple[Path, str]) -> None:
    root, address = served
    native = saved_model(tmp_path / "saved")
    with tarfile.open(root / "module.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "saved", ".")
    assert_same(make(f"{address}/module.tar.gz?tf-hub-format=compressed", tmp_path)[0], native)


# --- Keras -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_keras_model_is_cut_at_its_global_pooling(tmp_path: Path, ending: str) -> None:
    keras = tf2.keras
    keras.utils.set_random_seed(0)
    layers = keras.layers
    given = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(WIDTH, 3, 2, activation="relu", name="first")(given)
    x = layers.BatchNormalization()(x)
    pooled = layers.GlobalAveragePooling2D(name="pool")(x)
    scores = layers.Dense(CLASSES, activation="softmax")(layers.Dropout(0.5)(pooled))
    model = keras.Model(given, scores)
    model.save(tmp_path / f"model{ending}")
    folder, _ = make(tmp_path / f"model{ending}", tmp_path, Description(mean=127.5, std=127.5))
    normalised = (images() - 127.5) / 127.5
    assert_same(folder, keras.Model(given, pooled)(normalised, training=False).numpy())
    assert_same(folder, model(normalised, training=False).numpy(), backbones.SOFTMAX)

    # Another layer, by its name: pooled where it is not yet.
    shutil.rmtree(folder)
    folder, _ = make(tmp_path / f"model{ending}", tmp_path, Description(bottleneck="first", mean=127.5, std=127.5))
    assert_same(folder, keras.Model(given, model.get_layer("first").output)(normalised).numpy().mean((1, 2)))
    with pytest.raises(UserError, match="model_bottleneck = 'frist' is no layer of model.*; its last layers are: .*pool"):
        make(tmp_path / f"model{ending}", tmp_path, Description(bottleneck="frist"))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_keras_model_that_would_run_code_is_refused(tmp_path: Path, ending: str) -> None:
    keras = tf2.keras
    given = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(given, keras.layers.Lambda(lambda x: x + 1)(given))
    model.save(tmp_path / f"evil{ending}")
    with pytest.raises(UserError, match="is no Keras model that can be loaded"):
        make(tmp_path / f"evil{ending}", tmp_path)


# --- Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_collection", [True, False])
def test_a_checkpoint_with_its_meta_graph(tmp_path: Path, by_collection: bool) -> None:
    (folder := tmp_path / "training").mkdir()
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH))
        features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2], name="features")
        dense = tf.get_variable("dense", initializer=weights(WIDTH, CLASSES))
        loss = tf.reduce_sum(tf.matmul(features, dense, name="logits"))
        tf.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
        if by_collection:
            tf.add_to_collection("input", image)
            tf.add_to_collection("bottleneck", features)
        running.run(tf.global_variables_initializer())
        tf.train.Saver().save(running, str(folder / "model.ckpt"), global_step=7)
        native = running.run(features, {image: (images() - 127.5) / 127.5})
    said = Description(size=SIZE) if by_collection else Description(input="x", bottleneck="features")
    for name in (folder, folder / "model.ckpt-7", folder / "model.ckpt-7.meta"):
        made, _ = make(name, tmp_path, said)
        assert_same(made, native)
        shutil.rmtree(made)
    assert backbones.identify(str(folder / "model.ckpt-7")).startswith("sha256:")
    with pytest.raises(UserError, match=r"model_bottleneck = 'featurs' .* likely are: features:0"):
        make(folder, tmp_path, Description(input="x", bottleneck="featurs"))


def test_our_own_backbone_is_a_checkpoint_like_any_other(mobilenet: Path, tmp_path: Path) -> None:
    folder, _ = make(mobilenet, tmp_path, AT_SIZE)
    again, guessed = make(folder, tmp_path / "again")
    np.testing.assert_allclose(vectors(again, images()), vectors(folder, images()), rtol=TOLERANCE, atol=TOLERANCE)
    assert [line.split(" ")[0] for line in guessed] == ["model_size", "model_mean"]


# --- EfficientNet-Lite1 and 2 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "blocks"), [("efficientnet-lite1", 240, 21), ("efficientnet-lite2", 260, 21)])
def test_the_larger_lite_networks(name: str, size: int, blocks: int, tmp_path: Path) -> None:
    """All weights of the package are in the graph: none is left over, and none is missing."""
    from pipeline.backbones import torch_checkpoint
    from pipeline.backbones.catalogue import CATALOGUE, Package

    folder, _ = make(name, tmp_path)
    package = CATALOGUE[name]
    assert isinstance(package, Package)
    state = torch_checkpoint.read_state_dict(backbones._weights_file(package))
    assert backbones.load(folder).input_size == size
    assert len({key.split(".")[1] for key in state if key.startswith("_blocks.")}) == blocks
    convolutions = sum(key.endswith("weight") and value.ndim == 4 for key, value in state.items())
    saved = tf.train.list_variables(tf.train.latest_checkpoint(str(folder)))
    assert len(saved) == 2 * convolutions + 2  # weights and bias of each, and of the classifier


# --- Naming and refusing ---------------------------------------------------------------------------------------------------


def test_an_unknown_model_gets_the_known_names() -> None:
    with pytest.raises(UserError, match="model = 'resnet' is neither a known name .* efficientnet-lite0, efficientnet-lite1"):
        backbones.identify("resnet")
    with pytest.raises(UserError, match=r"model = 'http://\[bad' is neither a known name .* http\(s\) address"):
        backbones.identify("http://[bad")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pb", b"no graph", "is no frozen graph|is an empty graph"),
        ("x.pb", b"", "is an empty graph"),
        ("x.tgz", b"<html>", "is no archive that can be unpacked"),
        ("x.keras", b"<html>", "is no Keras model that can be loaded"),
        ("x.onnx", b"x", r"is no model that is read here; wanted is a frozen graph \(.pb\), a SavedModel folder"),
        ("x/saved_model.pb", b"cut", "is no SavedModel that can be loaded"),
        ("x/a/readme.txt", b"x", "x holds 0 models"),
    ],
)
def test_what_is_no_model_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        make(tmp_path / name.split("/")[0], tmp_path)


def test_class_names_that_do_not_fit_are_an_error(mobilenet: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pb").write_bytes(frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb"))
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"2 class names do not fit 4 logits; correct the label file"):
        make(tmp_path / "m.pb", tmp_path)
    assert labels.fitted(["x"] * 1001, 1008, "inception")[1007] == "class 1007 (none)"


def test_the_names_of_imagenet_are_in_their_usual_order() -> None:
    names = labels.imagenet()
    assert len(names) == 1000
    assert (names[0], names[388].split(",")[0], names[985], names[999].split(",")[0]) == (
        "tench, Tinca tinca",
        "giant panda",
        "daisy",
        "toilet tissue",
    )


def test_what_hub_and_a_mac_leave_beside_a_model_is_none(mobilenet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "mobilenet_v1_0.25_128.pb").write_bytes(frozen_member(mobilenet, "mobilenet_v1_0.25_128/frozen_graph.pb"))
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    (folder / "._mobilenet_v1_0.25_128.pb").write_bytes(b"\x00\x05\x16\x07")  # as a Mac writes them on disks of other systems
    made = [make(path, tmp_path / f"of {path.name}", AT_SIZE)[0] for path in (folder, folder / "mobilenet_v1_0.25_128.pb")]
    assert len({backbones.load(one).graph_sha256 for one in made}) == 1


# --- As a user ---------------------------------------------------------------------------------------------------------------


def test_a_training_on_a_model_of_ones_own(project: Project, mobilenet: Path) -> None:
    """The name of the file matters to nobody but its reader; the same file elsewhere is the same model."""
    project.photos("colours", 6)
    shutil.copy(mobilenet, project.root / mobilenet.name)
    few = ("--data", "colours", "--how-many-training-steps", "50", "--model-size", str(SIZE))
    done = project.export(*few, "--model", mobilenet.name)
    assert done.returncode == 0, done.stderr
    assert "18 photos in 3 classes, mobilenet_v1_0.25_128_frozen" in done.stdout
    again = project.export(*few, "--model", str(mobilenet))
    assert "nothing to do" in again.stdout
    wrong = project.export(*few, "--model", mobilenet.name, "--model-bottleneck", "Nothing")
    assert wrong.returncode == 30
    assert "error: model_bottleneck = 'Nothing' is not in the model's graph" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_classify_and_models_from_the_command_line(finished: Project, tmp_path: Path) -> None:
    make_photos(tmp_path, 1, ("red",))
    done = finished.pipeline("classify", str(tmp_path / "red/000.png"), "--top-k", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/red/000.png: ")
    assert done.stdout.count("%") == 3
    listed = finished.pipeline("models", "list").stdout.splitlines()
    assert len(listed) == 1 + 3 + 1 + 32
    assert listed[1].split()[:5] == ["efficientnet-lite0", "18.6", "224", "1280", "75.1"]
    graph = finished.pipeline("models", "graph", "efficientnet-lite0")
    assert graph.returncode == 0
    (events,) = Path(graph.stdout.split()[-1]).glob("events*")
    assert any(event.graph_def for event in tf.train.summary_iterator(str(events)))
    wrong = finished.pipeline("classify", str(tmp_path / "red/000.png"), "--model", "resnet")
    assert (wrong.returncode, wrong.stdout) == (30, "")
    assert wrong.stderr.startswith("error: model = 'resnet' is neither")
