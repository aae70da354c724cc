"""A photo becomes the network's input, in two steps that training, evaluation and prediction share.

1. ``readable_bytes``: the file's bytes, checked by their header, as bytes that TensorFlow reads rightly. Most files pass
   untouched; what TensorFlow gets wrong in silence (EXIF rotation, palette bitmaps, animations) is re-encoded.
2. ``decode_and_resize`` and ``normalise``: in the graph, bytes → pixels → the network's input.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


def decode_and_resize(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """In the graph: one encoded image (scalar string) → float32 [size, size, 3] in 0..255, RGB.

    Bilinear with half-pixel centres and no antialias, as ``tf.image.resize`` does by default: the resize that the
    EfficientNet-Lite networks were trained with.
    """
    from pipeline.tensorflow_v1 import tf

    # channels=3 always: with 0, TensorFlow 2.21 aborts the process on an animated WebP.
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    pixels.set_shape([None, None, 3])
    batch = tf.raw_ops.ResizeBilinear(images=pixels[tf.newaxis], size=[size, size], half_pixel_centers=True)
    return batch[0]


def normalise(pixels: Any, mean: float, scale: float) -> Any:
    """Pixels in 0..255 → the range that the network was trained on: (x - mean) / scale."""
    return (pixels - mean) / scale
