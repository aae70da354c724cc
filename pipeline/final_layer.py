"""The final layer: a softmax over the labels on standardised bottlenecks, its training loop and its summaries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline import bottlenecks, checkpoint, dataset, evaluation
from pipeline.checkpoint import Checkpoints
from pipeline.console import Report
from pipeline.tensorflow_v1 import session, tf

CHECKPOINT = "final_layer.ckpt"
SUMMARIES = "summaries"
SCOPE = "final_layer"
MOMENTUM = 0.9
ROWS_AT_ONCE = 4096
"""Rows that an evaluation takes through the final layer at a time, so that memory stays flat."""


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        how_many_training_steps: mini-batches.
        train_batch_size: photos in each.
        learning_rate: of gradient descent with momentum 0.9.
        weight_decay: the L2 penalty is weight_decay / 2 times the sum of the squared weights (not the biases).
        eval_step_interval: steps between looks at the validation split, one of which is kept as the best.
        checkpoint_interval: steps between checkpoints: what a kill may cost.
        seed: of the mini-batches.
    """

    how_many_training_steps: int
    train_batch_size: int
    learning_rate: float
    weight_decay: float
    eval_step_interval: int
    checkpoint_interval: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What came out of a training.

    Attributes:
        labels: in the order of the outputs.
        best_step: the step with the lowest validation loss, whose weights are kept.
        validation_loss, validation_accuracy: at that step.
        test_count, test_correct: photos of the test split, and how many of them it names rightly; measured once.
        test_interval: the 95 % interval of the test accuracy.
    """

    labels: list[str]
    best_step: int
    validation_loss: float
    validation_accuracy: float
    test_count: int
    test_correct: int
    test_interval: tuple[float, float]

    @property
    def test_accuracy(self) -> float:
        return self.test_correct / self.test_count


def variables(width: int, classes: int) -> dict[str, tf.Variable]:
    """The variables of the final layer on the default graph: ``mean``, ``scale``, ``weights``, ``biases``."""

    def variable(name: str, shape: list[int], trainable: bool) -> tf.Variable:
        return tf.get_variable(name, shape, initializer=tf.zeros_initializer(), trainable=trainable, use_resource=True)

    with tf.variable_scope(SCOPE):
        return {
            "mean": variable("mean", [width], False),
            "scale": variable("scale", [], False),
            "weights": variable("weights", [width, classes], True),
            "biases": variable("biases", [classes], True),
        }


def logits(bottleneck: tf.Tensor, layer: dict[str, tf.Variable]) -> tf.Tensor:
    """Bottlenecks [batch, width] → logits [batch, classes]."""
    standardised = (bottleneck - layer["mean"]) / layer["scale"]
    return tf.nn.bias_add(tf.matmul(standardised, layer["weights"]), layer["biases"])


def standardisation(statistics: bottlenecks.Statistics) -> tuple[np.ndarray, float]:
    """The mean of each feature, and one scale for all: the root of their mean variance.

    One scale, since dividing each feature by its own deviation blows up those that say little; it cost a point or more of
    accuracy on flowers.
    """
    variance = statistics.squares / max(statistics.count, 1)
    return statistics.mean.astype(np.float32), float(np.sqrt(variance.mean())) or 1.0


def batch_rows(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """The rows of a mini-batch: a function of its arguments alone, so that a resumed run needs no generator's state.

    Epoch after epoch each row comes once, in another order; a batch may reach over the end of an epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    rows = [_epoch(seed, int(epoch), count)[positions[positions // count == epoch] % count] for epoch in np.unique(positions // count)]
    return np.concatenate(rows)


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def train(folder: Path, packed: Path, options: Options, report: Report = lambda done, total: None) -> Result:
    """Train the final layer on the packed bottlenecks in ``packed``; checkpoints and event files go to ``folder``.

    Called again after a kill it goes on at the last step saved, and ends with the same bytes in every variable as a run
    that was never killed. The checkpoint holds the weights of the last step (with the optimizer's slots and the global
    step) and those of the best one.
    """
    matrix = bottlenecks.Packed(packed)
    of_rows = [(photo.label, photo.split) for photo in dataset.each_photo(packed / bottlenecks.INDEX)]
    labels = sorted({label for label, _ in of_rows})
    number_of = {label: number for number, label in enumerate(labels)}
    label_ids = np.array([number_of[label] for label, _ in of_rows], np.int32)
    rows = {wanted: np.array([i for i, (_, split) in enumerate(of_rows) if split == wanted]) for wanted in dataset.SPLITS}
    with tf.Graph().as_default():
        trainer = _Trainer(matrix, label_ids, rows, len(labels), options)
        with session(threads=1) as running:
            trainer.run(running, folder, bottlenecks.read_statistics(packed), report)
            trainer.use_best(running)
            validation = rows[dataset.VALIDATION]
            validation_logits = trainer.logits_of(running, validation)
            testing = rows[dataset.TESTING]
            correct = int((trainer.logits_of(running, testing).argmax(axis=1) == label_ids[testing]).sum())
            return Result(
                labels=labels,
                best_step=int(running.run(trainer.best["step"])),
                validation_loss=evaluation.log_loss(validation_logits, label_ids[validation]),
                validation_accuracy=evaluation.accuracy(validation_logits, label_ids[validation]),
                test_count=len(testing),
                test_correct=correct,
                test_interval=evaluation.wilson_interval(correct, len(testing)),
            )


class _Trainer:
    """The training graph and what is fed to it."""

    def __init__(
        self, matrix: bottlenecks.Packed, label_ids: np.ndarray, rows: dict[str, np.ndarray], classes: int, options: Options
    ) -> None:
        self.matrix, self.label_ids, self.rows, self.options = matrix, label_ids, rows, options
        width = matrix.shape[1]
        self.global_step = tf.train.get_or_create_global_step()
        self.bottleneck = tf.placeholder(tf.float32, [None, width], name="bottleneck_input")
        self.truth = tf.placeholder(tf.int32, [None], name="label_input")
        self.layer = variables(width, classes)
        self.logits = logits(self.bottleneck, self.layer)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=self.truth, logits=self.logits))
        penalised = loss + options.weight_decay * tf.nn.l2_loss(self.layer["weights"])
        optimizer = tf.train.MomentumOptimizer(options.learning_rate, MOMENTUM)
        self.train_step = optimizer.minimize(penalised, global_step=self.global_step)
        with tf.variable_scope("best"):
            self.best = {
                "step": tf.get_variable("step", [], tf.int64, tf.zeros_initializer(), use_resource=True, trainable=False),
                "loss": tf.get_variable("loss", [], tf.float64, tf.constant_initializer(np.inf), use_resource=True, trainable=False),
                **{
                    name: tf.get_variable(
                        name, self.layer[name].shape, use_resource=True, trainable=False, initializer=tf.zeros_initializer()
                    )
                    for name in ("weights", "biases")
                },
            }
        self.keep_best = tf.group(
            self.best["step"].assign(self.global_step),
            *(self.best[name].assign(self.layer[name]) for name in ("weights", "biases")),
        )
        self.take_best = tf.group(*(self.layer[name].assign(self.best[name]) for name in ("weights", "biases")))
        self.histograms = tf.summary.merge(
            [
                tf.summary.histogram("weights_histogram", self.layer["weights"]),
                tf.summary.histogram("biases_histogram", self.layer["biases"]),
                tf.summary.histogram("logits_histogram", self.logits),
            ]
        )

    def run(self, running: tf.Session, folder: Path, statistics: bottlenecks.Statistics, report: Report) -> None:
        """Train to the last step, from the last checkpoint if there is one."""
        options = self.options
        steps = options.how_many_training_steps
        running.run(tf.global_variables_initializer())
        mean, scale = standardisation(statistics)
        _load(running, self.layer["mean"], mean)
        _load(running, self.layer["scale"], scale)
        checkpoints = Checkpoints(folder, CHECKPOINT)
        start = checkpoints.restore(running) or 0
        step_once = running.make_callable(self.train_step, [self.bottleneck, self.truth])
        with _writer(folder, "training", start) as training, _writer(folder, "validation", start) as validation:
            report(start, steps)
            for step in range(start, steps):
                step_once(*self._batch(self._training_rows(step)))
                done = step + 1
                if done % options.eval_step_interval == 0 or done == steps:
                    self._look(running, done, training, validation)
                if done % options.checkpoint_interval == 0 or done == steps:
                    # Events first: a kill between the two repeats events, which TensorBoard sorts out, and loses none.
                    training.flush()
                    validation.flush()
                    checkpoints.save(running, done)
                report(done, steps)

    def _training_rows(self, step: int) -> np.ndarray:
        rows = self.rows[dataset.TRAINING]
        return rows[batch_rows(self.options.seed, step, self.options.train_batch_size, len(rows))]

    def _batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.matrix[rows], self.label_ids[rows]

    def _look(self, running: tf.Session, step: int, training: tf.summary.FileWriter, validation: tf.summary.FileWriter) -> None:
        """Write summaries, and keep the weights if they are the best so far on the validation split."""
        vectors, truth = self._batch(self._training_rows(step - 1))
        outputs, histograms = running.run([self.logits, self.histograms], {self.bottleneck: vectors})
        training.add_summary(histograms, step)
        training.add_summary(_scalars(outputs, truth), step)
        rows = self.rows[dataset.VALIDATION]
        outputs, truth = self.logits_of(running, rows), self.label_ids[rows]
        validation.add_summary(_scalars(outputs, truth), step)
        loss = evaluation.log_loss(outputs, truth)
        if loss < running.run(self.best["loss"]):
            _load(running, self.best["loss"], loss)
            running.run(self.keep_best)

    def logits_of(self, running: tf.Session, rows: np.ndarray) -> np.ndarray:
        """The logits of some rows of the matrix, float32 [rows, classes]."""
        pieces = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
        return np.concatenate([running.run(self.logits, {self.bottleneck: self.matrix[piece]}) for piece in pieces])

    def use_best(self, running: tf.Session) -> None:
        running.run(self.take_best)


def _scalars(outputs: np.ndarray, truth: np.ndarray) -> tf.Summary:
    figures = {"loss": evaluation.log_loss(outputs, truth), "accuracy": evaluation.accuracy(outputs, truth)}
    return tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()])


@contextlib.contextmanager
def _writer(folder: Path, name: str, start: int) -> Iterator[tf.summary.FileWriter]:
    """A writer of events of one curve. One that goes on after a kill tells TensorBoard to drop what lies past ``start``."""
    with tf.summary.FileWriter(str(folder / SUMMARIES / name), tf.get_default_graph()) as writer:
        if start:
            writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), start)
        yield writer


def _load(running: tf.Session, variable: tf.Variable, value: np.ndarray | float) -> None:
    running.run(variable.initializer, {variable.initializer.inputs[1]: value})


def restore_best(running: tf.Session, folder: Path, layer: dict[str, tf.Variable]) -> None:
    """Give the variables of a final layer the values of the best step of the training in ``folder``."""
    kept = {"mean": f"{SCOPE}/mean", "scale": f"{SCOPE}/scale", "weights": "best/weights", "biases": "best/biases"}
    checkpoint.restore(running, folder, {name_there: layer[name] for name, name_there in kept.items()})
