"""Figures, names and tables as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def percent(share: float | None) -> str:
    """A share of 0..1 in percent with a decimal, which never rounds to 100 or 0 what is not; nothing for None."""
    if share is None:
        return ""
    text = f"{100 * share:.1f}"
    if (text == "100.0") != (share >= 1) or (text == "0.0") != (share <= 0):
        text = f"{min(max(100 * share, 0.01), 99.99):.2f}"
    return f"{text} %"


def decimals(number: float | None) -> str:
    """A number with three decimals; nothing for None."""
    return "" if number is None else f"{number:.3f}"


def accuracy(share: float, correct: int, count: int, interval: Sequence[float]) -> str:
    """An accuracy with what it was counted on, and its 95 % interval; all but the counts are shares of 0..1."""
    low, high = interval
    return f"{percent(share)} ({correct} of {count} photos, 95 % interval {percent(low).removesuffix(' %')} to {percent(high)})"


def readable(path: str) -> str:
    """A path as it can be printed and written as UTF-8: a byte that is not UTF-8 becomes the replacement character."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shortened(items: Sequence[str], most: int = 5) -> str:
    """The first items in words, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines, its columns below one another."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
