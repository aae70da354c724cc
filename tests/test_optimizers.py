"""Each optimizer against a few lines of numpy, with heads at rates and decays of their own."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import optimizers
from pipeline.tensorflow_v1 import session, tf

RATES, DECAYS = np.array([0.1, 0.02]), np.array([0.0, 0.5])


def steps_by_tensorflow(optimizer: str, start: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    """Minimise half the squared distance of each head's columns to its target."""
    with tf.Graph().as_default(), session(threads=1) as running:
        weights = tf.get_variable("weights", initializer=tf.constant(start, tf.float32), use_resource=True)
        distances = tf.reshape(weights - tf.constant(target, tf.float32), [len(start), 2, -1])
        losses = 0.5 * tf.reduce_sum(distances**2, axis=[0, 2])
        decays, rates = tf.constant(DECAYS, tf.float32), tf.constant(RATES, tf.float32)
        step = optimizers.minimize(optimizer, losses, [weights], [decays], rates)
        running.run(tf.global_variables_initializer())
        for _ in range(steps):
            running.run(step)
        assert running.run(tf.train.get_global_step()) == steps
        return running.run(weights)


def steps_by_hand(optimizer: str, start: np.ndarray, target: np.ndarray, steps: int) -> np.ndarray:
    weights, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    rates, decays = np.repeat(RATES, start.shape[1] // 2), np.repeat(DECAYS, start.shape[1] // 2)
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
    start, target = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    found = steps_by_tensorflow(optimizer, start, target, 25)
    np.testing.assert_allclose(found, steps_by_hand(optimizer, start, target, 25), atol=1e-4)


def test_schedules() -> None:
    factors = {name: [optimizers.schedule_factor(name, step, 8) for step in range(8)] for name in optimizers.SCHEDULES}
    assert factors["constant"] == [1] * 8
    assert factors["step"] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    np.testing.assert_allclose(factors["cosine"], 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)))
