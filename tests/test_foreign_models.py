"""Models as strangers make them: with ops that do harm, nested, with several heads, damaged. Each against its own native run."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, make_photos
from small_models import AT_SIZE, CLASSES, SIZE, WIDTH, assert_same, images, make, vectors, weights

from pipeline import backbones
from pipeline.backbones import allowed_ops, hub_cache, labels
from pipeline.backbones.frozen import Description
from pipeline.errors import UserError
from pipeline.tensorflow_v1 import session, tf, tf2

keras = tf2.keras
UNIT = Description(mean=0.0, std=255.0)
SYMMETRIC = (images() - 127.5) / 127.5


def convolved(image: Any, channels: int = WIDTH) -> Any:
    return tf.nn.relu(tf.nn.conv2d(image, tf.constant(weights(3, 3, 3, channels)), strides=2, padding="SAME"))


def graph_file(path: Path, build: Callable[[Any], Any], batch: int | None = None) -> Path:
    """A frozen graph in which ``build`` makes the network behind the placeholder ``x``."""
    with tf.Graph().as_default() as graph:
        build(tf.placeholder(tf.float32, [batch, SIZE, SIZE, 3], name="x"))
        path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def native(path: Path, output: str, **fed: Any) -> np.ndarray:
    """What a graph gives for each image alone, as rows."""
    with tf.Graph().as_default(), session(threads=1) as running:
        tf.import_graph_def(tf.GraphDef.FromString(path.read_bytes()), name="")
        feeds = {f"{name}:0": value for name, value in fed.items()}
        return np.concatenate([running.run(output, {"x:0": image[None], **feeds}).reshape(1, -1) for image in SYMMETRIC])


# --- Nothing is run before it was checked ------------------------------------------------------------------------------------


def test_a_checkpoints_own_restore_ops_are_not_run(tmp_path: Path) -> None:
    written, prefix = tmp_path / "written", tmp_path / "m.ckpt"
    with tf.Graph().as_default() as graph, tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH))
        features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2], name="features")
        saver = tf.train.Saver({"another name": kernel})  # as moving averages are saved
        running.run(tf.global_variables_initializer())
        saver.save(running, str(prefix), write_meta_graph=False)
        restore = graph.get_operation_by_name(saver.saver_def.restore_op_name)
        with tf.control_dependencies([tf.io.write_file(str(written), "x"), restore]):
            saver.saver_def.restore_op_name = tf.no_op("restore_and_write").name
        tf.train.export_meta_graph(f"{prefix}.meta", saver_def=saver.saver_def)
        own = running.run(features, {image: SYMMETRIC})
    folder, _ = make(prefix, tmp_path, Description(input="x", bottleneck="features"))
    assert not written.exists()
    assert_same(folder, own)


def saved_model_v1(folder: Path, path_written: Path) -> np.ndarray:
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH), use_resource=True)
        features = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2])
        running.run(tf.global_variables_initializer())
        signature = tf.saved_model.predict_signature_def({"images": image}, {"features": features})
        builder = tf.saved_model.Builder(str(folder))
        main = tf.group(tf.io.write_file(str(path_written), "x"))
        builder.add_meta_graph_and_variables(running, ["serve"], {"serving_default": signature}, main_op=main)
        builder.save()
        return running.run(features, {image: images() / 255})


def test_a_saved_model_of_tensorflow_1_does_not_initialise_itself(tmp_path: Path) -> None:
    own = saved_model_v1(tmp_path / "saved", tmp_path / "written")
    folder, _ = make(tmp_path / "saved", tmp_path, UNIT)
    assert not (tmp_path / "written").exists()
    assert_same(folder, own)


def test_a_saved_model_of_tensorflow_2_whose_initialiser_writes_is_refused(tmp_path: Path) -> None:
    from tensorflow.python.trackable.resource import TrackableResource

    class Writer(TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> Any:
            return tf2.raw_ops.MutableHashTableV2(key_dtype=tf2.int64, value_dtype=tf2.int64)

        def _initialize(self) -> None:
            tf2.io.write_file(str(tmp_path / "written"), "x")

    class Network(tf2.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf2.Variable(weights(3, 3, 3, WIDTH))
            self.writer = Writer()
            _ = self.writer.resource_handle

        @tf2.function(input_signature=[tf2.TensorSpec([None, SIZE, SIZE, 3], tf2.float32)])
        def __call__(self, images: Any) -> Any:
            return tf2.reduce_mean(tf2.nn.conv2d(images, self.kernel, 2, "SAME"), [1, 2])

    tf2.saved_model.save(module := Network(), str(tmp_path / "saved"), signatures=module.__call__)
    (tmp_path / "written").unlink(missing_ok=True)
    with pytest.raises(UserError, match="refused: its node 'WriteFile' is a WriteFile"):
        make(tmp_path / "saved", tmp_path)
    assert not (tmp_path / "written").exists()


READERS: dict[str, Callable[[], Any]] = {
    "GenerateVocabRemapping": lambda: tf.raw_ops.GenerateVocabRemapping(
        new_vocab_file="/etc/passwd", old_vocab_file="/etc/passwd", new_vocab_offset=0, num_new_vocab=3
    )[0],
    "DecodeProtoV2": lambda: tf.raw_ops.DecodeProtoV2(
        bytes=["x"], message_type="a", field_names=[], output_types=[], descriptor_source="/etc/passwd"
    )[0],
    "LoadAndRemapMatrix": lambda: tf.raw_ops.LoadAndRemapMatrix(
        ckpt_path="/x", old_tensor_name="k", row_remapping=[0], col_remapping=[], initializing_values=[], num_rows=1, num_cols=6
    ),
}


@pytest.mark.parametrize("op", READERS)
def test_ops_that_read_a_file_through_an_attribute_or_a_name_are_refused(tmp_path: Path, op: str) -> None:
    def build(x: Any) -> None:
        tf.add(tf.reduce_mean(convolved(x), [1, 2]), tf.reduce_sum(tf.cast(READERS[op](), tf.float32)), name="features")

    with pytest.raises(UserError, match=f"is a {op}, which is none of the ops that only compute"):
        make(graph_file(tmp_path / "m.pb", build), tmp_path, Description(bottleneck="features"))


def test_no_op_that_touches_files_python_or_the_network_is_allowed() -> None:
    harmful = """ReadFile WriteFile MatchingFiles PyFunc EagerPyFunc PyFuncStateless PrintV2 Print SaveV2 RestoreV2 Save Restore
        MergeV2Checkpoints ShardedFilename ImmutableConst RpcCall Send Recv RemoteCall IteratorGetNext TFRecordDataset WholeFileReaderV2
        LMDBReader EncodeProto DecodeProtoV2 Skipgram FixedUnigramCandidateSampler InitializeTableFromTextFileV2 WriteSummary
        DebugIdentityV2 DumpTensor XlaCallModule FileSystemSetConfiguration RecordInput GenerateVocabRemapping LoadAndRemapMatrix
        ImportEvent"""
    usual = "Conv2D FusedBatchNormV3 MatMul StatelessIf Relu6 ResizeBilinear DecodeJpeg Acosh"
    assert [op for op in harmful.split() if allowed_ops.is_allowed(op)] == []
    assert [op for op in usual.split() if not allowed_ops.is_allowed(op)] == []


# --- Keras -------------------------------------------------------------------------------------------------------------------


def keras_backbone(pooling: bool, rescale: bool = False) -> Any:
    layers = keras.layers
    given = x = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1)(x) if rescale else x
    x = layers.BatchNormalization()(layers.Conv2D(WIDTH, 3, 2, activation="relu")(x))
    x = layers.Conv2D(8, 3, 2, activation="relu", name="last_map")(x)
    return keras.Model(given, layers.GlobalAveragePooling2D(name="inner_pool")(x) if pooling else x, name="backbone")


def nested(shape: str, backbone: Any) -> Any:
    layers = keras.layers
    if shape == "sequential":
        return keras.Sequential([keras.Input((SIZE, SIZE, 3)), backbone, layers.Dropout(0.3), layers.Dense(CLASSES, activation="softmax")])
    given = keras.Input((SIZE, SIZE, 3))
    x = given
    if shape == "preprocessed":
        x = keras.applications.mobilenet_v2.preprocess_input(layers.RandomFlip()(given))
    x = backbone(x)
    return keras.Model(given, layers.Dense(CLASSES, activation="softmax")(layers.Flatten()(x) if shape == "flattened" else x))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", ["sequential", "functional", "flattened", "preprocessed"])
def test_a_nested_keras_backbone_is_cut_at_its_own_features(tmp_path: Path, shape: str, rescale: bool) -> None:
    keras.utils.set_random_seed(0)
    backbone = keras_backbone(pooling=shape != "flattened", rescale=rescale and shape != "preprocessed")
    model = nested(shape, backbone)
    model.save(tmp_path / "model.keras")
    folder, _ = make(tmp_path / "model.keras", tmp_path)
    normalises = rescale or shape == "preprocessed"
    assert (backbones.load(folder).mean, backbones.load(folder).std) == ((0, 1) if normalises else (127.5, 127.5))
    own = backbone(images() if rescale and shape != "preprocessed" else SYMMETRIC, training=False).numpy()
    assert_same(folder, own.mean((1, 2)) if shape == "flattened" else own)
    assert_same(folder, model(images() if normalises else SYMMETRIC, training=False).numpy(), backbones.SOFTMAX)


def test_a_layer_inside_a_nested_backbone_can_be_named(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    backbone = keras_backbone(pooling=True)
    nested("sequential", backbone).save(tmp_path / "model.keras")
    for name in ("inner_pool", "backbone", "last_map"):
        folder, _ = make(tmp_path / "model.keras", tmp_path, Description(bottleneck=name, mean=127.5, std=127.5))
        assert_same(folder, backbone(SYMMETRIC, training=False).numpy())
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="is no layer of model.keras; its last layers are: .*inner_pool, backbone"):
        make(tmp_path / "model.keras", tmp_path, Description(bottleneck="pool"))


def test_keras_a_layer_used_twice_and_outputs_by_name(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    layers, given = keras.layers, keras.Input((SIZE, SIZE, 3))
    twice = layers.Conv2D(3, 3, padding="same")
    pooled = layers.GlobalAveragePooling2D(name="pool")(twice(twice(given)))
    outputs = {"features": pooled, "probabilities": layers.Dense(CLASSES, activation="softmax")(pooled)}
    model = keras.Model(given, outputs)
    model.save(tmp_path / "model.keras")
    folder, _ = make(tmp_path / "model.keras", tmp_path)
    own = model(SYMMETRIC, training=False)
    assert_same(folder, own["features"].numpy())
    assert_same(folder, own["probabilities"].numpy(), backbones.SOFTMAX)
    folder, _ = make(tmp_path / "model.keras", tmp_path / "again", Description(bottleneck=twice.name, mean=127.5, std=127.5))
    assert_same(folder, twice(twice(SYMMETRIC)).numpy().mean((1, 2)))


def of_two_depths() -> tuple[Any, Any, Any]:
    """An input, the pooling of an early layer and that of a later one."""
    keras.utils.set_random_seed(0)
    layers, given = keras.layers, keras.Input((SIZE, SIZE, 3))
    first = layers.Conv2D(WIDTH, 3, 2, activation="relu")(given)
    early = layers.GlobalAveragePooling2D(name="early_pool")(first)
    return given, early, layers.GlobalAveragePooling2D(name="late_pool")(layers.Conv2D(9, 3, activation="relu")(first))


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_keras_heads_the_deepest_is_taken_in_any_order(tmp_path: Path, order: int) -> None:
    given, early, late = of_two_depths()
    heads = [keras.layers.Dense(CLASSES, name="auxiliary")(early), keras.layers.Dense(CLASSES, name="main")(late)]
    keras.Model(given, heads[::order]).save(tmp_path / "model.keras")
    folder, guessed = make(tmp_path / "model.keras", tmp_path)
    assert guessed[:2] == ["model_bottleneck = late_pool (and not early_pool)", "model_logits = main (and not auxiliary)"]
    assert_same(folder, keras.Model(given, late)(SYMMETRIC).numpy())
    assert_same(folder, keras.Model(given, heads[1])(SYMMETRIC).numpy(), backbones.LOGITS)


@pytest.mark.parametrize("order", [1, -1])
def test_of_keras_outputs_of_the_same_features_the_one_with_a_softmax_is_taken(tmp_path: Path, order: int) -> None:
    given, _, late = of_two_depths()
    classes = keras.layers.Dense(CLASSES, activation="softmax", name="classes")(late)
    keras.Model(given, [classes, keras.layers.Dense(7, name="box")(late)][::order]).save(tmp_path / "model.keras")
    folder, guessed = make(tmp_path / "model.keras", tmp_path)
    assert "model_logits = classes (and not box)" in guessed
    assert_same(folder, keras.Model(given, classes)(SYMMETRIC).numpy(), backbones.SOFTMAX)


def test_which_of_several_keras_outputs_are_the_logits_can_be_said(tmp_path: Path) -> None:
    given, _, late = of_two_depths()
    outputs = {"colours": keras.layers.Dense(CLASSES, name="dense_1")(late), "shapes": keras.layers.Dense(7, name="dense_2")(late)}
    keras.Model(given, outputs).save(tmp_path / "model.keras")
    folder, guessed = make(tmp_path / "model.keras", tmp_path)
    assert "no model_logits (any of colours, shapes may be meant)" in guessed
    assert backbones.load(folder).classes == 0
    for name, own in (("shapes", "shapes"), ("dense_2", "shapes"), ("colours", "colours")):
        folder, guessed = make(tmp_path / "model.keras", tmp_path / f"of {name}", Description(logits=name))
        assert not any("model_logits" in line for line in guessed)
        assert_same(folder, keras.Model(given, outputs[own])(SYMMETRIC).numpy(), backbones.LOGITS)
    with pytest.raises(UserError, match=r"model_logits = 'sizes' is no layer of model.keras; its last layers are: .*dense_2"):
        make(tmp_path / "model.keras", tmp_path / "none", Description(logits="sizes"))


def test_a_keras_model_without_a_head_ends_in_its_last_images(tmp_path: Path) -> None:
    """And not in a pooling inside it, as squeeze-and-excitation does it."""
    keras.utils.set_random_seed(0)
    layers, given = keras.layers, keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(WIDTH, 3, 2, activation="relu")(given)
    gate = layers.Dense(WIDTH, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(given, layers.Conv2D(5, 1)(layers.Multiply()([x, gate])))
    model.save(tmp_path / "model.keras")
    assert_same(make(tmp_path / "model.keras", tmp_path)[0], model(SYMMETRIC, training=False).numpy().mean((1, 2)))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_file_of_keras_2(tmp_path: Path, ending: str) -> None:
    """Keras 3 refuses its depthwise convolutions. Its batch norm's averages are not trained, though they have lost their names."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    layers, given = tf_keras.layers, tf_keras.Input((SIZE, SIZE, 3))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, 2)(tf_keras.applications.mobilenet_v2.preprocess_input(given)))
    pooled = layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(given, layers.Dense(CLASSES)(pooled))
    model.save(tmp_path / f"model{ending}")
    folder, _ = make(tmp_path / f"model{ending}", tmp_path)
    assert_same(folder, tf_keras.Model(given, pooled)(images(), training=False).numpy())
    assert trained_on(folder) == len(model.trainable_variables)


def trained_on(folder: Path) -> int:
    """How many variables of a backbone's checkpoint are trainable."""
    with tf.Graph().as_default():
        tf.train.import_meta_graph(tf.train.latest_checkpoint(str(folder)) + ".meta")
        return len(tf.trainable_variables())


def test_the_averages_of_a_keras_batch_norm_are_not_trained(tmp_path: Path) -> None:
    model = nested("sequential", keras_backbone(pooling=True))
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved", verbose=False)
    for name in ("model.keras", "saved"):
        folder, _ = make(tmp_path / name, tmp_path / f"of {name}")
        assert trained_on(folder) == len(model.trainable_variables)


def test_a_file_of_keras_2_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import tf_keras

    given = tf_keras.Input((SIZE, SIZE, 3))
    x = tf_keras.layers.DepthwiseConv2D(3)(tf_keras.layers.Lambda(lambda x: x + 1)(given))
    tf_keras.Model(given, x).save(tmp_path / "evil.h5")
    with pytest.raises(UserError, match="is refused: it names keras.*Lambda"):
        make(tmp_path / "evil.h5", tmp_path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(SIZE, SIZE + 8, 3)], "takes images of 32 × 40 pixels; wanted are as many rows as columns"),
        ([(SIZE, SIZE, 1)], r"wanted is a model that takes \(batch, size, size, 3\) alone"),
        ([(7,)], r"wanted is a model that takes \(batch, size, size, 3\) alone"),
        ([(SIZE, SIZE, 3), (SIZE, SIZE, 3)], r"wanted is a model that takes \(batch, size, size, 3\) alone"),
    ],
)
def test_a_keras_model_that_takes_no_photo_says_so(tmp_path: Path, shapes: list[tuple[int, ...]], message: str) -> None:
    given = [keras.Input(shape) for shape in shapes]
    flat = [keras.layers.Flatten()(one) for one in given]
    keras.Model(given, keras.layers.Dense(CLASSES)(flat[0] if len(flat) == 1 else keras.layers.Add()(flat))).save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=message):
        make(tmp_path / "m.keras", tmp_path)


# --- SavedModels -------------------------------------------------------------------------------------------------------------

SPEC = tf2.TensorSpec([None, SIZE, SIZE, 3], tf2.float32)


class Embedding(tf2.Module):  # type: ignore[misc]
    """Features that end in something that looks like a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.mix = tf2.Variable(weights(3, 3, 3, WIDTH)), tf2.Variable(weights(1, 1, WIDTH, 10))
        self.dense = tf2.Variable(weights(WIDTH, CLASSES))

    def pooled(self, images: Any) -> Any:
        return tf2.reduce_mean(tf2.nn.relu(tf2.nn.conv2d(images, self.kernel, 2, "SAME")), [1, 2])

    def vector(self, images: Any, kind: str) -> Any:
        x = tf2.nn.conv2d(tf2.reshape(self.pooled(images), [-1, 1, 1, WIDTH]), self.mix, 1, "SAME")
        return tf2.reshape(x * tf2.nn.relu6(x + 3) / 6 if kind == "hard swish" else x, [-1, 10])


@pytest.mark.parametrize(("kind", "output"), [("hard swish", "output_0"), ("hard swish", "default"), ("linear", "feature_vector")])
def test_the_one_output_of_a_feature_vector_is_the_bottleneck(tmp_path: Path, kind: str, output: str) -> None:
    module = Embedding()
    function = tf2.function(lambda images: {output: module.vector(images, kind)}, input_signature=[SPEC])
    tf2.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": function})
    folder, _ = make(tmp_path / "saved", tmp_path, UNIT)
    assert_same(folder, module.vector(images() / 255, kind).numpy())
    assert backbones.load(folder).classes == 0


def test_outputs_by_name_and_the_signature_that_takes_images(tmp_path: Path) -> None:
    module = Embedding()
    both = tf2.function(
        lambda x: {"logits": tf2.matmul(module.pooled(x), module.dense), "embedding": module.pooled(x)}, input_signature=[SPEC]
    )
    texts = tf2.function(lambda x: {"length": tf2.strings.length(x)}, input_signature=[tf2.TensorSpec([None], tf2.string)])
    tf2.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": texts, "of_images": both})
    folder, _ = make(tmp_path / "saved", tmp_path, UNIT)
    assert_same(folder, module.pooled(images() / 255).numpy())
    assert_same(folder, tf2.nn.softmax(tf2.matmul(module.pooled(images() / 255), module.dense)).numpy(), backbones.SOFTMAX)


def test_a_saved_model_of_whole_pixels(tmp_path: Path) -> None:
    module = Embedding()
    function = tf2.function(
        lambda x: {"features": module.pooled(tf2.cast(x, tf2.float32) / 255)},
        input_signature=[tf2.TensorSpec([None, SIZE, SIZE, 3], tf2.uint8)],
    )
    tf2.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": function})
    folder, guessed = make(tmp_path / "saved", tmp_path)
    assert any("(the model takes whole pixels)" in line for line in guessed)
    assert_same(folder, module.pooled(np.round(images()) / 255).numpy())
    with pytest.raises(UserError, match="model_mean = 0, model_std = 255, but the model takes whole pixels, .*; leave both out"):
        make(tmp_path / "saved", tmp_path / "normalised", UNIT)


def test_hubs_values_from_0_to_1_are_not_for_whole_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be rounded to 0 and 1, and all photos look alike."""
    module = Embedding()
    function = tf2.function(lambda x: module.pooled(tf2.cast(x, tf2.float32) / 255))
    spec = tf2.TensorSpec([None, SIZE, SIZE, 3], tf2.uint8)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    handle = "https://tfhub.dev/of/whole_pixels/1"
    tf2.saved_model.save(module, str(hub_cache.place(handle)), signatures=function.get_concrete_function(spec))
    folder, guessed = make(handle, tmp_path)
    assert any("(the model takes whole pixels)" in line for line in guessed)
    assert_same(folder, module.pooled(np.round(images()) / 255).numpy())


def test_a_keras_model_of_whole_pixels_is_not_normalised(tmp_path: Path) -> None:
    layers, given = keras.layers, keras.Input((SIZE, SIZE, 3), dtype="uint8")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(WIDTH, 3, 2)(layers.Rescaling(1 / 127.5, -1)(given)))
    model = keras.Model(given, pooled)
    model.save(tmp_path / "model.keras")
    assert_same(make(tmp_path / "model.keras", tmp_path)[0], model(np.round(images()).astype(np.uint8)).numpy())
    with pytest.raises(UserError, match=r"model_mean = 127.5, model_std = 127.5, but the model takes whole pixels"):
        make(tmp_path / "model.keras", tmp_path / "normalised", Description(mean=127.5, std=127.5))


def test_a_call_is_taken_as_it_is_without_training(tmp_path: Path) -> None:
    """Both were traced, at a size that then need not be said."""

    class Switched(Embedding):
        @tf2.function
        def __call__(self, images: Any, training: bool = True) -> Any:
            return self.pooled(images) * (2.0 if training else 1.0)

    module = Switched()
    for training in (True, False):
        module.__call__.get_concrete_function(SPEC, training)
    tf2.saved_model.save(module, str(tmp_path / "saved"))
    assert_same(make(tmp_path / "saved", tmp_path, UNIT)[0], module(images() / 255, False).numpy())


def test_a_signature_with_a_switch_for_training(tmp_path: Path) -> None:
    module = Embedding()
    function = tf2.function(
        lambda x, training: {"features": tf2.where(training, 2.0, 1.0) * module.pooled(x)},
        input_signature=[SPEC, tf2.TensorSpec([], tf2.bool, "training")],
    )
    tf2.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": function})
    assert_same(make(tmp_path / "saved", tmp_path, UNIT)[0], module.pooled(images() / 255).numpy())


OF_NO_PHOTO = {
    "grey": ([None, SIZE, SIZE, 1], r"takes \(any, 32, 32, 1\); wanted is a model that takes \(batch, size, size, 3\) alone"),
    "channels first": ([None, 3, SIZE, SIZE], r"takes \(any, 3, 32, 32\); wanted is a model that takes \(batch, size, size, 3\) alone"),
    "wide": ([None, SIZE, 48, 3], "takes images of 32 × 48 pixels; wanted are as many rows as columns"),
}


def pooled_of(kind: str, images: Any) -> Any:
    """A network of what is no photo; its kernels would also do as a grouped convolution of three channels."""
    channels = 1 if kind == "grey" else 3
    images = tf2.transpose(images, [0, 2, 3, 1]) if kind == "channels first" else images
    return tf2.reduce_mean(tf2.nn.relu(tf2.nn.conv2d(images, weights(3, 3, channels, WIDTH), 2, "SAME")), [1, 2])


@pytest.mark.parametrize("kind", OF_NO_PHOTO)
@pytest.mark.parametrize("said", [Description(), Description(size=SIZE), Description(input="x:0", size=SIZE)], ids=["", "size", "input"])
def test_a_frozen_graph_that_takes_no_photo_says_so(tmp_path: Path, kind: str, said: Description) -> None:
    shape, message = OF_NO_PHOTO[kind]
    with tf.Graph().as_default() as graph:
        pooled_of(kind, tf.placeholder(tf.float32, shape, name="x"))
        (tmp_path / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(UserError, match=f"the model {message}"):
        make(tmp_path / "m.pb", tmp_path, said)


@pytest.mark.parametrize("kind", OF_NO_PHOTO)
def test_a_saved_model_that_takes_no_photo_says_so(tmp_path: Path, kind: str) -> None:
    shape, message = OF_NO_PHOTO[kind]
    function = tf2.function(lambda x: pooled_of(kind, x), input_signature=[tf2.TensorSpec(shape, tf2.float32)])
    tf2.saved_model.save(tf2.Module(), str(tmp_path / "saved"), signatures=function)
    for said in (Description(), AT_SIZE):
        with pytest.raises(UserError, match=message):
            make(tmp_path / "saved", tmp_path, said)


def test_a_loop_before_the_features_is_named_as_the_likely_reason(tmp_path: Path) -> None:
    module = Embedding()

    def looped(images: Any) -> Any:
        (halved,) = tf2.while_loop(lambda x: tf2.reduce_max(x) > 1, lambda x: (x / 2,), [tf2.nn.conv2d(images, module.kernel, 2, "SAME")])
        return {"features": tf2.reduce_mean(halved, [1, 2])}

    tf2.saved_model.save(module, str(tmp_path / "saved"), signatures=tf2.function(looped, input_signature=[SPEC]))
    with pytest.raises(UserError, match=r"has no known shape; a loop \(tf.while_loop\) between image and features is the likely reason"):
        make(tmp_path / "saved", tmp_path)


def test_a_saved_model_of_one_size_takes_no_other(tmp_path: Path) -> None:
    module = Embedding()
    tf2.saved_model.save(module, str(tmp_path / "v2"), signatures=tf2.function(module.pooled, input_signature=[SPEC]))
    saved_model_v1(tmp_path / "v1", tmp_path / "written")
    for name in ("v1", "v2"):
        with pytest.raises(UserError, match=f"model_size = 64, but .*/{name} takes 32 pixels a side; leave it out"):
            make(tmp_path / name, tmp_path, Description(size=64))


# --- Frozen graphs -----------------------------------------------------------------------------------------------------------


def test_of_several_heads_the_deepest_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    def build(x: Any) -> None:
        first = convolved(x)
        auxiliary = tf.reduce_mean(first, [1, 2], name="auxiliary_pool")
        tf.nn.softmax(tf.matmul(auxiliary, tf.constant(weights(WIDTH, CLASSES))), name="auxiliary")
        deeper = tf.nn.relu(tf.nn.conv2d(first, tf.constant(weights(3, 3, WIDTH, 9)), strides=2, padding="SAME"))
        hidden = tf.nn.relu(tf.matmul(tf.reduce_mean(deeper, [1, 2], name="main_pool"), tf.constant(weights(9, 5))))
        tf.nn.softmax(tf.matmul(hidden, tf.constant(weights(5, CLASSES))), name="probabilities")

    path = graph_file(tmp_path / "m.pb", build)
    folder, guessed = make(path, tmp_path)
    assert "model_bottleneck = main_pool:0 (and not auxiliary_pool)" in guessed
    np.testing.assert_allclose(vectors(folder, images()), native(path, "main_pool:0"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vectors(folder, images(), backbones.SOFTMAX), native(path, "probabilities:0"), rtol=1e-5, atol=1e-5)


def of_no_softmax(kind: str, features: Any) -> Any:
    scores = tf.matmul(features, tf.constant(weights(WIDTH, CLASSES if kind == "sigmoids" else 1)))
    return scores if kind == "one number" else tf.sigmoid(scores)


@pytest.mark.parametrize("kind", ["sigmoids", "one sigmoid", "one number"])
def test_a_graph_without_a_softmax_has_no_classes_and_can_be_trained_on(tmp_path: Path, kind: str) -> None:
    """A softmax would be sure of every photo. The names beside it need not fit."""
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    path = graph_file(tmp_path / "m.pb", lambda x: of_no_softmax(kind, tf.reduce_mean(convolved(x), [1, 2], name="pool")))
    folder, guessed = make(path, tmp_path)
    assert "no classes of its own (the model ends in no softmax)" in guessed
    assert_same(folder, native(path, "pool:0"))
    with pytest.raises(UserError, match="m has no classifier of its own that ends in a softmax, so it cannot name a photo"):
        backbones.class_names(folder)


def test_a_keras_model_of_two_classes_in_one_sigmoid_has_none(tmp_path: Path) -> None:
    given, _, late = of_two_depths()
    keras.Model(given, keras.layers.Dense(1, activation="sigmoid")(late)).save(tmp_path / "model.keras")
    folder, guessed = make(tmp_path / "model.keras", tmp_path)
    assert "no classes of its own (the model ends in no softmax)" in guessed
    assert backbones.load(folder).classes == 0


BATCHES_OF_ONE: dict[str, Callable[[Any], Any]] = {
    "reshaped": lambda x: tf.reshape(tf.nn.avg_pool2d(convolved(x), SIZE // 2, 1, "VALID"), [1, -1], name="features"),
    "squeezed": lambda x: tf.squeeze(tf.nn.avg_pool2d(convolved(x), SIZE // 2, 1, "VALID"), name="features"),
    "sliced": lambda x: tf.reduce_mean(tf.slice(convolved(x), [0, 0, 0, 0], [1, 9, 9, WIDTH]), [1, 2], name="features"),
}


@pytest.mark.parametrize("kind", BATCHES_OF_ONE)
def test_a_batch_of_one_is_undone(tmp_path: Path, kind: str) -> None:
    path = graph_file(tmp_path / "m.pb", BATCHES_OF_ONE[kind], batch=1)
    assert_same(make(path, tmp_path, Description(bottleneck="features"))[0], native(path, "features:0"))


def test_what_is_fed_beside_the_image_is_fixed_as_without_training(tmp_path: Path) -> None:
    def build(x: Any) -> None:
        scale = tf.cond(tf.placeholder(tf.bool, [], name="is_training"), lambda: 2.0, lambda: 1.0)
        pooled = tf.reduce_mean(convolved(x), [1, 2]) * scale
        tf.divide(pooled, tf.placeholder(tf.float32, [], name="keep_prob"), name="features")

    path = graph_file(tmp_path / "m.pb", build)
    folder, guessed = make(path, tmp_path, Description(bottleneck="features"))
    assert {"is_training = False", "keep_prob = 1.0"} <= set(guessed)
    assert_same(folder, native(path, "features:0", is_training=False, keep_prob=1.0))

    def needs_more(x: Any) -> None:
        tf.add(tf.reduce_mean(convolved(x), [1, 2]), tf.placeholder(tf.float32, [None, WIDTH], name="age"), name="features")

    with pytest.raises(UserError, match="takes age:0 beside the image"):
        make(graph_file(tmp_path / "m.pb", needs_more), tmp_path, Description(input="x", bottleneck="features"))


def test_weights_of_half_precision(tmp_path: Path) -> None:
    def build(x: Any) -> None:
        halves = tf.constant(weights(3, 3, 3, WIDTH).astype(np.float16))
        tf.reduce_mean(tf.nn.conv2d(tf.cast(x, tf.float16), halves, strides=2, padding="SAME"), [1, 2], name="features")

    path = graph_file(tmp_path / "m.pb", build)
    np.testing.assert_allclose(vectors(make(path, tmp_path)[0], images()), native(path, "features:0"), atol=2e-3)  # half precision


def test_a_checkpoint_of_a_training_is_guessed_among_its_savers_and_labels(tmp_path: Path) -> None:
    """Its folder was moved since, and has two steps; brackets in a name are no pattern."""
    (old := tmp_path / "old").mkdir()
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH))
        pooled = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2], name="pool")
        dense = tf.get_variable("dense", initializer=weights(WIDTH, CLASSES))
        logits = tf.matmul(pooled, dense, name="logits")
        answers = tf.placeholder(tf.int64, [None], name="answers")
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=answers, logits=logits))
        tf.train.GradientDescentOptimizer(0.1).minimize(loss)
        running.run(tf.global_variables_initializer())
        saver = tf.train.Saver()
        for step in range(2):
            saver.save(running, str(old / "m[1]"), global_step=step)
        own = running.run(pooled, {image: SYMMETRIC})
    old.rename(moved := tmp_path / "moved")
    for name in (moved, moved / "m[1]-1"):
        folder, guessed = make(name, tmp_path)
        assert guessed[:3] == ["model_input = x:0", "model_bottleneck = pool:0", "model_logits = logits:0"]
        assert_same(folder, own)
        shutil.rmtree(folder)
    assert backbones.identify(str(moved / "m[1]-1")).startswith("sha256:")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda graph: setattr(node_of(graph, "Relu"), "op", "NoSuchOp"), "is a NoSuchOp, which is none of the ops"),
        (lambda graph: node_of(graph, "Relu").input.__setitem__(0, "nowhere"), "reads 'nowhere', which is not there; get the file again"),
        (lambda graph: node_of(graph, "Relu").input.__setitem__(0, "Relu"), "does not depend on model_input"),
        (
            lambda graph: setattr(node_of(graph, "Const").attr["value"].tensor, "tensor_content", b"abcd"),
            "constant 'Const' is damaged",
        ),
        (
            lambda graph: setattr(
                node_of(graph, "Const").attr["value"].tensor, "tensor_content", (weights(3, 3, 3, WIDTH) * np.nan).tobytes()
            ),
            "gives vectors that are not finite; its weights are damaged",
        ),
    ],
)
def test_a_damaged_graph_is_one_line(tmp_path: Path, harm: Callable[[Any], None], message: str) -> None:
    path = graph_file(tmp_path / "m.pb", lambda x: tf.reduce_mean(convolved(x), [1, 2], name="features"))
    graph = tf.GraphDef.FromString(path.read_bytes())
    harm(graph)
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(UserError, match=message) as error:
        make(path, tmp_path, Description(input="x", bottleneck="features"))
    assert "\n" not in str(error.value)


def node_of(graph: Any, op: str) -> Any:
    return next(node for node in graph.node if node.op == op)


# --- Keys, names and archives ------------------------------------------------------------------------------------------------


def test_a_key_holds_the_weights_and_the_names_of_the_classes(tmp_path: Path) -> None:
    for name in ("m.ckpt.meta", "m.ckpt.index", "m.ckpt.data", "saved_model.pb", "m.pb"):
        (tmp_path / name).write_text(name)
    names = ("m.ckpt.meta", "m.ckpt", "saved_model.pb", "m.pb")
    before = [backbones.identify(str(tmp_path / name)) for name in names]
    assert before[0] == before[1]
    (tmp_path / "m.ckpt.data").write_text("other weights")
    after = [backbones.identify(str(tmp_path / name)) for name in names]
    assert [one != other for one, other in zip(before, after)] == [True, True, True, False]
    (tmp_path / "labels.txt").write_text("one\n")
    named = backbones.identify(str(tmp_path / "m.pb"))
    (tmp_path / "labels.txt").write_text("One\n")
    assert len({after[3], named, backbones.identify(str(tmp_path / "m.pb"))}) == 3


def test_one_of_several_models_in_an_archive(tmp_path: Path) -> None:
    """Google's archive under another name: the float graph, or the one that is named."""
    path = tmp_path / "kept.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, channels in (("frozen_graph.pb", 5), ("quantized_graph.pb", 7)):
            data = graph_file(
                tmp_path / "m.pb", lambda x, channels=channels: tf.reduce_mean(convolved(x, channels), [1, 2], name="features")
            ).read_bytes()
            info = tarfile.TarInfo(f"m/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder, guessed = make(path, tmp_path)
    assert backbones.load(folder).width == 5
    assert "frozen_graph.pb, and not quantized_graph.pb" in guessed
    folder, _ = make(path / "quantized_graph.pb", tmp_path / "again")
    assert backbones.load(folder).width == 7
    assert backbones.load(folder).licence == ""
    assert backbones.identify(str(path)) != backbones.identify(str(path / "quantized_graph.pb"))
    with pytest.raises(UserError, match=r"holds no model 'x.pb'; it holds: frozen_graph.pb, quantized_graph.pb"):
        make(path / "x.pb", tmp_path / "none")


def checkpoints(folder: Path) -> None:
    """Steps 0 and 1 of a training, in the form of a graph whose kernel grows."""
    folder.mkdir()
    with tf.Graph().as_default(), tf.Session() as running:
        image = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
        kernel = tf.get_variable("kernel", initializer=weights(3, 3, 3, WIDTH))
        tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, kernel, strides=2, padding="SAME")), [1, 2], name="features")
        saver, growing = tf.train.Saver(), kernel.assign_add(tf.ones_like(kernel))
        running.run(tf.global_variables_initializer())
        for step in range(2):
            saver.save(running, str(folder / "m.ckpt"), global_step=step)
            running.run(growing)


def graph_made(model: Path, tmp_path: Path) -> str:
    folder, _ = make(model, tmp_path)
    found = backbones.load(folder).graph_sha256
    shutil.rmtree(folder)
    return found


def test_one_of_several_checkpoints_in_an_archive(tmp_path: Path) -> None:
    """Not the last one, where another is named; and none where there is none of that name."""
    checkpoints(tmp_path / "training")
    kept = Path(shutil.make_archive(str(tmp_path / "kept"), "gztar", tmp_path, "training"))
    first, last = (graph_made(tmp_path / "training" / f"m.ckpt-{step}", tmp_path) for step in range(2))
    assert first != last
    assert graph_made(kept, tmp_path) == graph_made(kept / "training", tmp_path) == last
    for member in ("m.ckpt-0.meta", "m.ckpt-0", "training/m.ckpt-0", "training/m.ckpt-0.meta"):
        assert graph_made(kept / member, tmp_path) == first
    with pytest.raises(UserError, match=r"holds no model 'nonsense.meta'; it holds: m.ckpt-0.meta, m.ckpt-1.meta"):
        make(kept / "nonsense.meta", tmp_path)


def test_a_saved_model_in_an_archive_goes_by_its_file_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    saved_model_v1(tmp_path / "all" / "saved", tmp_path / "written")
    at_the_top = Path(shutil.make_archive(str(tmp_path / "one"), "zip", tmp_path / "all", "saved"))
    (tmp_path / "all" / "older.pb").write_bytes(b"")
    below = Path(shutil.make_archive(str(tmp_path / "both"), "zip", tmp_path / "all"))
    names = [at_the_top / "saved", at_the_top / "saved_model.pb", below / "saved", below / "saved" / "saved_model.pb"]
    assert len({graph_made(path, tmp_path) for path in (at_the_top, *names)}) == 1
    with pytest.raises(UserError, match=r"holds no model 'other.pb'; it holds: saved_model.pb"):
        make(at_the_top / "other.pb", tmp_path)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"a\r\nb c\r\n\r\n", ["a", "b c"]),
        ("a\u2028x\nb\n".encode(), ["a\u2028x", "b"]),
        (b"1 b\n0 a, of two\n", ["a, of two", "b"]),
        (b"0:a\n1: b\n", ["a", "b"]),
        (b"4 wheels\n2 wheels\n", ["4 wheels", "2 wheels"]),
    ],
)
def test_class_names_as_people_write_them(tmp_path: Path, content: bytes, names: list[str]) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    assert labels.beside(tmp_path) == names


def test_class_names_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(UserError, match="labels.txt is not written in UTF-8 .*; save it as UTF-8"):
        labels.beside(tmp_path)
    (tmp_path / labels.SYNSETS).write_text('entry { target_class: 30000000\n target_class_string: "n0" }')
    (tmp_path / labels.HUMAN).write_text("n0\tx\n")
    with pytest.raises(UserError, match="is no map of classes"):
        labels.beside(tmp_path)


# --- As a user ---------------------------------------------------------------------------------------------------------------


def test_classify_takes_the_description_and_a_label_file_that_comes_later(project: Project, tmp_path: Path) -> None:
    def build(x: Any) -> None:
        features = tf.reduce_mean(convolved(x), [1, 2], name="pool")
        tf.nn.softmax(tf.matmul(features, tf.constant(weights(WIDTH, CLASSES))), name="probabilities")

    (folder := tmp_path / "model").mkdir()
    graph_file(folder / "m.pb", build)
    make_photos(tmp_path, 1, ("red",))
    command = ("classify", str(tmp_path / "red"), "--model", str(folder / "m.pb"), "--model-input", "x", "--model-mean", "0", "--model-std")
    wrong = project.pipeline(*command, "none")
    assert (wrong.returncode, wrong.stderr) == (30, "error: model_std = none: a number from 1e-06 to 1e+06 is allowed\n")
    unnamed = project.pipeline(*command, "255")
    assert unnamed.returncode == 30
    assert unnamed.stderr.endswith("4 classes without names; put a labels.txt beside the model's file and name it again\n")
    (folder / "labels.txt").write_text("one\ntwo\nthree\nfour\n")
    done = project.pipeline(*command, "255")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("%") == CLASSES


def test_the_list_has_no_figures_that_nobody_reported(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.__main__ import main

    assert main(["models", "list"]) == 0
    rows = {line.split()[0]: line.split()[1:5] for line in capsys.readouterr().out.splitlines()}
    assert rows["mobilenet_v1_1.0_224"] == ["17.0", "224", "1024", "70.7"]
    assert rows["mobilenet_v1_1.0_224_quantized"] == ["?", "224", "1024", "?"]
