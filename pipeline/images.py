"""A photo becomes the network's input, in two steps that training, evaluation and prediction share.

1. ``readable_bytes``: the file's bytes, checked by their header, as bytes that TensorFlow reads rightly. Most files pass
   untouched; what TensorFlow gets wrong in silence (EXIF rotation, palette bitmaps, animations) is re-encoded.
2. ``decode_and_resize`` and ``normalise``: in the graph, bytes → pixels → the network's input. Distorted views of training
   photos take ``decode_and_distort`` instead; where a bottleneck is a mean, ``looks`` stand between the pixels and the network.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import BadImage

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

PREPROCESSING_VERSION = "1"
"""Part of the key of every cached vector: raise it whenever the same photo would give the network other numbers."""

MAX_PIXELS = 100_000_000
"""A photo larger than this is refused by its header. 100 megapixels are 1.5 GB while they are decoded."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF")
"""What is read, as Pillow names it."""

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".heic"}
"""A file so named that is no image is reported; another file is taken for a note beside the photos."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright

# Above this size Pillow warns of a "decompression bomb"; MAX_PIXELS decides here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say of it: format as Pillow names it, width and height in pixels."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Check an image by its header and its end, without decoding it.

    Raises BadImage with a reason that a person understands.
    """
    with _open(data) as image:
        header = Header(str(image.format), image.width, image.height)
    if header.width * header.height > MAX_PIXELS:
        raise BadImage(f"{header.width} × {header.height} pixels are more than {MAX_PIXELS:,}")
    return header


def readable_bytes(data: bytes) -> bytes:
    """The same picture in bytes that TensorFlow's ``decode_image`` reads rightly: ``data`` itself wherever it does.

    Re-encoded, as an uncompressed bitmap, are: photos with an EXIF rotation (TensorFlow ignores it), bitmaps that are
    not 24 bits deep (it takes palette indices for greys), animations (it reads all frames of a GIF, and no animated
    WebP), AVIF and TIFF (it reads neither). Raises BadImage.
    """
    read_header(data)
    with _open(data) as image:
        if not _wants_reencoding(image, data):
            return data
        try:
            upright = ImageOps.exif_transpose(image)
            bitmap = io.BytesIO()
            upright.convert("RGB").save(bitmap, "BMP")
        except Exception as error:  # Pillow's decoders raise many kinds
            raise BadImage(f"the {image.format} file cannot be decoded: {error}") from error
    return bitmap.getvalue()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("the file is empty")
    if cut_short := _cut_short(data):
        raise BadImage(f"the {cut_short} file is cut short")
    Image.init()  # open() fails on a format whose plugin is not loaded yet
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(f"not an image that is read here ({_looks_like(data)})") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # a broken header; Pillow's plugins raise many kinds
        raise BadImage(f"the header cannot be read: {error}") from error
    return image


def _looks_like(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        return "HEIC: convert it to JPEG"
    if not data.strip(b"\0"):
        return "nothing but zeros"
    return "wanted: JPEG, PNG, GIF, BMP, WebP, AVIF or TIFF"


def _cut_short(data: bytes) -> str:
    """The name of the format where the file lacks its end, by the marks of begin and end; else nothing."""
    if data.startswith(b"\xff\xd8\xff"):
        return "" if b"\xff\xd9" in data[-(1 << 20) :] else "JPEG"
    if data.startswith(b"\x89PNG"):
        return "" if b"IEND" in data[-1024:] else "PNG"
    if data.startswith(b"GIF8"):
        return "" if b"\x3b" in data[-1024:] else "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "" if len(data) >= 8 + struct.unpack("<I", data[4:8])[0] else "WebP"
    return ""


def _wants_reencoding(image: Image.Image, data: bytes) -> bool:
    if image.format in ("AVIF", "TIFF"):
        return True
    if image.format == "BMP":
        return struct.unpack("<H", data[28:30])[0] != 24
    if image.format == "GIF":
        return bool(getattr(image, "is_animated", False))
    if image.format == "WEBP" and data[12:16] == b"VP8X" and data[20] & 0x02:
        return True
    try:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # unreadable EXIF is no EXIF
        return False


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """In the graph: one encoded image (scalar string) → uint8 [height, width, 3], RGB."""
    from pipeline.tensorflow_v1 import tf

    # channels=3 always: with 0, TensorFlow 2.21 aborts the process on an animated WebP.
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    pixels.set_shape([None, None, 3])
    return pixels


def decode_and_resize(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """In the graph: one encoded image (scalar string) → float32 [size, size, 3] in 0..255, RGB.

    Bilinear with half-pixel centres and no antialias, as ``tf.image.resize`` does by default: the resize that the
    EfficientNet-Lite networks were trained with.
    """
    from pipeline.tensorflow_v1 import tf

    batch = tf.raw_ops.ResizeBilinear(images=decode(encoded)[tf.newaxis], size=[size, size], half_pixel_centers=True)
    return batch[0]


def normalise(pixels: Any, mean: float, scale: float) -> Any:
    """Pixels in 0..255 → the range that the network was trained on: (x - mean) / scale."""
    return (pixels - mean) / scale


# --- Distorted views of training photos -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Distortions:
    """How a training photo is varied; the first four as ``retrain.py`` had them.

    Attributes:
        flip_left_right: mirror half of the views.
        random_crop: percent of margin around the part that is seen: 10 cuts a tenth off, anywhere.
        random_scale: percent by which the part that is seen is enlarged, from 0 to this.
        random_brightness: percent by which pixels are multiplied up or down.
        random_rotation: degrees by which it is turned, to either side.
        random_colour: percent by which the colours are made stronger or weaker.
    """

    flip_left_right: bool = False
    random_crop: float = 0.0
    random_scale: float = 0.0
    random_brightness: float = 0.0
    random_rotation: float = 0.0
    random_colour: float = 0.0

    def drawn(self, sha256: str, view: int, seed: int) -> np.ndarray:
        """One view of one photo, float32 [7], a function of its arguments alone.

        In it: enlargement, centre x and y (0..1), 1 or -1 for mirrored, angle in radians, brightness, colour.
        """
        digest = hashlib.sha256(f"{seed}/{view}/{sha256}".encode()).digest()
        rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
        # All are drawn always, so that one distortion does not change what the others draw.
        scale, x, y, flip, brightness, angle, colour = rng.uniform(size=7)
        enlarged = (1 + self.random_crop / 100) * (1 + scale * self.random_scale / 100)
        room = 1 - 1 / enlarged
        return np.array(
            [
                enlarged,
                0.5 + (x - 0.5) * room,
                0.5 + (y - 0.5) * room,
                -1 if self.flip_left_right and flip < 0.5 else 1,
                math.radians(self.random_rotation) * (2 * angle - 1),
                1 + self.random_brightness / 100 * (2 * brightness - 1),
                1 + self.random_colour / 100 * (2 * colour - 1),
            ],
            np.float32,
        )


NO_DISTORTIONS = Distortions()


def decode_and_distort(encoded: tf.Tensor, drawn: tf.Tensor, size: int) -> tf.Tensor:
    """In the graph: one encoded image and a view of it (``Distortions.drawn``) → float32 [size, size, 3] in 0..255, RGB.

    Cut, enlarged, mirrored and turned in a single bilinear step; past its edges the photo goes on as its mirror image.
    """
    from pipeline.tensorflow_v1 import tf

    pixels = tf.cast(decode(encoded), tf.float32)
    enlarged, centre_x, centre_y, mirrored, angle, brightness, colour = tf.unstack(drawn, 7)
    height, width = (tf.cast(tf.shape(pixels)[axis], tf.float32) for axis in (0, 1))
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Pixels of the photo to a pixel of the view, along both axes; half-pixel centres, as in decode_and_resize.
    across, down = mirrored * width / (enlarged * size), height / (enlarged * size)
    middle = (size - 1) / 2
    row_x = [cos * across, -sin * down, centre_x * width - 0.5 - middle * (cos * across - sin * down)]
    row_y = [sin * across, cos * down, centre_y * height - 0.5 - middle * (sin * across + cos * down)]
    seen = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[tf.newaxis],
        transforms=tf.stack([*row_x, *row_y, 0.0, 0.0])[tf.newaxis],
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]
    grey = tf.reduce_mean(seen, axis=-1, keepdims=True)
    return tf.clip_by_value((grey + (seen - grey) * colour) * brightness, 0.0, 255.0)


# --- Several looks at one photo -------------------------------------------------------------------------------------

AVERAGES = ("none", "mirror", "mirror+crops")
"""Of which looks at a photo the bottleneck is the mean: the photo, also its mirror image, also its four corners."""

CROP = 0.875
"""The side of a corner crop, as a share of the photo's: what networks are usually tested on."""


def looks(batch: tf.Tensor, average: str) -> tuple[tf.Tensor, int]:
    """In the graph: images [batch, size, size, 3] → all looks at them [looks * batch, size, size, 3], and how many each has."""
    from pipeline.tensorflow_v1 import tf

    if average == "none":
        return batch, 1
    seen = [batch]
    if average == "mirror+crops":
        size = int(batch.shape[1])
        boxes = [(y, x, y + CROP, x + CROP) for y in (0, 1 - CROP) for x in (0, 1 - CROP)]
        for top, left, bottom, right in boxes:
            y, x, end_y, end_x = (round(size * edge) for edge in (top, left, bottom, right))
            corner = batch[:, y:end_y, x:end_x, :]
            seen.append(tf.raw_ops.ResizeBilinear(images=corner, size=[size, size], half_pixel_centers=True))
    seen += [tf.reverse(look, [2]) for look in seen]
    return tf.concat(seen, axis=0), len(seen)


def mean_look(vectors: tf.Tensor, count: int) -> tf.Tensor:
    """In the graph: the vectors of all looks [count * batch, width] → their mean for each photo [batch, width]."""
    from pipeline.tensorflow_v1 import tf

    if count == 1:
        return vectors
    return tf.reduce_mean(tf.reshape(vectors, [count, -1, int(vectors.shape[-1])]), axis=0)
