from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline import images
from pipeline.errors import BadImage
from pipeline.tensorflow_v1 import session, tf

ORIENTATION = 0x0112


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture that is different at each edge, so that a turned or mirrored one shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def animation(kind: str) -> bytes:
    frames = [picture().convert("P" if kind == "GIF" else "RGB"), Image.new("RGB", (40, 30))]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))


@pytest.fixture(scope="module")
def decode() -> Any:
    """Bytes → pixels [size, size, 3], by the graph that training and prediction share."""
    with tf.Graph().as_default():
        data = tf.placeholder(tf.string, [])
        size = 24
        pixels = images.decode_and_resize(data, size)
        run = session(threads=1).make_callable(pixels, [data])
    return run


def expected(image: Image.Image) -> np.ndarray:
    """The bilinear resize with half-pixel centres, written out."""
    pixels = np.asarray(image.convert("RGB"), np.float64)

    def weights(length: int, size: int) -> np.ndarray:
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(position).astype(int)
        matrix = np.zeros((size, length))
        matrix[np.arange(size), low] += 1 - (position - low)
        matrix[np.arange(size), np.minimum(low + 1, length - 1)] += position - low
        return matrix

    rows, columns = weights(pixels.shape[0], 24), weights(pixels.shape[1], 24)
    return np.einsum("ij,jkc,lk->ilc", rows, pixels, columns)


LOSSLESS = {
    "PNG": encoded(picture(), "PNG"),
    "BMP": encoded(picture(), "BMP"),
    "WebP": encoded(picture(), "WEBP", lossless=True),
    "palette PNG": encoded(picture().quantize(64), "PNG"),
    "palette BMP": encoded(picture().quantize(64), "BMP"),
    "GIF": encoded(picture().quantize(64), "GIF"),
    "animated GIF": animation("GIF"),
    "animated WebP": animation("WEBP"),
    "TIFF": encoded(picture(), "TIFF"),
    "grey PNG": encoded(picture().convert("L"), "PNG"),
    "rotated PNG": rotated("PNG", 6),
    "mirrored PNG": rotated("PNG", 2),
    "one pixel": encoded(picture(1, 1), "PNG"),
    "wide": encoded(picture(300, 2), "PNG"),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_each_format_gives_the_pixels_that_pillow_sees_upright(decode: Any, name: str) -> None:
    data = LOSSLESS[name]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.abs(decode(images.readable_bytes(data)) - expected(upright)).max() < 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photos_are_turned_upright(decode: Any, orientation: int) -> None:
    data = rotated("JPEG", orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    # Two JPEG decoders differ by a few levels; a photo that is not turned differs by a hundred.
    assert np.abs(decode(images.readable_bytes(data)) - expected(upright)).max() < 8


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_formats(decode: Any, kind: str) -> None:
    data = encoded(picture(), kind, quality=95)
    assert np.abs(decode(images.readable_bytes(data)) - expected(Image.open(io.BytesIO(data)))).max() < 8


@pytest.mark.parametrize("name", ["PNG", "BMP", "WebP", "palette PNG", "GIF", "grey PNG"])
def test_what_tensorflow_reads_rightly_passes_untouched(name: str) -> None:
    assert images.readable_bytes(LOSSLESS[name]) is LOSSLESS[name]


def test_a_cmyk_jpeg_is_read(decode: Any) -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(images.readable_bytes(data)) - expected(Image.open(io.BytesIO(data)))).mean() < 3


def test_the_header_says_format_and_size() -> None:
    assert images.read_header(encoded(picture(), "JPEG")) == images.Header("JPEG", 40, 30, reencode=False)
    assert images.read_header(encoded(picture(), "TIFF")) == images.Header("TIFF", 40, 30, reencode=True)


def huge_png(size: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 500, "nothing but zeros"),
        (b"<html><body>Not found", "an HTML page"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC"),
        (b"some text", "wanted: JPEG"),
        (encoded(picture(), "JPEG")[:-200], "the JPEG file is cut short"),
        (encoded(picture(), "PNG")[:-20], "the PNG file is cut short"),
        (encoded(picture(), "WEBP")[:-20], "the WebP file is cut short"),
        (huge_png(12_000), "12000 × 12000 pixels are more than 100,000,000"),
        (huge_png(20_000), "more than 100,000,000 pixels"),
        (b"RIFF\x08\0\0\0WEBPVP8X", "the WebP file is damaged"),
    ],
)
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        images.readable_bytes(data)


def test_normalise() -> None:
    assert images.normalise(np.array([0.0, 127.0, 255.0]), 127, 128).tolist() == [-127 / 128, 0, 1]
