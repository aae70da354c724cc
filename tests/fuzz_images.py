"""Throws mutated image files at the reader. ``test_fuzz.py`` runs it in a process of its own, since a decoder may crash it.

    python tests/fuzz_images.py --examples 200000 --seed 7 --last last.bin

Ends with an error where a file is neither read nor refused, crashes the process, takes longer than a minute, or more
memory than MAX_PIXELS stands for. The file that was looked at last is in ``--last``.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import resource
import sys
import zlib
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies
from PIL import Image

from pipeline import images
from pipeline.errors import BadImage
from pipeline.network import Network
from pipeline.tensorflow_v1 import session, tf

SECONDS = 60
"""For one file. The largest that the header allows takes some seconds on a busy machine."""

MEMORY = 2_000_000_000
"""Bytes beyond what the process has when it begins: 1.5 GB for the largest image, and what the allocators keep."""


def seeds() -> dict[str, bytes]:
    """A small file of each kind that a decoder knows."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (13, 17, 3), np.uint8).repeat(2, 0).repeat(2, 1))
    other = picture.transpose(Image.Transpose.ROTATE_180)
    palette, alpha = picture.quantize(16), picture.copy()
    alpha.putalpha(picture.convert("L"))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "JPEG", {}),
        (picture, "JPEG", {"progressive": True, "exif": turned}),
        (picture.convert("L"), "JPEG", {"restart_marker_blocks": 2}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "MPO", {"save_all": True, "append_images": [other]}),
        (picture, "PNG", {"exif": turned}),
        (palette, "PNG", {"transparency": 3, "bits": 4}),
        (deep, "PNG", {}),
        (alpha, "PNG", {"save_all": True, "append_images": [other.convert("RGBA")]}),
        (palette, "GIF", {}),
        (palette, "GIF", {"transparency": 3, "save_all": True, "append_images": [other.quantize(16)], "comment": b"note"}),
        (picture, "BMP", {}),
        (palette, "BMP", {}),
        (alpha, "BMP", {}),
        (picture, "WEBP", {"exif": turned}),
        (alpha, "WEBP", {}),
        (alpha, "WEBP", {"lossless": True}),
        (picture, "WEBP", {"save_all": True, "append_images": [other]}),
        (picture, "AVIF", {"speed": 10}),
        (alpha, "AVIF", {"speed": 10, "exif": turned}),
        (picture, "TIFF", {"exif": turned}),
        (deep, "TIFF", {}),
        *[(picture, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
        (picture.convert("1"), "TIFF", {"compression": "group4"}),
    ]
    files = {}
    for number, (image, kind, options) in enumerate(kinds):
        file = io.BytesIO()
        image.save(file, kind, **options)
        files[f"{number} {kind}"] = file.getvalue()
    return files


SIZES = (0, 1, 2, 255, 256, 9_999, 20_000, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


WOUNDS = ["flip"] * 4 + ["size"] * 4 + ["insert", "remove", "repeat", "swap", "cut"]
"""Small ones more often, since a file with a large one is refused at once."""


def mutated(random: Random, files: dict[str, bytes]) -> bytes:
    """One of the files with some wounds, half of them in its first bytes, where the sizes stand."""
    data = bytearray(files[random.choice(sorted(files))])
    for _ in range(random.choice([1, 1, 2, 3])):
        here, there = (random.randrange(random.choice([64, 1 << 20])) % max(1, len(data)) for _ in range(2))
        length = random.randint(1, 64)
        how = random.choice(WOUNDS)
        if how == "flip" and data:
            data[here] ^= 1 << random.randrange(8)
        elif how == "size":
            width = random.choice([1, 2, 4])
            size = random.choice(SIZES) % (1 << 8 * width)
            data[here : here + width] = size.to_bytes(width, random.choice(["big", "little"]))
        elif how == "insert":
            data[here:here] = random.randbytes(length)
        elif how == "remove":
            del data[here : here + length]
        elif how == "repeat":
            data[here:here] = data[here : here + length] * random.randint(1, 50)
        elif how == "swap":
            data[here : here + length], data[there : there + length] = data[there : there + length], data[here : here + length]
        elif how == "cut":
            del data[here:]
    if data.startswith(b"\x89PNG") and random.random() < 0.8:
        mend_checksums(data)
    return bytes(data)


def mend_checksums(png: bytearray) -> None:
    """So that what is wrong in a chunk gets past the checksum."""
    position = 8
    while position + 12 <= len(png):
        end = position + 8 + int.from_bytes(png[position : position + 4], "big")
        if end + 4 <= len(png):
            png[end : end + 4] = zlib.crc32(png[position + 4 : end]).to_bytes(4, "big")
        position = end + 4


def decoder() -> Network:
    with tf.Graph().as_default():
        encoded = tf.placeholder(tf.string, [])
        run = session(threads=1).make_callable(images.decode_and_resize(encoded, 8), [encoded])
        return Network(lambda data, _: run(data)[np.newaxis], batch=1, threads=1)


def check(data: bytes, decode: Network) -> str:
    """Read a file, or see that it is refused in one line. Returns which of both it was."""
    try:
        header = images.read_header(data)
        readable = images.readable_bytes(data)
        assert header.reencode == (readable is not data)
        assert header.width * header.height <= images.MAX_PIXELS
        pixels = decode(readable)
    except BadImage as error:
        assert len(str(error).splitlines()) == 1
        assert not isinstance(error.__cause__, MemoryError), f"more than {MEMORY:,} bytes: {error}"
        assert "decoded" not in str(error) or not header.reencode, f"re-encoded to what cannot be decoded: {error}"
        return "refused"
    assert pixels.shape == (8, 8, 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    return "re-encoded" if header.reencode else "read"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--last", type=Path, required=True)
    arguments = parser.parse_args()
    decode, files, outcomes = decoder(), seeds(), Counter[str]()
    assert all(check(data, decode) != "refused" for data in files.values())
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    if in_use:
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))

    @hypothesis.settings(
        max_examples=arguments.examples,
        derandomize=arguments.seed is None,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategies.randoms(use_true_random=True))
    def fuzz(random: Random) -> None:
        data = mutated(random, files)
        arguments.last.write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        outcomes[check(data, decode)] += 1
        faulthandler.cancel_dump_traceback_later()

    (fuzz if arguments.seed is None else hypothesis.seed(arguments.seed)(fuzz))()
    print(dict(outcomes))


if __name__ == "__main__":
    main()
