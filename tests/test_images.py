from __future__ import annotations

import errno
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


# --- Distorted views -----------------------------------------------------------------------------------------------------

PLAIN = (1.0, 0.5, 0.5, 1.0, 0.0, 1.0, 1.0)  # enlargement, centre x and y, mirrored, angle, brightness, colour


@pytest.fixture(scope="module")
def distort() -> Any:
    """Bytes and a view → pixels [24, 24, 3]."""
    with tf.Graph().as_default():
        data, drawn = tf.placeholder(tf.string, []), tf.placeholder(tf.float32, [7])
        run = session(threads=1).make_callable(images.decode_and_distort(data, drawn, 24), [data, drawn])
    return lambda view, image=None: run(encoded(image or picture(), "PNG"), np.array(view, np.float32))


def changed(**values: float) -> tuple[float, ...]:
    names = ("enlarged", "x", "y", "mirrored", "angle", "brightness", "colour")
    return tuple(values.get(name, plain) for name, plain in zip(names, PLAIN))


def test_a_view_without_distortion_is_the_photo(distort: Any) -> None:
    assert np.abs(distort(PLAIN) - expected(picture())).max() < 0.01


def test_a_mirrored_view(distort: Any) -> None:
    assert np.abs(distort(changed(mirrored=-1)) - expected(ImageOps.mirror(picture()))).max() < 0.01


def test_an_enlarged_view_is_a_part_of_the_photo(distort: Any) -> None:
    """Twice enlarged, and its centre at a quarter: the upper left quarter, but for the row that blends at its border."""
    seen = distort(changed(enlarged=2, x=0.25, y=0.25))
    quarter = expected(picture().crop((0, 0, 20, 15)))
    assert np.abs(seen - quarter)[:-1, :-1].max() < 0.01


def test_a_view_turned_by_a_quarter(distort: Any) -> None:
    """On a square photo a turn by 90 degrees is exact."""
    square = picture(30, 30)
    turned = distort(changed(angle=np.pi / 2), square)
    assert min(np.abs(turned - expected(square.rotate(angle))).max() for angle in (90, 270)) < 0.1
    assert np.abs(turned - expected(square)).max() > 50


def test_brightness_and_colour(distort: Any) -> None:
    plain = expected(picture())
    assert np.abs(distort(changed(brightness=0.5)) - plain / 2).max() < 0.01
    assert distort(changed(brightness=3)).max() == 255
    grey = distort(changed(colour=0))
    assert np.abs(grey - plain.mean(axis=-1, keepdims=True)).max() < 0.01


def test_what_is_drawn_lies_within_what_is_asked_for() -> None:
    distortions = images.Distortions(True, random_crop=10, random_scale=20, random_brightness=30, random_rotation=15, random_colour=40)
    enlarged, x, y, mirrored, angle, brightness, colour = np.array([distortions.drawn("a photo", view, 0) for view in range(1, 2001)]).T
    assert 1.1 <= enlarged.min() < 1.11
    assert 1.31 < enlarged.max() <= 1.3201
    for centre in (x, y):  # the part that is seen never leaves the photo
        assert (centre - 0.5 / enlarged).min() >= -1e-6
        assert (centre + 0.5 / enlarged).max() <= 1 + 1e-6
    assert set(mirrored) == {-1, 1}
    assert 0.45 < (mirrored == 1).mean() < 0.55
    assert np.degrees(np.abs(angle).max()) == pytest.approx(15, abs=0.1)
    assert (brightness.min(), brightness.max()) == pytest.approx((0.7, 1.3), abs=0.01)
    assert (colour.min(), colour.max()) == pytest.approx((0.6, 1.4), abs=0.01)


def test_one_distortion_leaves_what_others_draw_as_it_is() -> None:
    flipped = images.Distortions(flip_left_right=True)
    both = images.Distortions(flip_left_right=True, random_brightness=30)
    assert [flipped.drawn("a", view, 0)[3] for view in range(20)] == [both.drawn("a", view, 0)[3] for view in range(20)]


@pytest.mark.parametrize(("number", "expected"), [(errno.EMFILE, OSError), (errno.ENOMEM, OSError), (errno.EIO, BadImage)])
def test_what_the_machine_lacks_is_not_the_photos_fault(monkeypatch: pytest.MonkeyPatch, number: int, expected: type) -> None:
    def fails(data: bytes, kind: str) -> None:
        raise OSError(number, "no more")

    monkeypatch.setattr(images, "_open", fails)
    with pytest.raises(expected, match="no more"):
        images.read_header(b"BM")
