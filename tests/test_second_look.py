from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from pipeline import second_look
from pipeline.packed import PACKED, Packed


def packed(folder: Path, vectors: np.ndarray) -> Packed:
    np.save(folder / PACKED, vectors.astype("<f4"))
    return Packed(folder)


@pytest.fixture
def clusters() -> tuple[np.ndarray, np.ndarray]:
    """300 vectors in three classes, far from the origin and close to one another."""
    rng = np.random.default_rng(1)
    truth = np.arange(300) % 3
    return rng.normal(0, 1, (300, 40)) + 3 * rng.normal(0, 1, (3, 40))[truth] * 0.5 + 20, truth


def test_near_duplicates_are_found_across_splits_only(tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, _ = clusters
    rng = np.random.default_rng(2)
    vectors[250] = vectors[7] + rng.normal(0, 0.1, 40)  # test and training
    vectors[280] = vectors[220]  # test and validation
    vectors[8] = vectors[9]  # both in training
    matrix = packed(tmp_path, vectors)
    rows = np.arange(300)
    mean, _ = second_look.centre(matrix, rows)
    assert mean == pytest.approx(vectors.mean(axis=0), rel=1e-5)
    found = second_look.twins(matrix, [rows[:200], rows[200:230], rows[230:]], mean)
    assert [(twin.row, twin.twin) for twin in found.found] == [(280, 220), (250, 7)]
    assert found.found[0].cosine == pytest.approx(1)
    assert (found.compared, found.count) == (100, 100)


def test_two_photos_are_alike_from_a_cosine_of_088(tmp_path: Path) -> None:
    angles = np.arccos([1.0, 0.881, 0.879])
    matrix = packed(tmp_path, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    (twin,) = second_look.twins(matrix, [np.array([0]), np.array([1, 2])], np.zeros(2)).found
    assert (twin.row, twin.twin, twin.cosine) == (1, 0, pytest.approx(0.881, abs=1e-6))


def test_blocks_and_bounds_change_no_neighbour(
    tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "ALIKE", -1.0)
    matrix, rows = packed(tmp_path, clusters[0]), np.arange(300)
    mean, _ = second_look.centre(matrix, rows)
    whole = second_look.twins(matrix, [rows[:200], rows[200:]], mean)
    monkeypatch.setattr(second_look, "ROWS_AT_ONCE", 17)
    pieces = second_look.twins(matrix, [rows[:200], rows[200:]], mean)
    assert [(twin.row, twin.twin) for twin in pieces.found] == [(twin.row, twin.twin) for twin in whole.found]
    centred = clusters[0] - clusters[0].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    nearest = (centred[200:] @ centred[:200].T).argmax(axis=1)
    assert {twin.row: twin.twin for twin in whole.found} == dict(zip(range(200, 300), nearest.tolist()))
    monkeypatch.setattr(second_look, "MOST_PAIRS", 200 * 10)
    few = second_look.twins(matrix, [rows[:200], rows[200:]], mean)
    assert (len(few.found), few.compared, few.count) == (10, 10, 100)


def test_leaving_one_out_is_what_scikit_learn_does(
    tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, truth = clusters[0][:60], clusters[1][:60]
    monkeypatch.setattr(second_look, "PENALTIES", (0.5,))
    monkeypatch.setattr(second_look, "ROWS_AT_ONCE", 13)
    matrix, rows = packed(tmp_path, vectors), np.arange(60)
    mean, scale = second_look.centre(matrix, rows)
    inputs = np.hstack([(vectors.astype(np.float32) - mean) / scale, np.ones((60, 1))])
    theirs = cross_val_predict(Ridge(0.5 * 60, fit_intercept=False), inputs, np.eye(3)[truth], cv=LeaveOneOut())
    assert second_look._left_out(matrix, rows, truth, 3) == pytest.approx(theirs, abs=1e-5)


def test_the_penalty_is_that_of_the_lowest_error(
    tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, truth = clusters[0][:60], clusters[1][:60]
    matrix, rows = packed(tmp_path, vectors), np.arange(60)
    best = second_look._left_out(matrix, rows, truth, 3)
    errors = {}
    for penalty in second_look.PENALTIES:
        monkeypatch.setattr(second_look, "PENALTIES", (penalty,))
        scores = second_look._left_out(matrix, rows, truth, 3)
        errors[penalty] = ((scores - np.eye(3)[truth]) ** 2).sum()
        assert (penalty == 0.1) == np.array_equal(scores, best)
    assert min(errors, key=errors.__getitem__) == 0.1


def test_planted_wrong_labels_are_suspected(tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray]) -> None:
    vectors, truth = clusters
    planted = truth.copy()
    wrong = np.arange(5, 300, 30)
    planted[wrong] = (truth[wrong] + 1) % 3
    found = second_look.suspects(packed(tmp_path, vectors), np.arange(300), planted, 3)
    assert len(found.found) >= 9
    assert {suspect.row for suspect in found.found} <= set(wrong.tolist())
    assert all(suspect.suggested == truth[suspect.row] for suspect in found.found)
    assert all(suspect.suggested_probability > suspect.label_probability for suspect in found.found)
    assert found.accuracy == pytest.approx(290 / 300, abs=0.02)


def test_doubts_are_those_of_confident_learning() -> None:
    """Row 2 says b at 0.6 where b's own rows say it at 0.9 on average: not sure enough. Row 3 is."""
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.05, 0.95], [0.1, 0.9]])
    (found,) = second_look.doubts(shares, np.array([0, 0, 0, 0, 1]))
    assert found == second_look.Suspect(3, 1, 0.95, 0.05)


def test_the_most_doubtful_come_first_and_of_equal_ones_the_first() -> None:
    """Forty rows of class a that are b at 0.7 and 0.8 by turns, and one at 0.95; the rows of b are sure of theirs at 0.6."""
    shares = np.vstack([np.tile([[0.3, 0.7], [0.2, 0.8]], (20, 1)), [[0.05, 0.95]], np.tile([0.4, 0.6], (20, 1))])
    found = second_look.doubts(shares, np.repeat([0, 1], [41, 20]))
    assert [suspect.row for suspect in found] == [40, *range(1, 40, 2), *range(0, 40, 2)]


def test_few_rows_are_checked_where_there_are_many(
    tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "MOST_CHECKED", 50)
    found = second_look.suspects(packed(tmp_path, clusters[0]), np.arange(300), clusters[1], 3)
    assert (found.checked, found.count, found.absent) == (50, 300, [])


def test_a_label_that_no_row_looked_at_has_is_absent_and_never_suggested(
    tmp_path: Path, clusters: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_look, "MOST_CHECKED", 50)
    truth = clusters[1].copy()
    truth[1] = 4  # between the first and the second row that are looked at
    assert second_look.suspects(packed(tmp_path, clusters[0]), np.arange(300), truth, 5).absent == [3, 4]
    shares = np.array([[0.9, 0.1, 0], [0.1, 0.0, 0.9], [0.2, 0.8, 0.0]])
    assert second_look.doubts(shares, np.array([0, 0, 1])) == []
