"""Each optimizer against a few lines of numpy, with heads at rates and decays of their own."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import optimizers
from pipeline.tensorflow_v1 import session, tf

RATES, DECAYS = np.array([0.1, 0.02]), np.array([0.0, 0.5])


def steps_by_tensorflow(name: str, start: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    """Minimise half the squared distance of the weights, seen as logits [heads, the rest, 1], to a target."""
    with tf.Graph().as_default(), session(threads=1) as running:
        step = tf.train.get_or_create_global_step()
        weights = tf.get_variable("weights", initializer=tf.constant(start, tf.float32), use_resource=True)
        logits = tf.reshape(weights, [2, -1, 1])
        gradients = logits - tf.constant(target.reshape(2, -1, 1), tf.float32)
        optimizer = optimizers.Optimizer(name, {"weights": weights})
        rates, decays = (tf.constant(values, tf.float32) for values in (RATES, DECAYS))
        with tf.control_dependencies(optimizer.step(logits, gradients, rates, decays, step.read_value())):
            once = step.assign_add(1).op
        running.run(tf.global_variables_initializer())
        for _ in range(steps):
            running.run(once)
        return running.run(weights)


def steps_by_hand(optimizer: str, start: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    weights, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    rates, decays = np.repeat(RATES, 2)[:, None], np.repeat(DECAYS, 2)[:, None]
    for step in range(1, steps + 1):
        gradient = weights - target + decays * weights
        if optimizer == "sgd":
            weights -= rates * gradient
        elif optimizer == "momentum":
            first = 0.9 * first + rates * gradient
            weights -= first
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            weights -= rates * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weights


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_steps_are_those_of_the_textbook(optimizer: str) -> None:
    rng = np.random.default_rng(0)
    start, target = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    found = steps_by_tensorflow(optimizer, start, target, 25)
    np.testing.assert_allclose(found, steps_by_hand(optimizer, start, target, 25), atol=1e-4)


def test_schedules() -> None:
    factors = {name: optimizers.schedule_factors(name, 0, 8, 8) for name in optimizers.SCHEDULES}
    assert factors["constant"] == [1] * 8
    assert factors["step"] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(factors["cosine"], 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)))
    assert all(optimizers.schedule_factors(name, 3, 6, 8) == factors[name][3:6] for name in optimizers.SCHEDULES)
