from __future__ import annotations

import pytest

from pipeline import words


@pytest.mark.parametrize(
    ("share", "said"),
    [(None, ""), (0.0, "0.0 %"), (1e-9, "0.01 %"), (0.123, "12.3 %"), (0.99951, "99.95 %"), (1 - 1e-9, "99.99 %"), (1.0, "100.0 %")],
)
def test_what_is_not_all_or_nothing_is_not_rounded_to_it(share: float | None, said: str) -> None:
    assert words.percent(share) == said


def test_an_accuracy_says_what_it_was_counted_on() -> None:
    assert words.accuracy(0.84, 42, 50, (0.7149, 0.9166)) == "84.0 % (42 of 50 photos, 95 % interval 71.5 to 91.7 %)"


def test_the_first_of_many() -> None:
    assert words.shortened([]) == ""
    assert words.shortened(list("abcde")) == "a, b, c, d, e"
    assert words.shortened(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert words.shortened(list("abcd"), 2) == "a, b and 2 more"


def test_columns_stand_below_one_another() -> None:
    assert words.aligned([["a", "bb", ""], ["ccc", "d", "e"]]) == ["a    bb", "ccc  d   e"]
    assert words.aligned([]) == []
