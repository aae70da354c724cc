"""Graphs as TensorFlow's ``retrain.py`` left them: a photo gets the probabilities that the graph itself gives it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Project
from PIL import Image
from small_models import weights

from pipeline import predict, retrained
from pipeline.__main__ import main
from pipeline.backbones import Description
from pipeline.classifier import Classifier
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import session, tf

LABELS = ["daisy", "oak tree", "rose"]


def final_layer(pixels: tf.Tensor, name: str = "final_result") -> None:
    """A small network with its batch fixed to 1, and the layer that retrain.py trained, behind its placeholder."""
    pooled = tf.nn.avg_pool2d(tf.nn.relu(tf.nn.conv2d(pixels, weights(3, 3, 3, 6), 4, "SAME")), [1, 8, 8, 1], 8, "SAME")
    features = tf.reshape(tf.reduce_mean(pooled, [1, 2], keepdims=True), [1, 6], name="pool_3/_reshape")
    given = tf.placeholder_with_default(features, [None, 6], name="input/BottleneckInputPlaceholder")
    tf.nn.softmax(tf.matmul(given, weights(6, 3)), name=name)


def inception() -> None:
    encoded = tf.placeholder_with_default(tf.constant(b""), [], name="DecodeJpeg/contents")
    pixels = tf.cast(tf.image.decode_jpeg(encoded, channels=3, name="DecodeJpeg"), tf.float32, name="Cast")
    resized = tf.raw_ops.ResizeBilinear(images=tf.expand_dims(pixels, 0), size=[299, 299], name="ResizeBilinear")
    final_layer(tf.multiply(tf.subtract(resized, 128.0, name="Sub"), 1 / 128, name="Mul"))


def mobilenet() -> None:
    final_layer(tf.placeholder(tf.float32, [1, 64, 64, 3], name="input"))


def hub_module() -> None:
    final_layer(tf.placeholder(tf.float32, [None, 48, 48, 3], name="Placeholder"))


def of_nobody() -> None:
    final_layer(tf.placeholder(tf.float32, [None, None, None, 3], name="mine"), "scores")


def of_type(kind: tf.DType, name: str = "input") -> Callable[[], None]:
    def build() -> None:
        final_layer(tf.cast(tf.placeholder(kind, [None, 64, 64, 3], name=name), tf.float32) / 255)

    return build


def of_shape(*shape: int | None, name: str = "input") -> Callable[[], None]:
    """Images of another shape, in a graph that could be run on photos all the same, as if colours were so many grey images."""

    def build() -> None:
        pixels = tf.reshape(tf.placeholder(tf.float32, shape, name=name), [-1, 32, 32, 1])
        final_layer(tf.tile(pixels, [1, 1, 1, 3]))

    return build


def of_two_outputs() -> None:
    pixels = tf.placeholder(tf.float32, [1, 64, 64, 3], name="input")
    final_layer(pixels, "first")
    tf.nn.softmax(tf.reduce_mean(pixels, [1, 2]), name="second")


def reading_a_file() -> None:
    beside = tf.strings.length(tf.io.read_file("/etc/hostname"))
    final_layer(tf.placeholder(tf.float32, [1, 64, 64, 3], name="input") + tf.cast(beside, tf.float32))


SHAPE = "wanted is a model that takes (batch, size, size, 3) alone"


def write(folder: Path, build: Callable[[], None]) -> tuple[Path, Path]:
    with tf.Graph().as_default() as graph:
        build()
    (folder / "retrained_graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    (folder / "retrained_labels.txt").write_text("\n".join(LABELS) + "\n")
    return folder / "retrained_graph.pb", folder / "retrained_labels.txt"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_mandelbrot((200, 150), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(tmp_path / "photo.jpg", quality=90)
    return tmp_path / "photo.jpg"


def by_the_graph_itself(
    graph: Path, photo: Path, feed: str, output: str = "final_result:0", size: int = 0, mean: float = 0, std: float = 1
) -> np.ndarray:
    """What a script of that time would have got: the JPEG fed where it goes in, or decoded and resized as retrain.py did."""
    with tf.Graph().as_default(), session(threads=1) as running:
        tf.import_graph_def(tf.GraphDef.FromString(graph.read_bytes()), name="")
        given = photo.read_bytes()
        if size:
            pixels = tf.cast(tf.image.decode_jpeg(given, channels=3), tf.float32)
            given = running.run((tf.raw_ops.ResizeBilinear(images=pixels[tf.newaxis], size=[size, size]) - mean) / std)
        return running.run(output, {feed: given})[0]


def scores(classifier: Classifier, photo: Path) -> list[float]:
    """In the order of the labels, of a photo among others."""
    predictions = list(classifier.predict([photo] * 3))
    assert predictions[0] == predictions[2]
    found = {score.label: score.probability for score in predictions[0].scores}
    return [found[label] for label in LABELS]


@pytest.mark.parametrize(
    ("build", "known", "native"),
    [
        (inception, "Inception v3: Mul:0 takes 299 pixels a side, (x - 128) / 128", {"feed": "DecodeJpeg/contents:0"}),
        (
            mobilenet,
            "MobileNet: input:0 takes 64 pixels a side, (x - 127.5) / 127.5",
            {"feed": "input:0", "size": 64, "mean": 127.5, "std": 127.5},
        ),
        (
            hub_module,
            "a TensorFlow Hub module: Placeholder:0 takes 48 pixels a side, (x - 0) / 255",
            {"feed": "Placeholder:0", "size": 48, "std": 255},
        ),
    ],
)
def test_what_retrain_py_left_is_known(
    tmp_path: Path, photo: Path, build: Callable[[], None], known: str, native: dict[str, object]
) -> None:
    graph, labels = write(tmp_path, build)
    classifier, words = retrained.load(graph, labels)
    assert words == f"{known}; final_result:0 gives the probabilities"
    np.testing.assert_allclose(scores(classifier, photo), by_the_graph_itself(graph, photo, **native), atol=1e-5)  # type: ignore[arg-type]


def test_the_first_name_of_the_input_of_inception_is_understood(tmp_path: Path, photo: Path) -> None:
    graph, labels = write(tmp_path, inception)
    classifier, _ = retrained.load(graph, labels, Description(input="DecodeJpeg/contents:0"))
    np.testing.assert_allclose(scores(classifier, photo), by_the_graph_itself(graph, photo, "DecodeJpeg/contents:0"), atol=1e-5)


@pytest.mark.parametrize("name", ["input", "Placeholder", "mine"])
@pytest.mark.parametrize("kind", [tf.uint8, tf.int32], ids=lambda kind: kind.name)
def test_a_graph_of_whole_pixels_gets_them_as_they_are(tmp_path: Path, photo: Path, kind: tf.DType, name: str) -> None:
    """Also where a name is known whose images have another range."""
    classifier, words = retrained.load(*write(tmp_path, of_type(kind, name)), Description(std=1))
    assert f"{name}:0 takes 64 pixels a side, (x - 0) / 1;" in words
    of_floats, _ = retrained.load(*write(tmp_path, of_type(tf.float32, name)), Description(mean=0, std=1))
    np.testing.assert_allclose(scores(classifier, photo), scores(of_floats, photo), atol=2e-3)  # pixels are rounded


def test_a_graph_of_another_precision(tmp_path: Path, photo: Path) -> None:
    double, single = (retrained.load(*write(tmp_path, of_type(kind)))[0] for kind in (tf.float64, tf.float32))
    np.testing.assert_allclose(scores(double, photo), scores(single, photo), atol=1e-5)


def test_an_unknown_graph_is_used_as_it_is_said(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, labels = write(tmp_path, of_nobody)
    options = ["--input-layer", "mine", "--output-layer", "scores", "--input-size", "40", "--input-mean", "100", "--input-std", "50"]
    assert main(["predict", "--graph", str(graph), "--labels", str(labels), *options, "--format", "csv", str(photo)]) == 0
    out, err = capsys.readouterr()
    assert "an unknown architecture: mine:0 takes 40 pixels a side, (x - 100) / 50; scores:0 gives the probabilities" in err
    cells = out.splitlines()[1].split(",")
    native = by_the_graph_itself(graph, photo, "mine:0", "scores:0", 40, 100, 50)
    assert cells[:2] == [str(photo), LABELS[native.argmax()]]
    assert float(cells[2]) == pytest.approx(native.max(), abs=1e-5)


def test_the_graph_of_an_export_alone(finished: Project, tmp_path: Path, photo: Path) -> None:
    folder = finished.live("colours")
    (tmp_path / "alone.pb").write_bytes((folder / "output_graph.pb").read_bytes())
    alone, words = retrained.load(tmp_path / "alone.pb", folder / "labels.txt")
    assert words.startswith("a graph of this pipeline: image:0 takes 224 pixels")
    assert list(alone.predict(photo)) == list(predict.load(folder).predict(photo))


def test_a_graph_that_does_more_than_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its node 'ReadFile' is a ReadFile"):
        retrained.load(*write(tmp_path, reading_a_file))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (mobilenet, ["--input-layer", "imput"], "--input-layer = 'imput' is not in the graph; likely are: input"),
        (mobilenet, ["--output-layer", "softmax"], "--output-layer = 'softmax' is not in the graph; likely are: final_result"),
        (mobilenet, ["--output-layer", "Relu"], "Relu:0 gives [16, 16, 6] numbers for an image, wanted is a row; correct --output-layer"),
        (mobilenet, ["--input-std", "0"], "--input-std = 0: no such thing is possible; leave it out to have it guessed"),
        (
            of_type(tf.uint8),
            ["--input-mean", "127.5"],
            "--input-mean = 127.5: input takes whole pixels (uint8), for which it is 0; leave it out",
        ),
        (of_type(tf.uint8), ["--input-std", "255"], "--input-std = 255: input takes whole pixels (uint8), for which it is 1; leave it out"),
        (of_type(tf.int8), [], "input takes int8, wanted are numbers from 0 to 255; name another --input-layer, or another graph"),
        (of_shape(None, 32, 32, 1), [], f"input takes (any, 32, 32, 1); {SHAPE}"),
        (of_shape(None, None, None, 1, name="mine"), ["--input-layer", "mine"], f"mine takes (any, any, any, 1); {SHAPE}"),
        (of_shape(None, 32, 64, 3), ["--input-size", "32"], "input takes images of 32 × 64 pixels; wanted are as many rows as columns"),
        (of_shape(None, 3, 32, 32), [], f"input takes (any, 3, 32, 32); {SHAPE}"),
        (of_shape(None, 3, None, None), ["--input-size", "32"], f"input takes (any, 3, any, any); {SHAPE}"),
        (of_two_outputs, [], "the graph's output cannot be guessed among first, second; say it with --output-layer NAME"),
        (of_nobody, [], "the graph does not say how large the images are that mine takes; say it with --input-size PIXELS"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], build: Callable[[], None], options: list[str], message: str
) -> None:
    graph, labels = write(tmp_path, build)
    assert main(["predict", "--graph", str(graph), "--labels", str(labels), *options, str(photo)]) == 30
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_labels_that_do_not_fit_and_files_that_are_none(tmp_path: Path) -> None:
    graph, labels = write(tmp_path, mobilenet)
    labels.write_text("daisy\nrose\n")
    with pytest.raises(UserError, match="has 2 labels for 3 outputs of final_result:0"):
        retrained.load(graph, labels)
    graph.write_bytes(graph.read_bytes()[:500])
    with pytest.raises(UserError, match="is no frozen graph"):
        retrained.load(graph, labels)
    with pytest.raises(UserError, match="there is no file of labels"):
        retrained.load(graph, tmp_path / "gone.txt")


@pytest.mark.parametrize("lines", [["0 stars", "1 star", "2 stars"], ["2 doors", "1 door", "0 doors"], ["0: a", "1: b", "2: c"]])
def test_labels_are_taken_as_they_stand_in_the_file(tmp_path: Path, lines: list[str]) -> None:
    graph, labels = write(tmp_path, mobilenet)
    labels.write_text("\n".join(lines) + "\n")
    classifier, _ = retrained.load(graph, labels)
    assert list(classifier.labels) == lines


def test_the_options_of_a_graph_go_with_a_graph(
    finished: Project, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.root)
    assert main(["predict", "colours", str(photo), "--input-size", "224"]) == 30
    assert main(["predict", "--graph", "x.pb", str(photo)]) == 30
    with pytest.raises(SystemExit):
        main(["predict", "--graph", "x.pb", "--labels", "x.txt"])
    assert [line for line in capsys.readouterr().err.splitlines() if "error: " in line] == [
        "error: --input-size goes with --graph, and an export says itself how it is used; leave it out",
        "error: --graph needs --labels LABELS.txt, the file that retrain.py wrote beside the graph",
        "python -m pipeline predict: error: the following arguments are required: PHOTO",
    ]
