"""What people have in their folders, case by case: read properly, and the same by all who read it, or refused with a reason."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project, make_photos
from PIL import Image
from test_images import ORIENTATION, animation, encoded, expected, huge_png, picture, rotated

from pipeline import bottlenecks, dataset, export, files, images, predict, scan
from pipeline.dataset import Photos
from pipeline.errors import BadImage
from pipeline.network import Network, load
from pipeline.scan import Memory
from pipeline.tensorflow_v1 import session, tf
from pipeline.vector_cache import VectorCache

PICTURE = picture()
GREY = PICTURE.convert("L")
PALETTE = PICTURE.quantize(64)
TURNED = PICTURE.transpose(Image.Transpose.ROTATE_180)
EXIF = Image.Exif()
EXIF[ORIENTATION] = 3


def deep(image: Image.Image) -> Image.Image:
    """Grey in 16 bits."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def with_alpha(image: Image.Image = PICTURE) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(chunks: bytes, before: bytes = b"IDAT") -> bytes:
    data = encoded(PICTURE, "PNG")
    position = data.index(before) - 4
    return data[:position] + chunks + data[position:]


def deep_png(channels: int, colour_type: int) -> bytes:
    """16 bits a channel, which Pillow writes for grey only."""
    pixels = np.asarray(PICTURE if channels == 3 else with_alpha(PICTURE).convert("LA"))
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *PICTURE.size, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def plain_cmyk(**options: Any) -> bytes:
    """With the inks themselves where Adobe's programs, and Pillow, write their complements and a note of 16 bytes."""
    inverted = PICTURE.convert("CMYK").point(lambda value: 255 - value)
    data = encoded(inverted, "JPEG", quality=95, **options)
    note = data.index(b"Adobe") - 4
    return data[:note] + data[note + 16 :]


def ycck() -> bytes:
    """As Adobe writes it: the inks' complements, which libjpeg calls CMYK, as YCC, and a note that says so."""
    inverted = PICTURE.point(lambda value: 255 - value).convert("YCbCr")
    inks = [channel.point(lambda value: 255 - value) for channel in inverted.split()]  # Pillow inverts once more
    data = bytearray(encoded(Image.merge("CMYK", [*inks, Image.new("L", PICTURE.size, 0)]), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def tiff(pixels: bytes, tags: dict[int, int]) -> bytes:
    """As Pillow does not write it: 16 bits of grey in one strip, unless ``tags`` say otherwise."""
    width, height = PICTURE.size
    known = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(pixels), **tags}
    known[273] = 8 + 2 + 12 * len(known) + 4  # the pixels stand behind the tags
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, known[tag]) for tag in sorted(known))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(known)) + listed + bytes(4) + pixels


def in_12_bits(image: Image.Image) -> bytes:
    """Grey, two pixels in three bytes."""
    values = np.asarray(image).reshape(-1, 2).astype(int) * 4095 // 255
    first, second = values[:, 0], values[:, 1]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


def jpeg_with_exif(tiff: bytes) -> bytes:
    data = encoded(PICTURE, "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + data[2:]


def exif_entries(*entries: bytes) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


UPSIDE_DOWN = struct.pack("<HHII", ORIENTATION, 3, 1, 3)
BEHIND_THE_END = struct.pack("<HHII", 0x8769, 4, 1, 99_999)


def camera(exif: Image.Exif | None = None) -> bytes:
    """A "JPEG" with a second picture behind the first, as cameras write it."""
    return encoded(PICTURE, "MPO", save_all=True, append_images=[TURNED], quality=95, **({"exif": exif} if exif else {}))


def gif_on_canvas(width: int, height: int) -> bytes:
    data = encoded(PALETTE, "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def gif_with_frame(width: int, height: int) -> bytes:
    data = bytearray(encoded(PALETTE, "GIF"))
    position = data.index(b",\0\0\0\0") + 5
    data[position : position + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_of_frames(count: int) -> bytes:
    data = encoded(PALETTE, "GIF")
    frame = data.index(b",\0\0\0\0")
    return data[:frame] + data[frame:-1] * count + b";"


def top_down_bitmap() -> bytes:
    data = encoded(PICTURE, "BMP")
    rows = data[54:]
    length = len(rows) // PICTURE.height
    turned = b"".join(rows[start : start + length] for start in range(len(rows) - length, -1, -length))
    return data[:22] + struct.pack("<i", -PICTURE.height) + data[26:54] + turned


def many_scans(count: int) -> bytes:
    data = encoded(PICTURE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


ON_CANVAS = Image.new("RGB", (80, 60), tuple(PALETTE.getpalette()[:3]))  # type: ignore[index]
ON_CANVAS.paste(PALETTE.convert("RGB"), (0, 0))

# Name → bytes, and the picture that is in them. Lossy ones differ by a few levels; turned, clipped or inverted ones by dozens.
READ: dict[str, tuple[bytes, Image.Image]] = {
    "WebP in a jpg": (encoded(PICTURE, "WEBP", lossless=True), PICTURE),
    "AVIF in a jpg": (encoded(PICTURE, "AVIF", quality=95), PICTURE),
    "CMYK JPEG": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), PICTURE),
    "CMYK JPEG, turned": (encoded(PICTURE.convert("CMYK"), "JPEG", quality=95, exif=EXIF), TURNED),
    "CMYK JPEG that is not Adobe's": (plain_cmyk(), PICTURE),
    "CMYK JPEG that is not Adobe's, turned": (plain_cmyk(exif=EXIF), TURNED),
    "YCCK JPEG": (ycck(), PICTURE),
    "progressive JPEG": (encoded(PICTURE, "JPEG", quality=95, progressive=True), PICTURE),
    "JPEG with a film behind it": (encoded(PICTURE, "JPEG", quality=95) + bytes(2 << 20), PICTURE),
    "JPEG with an unreadable EXIF": (jpeg_with_exif(b"no TIFF header"), PICTURE),
    "JPEG with a cut EXIF": (jpeg_with_exif(b"II*\0\x08\0\0\0\x05\0"), PICTURE),
    "JPEG with an unknown orientation": (jpeg_with_exif(exif_entries(struct.pack("<HHII", ORIENTATION, 3, 1, 77))), PICTURE),
    "turned JPEG with a damaged EXIF": (jpeg_with_exif(exif_entries(UPSIDE_DOWN, BEHIND_THE_END)), TURNED),
    "camera JPEG": (camera(), PICTURE),
    "camera JPEG, turned": (camera(EXIF), TURNED),
    "camera JPEG, second picture cut": (camera()[:-400], PICTURE),
    "camera JPEG, index damaged": (camera().replace(b"MPF\0II*\0", b"MPF\0II*\1").replace(b"MPF\0MM\0*", b"MPF\0MM\1*"), PICTURE),
    "16-bit PNG": (deep_png(3, 2), PICTURE),
    "16-bit grey PNG": (encoded(deep(PICTURE), "PNG"), GREY),
    "16-bit grey PNG, turned": (encoded(deep(PICTURE), "PNG", exif=EXIF), TURNED.convert("L")),
    "16-bit grey PNG with alpha": (deep_png(2, 4), GREY),
    "16-bit grey TIFF": (encoded(deep(PICTURE), "TIFF"), GREY),
    "16-bit grey TIFF, turned": (encoded(deep(PICTURE), "TIFF", exif=EXIF), TURNED.convert("L")),
    "16-bit grey TIFF with white as 0": (tiff((65535 - np.asarray(deep(PICTURE))).tobytes(), {262: 0}), GREY),
    "12-bit grey TIFF": (tiff(in_12_bits(GREY), {258: 12}), GREY),
    "palette PNG": (encoded(PALETTE, "PNG"), PALETTE),
    "palette PNG with transparency": (encoded(PALETTE, "PNG", transparency=3), PALETTE),
    "PNG with alpha": (encoded(with_alpha(), "PNG"), PICTURE),
    "PNG with alpha, turned": (encoded(with_alpha(), "PNG", exif=EXIF), TURNED),
    "PNG with EXIF at its end": (png_with(chunk(b"eXIf", EXIF.tobytes()[6:]), before=b"IEND"), TURNED),
    "PNG with a long note": (png_with(chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(100 << 20)))), PICTURE),
    "PNG with a long profile": (png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5 << 20)))), PICTURE),
    "PNG with many notes": (png_with(chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 19))) * 200), PICTURE),
    "PNG with a damaged note": (png_with(chunk(b"tEXt", b"note\0text")[:-1] + b"\0"), PICTURE),
    "PNG with bytes behind it": (encoded(PICTURE, "PNG") + bytes(5000), PICTURE),
    "animated PNG": (encoded(PICTURE, "PNG", save_all=True, append_images=[TURNED]), PICTURE),
    "WebP with alpha": (encoded(with_alpha(), "WEBP", lossless=True, exact=True), PICTURE),
    "WebP with alpha, animated": (
        encoded(with_alpha(), "WEBP", lossless=True, exact=True, save_all=True, append_images=[with_alpha(TURNED)]),
        PICTURE,
    ),
    "AVIF with alpha": (encoded(with_alpha(), "AVIF", quality=95), PICTURE),
    "TIFF with alpha": (encoded(with_alpha(), "TIFF"), PICTURE),
    "CMYK TIFF": (encoded(PICTURE.convert("CMYK"), "TIFF"), PICTURE),
    "JPEG in a TIFF": (encoded(PICTURE, "TIFF", compression="jpeg", quality=95), PICTURE),
    "animated WebP": (animation("WEBP"), PICTURE),
    "animated GIF": (animation("GIF"), PICTURE.convert("P")),
    "animated GIF, cut in the second frame": (animation("GIF")[:-30] + b";", PICTURE.convert("P")),
    "GIF with transparency": (encoded(PALETTE, "GIF", transparency=3), PALETTE),
    "GIF on a larger canvas": (gif_on_canvas(80, 60), ON_CANVAS),
    "GIF on a smaller canvas": (gif_on_canvas(20, 10), PALETTE),
    "GIF on no canvas": (gif_on_canvas(0, 0), PALETTE),
    "GIF of 5,000 frames": (gif_of_frames(5_000), PALETTE),
    "GIF with bytes behind it": (encoded(PALETTE, "GIF") + bytes(5000), PALETTE),
    "palette BMP": (encoded(PALETTE, "BMP"), PALETTE),
    "32-bit BMP": (encoded(with_alpha(), "BMP"), PICTURE),
    "top-down BMP": (top_down_bitmap(), PICTURE),
    "BMP with bytes behind it": (encoded(PICTURE, "BMP") + bytes(7), PICTURE),
    **{f"1 × 1 {kind}": (encoded(picture(1, 1), kind), picture(1, 1)) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF")},
}

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8))
SMALL_JPEG = encoded(PICTURE, "JPEG")
HUGE_JPEG = SMALL_JPEG.replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 60_000, 60_000), 1)

# Name → bytes, and how the reason begins.
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "zeros": (bytes(500), "not an image that is read here (nothing but zeros)"),
    "HTML": (b"\n<!DOCTYPE html><title>404", "not an image that is read here (an HTML page)"),
    "text": (b"to do: take a photo", "not an image that is read here (wanted: JPEG, PNG"),
    "cut JPEG": (SMALL_JPEG[:-200], "the JPEG file is cut short"),
    "cut PNG": (encoded(PICTURE, "PNG")[:-20], "the PNG file is cut short"),
    "cut GIF": (encoded(PALETTE, "GIF")[:-200] + b";", "the GIF file is damaged: image file is truncated"),
    "cut BMP": (encoded(PICTURE, "BMP")[:-9], "the BMP file is damaged: image file is truncated"),
    "cut WebP": (encoded(PICTURE, "WEBP")[:-20], "the WebP file is cut short"),
    "cut AVIF": (encoded(PICTURE, "AVIF")[:-3], "the AVIF file is damaged: Failed to decode frame 0: Truncated data"),
    "half an AVIF": (encoded(PICTURE, "AVIF")[:200], "not an image that is read here (a damaged AVIF file)"),
    "cut TIFF": (encoded(PICTURE, "TIFF")[:-9], "the TIFF file is damaged: image file is truncated"),
    "PNG with a hole": (
        png_with(b"")[:60] + bytes(20) + png_with(b"")[80:],
        "cannot be decoded, it is damaged or of a rare kind: Invalid PNG",
    ),
    "20,000 × 20,000 PNG": (huge_png(20_000), "more than 100,000,000 pixels"),
    "60,000 × 60,000 JPEG": (HUGE_JPEG, "60000 × 60000 pixels are more than 100,000,000"),
    "GIF with a frame of 60,000 × 60,000": (gif_with_frame(60_000, 60_000), "more than 100,000,000 pixels"),
    "JPEG of 5,000 scans": (many_scans(5_000), "a JPEG file of 5,00"),
    "TIFF of signed numbers": (tiff(GREY.tobytes(), {258: 8, 339: 2}), "its pixels are signed numbers"),
    "TIFF of three planes of 16 bits": (
        tiff(np.asarray(PICTURE).transpose(2, 0, 1).astype(np.uint16).tobytes(), {262: 2, 277: 3, 284: 2}),
        "a TIFF file of more than 8 bits a colour",
    ),
    "TIFF that begins with a preview": (tiff(deep(PICTURE).tobytes(), {254: 1}), "a camera's raw file, or a TIFF file that begins with"),
    "DNG": (tiff(deep(PICTURE).tobytes(), {50706: 0x401}), "a camera's raw file, or a TIFF file that begins with"),
    "TIFF of a rare kind": (
        tiff(bytes(4 * 40 * 30), {277: 2}),
        "not an image that is read here (a TIFF file that is damaged or of a rare kind)",
    ),
    "BMP of a rare kind": (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 66 + 4 * 40 * 30, 0, 66, 40, 40, 30, 1, 32, 3, 0, 0, 0, 0, 0)
        + struct.pack("<III", 1023 << 20, 1023 << 10, 1023)  # ten bits a colour
        + bytes(4 * 40 * 30),
        "the BMP file is of a rare kind that is not read: Unsupported BMP bitfields layout",
    ),
    "JPEG with a cut note": (
        SMALL_JPEG[:2] + b"\xff\xe0\0\x07JFIF\0" + SMALL_JPEG[2:],
        "the JPEG file is damaged: a part of its header is",
    ),
    "WebP whose end was lost": (
        encoded(NOISE, "WEBP", lossless=True)[:-5000] + bytes(5000),
        "the WebP file ends in nothing but zeros: a part of it was lost",
    ),
    "32-bit TIFF": (encoded(GREY.convert("F"), "TIFF"), "its pixels are numbers of 32 bits"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases as files of one class, each named like a JPEG."""
    folder = tmp_path_factory.mktemp("photos") / "cases"
    folder.mkdir()
    for name, (data, _) in {**READ, **REFUSED}.items():
        (folder / f"{name}.jpg").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def decode() -> Any:
    """Bytes → pixels [24, 24, 3]."""
    with tf.Graph().as_default():
        data = tf.placeholder(tf.string, [])
        return session(threads=1).make_callable(images.decode_and_resize(data, 24), [data])


@pytest.mark.parametrize("name", READ)
def test_it_is_read_properly(name: str, decode: Any) -> None:
    data, truth = READ[name]
    assert np.abs(decode(images.readable_bytes(data)) - expected(truth)).mean() < 3


@pytest.mark.parametrize("name", READ)
def test_the_header_says_whether_it_is_reencoded(name: str) -> None:
    data, _ = READ[name]
    assert images.read_header(data).reencode == (images.readable_bytes(data) is not data)


@pytest.fixture(scope="module")
def network(backbone_folder: Path) -> Network:
    return load(backbone_folder)


@pytest.fixture(scope="module")
def exported(finished: Project) -> Iterator[tuple[tf.Session, export.Joined]]:
    with tf.Graph().as_default(), session(threads=1) as running:
        yield running, export.load_graph(finished.live("colours") / export.GRAPH, "final_result")


@pytest.fixture(scope="module")
def classifier(finished: Project) -> predict.Classifier:
    return predict.load(finished.live("colours"))


@pytest.mark.parametrize("name", READ)
def test_training_evaluation_and_prediction_see_the_same(
    name: str, folder: Path, network: Network, exported: tuple[tf.Session, export.Joined], classifier: predict.Classifier
) -> None:
    running, tensors = exported
    readable = images.readable_bytes(READ[name][0])
    trained_on = network(readable)
    bottleneck, evaluated = running.run([tensors.bottleneck, tensors.probabilities], {tensors.image_bytes: [readable]})
    (of_training,) = running.run(tensors.probabilities, {tensors.bottleneck: trained_on[np.newaxis]})
    (prediction,) = classifier.predict([folder / f"{name}.jpg"])
    predicted = {score.label: score.probability for score in prediction.scores}
    np.testing.assert_allclose(bottleneck[0], trained_on, atol=1e-3)
    np.testing.assert_allclose(evaluated[0], of_training, atol=1e-5)
    np.testing.assert_allclose([predicted[label] for label in classifier.labels], of_training, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_training_and_prediction_refuse_it_for_the_same_reason(
    name: str, folder: Path, network: Network, classifier: predict.Classifier
) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadImage) as error:
        network(images.readable_bytes(data))
    assert str(error.value).startswith(reason)
    assert len(str(error.value).splitlines()) == 1
    (prediction,) = classifier.predict([folder / f"{name}.jpg"])
    assert prediction.problem == str(error.value)


def test_what_the_scan_lets_pass_is_refused_by_the_network_or_read(folder: Path, tmp_path: Path, network: Network) -> None:
    photos = scan.of_folder(folder.parent, Memory(tmp_path / "memory.csv"))
    good = [photo for photo in photos if not photo.problem]
    filled = bottlenecks.compute(Photos(good), folder.parent, lambda: network, VectorCache(tmp_path / "vectors", 1280))
    problems = {photo.path: photo.problem for photo in photos if photo.problem} | filled.problems
    assert sorted(problems) == sorted(f"cases/{name}.jpg" for name in REFUSED)
    assert all(problems[f"cases/{name}.jpg"].startswith(reason) for name, (_, reason) in REFUSED.items())


def test_a_turned_tiff_is_turned_once(decode: Any) -> None:
    for orientation in range(1, 9):
        upright = decode(images.readable_bytes(rotated("PNG", orientation)))
        np.testing.assert_array_equal(decode(images.readable_bytes(rotated("TIFF", orientation))), upright)


def test_files_that_cannot_be_read_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos", 2, ("red",))
    red = tmp_path / "photos" / "red"
    (red / "a.jpg").symlink_to(red / "b.jpg")
    (red / "b.jpg").symlink_to(red / "a.jpg")
    (tmp_path / "photos" / "class").symlink_to(tmp_path / "photos" / "class")
    (red / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    os.mkfifo(red / "pipe.jpg")
    (red / "half of one").write_bytes(SMALL_JPEG[:-200])
    (red / "BMW.txt").write_text("BMW is a brand of cars")
    with open(red / "film.mp4", "wb") as film, open(red / "film.jpg", "wb") as named_like_one:
        film.truncate(images.MAX_BYTES + 1)
        named_like_one.truncate(images.MAX_BYTES + 1)
    (red / "001.png").rename(red / "gone.png")
    read = images.read_file
    monkeypatch.setattr(images, "read_file", lambda path: (path.unlink(missing_ok=True) if path.stem == "gone" else None) or read(path))
    photos = scan.of_folder(tmp_path / "photos", Memory(tmp_path / "memory.csv"))
    dataset.write_skipped(tmp_path / "skipped.csv", [photo for photo in photos if photo.problem])
    skipped = {photo.path: photo.problem for photo in dataset.read_skipped(tmp_path / "skipped.csv")}
    assert skipped == {
        "red/a.jpg": "cannot be read: Too many levels of symbolic links",
        "red/b.jpg": "cannot be read: Too many levels of symbolic links",
        f"red/{os.fsdecode(bytes([99, 97, 102, 0xE9]))}.jpg": "the file is empty",
        "red/film.jpg": "1,000,000,001 bytes are more than 1,000,000,000",
        "red/gone.png": "cannot be read: No such file or directory",
        "red/half of one": "the JPEG file is cut short",
        "red/pipe.jpg": "cannot be read: not a file",
    }


def test_a_pipe_among_the_photos_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImage, match="not a file"):
        images.read_file(tmp_path / "pipe.jpg")


def test_a_run_lists_what_it_left_out_and_what_it_reencoded(copy_of_finished: Project) -> None:
    project = copy_of_finished
    red = project.root / "data" / "colours" / "red"
    (red / "turned.jpg").write_bytes(rotated("JPEG", 6))
    (red / os.fsdecode(b"caf\xe9.tiff")).write_bytes(encoded(PICTURE, "TIFF"))
    (red / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"<html>")
    (red / "hole.png").write_bytes(REFUSED["PNG with a hole"][0])
    (project.root / "data" / "colours" / "loop").symlink_to("loop")
    done = project.export("--data", "colours", "--how-many-training-steps", "300")
    assert done.returncode == 0, done.stderr
    manifest = files.read_json(project.live("colours") / files.MANIFEST)
    assert (manifest["skipped"], manifest["reencoded_count"]) == (2, 2)
    assert manifest["reencoded"] == ["red/caf\N{REPLACEMENT CHARACTER}.tiff", "red/turned.jpg"]
    packed = project.root / "store/runs/ComputeBottlenecks" / manifest["parents"]["ComputeBottlenecks"]
    assert files.read_json(packed / files.MANIFEST)["reencoded"] == manifest["reencoded"]
    skipped = {photo.path: photo.problem for photo in dataset.read_skipped(packed / "skipped.csv")}
    assert skipped == {
        f"red/{os.fsdecode(bytes([99, 97, 102, 0xE9]))}.jpg": "not an image that is read here (an HTML page)",
        "red/hole.png": "cannot be decoded, it is damaged or of a rare kind: Invalid PNG data, size 199",
    }
