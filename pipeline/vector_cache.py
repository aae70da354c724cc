"""The cache of vectors: one file per photo and view, named by the photo's content, checked whenever it is read.

    store/vectors/<what computed it>/ab/abcd….npy        a photo as it is
    store/vectors/<what computed it>/ab/abcd…-3.npy      its third distorted view

A file is a ``.npy`` with four more bytes, so that numpy reads it as well: the CRC-32 of what stands before them and of the
names of the file and of its model's folder, so that a vector in another one's place is none.
"""

from __future__ import annotations

import errno
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import files
from pipeline.packed import npy_header

MOST_BYTES = 1 << 24
"""More than any vector has."""

SECONDS_UNTIL_LITTER = 86400
"""A half-written file this old is nobody's any more."""


def name_of(sha256: str, view: int = 0) -> str:
    """The name of a vector: the hash of the image's bytes, and the number of the view where it is a distorted one."""
    return f"{sha256}-{view}" if view else sha256


class VectorCache:
    """The vectors of one backbone, and of its distorted views in a folder of their own."""

    def __init__(self, folder: Path, width: int, views_folder: Path | None = None) -> None:
        self._folder, self._views_folder = folder, views_folder or folder
        self._width = width
        self._header = npy_header(width)

    def path(self, sha256: str, view: int = 0) -> Path:
        return Path(self._place(sha256, view))

    def _place(self, sha256: str, view: int) -> str:
        # Text: each row has a place at each look, and Path takes some times as long to make one.
        return f"{self._views_folder if view else self._folder}/{sha256[:2]}/{name_of(sha256, view)}.npy"

    def read(self, sha256: str, view: int = 0) -> np.ndarray | None:
        """The vector of an image, float32 [width], or None where there is none that can be trusted."""
        path = self._place(sha256, view)
        size = len(self._header) + 4 * self._width + 4
        try:
            data = files.read_regular(path, size)
        except OSError:
            return None
        if len(data) != size or not data.startswith(self._header) or not is_whole(data, path):
            return None
        vector = np.frombuffer(data, "<f4", self._width, len(self._header))
        return vector if np.isfinite(vector).all() else None

    def write(self, vector: np.ndarray, sha256: str, view: int = 0) -> None:
        """Keep the vector of an image. Raises ValueError for one of another shape or not finite."""
        if vector.shape != (self._width,) or not np.isfinite(vector).all():
            raise ValueError(f"a vector of shape {vector.shape}, wanted {self._width} finite numbers")
        path, data = self._place(sha256, view), self._header + vector.astype("<f4").tobytes()
        data += _checksum(data, path)
        try:
            files.write_atomic(path, data)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
                raise
            _make_room(Path(path))
            files.write_atomic(path, data)


def _make_room(path: Path) -> None:
    """Make the folder of a vector's file, and remove what stands in the place of either: nothing but vectors belongs here."""
    if (path.parent.is_symlink() or path.parent.exists()) and not path.parent.is_dir():
        path.parent.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove(path)


def is_whole(data: bytes, path: str | Path) -> bool:
    """Whether the bytes of a vector's file end in the CRC-32 of the rest and of its name."""
    return _checksum(data[:-4], path) == data[-4:]


def _checksum(data: bytes, path: str | Path) -> bytes:
    *_, model, _part, name = str(path).split("/")
    place = f"{model}/{name}".encode()
    return zlib.crc32(place, zlib.crc32(data)).to_bytes(4, "little")


# --- Looking after it, whatever computed the vectors -----------------------------------------------------------------


@dataclass(frozen=True)
class Vectors:
    """What lies in one folder of the cache: how many vectors, and how many bytes they take."""

    folder: Path
    count: int
    bytes: int


def survey(cache: Path) -> list[Vectors]:
    """The folders of the cache, a row each, sorted by name."""
    return [
        Vectors(
            folder, sum(1 for _ in vector_files(folder)), sum(entry.stat(follow_symlinks=False).st_size for entry in vector_files(folder))
        )
        for folder in folders(cache)
    ]


def folders(cache: Path) -> list[Path]:
    """The folders of the cache, one for each thing that computed vectors."""
    return sorted(path for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []


def vector_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything that lies where a vector's file belongs, in order of the names."""
    return (entry for entry in _entries(folder) if entry.name.endswith(".npy"))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from sorted(os.scandir(part), key=lambda entry: entry.name)


def problem_of(path: Path) -> str:
    """What is wrong with the file of a vector, in words; nothing where it is whole, of any width."""
    try:
        data = files.read_regular(path, MOST_BYTES)
    except OSError:
        return "no file that can be read"
    if len(data) < 20 or not data.startswith(b"\x93NUMPY"):
        return "no vector"
    if not is_whole(data, path):
        return "cut short or altered"
    try:
        vector = np.lib.format.read_array(io.BytesIO(data[:-4]), allow_pickle=False)
    except ValueError:
        return "no vector"
    if vector.ndim != 1 or vector.dtype != np.float32:
        return f"an array of {vector.dtype} {list(vector.shape)}"
    return "" if np.isfinite(vector).all() else "numbers that are not finite"


def verify(folder: Path, looked_at: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, str]]:
    """Check every file of a folder of the cache; yields those with a problem, and the problem."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and not path.name.startswith("."):  # macOS leaves notes everywhere
            yield path, "no folder of vectors"
    for entry in vector_files(folder):
        if problem := problem_of(Path(entry.path)):
            yield Path(entry.path), problem
        looked_at()


def unused(folder: Path, used: set[str]) -> Iterator[os.DirEntry[str]]:
    """The vectors of images that are not in ``used``, a set of the hashes of their bytes; and what killed runs left half-written."""
    for entry in _entries(folder):
        if entry.name.endswith(".npy"):
            if entry.name.removesuffix(".npy").partition("-")[0] not in used:
                yield entry
        elif entry.name.endswith(".tmp") and time.time() - entry.stat(follow_symlinks=False).st_mtime > SECONDS_UNTIL_LITTER:
            yield entry


def remove(path: Path) -> None:
    """Remove what lies in a vector's place, and the folder around it where nothing is left in it."""
    files.remove(path)
    for folder in (path.parent, path.parent.parent):
        if any(folder.iterdir()):
            return
        folder.rmdir()
