"""Figures from logits and labels."""

from __future__ import annotations

import math

import numpy as np


def accuracies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For logits [rows, heads, classes], the share of rows where each head's largest one is at ``labels`` [rows]; float64 [heads]."""
    return np.asarray((logits.argmax(axis=-1) == labels[:, None]).mean(axis=0))


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean cross-entropy in nats of each head, for logits [rows, heads, classes]; float64 [heads].

    Summed in float64 in the order of the rows, so that it decides the same everywhere.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # a head that diverged has the loss nan
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=-1))
    return np.asarray((log_sums - np.take_along_axis(shifted, labels[:, None, None], axis=-1)[..., 0]).mean(axis=0))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows of ``logits`` [rows, classes] whose largest one is at ``labels`` [rows]."""
    return float(accuracies(logits[:, None], labels)[0])


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats for logits [rows, classes]."""
    return float(log_losses(logits[:, None], labels)[0])


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (E. B. Wilson, 1927): it stays within 0..1 and serves small counts too."""
    if not count:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At either end the bound is exact; the formula misses it by a rounding error.
    low = 0.0 if successes == 0 else (centre - half) / (1 + z * z / count)
    high = 1.0 if successes == count else (centre + half) / (1 + z * z / count)
    return low, high
