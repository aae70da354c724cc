from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline import heads
from pipeline.heads import Shape
from pipeline.tensorflow_v1 import session, tf

WIDTH, CLASSES = 6, 3


def values_for(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    trained = {name: rng.normal(size=dimensions).astype(np.float32) for name, dimensions in shape.trained().items()}
    return {"mean": rng.normal(size=shape.width).astype(np.float32), "scale": np.float32(1.5), **trained}


def run(shape: Shape, values: dict[str, np.ndarray], x: np.ndarray, dropped: np.ndarray | None = None) -> np.ndarray:
    with tf.Graph().as_default(), session(threads=1) as running:
        layer = heads.variables(shape, "layer")
        running.run([v.initializer for v in layer.values()], {v.initializer.inputs[1]: values[n] for n, v in layer.items()})
        x = heads.standardised(tf.constant(x), layer)
        given = (x, layer, shape.heads, None if dropped is None else tf.constant(dropped))
        found, by_class = running.run([heads.logits(*given), heads.logits_by_class(*given)])
    np.testing.assert_allclose(by_class, found.transpose(1, 2, 0), atol=1e-5)
    return found


def by_hand(values: dict[str, np.ndarray], x: np.ndarray, head: int, count: int, dropped: np.ndarray | float = 1.0) -> np.ndarray:
    part = {name: heads.one_of(values[name], head, count) for name in values if name in heads.TRAINED}
    features = (x - values["mean"]) / values["scale"]
    if "hidden_weights" in part:
        features = np.maximum(features @ part["hidden_weights"].T + part["hidden_biases"], 0)
    return features * dropped @ part["weights"].T + part["biases"]


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_heads_side_by_side_are_each_what_it_is_alone(hidden_units: int) -> None:
    shape = Shape(WIDTH, CLASSES, hidden_units, heads=4)
    values, x = values_for(shape), np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)
    found = run(shape, values, x)
    assert found.shape == (7, 4, CLASSES)
    for head in range(4):
        np.testing.assert_allclose(found[:, head], by_hand(values, x, head, 4), atol=1e-5)
        alone = {name: heads.one_of(value, head, 4) if name in heads.TRAINED else value for name, value in values.items()}
        np.testing.assert_allclose(run(replace(shape, heads=1), alone, x)[:, 0], found[:, head], atol=1e-5)


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_what_is_dropped_out_does_not_reach_the_logits(hidden_units: int) -> None:
    shape = Shape(WIDTH, CLASSES, hidden_units, heads=2)
    values, x = values_for(shape), np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32)
    dropped = np.zeros((4, hidden_units or WIDTH), np.float32)
    dropped[:, 2] = 2
    for head in range(2):
        np.testing.assert_allclose(run(shape, values, x, dropped)[:, head], by_hand(values, x, head, 2, dropped), atol=1e-5)


def test_a_hidden_layer_starts_the_same_in_each_head_and_differs_by_seed() -> None:
    shape = Shape(WIDTH, CLASSES, 5, heads=3)
    values = heads.initial(shape, 0)
    for name in shape.trained():
        first = heads.one_of(values[name], 0, 3)
        assert all((heads.one_of(values[name], head, 3) == first).all() for head in range(3))
    assert values["hidden_weights"].std() == pytest.approx(np.sqrt(2 / WIDTH), rel=0.4)
    assert (values["hidden_weights"] != heads.initial(shape, 1)["hidden_weights"]).any()
    assert not any(value.any() for value in heads.initial(Shape(WIDTH, CLASSES), 0).values())
