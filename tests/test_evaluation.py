from __future__ import annotations

import numpy as np
import pytest

from pipeline import evaluation


def test_accuracy_and_loss_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]))
    labels = np.array([0, 2, 1])
    assert evaluation.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert evaluation.log_loss(logits, labels) == pytest.approx(-np.log([0.7, 0.8, 0.25]).mean())


def test_log_loss_of_huge_logits_is_finite() -> None:
    assert evaluation.log_loss(np.array([[1e4, -1e4]]), np.array([1])) == pytest.approx(2e4)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_of_the_literature(successes: int, count: int, low: float, high: float) -> None:
    """The examples of R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert evaluation.wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert evaluation.wilson_interval(0, 0) == (0, 1)
