"""Charts as inline SVG: small, sharp at any size, in the colours of the page, and with a title for who does not see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline.evaluation import Calibration

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 22, 14, 42

MOST_POINTS = 400
"""Of a curve; it is no longer than that on a screen."""

MOST_CELLS = 20_000
"""Of a confusion matrix; the largest counts of one that has more."""

SHADES = 5


@dataclass(frozen=True)
class Line:
    """A curve: its name, its class in the style sheet, and its points (x, y)."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def svg(title: str, description: str, body: Markup, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """A drawing that a screen reader reads as an image with this title, which no other drawing of the page has, and description."""
    name = title.lower().replace(" ", "-")
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d"><title id="{}-t">{}</title><desc id="{}-d">{}</desc>{}</svg>'
    ).format(width, height, name, name, name, title, name, description, body)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, some ``about`` of them."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    return [round(number * step, 12) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return [points[int(i)] for i in np.linspace(0, len(points) - 1, MOST_POINTS)] if len(points) > MOST_POINTS else points


class _Axes:
    """A plane with a frame: where a point of the data lies in the drawing."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_range, self.y_range = x, y

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM), 1)

    def grid(self, x_label: str, *, percent: bool = False, x_percent: bool = False) -> Markup:
        def words(value: float, percent: bool) -> str:
            return f"{100 * value:g} %" if percent else f"{value:g}"

        rows = Markup().join(
            Markup('<path class="rule" d="M{} {}H{}"/><text x="{}" y="{}" class="end">{}</text>').format(
                LEFT, self.y(value), WIDTH - RIGHT, LEFT - 7, self.y(value) + 4, words(value, percent)
            )
            for value in ticks(*self.y_range)
        )
        columns = Markup().join(
            Markup('<text x="{}" y="{}" class="middle">{}</text>').format(self.x(value), HEIGHT - BOTTOM + 16, words(value, x_percent))
            for value in ticks(*self.x_range, 6)
        )
        label = Markup('<text x="{}" y="{}" class="middle">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label)
        return rows + columns + label

    def line(self, line: Line) -> Markup:
        places = " ".join(f"{self.x(x):g},{self.y(y):g}" for x, y in _thinned(line.points))
        return Markup('<polyline class="line {}" points="{}"/>').format(line.style, places)


def curves(title: str, lines: Sequence[Line], x_label: str, *, percent: bool = False) -> Markup:
    """Curves over steps; what is first in ``lines`` lies under the others."""
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    ys = sorted(y for _, y in points)
    # A first step far above all others would press the rest of the curve flat.
    high = 1.0 if percent else min(ys[-1], 4 * ys[len(ys) // 2] + 1e-9)
    axes = _Axes((0, max(x for x, _ in points)), (min(ys[0], high) if percent else 0.0, high))
    drawn = [Line(line.name, line.style, [(x, min(y, high)) for x, y in line.points if math.isfinite(y)]) for line in lines]
    last = [line for line in lines if "faint" not in line.style]
    said = "; ".join(
        f"{line.name} ends at " + (f"{100 * line.points[-1][1]:.1f} %" if percent else f"{line.points[-1][1]:.3f}") for line in last
    )
    return svg(title, said, axes.grid(x_label, percent=percent) + Markup().join(axes.line(line) for line in drawn))


def reliability(as_exported: Calibration, fitted: Calibration) -> Markup:
    """The reliability diagram: how often photos are named rightly, by the probability of their label."""
    axes = _Axes((0, 1), (0, 1))
    largest = max(one.count for found in (as_exported, fitted) for one in found.bins)

    def dots(found: Calibration, style: str) -> Markup:
        places = [(axes.x(one.confidence), axes.y(one.accuracy), 2.5 + 7 * math.sqrt(one.count / largest)) for one in found.bins]
        dot = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>')
        return Markup().join(dot.format(style, x, y, round(r, 1)) for x, y, r in places)

    said = "; ".join(f"at {100 * one.confidence:.0f} %, {100 * one.accuracy:.0f} % of {one.count} photos" for one in as_exported.bins)
    body = axes.grid("probability of the label", percent=True, x_percent=True) + axes.line(Line("", "ideal", [(0, 0), (1, 1)]))
    return svg("Reliability diagram", f"Named rightly {said}", body + dots(fitted, "second") + dots(as_exported, "first"))


def confusion(counts: np.ndarray) -> Markup:
    """A confusion matrix of many classes: a square for each pair that occurs, the darker the larger its share of the row."""
    classes = len(counts)
    true, predicted = np.nonzero(counts)
    if len(true) > MOST_CELLS:
        largest = np.argsort(-counts[true, predicted], kind="stable")[:MOST_CELLS]
        true, predicted = true[largest], predicted[largest]
    shares = counts[true, predicted] / counts.sum(axis=1)[true]
    shades = np.minimum((shares * SHADES).astype(int), SHADES - 1)
    body = Markup('<rect class="field" width="{}" height="{}"/>').format(classes, classes)
    for right, style in ((True, "first"), (False, "second")):
        for shade in range(SHADES):
            chosen = (shades == shade) & ((true == predicted) == right)
            path = "".join(f"M{x} {y}h1v1h-1z" for y, x in zip(true[chosen].tolist(), predicted[chosen].tolist()))
            if path:
                body += Markup('<path class="{}" opacity="{}" d="{}"/>').format(style, 0.2 * (shade + 1), path)
    said = f"{classes} classes; the true class down, the predicted one across; the pairs confused most often stand in the table below"
    return svg("Confusion matrix", said, body, classes, classes)
