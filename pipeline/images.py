"""A photo becomes the network's input, in two steps that training, evaluation and prediction share.

1. ``readable_bytes``: the file's bytes, checked by their header, as bytes that TensorFlow reads rightly. Most files pass
   untouched; what TensorFlow gets wrong in silence (EXIF rotation, palette bitmaps, animations) is re-encoded.
2. ``decode_and_resize`` and ``normalise``: in the graph, bytes → pixels → the network's input. Distorted views of training
   photos take ``decode_and_distort`` instead; where a bottleneck is a mean, ``looks`` stand between the pixels and the network.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, JpegImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipeline import files
from pipeline.errors import BadImage

if TYPE_CHECKING:
    from pipeline.tensorflow_v1 import tf

PREPROCESSING_VERSION = "3"
"""Part of the key of every cached vector: raise it whenever the same photo would give the network other numbers, or is
refused where it was read, or the other way round."""

MAX_BYTES = 1_000_000_000
"""A file larger than this is refused unread. 100 megapixels of three times 16 bits are 600 MB."""

MAX_PIXELS = 100_000_000
"""A photo larger than this is refused by its header. 100 megapixels are up to 1.2 GB while they are decoded."""

MAX_SCANS = 100
"""A progressive JPEG that goes over its pixels more often is refused: real ones do some ten times, and each takes time."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF")
"""What is read, as Pillow names it."""

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .jfi .jif .pjpeg .pjp .png .apng .gif .bmp .dib .webp .avif .avifs .tif .tiff "  # noqa: SIM905
    ".heic .heif .hif .jp2 .j2k .jpx .jxl .psd .svg .tga .ppm .pgm .dng .cr2 .cr3 .nef .arw .orf .raf .rw2".split()
)
"""A file so named that is no image, or of none of the FORMATS, is reported; so is any other that begins like one of them. The
rest is taken for notes beside the photos."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What brings a photo of that orientation upright."""

# Pillow warns of "decompression bombs", where MAX_PIXELS decides, and of broken EXIF, which matters to nobody.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    """What an image says of itself.

    Attributes:
        format: one of FORMATS.
        width, height: in pixels, before an EXIF rotation.
        reencode: whether TensorFlow would read it wrongly, or not at all, so that ``readable_bytes`` re-encodes it.
    """

    format: str
    width: int
    height: int
    reencode: bool


def read_file(path: Path) -> bytes:
    """The bytes of a photo's file. Raises BadImage where they cannot be had, with the reason."""
    try:
        return files.read_regular(path, MAX_BYTES)
    except OSError as error:
        raise BadImage(str(error.strerror) if error.errno == errno.EFBIG else f"cannot be read: {error.strerror}") from error


def read_header(data: bytes) -> Header:
    """Check an image by its header and its end, without decoding it.

    Raises BadImage with a reason that a person understands.
    """
    with _opened(data) as image:
        return _header(image, data)


def readable_bytes(data: bytes) -> bytes:
    """The same picture in bytes that TensorFlow's ``decode_image`` reads rightly: ``data`` itself wherever it does.

    Re-encoded, as an uncompressed bitmap of 24 bits, are the first frame of an animation and what ``_wants_reencoding``
    lists. Transparency is dropped, as TensorFlow drops it: the colour that lies under it counts. Raises BadImage.
    """
    with _opened(data) as image:
        return _bitmap(image) if _header(image, data).reencode else data


def blank() -> bytes:
    """A small black picture, to run a network on once: to see what comes out, or so that the first photo does not wait."""
    bitmap = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bitmap, "BMP")
    return bitmap.getvalue()


# --- The header -----------------------------------------------------------------------------------------------------

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),  # two letters that a text may begin with, too
    (8, b"WEBP", "WebP"),
    (4, b"ftypavif", "AVIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
)


_HEADERS_OF_BMP = tuple(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))
"""Behind the signature, a bitmap says how long its header is."""

_LOST = bytes(4096)
"""What a power cut leaves of a file: its size, and zeros in pages that were not written. In compressed pixels there are no such runs."""


def _kind(data: bytes) -> str:
    """The format that a file begins like, whether it is whole or not; empty where it is none of those read here."""
    return next((kind for at, mark, kind in _SIGNATURES if data.startswith(mark, at)), "")


def looks_like_one(data: bytes) -> bool:
    """Whether a file begins like an image of one of the FORMATS, whatever becomes of it behind that."""
    kind = _kind(data)
    return bool(kind) and (kind != "BMP" or data[14:18] in _HEADERS_OF_BMP)


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile]:
    """The image, its header read. Whatever Pillow raises until it is closed becomes BadImage: its plugins raise many kinds."""
    if not data:
        raise BadImage("the file is empty")
    kind = _kind(data)
    if _is_cut_short(data, kind):
        raise BadImage(f"the {kind} file is cut short")
    if kind in ("WebP", "AVIF") and data.endswith(_LOST):
        raise BadImage(f"the {kind} file ends in nothing but zeros: a part of it was lost")
    try:
        with _open(data, kind) as image:
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image that is read here ({_looks_like(data, kind)})") from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # the machine's lack and not the photo's
        raise BadImage(f"the {kind or 'image'} file is {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """What is wrong with a file, from what Pillow raised."""
    if isinstance(error.__cause__ or error, (IndexError, struct.error)):  # they speak of Pillow's own code
        return "damaged: a part of its header is cut short or malformed"
    reason = " ".join(str(error).split()) or type(error).__name__
    is_rare = reason.lower().startswith(("unsupported", "unknown", "unrecognized"))
    return f"of a rare kind that is not read: {reason}" if is_rare else f"damaged: {reason}"


def _open(data: bytes, kind: str) -> ImageFile:
    if kind == "JPEG":
        # Image.open takes a photo with a second picture behind it (MPO) for another format, and fails where that is damaged.
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    Image.init()  # open() fails on a format whose plugin is not loaded yet
    image = Image.open(io.BytesIO(_without_notes(data) if kind == "PNG" else data), formats=FORMATS)
    assert isinstance(image, ImageFile)
    return image


def _looks_like(data: bytes, kind: str) -> str:
    if kind:
        return "a TIFF file that is damaged or of a rare kind" if kind == "TIFF" else f"a damaged {kind} file"
    if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if data.startswith((b"ftyphe", b"ftypmif1", b"ftypmsf1"), 4):
        return "HEIC: convert it to JPEG"
    if not data.strip(b"\0"):
        return "nothing but zeros"
    return "wanted: JPEG, PNG, GIF, BMP, WebP, AVIF or TIFF"


def _is_cut_short(data: bytes, kind: str) -> bool:
    """Whether the mark at a file's end is missing. What lies behind it, like the film that some phones add, is no matter."""
    if kind == "JPEG":
        return data.find(b"\xff\xd9", _first_scan(data)) < 0
    if kind == "PNG":
        return data.rfind(b"IEND") < 0
    if kind == "GIF":
        return data.rfind(b";") < 0
    if kind == "WebP":
        return len(data) < 8 + struct.unpack("<I", data[4:8])[0]
    return False


def _first_scan(data: bytes) -> int:
    """Where the pixels of a JPEG begin, behind its notes: a preview in them has an end mark and scans of its own."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        is_fill = data[position + 1 : position + 2] == b"\xff"
        position += 1 if is_fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _without_notes(png: bytes) -> bytes:
    """A PNG with no more in it than the picture and its EXIF, which stands first.

    Pillow looks for EXIF behind the pixels by decoding them, and refuses what TensorFlow reads: a note of more than
    1 MB (image generators write such), or with a wrong checksum.
    """
    exif, picture = [], []
    view = memoryview(png)
    position = 33  # behind the signature and the first chunk, which is the header
    while position + 12 <= len(png):
        name = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if name == b"eXIf":
            exif.append(view[position:end])
        elif name in (b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            picture.append(view[position:end])
        position = end
    return b"".join([view[:33], *exif, *picture])


def _header(image: ImageFile, data: bytes) -> Header:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS:,}")
    if image.format == "JPEG":
        start = _first_scan(data)
        scans = data.count(b"\xff\xda", start, data.find(b"\xff\xd9", start))
        if scans > MAX_SCANS:
            raise BadImage(f"a JPEG file of {scans:,} scans, more than {MAX_SCANS}")
    if isinstance(image, TiffImageFile):
        _refuse_odd_tiff(image, data)
    return Header(str(image.format), image.width, image.height, _wants_reencoding(image, data))


# Tags of a TIFF (TIFF 6.0, Adobe 1992; DNG 1.6, Adobe 2021).
_SUBFILE, _BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT, _DNG = 254, 258, 262, 284, 339, 50706
_REDUCED, _WHITE_IS_ZERO, _SEPARATE, _SIGNED = 1, 0, 2, 2


def _refuse_odd_tiff(image: TiffImageFile, data: bytes) -> None:
    """Raise BadImage for what Pillow takes for another picture than it is, without a word."""
    tags = image.tag_v2
    if _DNG in tags or data[8:10] == b"CR" or tags.get(_SUBFILE, 0) & _REDUCED:
        raise BadImage("a camera's raw file, or a TIFF file that begins with a preview; save the photo itself as JPEG or PNG")
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise BadImage("its pixels are signed numbers, and nothing says which one is black; convert it to 8 or 16 bits")
    if tags.get(_PLANES) == _SEPARATE and max(tags.get(_BITS, (1,))) > 8:
        raise BadImage("a TIFF file of more than 8 bits a colour that keeps each colour apart; save it as PNG")


def _wants_reencoding(image: ImageFile, data: bytes) -> bool:
    """Whether TensorFlow's ``decode_image`` with three channels would read an image wrongly, or not at all.

    It ignores EXIF rotations. It reads neither AVIF nor TIFF, nor a WebP with alpha or animation. It takes palette
    indices of a bitmap for greys, and refuses a bitmap with a byte too much. Of a GIF it reads all frames, for minutes
    where there are many, knows no canvas, and paints black what is transparent.
    """
    if image.format in ("AVIF", "TIFF"):
        return True
    if image.format == "WEBP" and (image.mode != "RGB" or (data[12:16] == b"VP8X" and data[20] & 0x02)):
        return True
    if image.format == "BMP" and not _is_plain_bitmap(image, data):
        return True
    if image.format == "GIF" and not _is_plain_gif(image, data):
        return True
    return _turn(image) is not None


def _is_plain_bitmap(image: ImageFile, data: bytes) -> bool:
    """Whether it is uncompressed, 24 bits deep, from the bottom up, and ends with its last row."""
    rows = image.height * (-(-image.width * 3 // 4) * 4)
    plain = struct.pack("<IiiHHI", 40, image.width, image.height, 1, 24, 0)
    return data[14:34] == plain and len(data) == struct.unpack("<I", data[10:14])[0] + rows


def _is_plain_gif(image: ImageFile, data: bytes) -> bool:
    """Whether it is one opaque picture that fills its canvas, and nothing comes after it."""
    (tile,) = image.tile
    if tile.extents != (0, 0, *image.size) or "transparency" in image.info:
        return False
    position = tile.offset
    while length := int.from_bytes(data[position : position + 1], "big"):
        position += 1 + length
    return data[position + 1 : position + 2] == b";"


def _turn(image: ImageFile) -> Transpose | None:
    try:
        # Not image.getexif(): for a PNG without EXIF that decodes the picture.
        return _UPRIGHT.get(Image.Image.getexif(image)[_ORIENTATION])
    except Exception:  # no EXIF, or none that can be read
        return None


# --- The pixels -----------------------------------------------------------------------------------------------------


def _bitmap(image: ImageFile) -> bytes:
    """The picture upright, as an uncompressed bitmap of 24 bits."""
    image.load()  # a TIFF turns itself upright here
    turn = _turn(image)
    picture = _rgb(image)
    bitmap = io.BytesIO()
    (picture if turn is None else picture.transpose(turn)).save(bitmap, "BMP")
    return bitmap.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    """In the colours that TensorFlow would see, where Pillow sees others. Raises BadImage where nobody can say."""
    if image.mode in ("I", "F"):
        raise BadImage("its pixels are numbers of 32 bits, and nothing says which one is white; convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow would clip to 8 bits; TensorFlow takes the upper 8. Of a TIFF Pillow tells neither the depth nor what is white.
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        share = 256 / 2 ** tags.get(_BITS, (16,))[0]
        image = image.convert("I").point(lambda value: value * share).convert("L")
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            image = ImageChops.invert(image)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # only Adobe's programs store the complements, which Pillow expects of all
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """In the graph: one encoded image (scalar string) → uint8 [height, width, 3], RGB."""
    from pipeline.tensorflow_v1 import tf

    # channels=3 always: with 0, TensorFlow 2.21 aborts the process on an animated WebP.
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    pixels.set_shape([None, None, 3])
    return pixels


def decode_and_resize(encoded: tf.Tensor, size: int, *, half_pixel_centers: bool = True) -> tf.Tensor:
    """In the graph: one encoded image (scalar string) → float32 [size, size, 3] in 0..255, RGB.

    Bilinear with half-pixel centres and no antialias, as ``tf.image.resize`` does by default: the resize that the
    EfficientNet-Lite networks were trained with. Without ``half_pixel_centers`` as TensorFlow 1 did it, half a pixel up and
    to the left.
    """
    from pipeline.tensorflow_v1 import tf

    batch = tf.raw_ops.ResizeBilinear(images=decode(encoded)[tf.newaxis], size=[size, size], half_pixel_centers=half_pixel_centers)
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


AS_IT_IS = np.zeros(0, np.float32)
"""Says that a photo is not distorted, where ``Distortions.drawn`` says how it is."""


def decode_view(encoded: tf.Tensor, drawn: tf.Tensor, size: int, *, half_pixel_centers: bool = True) -> tf.Tensor:
    """In the graph: one encoded image, and AS_IT_IS or how it is distorted → float32 [size, size, 3] in 0..255, RGB."""
    from pipeline.tensorflow_v1 import tf

    return tf.cond(
        tf.size(drawn) > 0,
        lambda: decode_and_distort(encoded, drawn, size),
        lambda: decode_and_resize(encoded, size, half_pixel_centers=half_pixel_centers),
    )


# --- Several looks at one photo -------------------------------------------------------------------------------------

AVERAGES = ("none", "mirror", "mirror+crops")
"""Of which looks at a photo the bottleneck is the mean: the photo, also its mirror image, also its four corners."""

CROP = 0.875
"""The side of a corner crop, as a share of the photo's: what networks are usually tested on."""


def looks(batch: tf.Tensor, average: str) -> tuple[tf.Tensor, int]:
    """In the graph: images [batch, size, size, 3] → [batch * looks, size, size, 3], one's looks in a row, and how many it has."""
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
    return tf.reshape(tf.stack(seen, axis=1), [-1, *batch.shape[1:]]), len(seen)


def mean_look(vectors: tf.Tensor, count: int) -> tf.Tensor:
    """In the graph: the vectors of all looks [batch * count, width] → their mean for each photo [batch, width]."""
    from pipeline.tensorflow_v1 import tf

    if count == 1:
        return vectors
    return tf.reduce_mean(tf.reshape(vectors, [-1, count, int(vectors.shape[-1])]), axis=1)
