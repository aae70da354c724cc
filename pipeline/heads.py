"""The head of a classifier: standardised bottlenecks → (a hidden layer →) logits over the labels; one, or several side by side.

Several heads are more rows of one matrix, so that they train together for little more than the price of one: weights
[heads * classes, features], head after head. A row for each output, since TensorFlow multiplies rows by a factor each some
twenty times as fast as columns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from pipeline.tensorflow_v1 import tf

Layer = dict[str, tf.Variable]
"""The variables of heads by name: mean, scale, weights, biases, and hidden_weights, hidden_biases where there is a hidden layer."""

TRAINED = ("hidden_weights", "hidden_biases", "weights", "biases")

MOST_TOGETHER = 12
"""Heads in one product. Two of 12 on two cores take three quarters of the time of one of 24; three of 8 gain little."""

Rows = TypeVar("Rows", np.ndarray, tf.Tensor)


@dataclass(frozen=True)
class Shape:
    """Of heads: features of a bottleneck, classes, units of the hidden layer (0: there is none), and how many heads."""

    width: int
    classes: int
    hidden_units: int = 0
    heads: int = 1

    def trained(self) -> dict[str, list[int]]:
        """The shapes of the variables that are trained."""
        hidden = {"hidden_weights": [self.heads * self.hidden_units, self.width], "hidden_biases": [self.heads * self.hidden_units]}
        features = self.hidden_units or self.width
        last = {"weights": [self.heads * self.classes, features], "biases": [self.heads * self.classes]}
        return {**(hidden if self.hidden_units else {}), **last}


def variables(shape: Shape, scope: str) -> Layer:
    """The variables of heads on the default graph."""

    def variable(name: str, dimensions: list[int], trainable: bool) -> tf.Variable:
        return tf.get_variable(name, dimensions, initializer=tf.zeros_initializer(), trainable=trainable, use_resource=True)

    with tf.variable_scope(scope):
        return {
            "mean": variable("mean", [shape.width], False),
            "scale": variable("scale", [], False),
            **{name: variable(name, dimensions, True) for name, dimensions in shape.trained().items()},
        }


def standardised(bottleneck: tf.Tensor, layer: Layer) -> tf.Tensor:
    """What the heads see of bottlenecks."""
    return (bottleneck - layer["mean"]) / layer["scale"]


def logits(x: tf.Tensor, layer: Layer, heads: int = 1, dropped: tf.Tensor | None = None) -> tf.Tensor:
    """Standardised bottlenecks [batch, width] → logits [batch, heads, classes].

    ``dropped`` [batch, features] multiplies what the last layer reads: 0 where a feature is dropped out.
    """
    if "hidden_weights" in layer:
        hidden = tf.nn.relu(_linear(x, layer["hidden_weights"], layer["hidden_biases"]))
        hidden = tf.reshape(hidden, [-1, heads, int(hidden.shape[-1]) // heads])
        if dropped is not None:
            hidden = hidden * dropped[:, tf.newaxis]
        weights = tf.reshape(layer["weights"], [heads, -1, int(hidden.shape[-1])])
        return tf.einsum("bhu,hcu->bhc", hidden, weights) + tf.reshape(layer["biases"], [heads, -1])
    flat = _linear(x if dropped is None else x * dropped, layer["weights"], layer["biases"])
    return tf.reshape(flat, [-1, heads, int(flat.shape[-1]) // heads])


def logits_by_class(x: tf.Tensor, layer: Layer, heads: int = 1, dropped: tf.Tensor | None = None) -> tf.Tensor:
    """The same, as [heads, classes, batch]: so a product with few rows takes half the time, and softmax a third."""
    if "hidden_weights" in layer:
        return tf.transpose(logits(x, layer, heads, dropped), [1, 2, 0])
    flat = tf.matmul(layer["weights"], x if dropped is None else x * dropped, transpose_b=True) + layer["biases"][:, tf.newaxis]
    return tf.reshape(flat, [heads, int(flat.shape[0]) // heads, -1])


def _linear(x: tf.Tensor, weights: tf.Variable, biases: tf.Variable) -> tf.Tensor:
    return tf.nn.bias_add(tf.matmul(x, weights, transpose_b=True), biases)


def for_rows(of_heads: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
    """A value of each head [heads] for each row of a variable of the heads, in a shape that multiplies it."""
    rows = int(variable.shape[0])
    head_of_row = np.arange(rows) // (rows // int(of_heads.shape[0]))
    return tf.gather(of_heads, head_of_row.reshape([-1] + [1] * (len(variable.shape) - 1)))


def rows_of(values: Rows, some: range, heads: int) -> Rows:
    """The rows of some of the heads, in a variable's value."""
    rows = int(values.shape[0]) // heads
    return values[some.start * rows : some.stop * rows]


def one_of(values: np.ndarray, head: int, heads: int) -> np.ndarray:
    """The rows of one head of a variable's value."""
    return rows_of(values, range(head, head + 1), heads)


def groups(heads: int) -> list[range]:
    """Heads that are trained together, in one product: up to MOST_TOGETHER, about as many in each group.

    How many cores there are is not asked: the same heads give the same bytes everywhere.
    """
    count = -(-heads // MOST_TOGETHER)
    bounds = [heads * number // count for number in range(count + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def copy(shape: Shape, some: range, scope: str) -> Layer:
    """Variables for a copy of what is trained of some of the heads, which no checkpoint holds."""
    dimensions = replace(shape, heads=len(some)).trained()
    local = {"initializer": tf.zeros_initializer(), "collections": [tf.GraphKeys.LOCAL_VARIABLES], "use_resource": True}
    with tf.variable_scope(scope):
        return {name: tf.get_variable(name, of_one, **local) for name, of_one in dimensions.items()}


def initial(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Values to start from, the same for each head: zeros, and He's for a hidden layer (K. He et al., ICCV 2015)."""
    values = {name: np.zeros(dimensions, np.float32) for name, dimensions in shape.trained().items()}
    if shape.hidden_units:
        rng = np.random.default_rng([seed, 0x4E])
        hidden = rng.normal(0, np.sqrt(2 / shape.width), (shape.hidden_units, shape.width))
        last = rng.normal(0, np.sqrt(1 / shape.hidden_units), (shape.classes, shape.hidden_units))
        values["hidden_weights"] = np.tile(hidden, (shape.heads, 1)).astype(np.float32)
        values["weights"] = np.tile(last, (shape.heads, 1)).astype(np.float32)
    return values
