"""The drawn flowers: a data set for a machine that cannot fetch photos.

Five kinds, told apart by their shape and not by their colour alone, in varied pose, number, colour, background, light and
size. Picture ``i`` of a kind is a function of (seed, kind, i) and of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from pipeline.console import Report, silent
from pipeline.machine import map_in_threads

Colour = tuple[int, int, int]

CANVAS = 320
"""Pixels a side of the transparent square that one flower is drawn on, before it is scaled to its place."""

WHITE, CREAM, YELLOW, ORANGE, PINK, RED, PURPLE = (
    (246, 244, 238), (250, 236, 190), (248, 206, 40), (240, 140, 30), (238, 140, 170), (196, 28, 44), (140, 70, 160),
)  # fmt: skip
GREENS = ((58, 110, 48), (84, 136, 60), (40, 88, 52), (110, 140, 70))


def _vary(colour: Colour, rng: np.random.Generator, spread: int = 14) -> Colour:
    red, green, blue = (int(np.clip(channel + rng.integers(-spread, spread + 1), 0, 255)) for channel in colour)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(np.clip(channel * factor, 0, 255)) for channel in colour)
    return red, green, blue


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return colours[rng.integers(len(colours))]


def _petal(centre: float, angle: float, start: float, length: float, width: float, tip: float) -> list[tuple[float, float]]:
    """The outline of a petal that points from the centre at ``angle``; ``tip`` 1 is round, 3 is pointed."""
    outline = []
    for t in np.linspace(0, 2 * math.pi, 24, endpoint=False):
        along = 0.5 - 0.5 * math.cos(t)
        across = math.sin(t) * width * (1 - along**tip * 0.9 if tip > 1 else 1) / 2
        radius = start + along * length
        outline.append(
            (
                centre + radius * math.cos(angle) - across * math.sin(angle),
                centre + radius * math.sin(angle) + across * math.cos(angle),
            )
        )
    return outline


def _disc(draw: ImageDraw.ImageDraw, centre: float, radius: float, colour: Colour) -> None:
    draw.ellipse([centre - radius, centre - radius, centre + radius, centre + radius], fill=colour)


def _speckle(draw: ImageDraw.ImageDraw, centre: float, radius: float, colour: Colour, rng: np.random.Generator) -> None:
    """Seeds in a spiral, as in the head of a sunflower."""
    for i in range(int(radius * 4)):
        distance, angle = radius * math.sqrt(i / (radius * 4)), i * 2.39996
        x, y = centre + distance * math.cos(angle), centre + distance * math.sin(angle)
        draw.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill=_vary(colour, rng, 30))


def _daisy(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    c = CANVAS / 2
    colour = _pick((WHITE, WHITE, CREAM, PINK, PURPLE, YELLOW), rng)
    petals, length = int(rng.integers(13, 24)), c * rng.uniform(0.6, 0.7)
    for i in range(petals):
        angle = 2 * math.pi * (i + rng.uniform(-0.2, 0.2)) / petals
        shape = _petal(c, angle, c * 0.2, length * rng.uniform(0.88, 1.05), c * rng.uniform(0.14, 0.2), 1)
        draw.polygon(shape, fill=_vary(colour, rng), outline=_shade(colour, 0.82))
    centre = _pick((YELLOW, ORANGE, YELLOW), rng)
    _disc(draw, c, c * 0.26, _shade(centre, 0.9))
    _speckle(draw, c, c * 0.24, centre, rng)


def _sunflower(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    c = CANVAS / 2
    colour = _pick((YELLOW, YELLOW, ORANGE, CREAM, (170, 60, 30)), rng)
    petals, head = int(rng.integers(18, 30)), c * rng.uniform(0.42, 0.55)
    for ring, darker in ((1.0, 0.8), (0.92, 1.0)):
        for i in range(petals):
            angle = 2 * math.pi * (i + (ring < 1) / 2 + rng.uniform(-0.15, 0.15)) / petals
            shape = _petal(c, angle, head * 0.8, (c * 0.98 - head * 0.8) * ring * rng.uniform(0.85, 1), c * 0.2, 3)
            draw.polygon(shape, fill=_shade(_vary(colour, rng), darker), outline=_shade(colour, 0.65))
    brown = _pick(((70, 42, 22), (98, 62, 30), (44, 30, 20), (120, 110, 50)), rng)
    _disc(draw, c, head, brown)
    _speckle(draw, c, head * 0.95, _shade(brown, 1.25), rng)


def _dandelion(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    c = CANVAS / 2
    if rng.random() < 0.4:  # gone to seed
        for _ in range(260):
            angle, distance = rng.uniform(0, 2 * math.pi), c * 0.9 * math.sqrt(rng.random())
            x, y = c + distance * math.cos(angle), c + distance * math.sin(angle)
            grey = int(rng.integers(190, 250))
            draw.line([c, c, x, y], fill=(grey - 20, grey - 20, grey - 24), width=1)
            for ray in np.linspace(0, 2 * math.pi, 7)[:-1]:
                draw.line([x, y, x + 11 * math.cos(ray), y + 11 * math.sin(ray)], fill=(grey, grey, grey), width=1)
        _disc(draw, c, c * 0.12, (120, 100, 70))
        return
    colour = _pick((YELLOW, YELLOW, ORANGE, CREAM), rng)
    for ring in np.linspace(0.95, 0.15, 9):
        strokes = int(20 + 70 * ring)
        for i in range(strokes):
            angle = 2 * math.pi * (i + rng.uniform(-0.5, 0.5)) / strokes
            reach = c * ring * rng.uniform(0.9, 1.02)
            end = c + reach * math.cos(angle), c + reach * math.sin(angle)
            start = c + reach * 0.4 * math.cos(angle), c + reach * 0.4 * math.sin(angle)
            draw.line([start, end], fill=_shade(_vary(colour, rng, 18), rng.uniform(0.75, 1.05)), width=5)


def _rose(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    c = CANVAS / 2
    colour = _pick((RED, RED, PINK, WHITE, CREAM, YELLOW, ORANGE), rng)
    turn = rng.uniform(0, 2 * math.pi)
    for ring in range(9):
        distance = c * 0.62 * (1 - ring / 9)
        size = c * (0.4 - 0.03 * ring)
        petals = max(3, 7 - ring // 2)
        for i in range(petals):
            angle = turn + ring * 0.7 + 2 * math.pi * i / petals + rng.uniform(-0.15, 0.15)
            x, y = c + distance * math.cos(angle), c + distance * math.sin(angle)
            shade = (0.66 + 0.05 * ring) * rng.uniform(0.92, 1.06)
            wide, high = size * rng.uniform(0.9, 1.15), size * rng.uniform(0.9, 1.15)
            box = [x - wide, y - high, x + wide, y + high]
            draw.ellipse(box, fill=_shade(_vary(colour, rng, 8), shade), outline=_shade(colour, shade * 0.72), width=3)
    for ring in range(4):
        radius = c * (0.2 - 0.045 * ring)
        start = math.degrees(turn) + 110 * ring
        draw.arc([c - radius, c - radius, c + radius, c + radius], start, start + 250, fill=_shade(colour, 0.5), width=4)


def _tulip(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    c = CANVAS / 2
    colour = _pick((RED, YELLOW, PINK, PURPLE, WHITE, ORANGE), rng)
    green = _vary(_pick(GREENS, rng), rng)
    draw.line([c, c * 1.1, c + c * rng.uniform(-0.15, 0.15), CANVAS], fill=green, width=int(c * 0.09))
    for side in (-1, 1):
        tip = c + side * c * rng.uniform(0.4, 0.75), c * rng.uniform(0.95, 1.25)
        draw.polygon([(c, CANVAS), (c + side * c * 0.32, c * 1.5), tip, (c + side * c * 0.08, c * 1.62)], fill=_shade(green, 0.85))
    half, top, bottom = c * rng.uniform(0.36, 0.46), c * 0.12, c * 1.22
    opening = rng.uniform(0.75, 1.2)
    for offset, darker in ((-0.5, 0.72), (0.5, 0.76), (-1, 0.86), (1, 0.9), (0, 1.0)):
        tip_x = c + offset * half * opening
        middle = c + offset * half * 0.75
        wide = half * (0.62 if offset else 0.72)
        outline = [(tip_x, top + abs(offset) * c * 0.08)]
        outline += [(middle + wide, c * 0.55), (middle + wide * 0.95, c * 0.85), (c + half * 0.3, bottom)]
        outline += [(c - half * 0.3, bottom), (middle - wide * 0.95, c * 0.85), (middle - wide, c * 0.55)]
        draw.polygon(outline, fill=_shade(_vary(colour, rng, 8), darker), outline=_shade(colour, darker * 0.8))
        draw.line([outline[0], (c + offset * half * 0.3, bottom)], fill=_shade(colour, darker * 0.85), width=2)


KINDS: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], None]] = {
    "daisy": _daisy,
    "dandelion": _dandelion,
    "roses": _rose,
    "sunflowers": _sunflower,
    "tulips": _tulip,
}


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A meadow, earth, sky or wall: a gradient with blurred blots, blades or clods."""
    earth, sky = ((96, 72, 50), (70, 54, 40)), ((150, 190, 225), (190, 212, 230))
    wall, night = ((170, 160, 150), (90, 90, 96)), ((24, 30, 24), (40, 36, 44))
    palettes = (GREENS, GREENS, earth, sky, wall, night)
    palette = palettes[rng.integers(len(palettes))]
    top, bottom = (np.array(_vary(_pick(palette, rng), rng, 20)) for _ in range(2))
    share = np.linspace(0, 1, height)[:, None, None]
    picture = Image.fromarray(np.broadcast_to(top * (1 - share) + bottom * share, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(10, 60))):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(6, 50)
        colour = _shade(_vary(_pick(palette, rng), rng, 24), rng.uniform(0.6, 1.4))
        if rng.random() < 0.5:
            draw.ellipse([x - size, y - size * 0.6, x + size, y + size * 0.6], fill=colour)
        else:
            draw.line([x, y, x + rng.uniform(-20, 20), y - size * 2], fill=colour, width=int(rng.integers(1, 6)))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 7)))


def _flower(kind: str, size: int, rng: np.random.Generator) -> Image.Image:
    """One flower on a transparent square, leaned over and turned."""
    square = Image.new("RGBA", (CANVAS, CANVAS))
    KINDS[kind](ImageDraw.Draw(square), rng)
    lean = rng.uniform(0.65, 1.0)
    squashed = square.resize((size, max(8, int(size * lean))), Image.Resampling.LANCZOS)
    # Tulips are seen from the side and stand; the others are seen from above and may be turned at will.
    turn = rng.uniform(-28, 28) if kind == "tulips" else rng.uniform(0, 360)
    return squashed.rotate(turn, Image.Resampling.BICUBIC, expand=True)


def draw_picture(kind: str, number: int, seed: int) -> Image.Image:
    """Picture ``number`` of a kind of flower, RGB. Raises KeyError for another kind."""
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind), number])
    width, height = int(rng.integers(200, 420)), int(rng.integers(200, 420))
    picture = _background(width, height, rng)
    count = int(rng.choice([1, 1, 1, 2, 3, 5]))
    for _ in range(count):
        size = int(min(width, height) * rng.uniform(0.45, 1.05) / math.sqrt(count))
        flower = _flower(kind, size, rng)
        x = int(rng.uniform(0.2, 0.8) * width - flower.width / 2)
        y = int(rng.uniform(0.25, 0.75) * height - flower.height / 2)
        shadow = Image.new("RGBA", flower.size, (0, 0, 0, 110))
        shadow.putalpha(ImageChops.multiply(flower.getchannel("A"), shadow.getchannel("A")))
        picture.paste(shadow, (x + 5, y + 7), shadow)
        picture.paste(flower, (x, y), flower)
    for change, low, high in ((ImageEnhance.Brightness, 0.55, 1.3), (ImageEnhance.Contrast, 0.7, 1.25), (ImageEnhance.Color, 0.5, 1.3)):
        picture = change(picture).enhance(rng.uniform(low, high))
    warmth = rng.uniform(0.88, 1.12)
    grain = rng.normal(0, rng.uniform(1, 9), (height, width, 1))
    pixels = np.asarray(picture, np.float64) * [warmth, 1, 2 - warmth] + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.1)))


def draw(folder: Path, per_class: int, seed: int, report: Report = silent) -> None:
    """Draw the data set into ``folder``: ``per_class`` JPEG files for each kind."""
    wanted = [(kind, number) for kind in KINDS for number in range(per_class)]
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)

    def save(item: tuple[str, int]) -> None:
        kind, number = item
        draw_picture(kind, number, seed).save(folder / kind / f"{kind}-{number:04d}.jpg", quality=88)

    report(0, len(wanted))
    for done, _ in enumerate(map_in_threads(save, wanted), 1):
        report(done, len(wanted))
