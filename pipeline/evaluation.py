"""Figures from logits and labels."""

from __future__ import annotations

import math

import numpy as np


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows of ``logits`` [rows, classes] whose largest one is at ``labels`` [rows]."""
    return float((logits.argmax(axis=1) == labels).mean())


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats, summed in float64 in the order of the rows, so that it decides the same everywhere."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


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
