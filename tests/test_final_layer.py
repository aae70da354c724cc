from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import bottlenecks, checkpoint, dataset, evaluation, final_layer
from pipeline.dataset import Photo
from pipeline.tensorflow_v1 import tf
from pipeline.vector_cache import VectorCache

WIDTH, CLASSES, COUNT = 12, 3, 240
OPTIONS = final_layer.Options(
    how_many_training_steps=60,
    train_batch_size=20,
    learning_rate=(0.05,),
    weight_decay=(0.01,),
    eval_step_interval=10,
    checkpoint_interval=15,
    seed=0,
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed vectors of three overlapping clouds."""
    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(0)
    labels = [f"class {i % CLASSES}" for i in range(COUNT)]
    centres = rng.normal(size=(CLASSES, WIDTH))
    cache = VectorCache(folder / "vectors", WIDTH)
    photos = [Photo(f"{label}/{i:03d}.jpg", label, sha256=f"{i:064x}", bytes=1) for i, label in enumerate(labels)]
    for i, photo in enumerate(photos):
        cache.write((5 + centres[i % CLASSES] + rng.normal(size=WIDTH)).astype(np.float32), photo.sha256)
    photos = dataset.split(sorted(photos, key=lambda p: p.path), testing_percentage=20, validation_percentage=20, seed=0)
    bottlenecks.pack(photos, cache, WIDTH, folder)
    return folder


def tensors(folder: Path) -> dict[str, bytes]:
    latest = checkpoint.latest(folder)
    return {name: np.asarray(tf.train.load_variable(latest, name)).tobytes() for name, _ in tf.train.list_variables(latest)}


def splits(packed: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vectors and label ids by split."""
    matrix, photos = bottlenecks.Packed(packed), dataset.read_photos(packed / bottlenecks.INDEX)
    labels = dataset.labels_of(photos)
    result = {}
    for split in dataset.SPLITS:
        rows = [i for i, photo in enumerate(photos) if photo.split == split]
        result[split] = matrix[rows].astype(np.float64), np.array([labels.index(photos[i].label) for i in rows])
    return result


# --- Mini-batches --------------------------------------------------------------------------------------------------------


def test_each_epoch_takes_each_row_once_in_another_order() -> None:
    rows = final_layer.batch_rows(0, 0, 5, 20, 50)
    assert Counter(rows[:50].tolist()) == Counter(rows[50:].tolist()) == Counter(range(50))
    assert rows[:50].tolist() != rows[50:].tolist() != list(range(50))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    batch = final_layer.batch_rows(3, 17, 18, 20, 50)
    assert final_layer.batch_rows(3, 11, 23, 20, 50)[6 * 20 : 7 * 20].tolist() == batch.tolist()
    assert final_layer.batch_rows(4, 17, 18, 20, 50).tolist() != batch.tolist()


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert Counter(final_layer.batch_rows(0, 0, 1, 100, 7).tolist()).keys() == set(range(7))
    assert len(final_layer.batch_rows(0, 1, 3, 100, 7)) == 200


# --- Training ------------------------------------------------------------------------------------------------------------


def exact_loss(packed: Path, weight_decay: float) -> float:
    """The lowest penalised training loss there is, by Newton's method on the convex problem."""
    vectors, truth = splits(packed)[dataset.TRAINING]
    mean, scale = final_layer.standardisation(bottlenecks.read_statistics(packed))
    x = np.hstack([(vectors - mean) / scale, np.ones((len(vectors), 1))])
    onehot = np.eye(CLASSES)[truth]
    penalty = np.r_[np.full(WIDTH, weight_decay), 1e-9][:, None]
    weights = np.zeros((WIDTH + 1, CLASSES))
    for _ in range(30):
        logits = x @ weights
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ (p - onehot) / len(x) + penalty * weights
        curvature = np.einsum("ni,nc,ncd,nj->icjd", x, p, np.eye(CLASSES) - p[:, None], x) / len(x)
        size = weights.size
        hessian = curvature.reshape(size, size) + np.diag(np.repeat(penalty, CLASSES)) + 1e-9 * np.eye(size)
        weights -= np.linalg.solve(hessian, gradient.ravel()).reshape(weights.shape)
    return penalised_loss(x[:, :-1], truth, weights[:-1], weights[-1], weight_decay)


def penalised_loss(x: np.ndarray, truth: np.ndarray, weights: np.ndarray, biases: np.ndarray, weight_decay: float) -> float:
    return evaluation.log_loss(x @ weights + biases, truth) + weight_decay / 2 * float((weights**2).sum())


def test_the_loop_reaches_the_exact_solution(packed: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, how_many_training_steps=3000, train_batch_size=144, learning_rate=(0.1,))
    final_layer.train(tmp_path, packed, options)
    latest = checkpoint.latest(tmp_path)
    weights, biases = (tf.train.load_variable(latest, f"final_layer/{name}") for name in ("weights", "biases"))
    vectors, truth = splits(packed)[dataset.TRAINING]
    mean, scale = final_layer.standardisation(bottlenecks.read_statistics(packed))
    reached = penalised_loss((vectors - mean) / scale, truth, weights.T, biases, options.weight_decay[0])
    assert reached == pytest.approx(exact_loss(packed, options.weight_decay[0]), rel=2e-3)


def test_the_best_step_is_kept_and_measured_once_on_test(packed: Path, tmp_path: Path) -> None:
    # Far too long at far too high a rate: the last step is not the best.
    options = replace(OPTIONS, how_many_training_steps=200, learning_rate=(3.0,), weight_decay=(0.0,))
    result = final_layer.train(tmp_path, packed, options)
    assert result.best.best_step < 200
    events = scalars(tmp_path / final_layer.SUMMARIES / "candidate-0/validation")
    assert min(events["loss"], key=lambda pair: pair[1])[0] == result.best.best_step
    latest = checkpoint.latest(tmp_path)
    weights, biases = (tf.train.load_variable(latest, f"chosen/{name}") for name in ("weights", "biases"))
    mean, scale = final_layer.standardisation(bottlenecks.read_statistics(packed))
    vectors, truth = splits(packed)[dataset.TESTING]
    correct = int((((vectors - mean) / scale @ weights.T + biases).argmax(axis=1) == truth).sum())
    assert (result.test_correct, result.test_count) == (correct, len(truth))
    assert result.test_interval == evaluation.wilson_interval(correct, len(truth))


def train_and_kill(folder: Path, packed: Path, at_steps: list[int]) -> None:
    """Train, cut off after each of these steps, until it is through."""
    for step in at_steps:

        def kill(done: int, total: int, step: int = step) -> None:
            if done >= step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            final_layer.train(folder, packed, OPTIONS, kill)
    final_layer.train(folder, packed, OPTIONS)


@pytest.mark.parametrize("at_steps", [[7], [15], [44, 46], [59], [60], [16, 31, 47]])
def test_a_killed_training_ends_with_the_same_bytes(packed: Path, tmp_path: Path, at_steps: list[int]) -> None:
    whole = final_layer.train(tmp_path / "whole", packed, OPTIONS)
    train_and_kill(tmp_path / "killed", packed, at_steps)
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    assert final_layer.train(tmp_path / "killed", packed, OPTIONS) == whole  # again, with nothing left to train


def test_the_checkpoint_interval_changes_no_byte(packed: Path, tmp_path: Path) -> None:
    final_layer.train(tmp_path / "a", packed, OPTIONS)
    final_layer.train(tmp_path / "b", packed, replace(OPTIONS, checkpoint_interval=7))
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")


def test_another_seed_is_another_training(packed: Path, tmp_path: Path) -> None:
    final_layer.train(tmp_path / "a", packed, OPTIONS)
    final_layer.train(tmp_path / "b", packed, replace(OPTIONS, seed=1))
    assert tensors(tmp_path / "a") != tensors(tmp_path / "b")


def test_checkpoints_hold_optimizer_slots_and_global_step(packed: Path, tmp_path: Path) -> None:
    final_layer.train(tmp_path, packed, OPTIONS)
    names = {name for name, _ in tf.train.list_variables(checkpoint.latest(tmp_path))}
    assert {"global_step", "final_layer/weights/Momentum", "final_layer/biases/Momentum", "best/loss", "best/step"} <= names
    with tf.Graph().as_default(), tf.Session() as running:
        latest = tf.train.latest_checkpoint(str(tmp_path))
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        assert running.run("global_step/Read/ReadVariableOp:0") == 60


def test_standardisation_has_one_scale_for_all_features() -> None:
    statistics = bottlenecks.Statistics(4, np.array([1.0, 2.0]), np.array([4.0, 12.0]))
    mean, scale = final_layer.standardisation(statistics)
    assert mean.tolist() == [1, 2]
    assert scale == pytest.approx(np.sqrt(2))  # variances 1 and 3
    assert final_layer.standardisation(bottlenecks.Statistics(4, np.zeros(2), np.zeros(2)))[1] == 1


# --- Summaries -----------------------------------------------------------------------------------------------------------


def events_in(folder: Path) -> list[tf.Event]:
    return [event for path in sorted(folder.glob("events*")) for event in tf.train.summary_iterator(str(path))]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events_in(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_summaries_for_tensorboard(packed: Path, tmp_path: Path) -> None:
    final_layer.train(tmp_path, packed, OPTIONS)
    for curve in ("training", "validation"):
        found = scalars(tmp_path / final_layer.SUMMARIES / "candidate-0" / curve)
        assert {tag: [step for step, _ in pairs] for tag, pairs in found.items()} == {
            tag: [10, 20, 30, 40, 50, 60] for tag in ("loss", "accuracy")
        }
    events = events_in(tmp_path / final_layer.SUMMARIES)
    histograms = {value.tag for event in events for value in event.summary.value if value.HasField("histo")}
    assert histograms == {"weights_histogram", "biases_histogram", "logits_histogram"}
    assert any(event.graph_def for event in events)


def test_after_a_kill_tensorboard_is_told_to_drop_what_is_repeated(packed: Path, tmp_path: Path) -> None:
    train_and_kill(tmp_path, packed, [40])
    restarts = [event.step for event in events_in(tmp_path / final_layer.SUMMARIES) if event.session_log.status]
    assert restarts == [30]
