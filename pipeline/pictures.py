"""Pictures for people: thumbnails, sheets of photos with captions, and a confusion matrix. Pillow only."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import files, images
from pipeline.errors import BadImage

BACKGROUND, INK, GAP = (255, 255, 255), (30, 30, 30), 6
NO_PHOTO = (200, 200, 200)
"""The colour of a photo that cannot be read any more."""


def small(photo: Path, sha256: str, side: int) -> Image.Image | None:
    """A photo within a square of ``side`` pixels, upright and whole; None where it is gone, or is no longer the one with this hash."""
    try:
        data = images.read_file(photo)
        if files.sha256_bytes(data) != sha256:
            return None
        with Image.open(io.BytesIO(images.readable_bytes(data))) as image:
            image.draft("RGB", (side, side))  # a JPEG is decoded no larger than need be
            return _within(image.convert("RGB"), side)
    except (BadImage, OSError, ValueError):
        return None


def _within(picture: Image.Image, side: int) -> Image.Image:
    """The picture as large as it fits into a square; a line stays one pixel wide, which ``ImageOps.contain`` makes none."""
    scale = side / max(picture.size)
    return picture.resize((max(1, round(scale * picture.width)), max(1, round(scale * picture.height))))


def thumbnail(photo: Path, sha256: str, side: int) -> Image.Image:
    """A photo on a square of ``side`` pixels; grey where there is none."""
    found = small(photo, sha256, side)
    if found is None:
        return Image.new("RGB", (side, side), NO_PHOTO)
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    canvas.paste(found, ((side - found.width) // 2, (side - found.height) // 2))
    return canvas


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures of one size in rows, each over its caption."""
    width, height = pictures[0].size
    line = 14
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        x, y = GAP + number % columns * (width + GAP), GAP + number // columns * (height + line + GAP)
        page.paste(picture, (x, y))
        draw.text((x, y + height), _fitting(draw, caption, width), fill=INK)
    return page


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures of one size in a square, row by row, without gaps: TensorBoard's sprite."""
    side = pictures[0].width
    columns = math.ceil(math.sqrt(len(pictures)))
    page = Image.new("RGB", (columns * side, columns * side), BACKGROUND)
    for number, picture in enumerate(pictures):
        page.paste(picture, (number % columns * side, number // columns * side))
    return page


def confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> Image.Image:
    """Counts [true, predicted] as shades, each row by its sum; with numbers and labels where there is room for them."""
    classes = len(labels)
    cell = max(4, min(48, 960 // classes))
    margin = 110 if cell >= 12 else GAP
    page = Image.new("RGB", (margin + classes * cell + GAP, margin + classes * cell + GAP), BACKGROUND)
    draw = ImageDraw.Draw(page)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for true in range(classes):
        for predicted in range(classes):
            x, y, share = margin + predicted * cell, margin + true * cell, float(shares[true, predicted])
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=(int(255 - 215 * share), int(255 - 150 * share), int(255 - 55 * share)))
            if cell >= 24 and counts[true, predicted]:
                ink = BACKGROUND if share > 0.6 else INK
                draw.text((x + cell // 2 - 1, y + cell // 2 - 1), str(counts[true, predicted]), fill=ink, anchor="mm")
    if cell >= 12:
        for number, label in enumerate(labels):
            text = _fitting(draw, label, margin - 2 * GAP)
            middle = margin + number * cell + cell // 2
            draw.text((margin - GAP, middle), text, fill=INK, anchor="rm")
            upright = Image.new("RGB", (margin - GAP, 14), BACKGROUND)
            ImageDraw.Draw(upright).text((0, 7), text, fill=INK, anchor="lm", font=ImageFont.load_default())
            page.paste(upright.rotate(90, expand=True), (middle - 7, 0))
    return page


def encoded(picture: Image.Image, kind: str = "PNG", quality: int = 85) -> bytes:
    """The bytes of a picture as PNG or JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return buffer.getvalue()
