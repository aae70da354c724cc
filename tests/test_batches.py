from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import batches, bottlenecks
from pipeline.batches import Batches
from pipeline.packed import PACKED, Packed

WIDTH, COUNT, BATCH = 6, 50, 20


def test_each_epoch_takes_each_row_once_in_another_order() -> None:
    rows = batches.batch_rows(0, 0, 5, 20, 50)
    assert Counter(rows[:50].tolist()) == Counter(rows[50:].tolist()) == Counter(range(50))
    assert len({tuple(rows[:50]), tuple(rows[50:]), tuple(range(50))}) == 3


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    batch = batches.batch_rows(3, 17, 18, 20, 50)
    assert batches.batch_rows(3, 11, 23, 20, 50)[6 * 20 : 7 * 20].tolist() == batch.tolist()
    assert batches.batch_rows(4, 17, 18, 20, 50).tolist() != batch.tolist()


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert Counter(batches.batch_rows(0, 0, 1, 100, 7).tolist()).keys() == set(range(7))
    assert len(batches.batch_rows(0, 1, 3, 100, 7)) == 200


@pytest.mark.parametrize("steps_in_memory", [100, 2])
def test_vectors_are_standardised_and_the_same_whether_all_are_in_memory_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_in_memory: int
) -> None:
    matrix = np.random.default_rng(0).normal(2, 3, (COUNT + 10, WIDTH)).astype(np.float32)
    np.save(tmp_path / PACKED, matrix)
    monkeypatch.setattr(batches, "BYTES_AT_ONCE", steps_in_memory * BATCH * 4 * WIDTH)
    rows, mean = np.arange(5, COUNT + 5), np.arange(WIDTH, dtype=np.float32)
    found = Batches(Packed(tmp_path), rows, mean, 1.5, 0, BATCH)
    assert found.steps_at_once == min(steps_in_memory, batches.STEPS_AT_ONCE)
    for start in (0, 7):
        taken = found.of(start, start + 2)
        expected = rows[batches.batch_rows(0, start, start + 2, BATCH, COUNT)].reshape(2, BATCH)
        np.testing.assert_array_equal(taken.rows, expected)
        np.testing.assert_array_equal(taken.vectors[taken.places], (matrix[expected] - mean) / np.float32(1.5))


def test_standardisation_has_one_scale_for_all_features() -> None:
    statistics = bottlenecks.Statistics(4, np.array([1.0, 2.0]), np.array([4.0, 12.0]))
    mean, scale = batches.standardisation(statistics)
    assert mean.tolist() == [1, 2]
    assert scale == pytest.approx(np.sqrt(2))  # variances 1 and 3
    assert batches.standardisation(bottlenecks.Statistics(4, np.zeros(2), np.zeros(2)))[1] == 1
