from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import batches, bottlenecks, checkpoint, dataset, evaluation, final_layer, heads, indexing, summaries
from pipeline.dataset import Photo, Photos
from pipeline.errors import UserError
from pipeline.heads import Shape
from pipeline.packed import Packed
from pipeline.tensorflow_v1 import session, tf
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
    photos = [Photo(f"{label}/{i:03d}.jpg", label, sha256=f"{i + 1:064x}", bytes=1) for i, label in enumerate(labels)]
    for i, photo in enumerate(photos):
        cache.write((5 + centres[i % CLASSES] + rng.normal(size=WIDTH)).astype(np.float32), photo.sha256)
    photos = indexing.split(Photos(sorted(photos, key=dataset.in_order)), testing_percentage=20, validation_percentage=20, seed=0)
    bottlenecks.pack(photos, cache, WIDTH, folder)
    return folder


def tensors(folder: Path) -> dict[str, bytes]:
    latest = checkpoint.latest(folder)
    return {name: np.asarray(tf.train.load_variable(latest, name)).tobytes() for name, _ in tf.train.list_variables(latest)}


def splits(packed: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vectors and label ids by split."""
    matrix, photos = Packed(packed), dataset.read_photos(packed / dataset.INDEX)
    labels = photos.labels()[0]
    result = {}
    for split in dataset.SPLITS:
        rows = [i for i, photo in enumerate(photos) if photo.split == split]
        result[split] = matrix[rows].astype(np.float64), np.array([labels.index(photos[i].label) for i in rows])
    return result


# --- Training ------------------------------------------------------------------------------------------------------------


def exact_loss(packed: Path, weight_decay: float) -> float:
    """The lowest penalised training loss there is, by Newton's method on the convex problem."""
    vectors, truth = splits(packed)[dataset.TRAINING]
    mean, scale = batches.standardisation(bottlenecks.read_statistics(packed))
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
    mean, scale = batches.standardisation(bottlenecks.read_statistics(packed))
    reached = penalised_loss((vectors - mean) / scale, truth, weights.T, biases, options.weight_decay[0])
    assert reached == pytest.approx(exact_loss(packed, options.weight_decay[0]), rel=2e-3)


def trained_by_hand(packed: Path, options: final_layer.Options) -> dict[str, np.ndarray]:
    """The values after the last step of one candidate, by momentum in float64, with the start, batches and draws of the pipeline."""
    vectors, truth = splits(packed)[dataset.TRAINING]
    mean, scale = batches.standardisation(bottlenecks.read_statistics(packed))
    steps, size, seed, dropout = options.how_many_training_steps, options.train_batch_size, options.seed, options.dropout
    (rate,), (decay,), (smoothing,) = options.learning_rate, options.weight_decay, options.label_smoothing
    with tf.Graph().as_default(), tf.Session() as running:
        features = options.hidden_units or WIDTH
        drawn = running.run([tf.random.stateless_uniform([size, features], tf.constant([seed, step], tf.int64)) for step in range(steps)])
    start = heads.initial(Shape(WIDTH, CLASSES, options.hidden_units), seed)
    values = {name: value.astype(np.float64) for name, value in start.items()}
    momenta = {name: np.zeros_like(value) for name, value in values.items()}
    for draw, rows in zip(drawn, batches.batch_rows(seed, 0, steps, size, len(truth)).reshape(steps, size)):
        x, kept = (vectors[rows] - mean) / scale, (draw >= dropout) / (1 - dropout)
        hidden = np.maximum(x @ values["hidden_weights"].T + values["hidden_biases"], 0) if options.hidden_units else x
        logits = (hidden * kept) @ values["weights"].T + values["biases"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        errors = (shares - (1 - smoothing) * np.eye(CLASSES)[truth[rows]] - smoothing / CLASSES) / size
        gradients = {"weights": errors.T @ (hidden * kept) + decay * values["weights"], "biases": errors.sum(axis=0)}
        if options.hidden_units:
            errors = (errors @ values["weights"]) * kept * (hidden > 0)
            gradients |= {"hidden_weights": errors.T @ x + decay * values["hidden_weights"], "hidden_biases": errors.sum(axis=0)}
        for name, gradient in gradients.items():
            momenta[name] = 0.9 * momenta[name] + rate * gradient
            values[name] = values[name] - momenta[name]
    return values


@pytest.mark.parametrize("hidden_units", [0, 8])
def test_the_steps_are_those_taken_by_hand(packed: Path, tmp_path: Path, hidden_units: int) -> None:
    options = replace(OPTIONS, weight_decay=(0.2,), label_smoothing=(0.3,), dropout=0.4, hidden_units=hidden_units)
    final_layer.train(tmp_path, packed, options)
    latest = checkpoint.latest(tmp_path)
    for name, value in trained_by_hand(packed, options).items():
        np.testing.assert_allclose(tf.train.load_variable(latest, f"final_layer/{name}"), value, rtol=0, atol=1e-4, err_msg=name)


def test_the_best_step_is_kept_and_measured_once_on_test(packed: Path, tmp_path: Path) -> None:
    # Far too long at far too high a rate: the last step is not the best.
    options = replace(OPTIONS, how_many_training_steps=200, learning_rate=(3.0,), weight_decay=(0.0,))
    result = final_layer.train(tmp_path, packed, options)
    assert result.best.best_step < 200
    events = scalars(tmp_path / final_layer.SUMMARIES / "candidate-0/validation")
    assert min(events["loss"], key=lambda pair: pair[1])[0] == result.best.best_step
    latest = checkpoint.latest(tmp_path)
    weights, biases = (tf.train.load_variable(latest, f"chosen/{name}") for name in ("weights", "biases"))
    mean, scale = batches.standardisation(bottlenecks.read_statistics(packed))
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
    curves = [(tmp_path / folder / final_layer.CURVES).read_text().splitlines() for folder in ("whole", "killed")]
    assert curves[0] == curves[1]
    assert curves[0][0] == "candidate,curve,step,loss,accuracy" and len(curves[0]) > 3
    assert final_layer.train(tmp_path / "killed", packed, OPTIONS) == whole  # again, with nothing left to train


@pytest.mark.parametrize("damage", ["cut", "gone", "no folder"])
def test_where_the_curves_are_lost_the_training_begins_anew(
    packed: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    final_layer.train(tmp_path / "whole", packed, OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        final_layer.train(tmp_path / "killed", packed, OPTIONS, kill)
    curves = tmp_path / "killed" / final_layer.SUMMARIES
    (events,) = (curves / "candidate-0/validation").glob("events*")
    if damage == "cut":
        os.truncate(events, 100)
    elif damage == "gone":
        events.unlink()
    else:
        shutil.rmtree(curves)
        curves.write_text("a file")
    final_layer.train(tmp_path / "killed", packed, OPTIONS)
    assert "summaries is damaged; the training begins anew" in capsys.readouterr().err
    for pattern in ("final_layer.ckpt*", "checkpoint", final_layer.CURVES):
        whole, killed = ({path.name: path.read_bytes() for path in (tmp_path / name).glob(pattern)} for name in ("whole", "killed"))
        assert whole == killed and whole


def test_an_event_file_that_was_cut_is_read_up_to_there(packed: Path, tmp_path: Path) -> None:
    final_layer.train(tmp_path, packed, OPTIONS)
    curves = tmp_path / final_layer.CURVES
    whole = curves.read_text().splitlines()
    (events,) = (tmp_path / final_layer.SUMMARIES / "candidate-0/validation").glob("events*")
    os.truncate(events, events.stat().st_size - 7)
    summaries.write_curves(curves, tmp_path / final_layer.SUMMARIES, 1)
    assert curves.read_text().splitlines() == whole[:-1]


def test_what_a_writer_cannot_write_is_raised_and_not_printed_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tf.Graph().as_default(), contextlib.suppress(IndexError), summaries.Curves(tmp_path, [{"learning_rate": 0.1}], 0) as curves:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # as good as a full disk
        try:
            for step in range(1000):
                curves.add("training", step, np.ones(1), np.ones(1))
            with pytest.raises(IndexError, match="File too large"):
                curves.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr() == ("", "")


KILLED_AT_RANDOM = """
import os, random, signal, sys, threading
from pathlib import Path
from pipeline import final_layer
from tests_options import OPTIONS

folder, packed = map(Path, sys.argv[1:])
kills = 0
for attempt in range(100):
    child = os.fork()  # no session has run in this process, so TensorFlow survives that
    if child == 0:
        moment = random.Random(attempt)
        steps, delay = moment.randint(1, OPTIONS.how_many_training_steps // 30), moment.uniform(0, 0.01)
        first = None

        def kill(done, total):
            global first
            first = done if first is None else first
            if kills < 20 and done - first >= steps:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

        final_layer.train(folder, packed, OPTIONS, kill)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        sys.exit(status or kills != 20)
"""


def test_killed_for_real_at_twenty_random_moments_it_ends_with_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    """Each process is killed with -9 some steps after it went on, and a moment later: in the middle of a step or a save."""
    options = replace(OPTIONS, how_many_training_steps=3000, checkpoint_interval=40, weight_decay=(0.01, 0.1), dropout=0.1)
    final_layer.train(tmp_path / "whole", packed, options)
    (tmp_path / "tests_options.py").write_text(f"from pipeline.final_layer import Options\nOPTIONS = {options!r}\n")
    command = [sys.executable, "-c", KILLED_AT_RANDOM, str(tmp_path / "killed"), str(packed)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    # And the files, to the last byte: they come from processes that order their sets differently.
    kept = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("final_layer.ckpt*")}
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("final_layer.ckpt*")}
    assert {Path(name).suffix for name in kept} >= {".meta", ".index"}


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


def test_a_checkpoint_of_many_candidates_holds_them_together(packed: Path, tmp_path: Path) -> None:
    count = heads.MOST_TOGETHER + 1
    final_layer.train(tmp_path, packed, replace(OPTIONS, weight_decay=tuple(np.geomspace(1e-4, 0.1, count))))
    shapes = dict(tf.train.list_variables(checkpoint.latest(tmp_path)))
    assert {name.partition("/")[0] for name in shapes} == {"global_step", "final_layer", "best", "chosen"}
    assert shapes["final_layer/weights"] == shapes["final_layer/weights/Momentum"] == [count * CLASSES, WIDTH]


# --- Sweeps and what else can be chosen ----------------------------------------------------------------------------------

SWEEP = replace(OPTIONS, learning_rate=(0.01, 0.1), weight_decay=(0.0, 0.1), label_smoothing=(0.0, 0.2))


@pytest.mark.parametrize("most_together", [8, 3])
def test_candidates_train_as_each_would_alone(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_together: int) -> None:
    monkeypatch.setattr(heads, "MOST_TOGETHER", most_together)
    together = final_layer.train(tmp_path / "together", packed, SWEEP)
    assert len(together.candidates) == 8
    for number, candidate in enumerate(SWEEP.candidates):
        alone = replace(
            SWEEP,
            learning_rate=(candidate.learning_rate,),
            weight_decay=(candidate.weight_decay,),
            label_smoothing=(candidate.label_smoothing,),
        )
        result = final_layer.train(tmp_path / str(number), packed, alone)
        assert result.best.best_step == together.candidates[number].best_step
        assert result.best.validation_loss == pytest.approx(together.candidates[number].validation_loss, rel=1e-4)


def test_the_candidate_with_the_lowest_validation_loss_is_kept_as_a_head_of_its_own(packed: Path, tmp_path: Path) -> None:
    result = final_layer.train(tmp_path, packed, SWEEP)
    losses = [candidate.validation_loss for candidate in result.candidates]
    assert losses[result.chosen] == min(losses) < max(losses)
    latest = checkpoint.latest(tmp_path)
    chosen, best = (tf.train.load_variable(latest, f"{scope}/weights") for scope in ("chosen", "best"))
    np.testing.assert_array_equal(chosen, best[CLASSES * result.chosen : CLASSES * (result.chosen + 1)])
    rows = (tmp_path / final_layer.CANDIDATES).read_text().splitlines()
    assert rows[0] == "learning_rate,weight_decay,label_smoothing,best_step,validation_loss,validation_accuracy"
    assert len(rows) == 9
    assert {(split, logits.shape) for split, logits in evaluation.read_logits(tmp_path).items()} == {
        (split, (len(splits(packed)[split][1]), CLASSES)) for split in (dataset.VALIDATION, dataset.TESTING)
    }


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam", "learning_rate": (0.01,)},
        {"optimizer": "sgd", "learning_rate": (0.5,)},
        {"learning_rate_schedule": "cosine"},
        {"learning_rate_schedule": "step"},
        {"dropout": 0.3},
        {"hidden_units": 16},
        {"hidden_units": 16, "dropout": 0.3, "optimizer": "adam", "learning_rate": (0.01,)},
        {"class_weights": "balanced"},
        {"label_smoothing": (0.1,)},
        {"weight_decay": tuple(np.geomspace(1e-4, 0.1, heads.MOST_TOGETHER + 1))},
        {"weight_decay": tuple(np.geomspace(1e-4, 0.1, heads.MOST_TOGETHER + 1)), "hidden_units": 16, "optimizer": "adam"},
    ],
)
def test_each_way_learns_and_goes_on_after_a_kill_to_the_same_bytes(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    options = replace(OPTIONS, how_many_training_steps=120, **change)
    whole = final_layer.train(tmp_path / "whole", packed, options)
    assert whole.best.validation_accuracy > 0.7  # by chance a third

    def kill(done: int, total: int) -> None:
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        final_layer.train(tmp_path / "killed", packed, options, kill)
    monkeypatch.setattr(batches, "STEPS_AT_ONCE", 3)
    final_layer.train(tmp_path / "killed", packed, options)
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")


def test_patience_ends_a_training_that_gets_no_better(packed: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, how_many_training_steps=2000, learning_rate=(3.0,), weight_decay=(0.0,), patience=4)
    result = final_layer.train(tmp_path, packed, options)
    assert result.steps == result.best.best_step + 4 * OPTIONS.eval_step_interval < 2000
    assert final_layer.train(tmp_path, packed, options) == result


def test_patience_ends_where_the_loss_stays_the_same(packed: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=(0.0,), patience=2)
    result = final_layer.train(tmp_path, packed, options)
    assert (result.best.best_step, result.steps) == (OPTIONS.eval_step_interval, 3 * OPTIONS.eval_step_interval)


def test_a_validation_split_in_several_pieces_is_measured_as_a_whole(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, truth = splits(packed)[dataset.VALIDATION]
    monkeypatch.setattr(final_layer, "ROWS_AT_ONCE", len(truth) - 1)  # and one photo in a piece of its own
    result = final_layer.train(tmp_path, packed, OPTIONS)
    logits = evaluation.read_logits(tmp_path)[dataset.VALIDATION]
    assert result.best.validation_loss == pytest.approx(evaluation.log_loss(logits, truth))
    assert result.best.validation_accuracy == pytest.approx((logits.argmax(axis=1) == truth).mean())


def test_a_candidate_that_diverges_loses_and_the_others_are_kept(packed: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=(0.05, 1e30), eval_step_interval=20)
    result = final_layer.train(tmp_path / "two", packed, options)
    assert (result.chosen, result.candidates[1].validation_loss) == (0, None)
    assert result.candidates[1].validation_accuracy is None
    assert (tmp_path / "two" / final_layer.CANDIDATES).read_text().splitlines()[2].endswith(",0,,")
    alone = final_layer.train(tmp_path / "one", packed, replace(options, learning_rate=(0.05,)))
    assert result.best.validation_loss == pytest.approx(alone.best.validation_loss, rel=1e-4)
    with pytest.raises(UserError, match=r"no candidate comes to a loss that is a number; lower learning_rate = \(1e\+30,\)"):
        final_layer.train(tmp_path / "none", packed, replace(options, learning_rate=(1e30,)))


def test_large_batches_come_in_fewer_steps_at_once(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(batches, "BYTES_AT_ONCE", 3 * 4 * WIDTH * OPTIONS.train_batch_size)
    final_layer.train(tmp_path, packed, OPTIONS, lambda done, total: seen.append(done))
    assert seen[:5] == [0, 3, 6, 9, 10]


def test_balanced_classes_weigh_the_same() -> None:
    weights = final_layer.balanced_weights(np.array([0] * 6 + [1] * 3 + [2] * 3), 3)
    assert weights.tolist() == pytest.approx([12 / 18, 12 / 9, 12 / 9])


def test_the_saver_keeps_as_many_checkpoints_as_it_is_told(packed: Path, tmp_path: Path) -> None:
    for most, kept in ((2, [45, 60]), (0, [15, 30, 45, 60])):
        folder = tmp_path / str(most)
        final_layer.train(folder, packed, replace(OPTIONS, max_to_keep=most))
        assert sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob("*.index")) == kept


# --- Starting from another training ------------------------------------------------------------------------------------


def start_of(folder: Path, labels: list[str]) -> final_layer.Start:
    """What an export made of the training in ``folder`` would give to start from."""
    names = [name for name, _ in tf.train.list_variables(checkpoint.latest(folder)) if name.startswith("chosen/")]
    return final_layer.Start(labels, {name.partition("/")[2]: np.asarray(checkpoint.read(folder, name)) for name in names})


@pytest.mark.parametrize("hidden_units", [0, 8])
def test_a_start_gives_the_logits_that_it_had_under_another_standardisation(packed: Path, tmp_path: Path, hidden_units: int) -> None:
    result = final_layer.train(tmp_path, packed, replace(OPTIONS, hidden_units=hidden_units))
    start = start_of(tmp_path, result.labels)
    shape = Shape(WIDTH, CLASSES, hidden_units)
    mean, scale = np.full(WIDTH, 3.0, np.float32), 2.5
    fitted = start.fitted(heads.initial(shape, 0), shape, result.labels, mean, scale)
    vectors = splits(packed)[dataset.TESTING][0].astype(np.float32)
    before, after = (run_head(shape, values, vectors) for values in (start.values, {"mean": mean, "scale": np.float32(scale), **fitted}))
    np.testing.assert_allclose(after, before, atol=1e-3)


def run_head(shape: Shape, values: dict[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default(), session(threads=1) as running:
        layer = heads.variables(shape, "layer")
        running.run([v.initializer for v in layer.values()], {v.initializer.inputs[1]: values[n] for n, v in layer.items()})
        return running.run(heads.logits(heads.standardised(tf.constant(vectors), layer), layer))


def test_shared_labels_start_as_they_were_and_new_ones_fresh(packed: Path, tmp_path: Path) -> None:
    result = final_layer.train(tmp_path, packed, OPTIONS)
    start = start_of(tmp_path, result.labels)
    shape = Shape(WIDTH, 3, heads=2)
    labels = ["class 0", "class 2", "new"]
    fitted = start.fitted(heads.initial(shape, 0), shape, labels, start.values["mean"], float(start.values["scale"]))
    for head in range(2):
        rows = heads.one_of(fitted["weights"], head, 2)
        np.testing.assert_allclose(rows[:2], start.values["weights"][[0, 2]], rtol=1e-6)
        assert not rows[2].any()


def test_a_training_that_starts_from_its_own_end_begins_with_its_loss(packed: Path, tmp_path: Path) -> None:
    first = final_layer.train(tmp_path / "first", packed, OPTIONS)
    options = replace(OPTIONS, how_many_training_steps=1, learning_rate=(1e-6,), eval_step_interval=1)
    again = final_layer.train(tmp_path / "again", packed, options, start_from=start_of(tmp_path / "first", first.labels))
    assert again.best.validation_loss == pytest.approx(first.best.validation_loss, rel=1e-3)


def test_a_head_of_another_shape_is_no_start(packed: Path, tmp_path: Path) -> None:
    first = final_layer.train(tmp_path / "first", packed, OPTIONS)
    with pytest.raises(UserError, match="another network or hidden layer; name an export of the same model and hidden_units"):
        final_layer.train(tmp_path, packed, replace(OPTIONS, hidden_units=4), start_from=start_of(tmp_path / "first", first.labels))


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


def test_what_a_run_without_a_checkpoint_left_for_tensorboard_is_dropped(packed: Path, tmp_path: Path) -> None:
    train_and_kill(tmp_path, packed, [10])
    assert [step for step, _ in scalars(tmp_path / final_layer.SUMMARIES / "candidate-0/validation")["loss"]] == [10, 20, 30, 40, 50, 60]


def test_after_a_kill_tensorboard_is_told_to_drop_what_is_repeated(packed: Path, tmp_path: Path) -> None:
    train_and_kill(tmp_path, packed, [40])
    restarts = [event.step for event in events_in(tmp_path / final_layer.SUMMARIES) if event.session_log.status]
    assert restarts == [31]
