from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import Photo
from pipeline.export.agreement import Agreement, Run, Tolerance

LABELS = ["cat", "dog", "fox"]


def compared(tolerance: Tolerance, found: list[float], trained: list[float] | None = None) -> Agreement:
    """Photos of cats with the probabilities of "cat", counted two at a time; training is sure of all of them by default."""
    given, told = (
        np.array([[share, 0.9 * (1 - share), 0.1 * (1 - share)] for share in shares]) for shares in (found, trained or [1.0] * len(found))
    )
    photos = [Photo(f"cat/{number}.jpg", "cat") for number in range(len(found))]
    agreement = Agreement(tolerance)
    for start in range(0, len(found), 2):
        part = slice(start, start + 2)
        agreement.add(photos[part], LABELS, told[part], given[part].astype(np.float32))
    return agreement


def test_what_agrees_has_no_problem() -> None:
    agreement = compared(Tolerance(probability=0.1), [1.0, 0.95, 0.99])
    assert agreement.problem == ""
    says = agreement.as_json()
    assert (says["photos"], says["differing"], says["named_alike"]) == (3, 0, 1)
    assert says["largest_difference"] == pytest.approx(0.05, abs=1e-6)
    assert [one["path"] for one in says["worst"]] == ["cat/1.jpg"]  # which comes nearest to it


def test_one_photo_is_enough_and_the_worst_is_named() -> None:
    agreement = compared(Tolerance(probability=0.1), [1.0, 0.8, 0.95, 0.4])
    assert agreement.problem == (
        "2 of 4 test photos differ from training, where no photo may differ by more than 0.1 in a probability; "
        "cat/3.jpg: cat has the probability 1 in training and 0.4 here"
    )
    assert [one.path for one in agreement.worst] == ["cat/3.jpg", "cat/1.jpg"]
    says = agreement.as_json()
    assert (says["accuracy"], says["training_accuracy"], says["named_alike"]) == (0.75, 1.0, 0.75)


@pytest.mark.parametrize("tolerance", [Tolerance(probability=0.5), Tolerance(probability=None, share=0.1)])
def test_what_is_no_number_differs(tolerance: Tolerance) -> None:
    agreement = compared(tolerance, [float("nan"), float("nan"), 1.0])
    assert agreement.differing == 2
    assert "cat/0.jpg" in agreement.problem


def test_a_share_of_the_photos_may_be_named_otherwise_and_one_always_may() -> None:
    tolerance = Tolerance(probability=None, share=0.25)
    assert compared(tolerance, [0.6, 0.4]).problem == ""
    assert compared(tolerance, [0.6, 0.4, 0.3]).problem.startswith("2 of 3 test photos differ")
    assert compared(tolerance, [0.6] * 7 + [0.4, 0.3]).problem == ""
    assert "where 25 % of the photos may be named otherwise; cat/8.jpg" in compared(tolerance, [0.6] * 6 + [0.4, 0.3, 0.2]).problem


def test_the_worst_are_those_that_are_not_tolerated_though_others_differ_by_more() -> None:
    agreement = compared(Tolerance(probability=None, share=0.1), [0.55, 0.4, 0.45], [1.0, 0.6, 0.6])
    assert [one.path for one in agreement.worst] == ["cat/1.jpg", "cat/2.jpg"]
    assert agreement.largest_difference == pytest.approx(0.45, abs=1e-6)


def test_towards_rounded_vectors_more_is_tolerated() -> None:
    exact, named = Tolerance(probability=1e-4), Tolerance(probability=None, share=0.1)
    assert exact.towards("float32") == exact
    assert exact.towards("bfloat16").probability == 0.25
    assert named.towards("bfloat16") == named


def test_some_of_the_photos_at_equal_distances() -> None:
    def rows(photos: int, count: int) -> list[int]:
        return list(Run("it", lambda: None, (Path("it"),), Tolerance(0.1), photos).rows(count))  # type: ignore[arg-type, return-value]

    assert rows(0, 5) == [0, 1, 2, 3, 4]
    assert rows(2, 5) == [0, 3]
    assert rows(9, 5) == [0, 1, 2, 3, 4]
