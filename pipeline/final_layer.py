"""The final layer: softmax heads on standardised bottlenecks, one for each candidate of a sweep, trained side by side.

result = train(folder, packed, Options(...))            goes on where it was; the best candidate at its best step is kept
logits, layer = build(folder, bottleneck, classes)      its graph once more,
restore(session, folder, layer)                         and its values, to be exported
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import bottlenecks, checkpoint, console, dataset, evaluation, files, heads, optimizers, summaries
from pipeline.batches import Batches, standardisation
from pipeline.bottlenecks import Statistics
from pipeline.checkpoint import Checkpoints
from pipeline.console import Report, silent
from pipeline.errors import UserError
from pipeline.heads import Layer, Shape
from pipeline.machine import usable_cores
from pipeline.optimizers import Optimizer
from pipeline.packed import Packed
from pipeline.tensorflow_v1 import control_flow_v1, session, tf

CHECKPOINT = "final_layer.ckpt"
SUMMARIES = "summaries"
CANDIDATES = "candidates.csv"
CURVES = "curves.csv"
SCOPE, BEST, CHOSEN = "final_layer", "best", "chosen"
ROWS_AT_ONCE = 4096
"""Rows that an evaluation takes through the heads at a time, so that memory stays flat."""

CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class Candidate:
    """What a sweep varies: learning rate, weight decay and label smoothing of one head."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        how_many_training_steps: mini-batches.
        train_batch_size: photos in each.
        learning_rate, weight_decay, label_smoothing: one value or several; each combination is a candidate. The penalty of
            weight decay is weight_decay / 2 times the sum of the squared weights (not the biases); smoothing takes that share
            of the truth and spreads it over all classes.
        optimizer, learning_rate_schedule: of ``optimizers.OPTIMIZERS`` and ``SCHEDULES``.
        dropout: the share of features that a step does not see.
        hidden_units: of a hidden layer between bottleneck and logits; 0 for none.
        class_weights: "balanced" weighs photos so that each class weighs the same, however many photos it has.
        patience: looks at the validation split without a better candidate before training stops; 0 for never.
        eval_step_interval: steps between looks at the validation split, one of which is kept as the best.
        checkpoint_interval: steps between checkpoints: what a kill may cost.
        max_to_keep, keep_checkpoint_every_n_hours: of the Saver.
        seed: of the mini-batches.
    """

    how_many_training_steps: int
    train_batch_size: int
    learning_rate: tuple[float, ...]
    weight_decay: tuple[float, ...]
    eval_step_interval: int
    checkpoint_interval: int
    seed: int
    label_smoothing: tuple[float, ...] = (0.0,)
    optimizer: str = "momentum"
    learning_rate_schedule: str = "constant"
    dropout: float = 0.0
    hidden_units: int = 0
    class_weights: str = "none"
    patience: int = 0
    max_to_keep: int = 5
    keep_checkpoint_every_n_hours: float = checkpoint.NEVER

    @property
    def candidates(self) -> list[Candidate]:
        return [Candidate(*values) for values in itertools.product(self.learning_rate, self.weight_decay, self.label_smoothing)]


@dataclass(frozen=True)
class Tried(Candidate):
    """A candidate, and the step at which its loss on the validation split was lowest, with the figures there; None where the loss
    never was a number."""

    best_step: int
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class Result:
    """What came out of a training.

    Attributes:
        labels: in the order of the outputs.
        chosen: number of the candidate with the lowest validation loss, whose weights at that step are kept.
        candidates: all of them.
        steps: trained, fewer than asked for where patience ended.
        test_count, test_correct: photos of the test split, and how many of them it names rightly; measured once.
        test_interval: the 95 % interval of the test accuracy.
    """

    labels: list[str]
    chosen: int
    candidates: list[Tried]
    steps: int
    test_count: int
    test_correct: int
    test_interval: tuple[float, float]

    @property
    def best(self) -> Tried:
        return self.candidates[self.chosen]

    @property
    def test_accuracy(self) -> float:
        return self.test_correct / self.test_count


@dataclass(frozen=True)
class Examples:
    """The packed rows with their truth.

    Attributes:
        packed: the bottlenecks.
        labels: in the order of the outputs.
        truth: int32 [rows], the number of each row's label.
        rows: the numbers of the rows of each split.
    """

    packed: Packed
    labels: list[str]
    truth: np.ndarray
    rows: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Examples:
        photos = dataset.read_photos(folder / dataset.INDEX)
        labels, truth = photos.labels()
        rows = {split: np.flatnonzero(photos.has("split", split)) for split in dataset.SPLITS}
        return cls(Packed(folder), labels, truth.astype(np.int32), rows)


def balanced_weights(truth: np.ndarray, classes: int) -> np.ndarray:
    """For each class, float32 [classes], what makes all of them weigh the same, and a mean photo weigh 1."""
    return (len(truth) / (classes * np.bincount(truth, minlength=classes))).astype(np.float32)


def train(folder: Path, packed: Path, options: Options, report: Report = silent, start_from: Start | None = None) -> Result:
    """Train the final layer on the packed bottlenecks in ``packed``; checkpoints and event files go to ``folder``.

    Called again after a kill it goes on at the last step saved, and ends with the same bytes in every variable as a run
    that was never killed. The checkpoint holds the heads of the last step (with the optimizer's slots and the global
    step), those of the best step of each, and the chosen one. ``start_from`` is a head to begin with.
    """
    examples = Examples.read(packed)
    with tf.Graph().as_default():
        trainer = _Trainer(examples, options, bottlenecks.read_statistics(packed))
        with session(threads=min(len(trainer.groups), usable_cores()), as_built=True) as running:
            steps = trainer.run(running, folder, report, start_from)
            tried = trainer.tried(running)
            losses = {number: candidate.validation_loss for number, candidate in enumerate(tried) if candidate.validation_loss is not None}
            if not losses:
                raise UserError(f"no candidate comes to a loss that is a number; lower learning_rate = {options.learning_rate}")
            chosen = min(losses, key=losses.__getitem__)
            testing = examples.rows[dataset.TESTING]
            logits = {split: trainer.chosen_logits(running, examples.rows[split], chosen) for split in evaluation.MEASURED}
    correct = int((logits[dataset.TESTING].argmax(axis=1) == examples.truth[testing]).sum())
    for split, of_split in logits.items():
        with files.open_atomic(folder / evaluation.logits_file(split), "wb") as file:
            np.save(file, of_split)
    write_candidates(folder / CANDIDATES, tried)
    summaries.write_curves(folder / CURVES, folder / SUMMARIES, len(tried))
    return Result(
        labels=examples.labels,
        chosen=chosen,
        candidates=tried,
        steps=steps,
        test_count=len(testing),
        test_correct=correct,
        test_interval=evaluation.wilson_interval(correct, len(testing)),
    )


def write_candidates(path: Path, tried: list[Tried]) -> None:
    """Write the table of all candidates as CSV."""
    heading = [field.name for field in dataclasses.fields(Tried)]
    files.write_csv(path, [heading, *map(dataclasses.astuple, tried)])


class _Trainer:
    """The training graph and what is fed to it."""

    def __init__(self, examples: Examples, options: Options, statistics: Statistics) -> None:
        self.examples, self.options = examples, options
        self.mean, self.scale = standardisation(statistics)
        training = examples.rows[dataset.TRAINING]
        self.batches = Batches(examples.packed, training, self.mean, self.scale, options.seed, options.train_batch_size)
        self.candidates = options.candidates
        self.shape = Shape(examples.packed.shape[1], len(examples.labels), options.hidden_units, len(self.candidates))
        self.groups = heads.groups(self.shape.heads)
        self.global_step = tf.train.get_or_create_global_step()
        self.bottleneck = tf.placeholder(tf.float32, [None, self.shape.width], name="bottleneck_input")
        self.vectors = tf.placeholder(tf.float32, [None, self.shape.width], name="standardised_input")
        self.places = tf.placeholder(tf.int32, [None, options.train_batch_size], name="batches_input")
        self.truths = tf.placeholder(tf.int32, [None, options.train_batch_size], name="labels_input")
        self.factors = tf.placeholder(tf.float32, [None], name="learning_rate_factors")
        self.layer = heads.variables(self.shape, SCOPE)
        self.logits = heads.logits(heads.standardised(self.bottleneck, self.layer), self.layer, self.shape.heads)
        self.train_steps = self._train_steps()
        self.best, self.best_step, self.best_loss = self._best()
        self.chosen = heads.variables(dataclasses.replace(self.shape, heads=1), CHOSEN)
        self.best_logits = heads.logits(heads.standardised(self.bottleneck, self.best), self.best, self.shape.heads)
        self.histograms = tf.summary.merge(
            [_histogram(f"{name}_histogram", self.layer[name]) for name in self.shape.trained()]
            + [_histogram("logits_histogram", self.logits)]
        )

    def _of_candidates(self, name: str, heads_of: range) -> tf.Tensor:
        return tf.constant([getattr(self.candidates[head], name) for head in heads_of], tf.float32)

    def _train_steps(self) -> tf.Tensor:
        """As many steps as there are batches fed, in one run: a run costs as much as a step. Gives the logits of the last batch,
        after its step."""
        optimizer = Optimizer(self.options.optimizer, {name: self.layer[name] for name in self.shape.trained()})
        count = tf.shape(self.places)[0]
        if len(self.groups) > 1:
            through = self._side_by_side(optimizer, count)
        else:
            through = [self._loop(self.layer, optimizer, self.groups[0], count)]
        with tf.control_dependencies(through), tf.control_dependencies([self.global_step.assign_add(tf.cast(count, tf.int64))]):
            return heads.logits(self._batch(count - 1), self.layer, self.shape.heads)

    def _side_by_side(self, whole: Optimizer, count: tf.Tensor) -> list[tf.Tensor]:
        """The steps of all groups of heads, each on a core of its own. Heads share no variable, so each group trains copies, which
        are made and written back once a run."""
        loops, copies = [], []
        for group in self.groups:
            layer = heads.copy(self.shape, group, f"heads_{group.start}")
            optimizer = Optimizer(self.options.optimizer, layer, [tf.GraphKeys.LOCAL_VARIABLES])
            rows = [heads.rows_of(variable.read_value(), group, self.shape.heads) for variable in whole.state]
            with tf.control_dependencies([variable.assign(values) for variable, values in zip(optimizer.state, rows)]):
                loops.append(self._loop(layer, optimizer, group, count))
            copies.append(optimizer.state)
        with tf.control_dependencies(loops):
            return [variable.assign(tf.concat([part.read_value() for part in parts], 0)) for variable, *parts in zip(whole.state, *copies)]

    def _loop(self, layer: Layer, optimizer: Optimizer, group: range, count: tf.Tensor) -> tf.Tensor:
        """The steps of some heads, whose variables are those of ``layer``."""
        first = self.global_step.read_value()
        learning_rates, weight_decays = self._of_candidates("learning_rate", group), self._of_candidates("weight_decay", group)

        def one(number: tf.Tensor) -> tf.Tensor:
            step = first + tf.cast(number, tf.int64)
            outputs = heads.logits_by_class(self._batch(number), layer, len(group), self._dropped(step))
            gradients = self._logit_gradients(outputs, tf.gather(self.truths, number), group)
            rates = learning_rates * tf.gather(self.factors, number)
            with tf.control_dependencies(optimizer.step(outputs, gradients, rates, weight_decays, step)):
                return number + 1

        with control_flow_v1():
            return tf.while_loop(lambda number: number < count, one, [tf.constant(0)], parallel_iterations=1)

    def _batch(self, number: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.vectors, tf.gather(self.places, number))

    def _dropped(self, step: tf.Tensor) -> tf.Tensor | None:
        """What features are multiplied by, a function of seed and step."""
        options = self.options
        if not options.dropout:
            return None
        features = [options.train_batch_size, options.hidden_units or self.shape.width]
        drawn = tf.random.stateless_uniform(features, tf.stack([tf.constant(options.seed, tf.int64), step]))
        return tf.cast(drawn >= options.dropout, tf.float32) / (1 - options.dropout)

    def _logit_gradients(self, outputs: tf.Tensor, truth: tf.Tensor, group: range) -> tf.Tensor:
        """The gradients of the mean loss of a batch by the logits of some heads, [heads, classes, batch] as these."""
        options, classes = self.options, self.shape.classes
        wanted = tf.one_hot(truth, classes, axis=0)
        if any(options.label_smoothing):
            smoothing = self._of_candidates("label_smoothing", group)[:, tf.newaxis, tf.newaxis]
            wanted = wanted * (1 - smoothing) + smoothing / classes
        weights = tf.constant(1 / options.train_batch_size)
        if options.class_weights == "balanced":
            balanced = balanced_weights(self.examples.truth[self.examples.rows[dataset.TRAINING]], classes)
            weights = weights * tf.gather(tf.constant(balanced), truth)
        # Not tf.nn.softmax, which would move the classes to the last place and back.
        shares = tf.exp(outputs - tf.reduce_max(outputs, axis=1, keepdims=True))
        return (shares / tf.reduce_sum(shares, axis=1, keepdims=True) - wanted) * weights

    def _best(self) -> tuple[Layer, tf.Variable, tf.Variable]:
        """The heads at the best step of each, and that step and loss; ``keep`` fills them for the heads whose loss is lower now."""
        best = heads.variables(self.shape, BEST)

        def of_heads(name: str, dtype: tf.DType, value: float) -> tf.Variable:
            shape, initializer = [self.shape.heads], tf.constant_initializer(value)
            return tf.get_variable(f"{BEST}/{name}", shape, dtype, initializer, trainable=False, use_resource=True)

        step, loss = of_heads("step", tf.int64, 0), of_heads("loss", tf.float64, np.inf)
        self.losses = tf.placeholder(tf.float64, [self.shape.heads], name="validation_losses")
        better = self.losses < loss.read_value()
        with tf.control_dependencies([better]):
            self.keep = tf.group(
                step.assign(tf.where_v2(better, self.global_step, step)),
                loss.assign(tf.where_v2(better, self.losses, loss)),
                *(
                    best[name].assign(tf.where_v2(heads.for_rows(better, best[name]), self.layer[name], best[name]))
                    for name in self.shape.trained()
                ),
            )
        return best, step, loss

    # --- Running it ---

    def run(self, running: tf.Session, folder: Path, report: Report, start_from: Start | None) -> int:
        """Train to the last step, or until patience ends, from the last checkpoint if there is one. Returns the steps."""
        options = self.options
        steps = options.how_many_training_steps
        self._initialise(running, start_from)
        checkpoints = Checkpoints(
            folder, CHECKPOINT, max_to_keep=options.max_to_keep, keep_checkpoint_every_n_hours=options.keep_checkpoint_every_n_hours
        )
        done = checkpoints.restore(running) or 0
        if done and not self._has_curves(folder / SUMMARIES, done):
            console.warn(f"{folder / SUMMARIES} is damaged; the training begins anew")
            checkpoints.forget()
            self._initialise(running, start_from)
            done = 0
        train = running.make_callable(self.train_steps, [self.vectors, self.places, self.truths, self.factors])
        with summaries.Curves(folder / SUMMARIES, [dataclasses.asdict(candidate) for candidate in self.candidates], done) as curves:
            report(done, steps)
            while done < steps and not self._is_patience_over(running, done):
                start, done = done, self._next_stop(done)
                taken = self.batches.of(start, done)
                truths = self.examples.truth[taken.rows]
                factors = optimizers.schedule_factors(options.learning_rate_schedule, start, done, steps)
                outputs = train(taken.vectors, taken.places, truths, factors)
                if done % options.eval_step_interval == 0 or done == steps:
                    curves.add("training", done, *_figures(outputs, truths[-1]))
                    if curves.wants_histograms(done, steps, options.eval_step_interval):
                        vectors = self.examples.packed[taken.rows[-1]]
                        curves.add_histograms(running.run(self.histograms, {self.bottleneck: vectors}), done)
                    self._look(running, done, curves)
                if done % options.checkpoint_interval == 0 and done < steps:
                    # Events first: a kill between the two repeats events, which TensorBoard sorts out, and loses none.
                    curves.flush()
                    checkpoints.save(running, done)
                report(done, steps)
            self._choose(running)
            curves.flush()
            checkpoints.save(running, done)
        return done

    def _has_curves(self, folder: Path, done: int) -> bool:
        """Whether the event files in ``folder`` have what was measured up to a step."""
        looks = set(range(self.options.eval_step_interval, done + 1, self.options.eval_step_interval))
        return all(curve.keys() >= looks for curve in summaries.read_curves(folder, len(self.candidates)).values())

    def _initialise(self, running: tf.Session, start_from: Start | None) -> None:
        values = heads.initial(self.shape, self.options.seed)
        if start_from:
            values = start_from.fitted(values, self.shape, self.examples.labels, self.mean, self.scale)
        given = {self.layer[name]: value for name, value in values.items()}
        for layer in (self.layer, self.best, self.chosen):
            given |= {layer["mean"]: self.mean, layer["scale"]: self.scale}
        running.run(tf.global_variables_initializer(), _initial(given))

    def _is_patience_over(self, running: tf.Session, done: int) -> bool:
        patience = self.options.patience * self.options.eval_step_interval
        return bool(patience) and done - int(running.run(self.best_step).max()) >= patience

    def _next_stop(self, done: int) -> int:
        """The step up to which to train in one run: where there is something to do, or as far as batches reach."""
        options = self.options
        stops = [interval * (done // interval + 1) for interval in (options.eval_step_interval, options.checkpoint_interval)]
        return min(*stops, done + self.batches.steps_at_once, options.how_many_training_steps)

    def _look(self, running: tf.Session, step: int, curves: summaries.Curves) -> None:
        """Keep each head whose loss on the validation split is its lowest so far."""
        losses, accuracies = self._measured(running, self.examples.rows[dataset.VALIDATION], self.logits)
        curves.add("validation", step, losses, accuracies)
        running.run(self.keep, {self.losses: losses})

    def _measured(self, running: tf.Session, rows: np.ndarray, logits: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Log loss and accuracy of each head on some rows, float64 [heads] each, summed in the order of the rows."""
        total = np.zeros((2, self.shape.heads))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = rows[start : start + ROWS_AT_ONCE]
            outputs = running.run(logits, {self.bottleneck: self.examples.packed[piece]})
            total += len(piece) * np.array(_figures(outputs, self.examples.truth[piece]))
        losses, accuracies = total / len(rows)
        return losses, accuracies

    def tried(self, running: tf.Session) -> list[Tried]:
        """All candidates at their best steps."""
        steps, losses = running.run([self.best_step, self.best_loss])
        _, accuracies = self._measured(running, self.examples.rows[dataset.VALIDATION], self.best_logits)
        return [
            Tried(
                **dataclasses.asdict(candidate),
                best_step=int(step),
                validation_loss=float(loss) if np.isfinite(loss) else None,
                validation_accuracy=float(accuracy) if np.isfinite(loss) else None,
            )
            for candidate, step, loss, accuracy in zip(self.candidates, steps, losses, accuracies)
        ]

    def chosen_logits(self, running: tf.Session, rows: np.ndarray, chosen: int) -> np.ndarray:
        """The logits of one candidate's best step on some rows, float32 [rows, classes]."""
        pieces = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
        return np.concatenate(
            [running.run(self.best_logits, {self.bottleneck: self.examples.packed[piece]})[:, chosen] for piece in pieces]
        )

    def _choose(self, running: tf.Session) -> None:
        """Keep the best candidate as a head of its own, for whoever exports it or goes on from it."""
        losses, values = running.run([self.best_loss, {name: self.best[name] for name in self.shape.trained()}])
        given = {self.chosen[name]: heads.one_of(value, int(losses.argmin()), self.shape.heads) for name, value in values.items()}
        running.run([variable.initializer for variable in given], _initial(given))


def _figures(logits: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log loss and accuracy of each head, float64 [heads] each, for logits [rows, heads, classes]."""
    return evaluation.log_losses(logits, truth), evaluation.accuracies(logits, truth)


def _histogram(name: str, values: tf.Tensor) -> tf.Tensor:
    """A histogram of the values that are finite: those of a candidate that diverges are not, and must not stop the others."""
    return tf.summary.histogram(name, tf.boolean_mask(values, tf.is_finite(values)))


def _initial(values: Mapping[tf.Variable, np.ndarray | float]) -> dict[tf.Tensor, np.ndarray | float]:
    """What to feed so that the initializers of variables give them these values."""
    return {variable.initializer.inputs[1]: value for variable, value in values.items()}


# --- Bringing a head back ---------------------------------------------------------------------------------------------


def build(folder: Path, bottleneck: tf.Tensor, classes: int) -> tuple[tf.Tensor, Layer]:
    """The chosen head of the training in ``folder`` on the default graph: logits [batch, classes], and its variables to restore."""
    shapes = dict(tf.train.list_variables(checkpoint.latest(folder)))
    hidden_units = shapes.get(f"{CHOSEN}/hidden_biases", [0])[0]
    layer = heads.variables(Shape(int(bottleneck.shape[-1]), classes, hidden_units), SCOPE)
    return heads.logits(heads.standardised(bottleneck, layer), layer)[:, 0], layer


def restore(running: tf.Session, folder: Path, layer: Layer) -> None:
    """Give the variables of a head the values of the chosen one of the training in ``folder``."""
    checkpoint.restore(running, folder, {f"{CHOSEN}/{name}": variable for name, variable in layer.items()})


@dataclass(frozen=True)
class Start:
    """A trained head to begin with: its labels, and the values of its variables by name."""

    labels: list[str]
    values: dict[str, np.ndarray]

    @classmethod
    def read(cls, export: Path, labels: list[str]) -> Start:
        """The head in the checkpoint of an exported classifier, whose outputs have these labels."""
        reader = tf.train.load_checkpoint(checkpoint.latest(export))
        names = ("mean", "scale", *(name for name in heads.TRAINED if reader.has_tensor(f"{SCOPE}/{name}")))
        return cls(labels, {name: reader.get_tensor(f"{SCOPE}/{name}") for name in names})

    def fitted(
        self, initial: dict[str, np.ndarray], shape: Shape, labels: list[str], mean: np.ndarray, scale: float
    ) -> dict[str, np.ndarray]:
        """This head's values for other labels and another standardisation: a label that is new starts as ``initial`` has it.

        With the same labels it gives the same logits. Raises UserError where the heads are not of one shape.
        """
        given = {name: self.values[name] for name in self.values if name in heads.TRAINED}
        first = "hidden" if "hidden_weights" in given else ""
        expected = {name: dimensions[1:] for name, dimensions in dataclasses.replace(shape, heads=1).trained().items()}
        if {name: list(value.shape[1:]) for name, value in given.items()} != expected:
            raise UserError("init_from names a head of another network or hidden layer; name an export of the same model and hidden_units")
        weights, biases = (f"hidden_{part}" if first else part for part in ("weights", "biases"))
        # (x - old mean) / old scale, written as a function of (x - mean) / scale.
        given[biases] = given[biases] + given[weights] @ ((mean - self.values["mean"]) / self.values["scale"])
        given[weights] = given[weights] * (scale / self.values["scale"])
        result = {name: value.copy() for name, value in initial.items()}
        for head in range(shape.heads):
            for name, value in result.items():
                rows = heads.one_of(value, head, shape.heads)
                if name.startswith("hidden"):
                    rows[...] = given[name]
                else:
                    for number, label in enumerate(labels):
                        if label in self.labels:
                            rows[number] = given[name][self.labels.index(label)]
        return result
