"""Data sets: the rows of an index, one for each photo, with its label, content hash and split.

photos = read_photos(folder / "index.csv")    all of them, in columns
for photo in each_photo(folder / "index.csv"): one at a time

Where they come from is in ``scan`` (what lies in a folder) and ``indexing`` (checked, and divided into training, validation and testing).
"""

from __future__ import annotations

import copy
import csv
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple, SupportsIndex, overload

import numpy as np

from pipeline import files, images
from pipeline.errors import BadImage, PhotoChanged, UserError

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")


class Photo(NamedTuple):
    """A row of a data set.

    Attributes:
        path: relative to the data set's folder, or the table's, with forward slashes; bytes that are not UTF-8 as surrogates.
        label: the name of the folder below the data set's folder that it lies in, or what a table says.
        sha256: of the file's bytes; empty where they cannot be read.
        bytes: the file's size.
        format, width, height, reencode: as in its header; empty and 0 where it has a problem.
        problem: why it cannot be used; empty where it can.
        split: training, validation or testing; empty before the split.
        view: 0 for the photo as it is, else the number of a distorted view of it.
    """

    path: str
    label: str
    sha256: str = ""
    bytes: int = 0
    format: str = ""
    width: int = 0
    height: int = 0
    reencode: bool = False
    problem: str = ""
    split: str = ""
    view: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether it is no file, but a folder (``name/``) that holds no photo."""
        return self.path.endswith("/")

    @property
    def is_beside(self) -> bool:
        """Whether it is no photo of a class: one without a label, or a folder that holds none."""
        return not self.label or self.is_folder


_TEXTS, _NUMBERS = ("label", "format", "problem", "split"), ("bytes", "width", "height", "reencode", "view")


class _Texts(dict[str, int]):
    """Texts that occur in many rows, each with its number; one that is new gets the next."""

    def __init__(self) -> None:
        self.of_number: list[str] = []
        for text in ("", *SPLITS):
            self[text]

    def __missing__(self, text: str) -> int:
        self[text] = number = len(self)
        self.of_number.append(text)
        return number


class Photos(Sequence[Photo]):
    """Many photos in a hundred bytes and the path for each, where objects take five hundred.

    A row is made when it is asked for, a list of rows for a slice.
    """

    def __init__(self, photos: Iterable[Photo] = ()) -> None:
        self._paths, self._ends = bytearray(), array("q", [0])
        self._hashes = bytearray()
        self._known = _Texts()
        self._texts, self._numbers = array("i"), array("q")  # row by row
        for photo in photos:
            self.append(photo)

    def append(self, photo: Photo) -> None:
        """Add a row. Raises ValueError where its hash is not one."""
        digest, texts, numbers = self._packed(photo)
        self._paths += photo.path.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._paths))
        self._hashes += digest
        self._texts.extend(texts)
        self._numbers.extend(numbers)

    def put(self, row: int, photo: Photo) -> None:
        """Replace all of a row but its path."""
        digest, texts, numbers = self._packed(photo)
        self._hashes[32 * row : 32 * row + 32] = digest
        self._texts[4 * row : 4 * row + 4] = array("i", texts)
        self._numbers[5 * row : 5 * row + 5] = array("q", numbers)

    def _packed(self, photo: Photo) -> tuple[bytes, tuple[int, ...], tuple[int, ...]]:
        _, label, sha256, size, kind, width, height, reencode, problem, split, view = photo
        digest = bytes.fromhex(sha256) or _NO_HASH
        if len(digest) != len(_NO_HASH):
            raise ValueError(f"{sha256!r} is no SHA-256")
        known = self._known
        return digest, (known[label], known[kind], known[problem], known[split]), (size, width, height, reencode, view)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: SupportsIndex) -> Photo: ...
    @overload
    def __getitem__(self, row: slice) -> list[Photo]: ...

    def __getitem__(self, row: SupportsIndex | slice) -> Photo | list[Photo]:
        if isinstance(row, slice):
            return [self[one] for one in range(len(self))[row]]
        row = range(len(self))[row]
        label, kind, problem, split = map(self._known.of_number.__getitem__, self._texts[4 * row : 4 * row + 4])
        size, width, height, reencode, view = self._numbers[5 * row : 5 * row + 5]
        return Photo(self._path(row), label, self._sha256(row), size, kind, width, height, bool(reencode), problem, split, view)

    def __iter__(self) -> Iterator[Photo]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the rows are the same, of a list too."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(one == two for one, two in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def _path(self, row: int) -> str:
        return self._paths[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")

    def _sha256(self, row: int) -> str:
        digest = self._hashes[32 * row : 32 * row + 32]
        return "" if digest == _NO_HASH else digest.hex()

    def paths(self) -> Iterator[str]:
        """The path of each row."""
        return map(self._path, range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """The numbers of a column, int64 [photos]. Nothing can be added while it is in use."""
        return np.frombuffer(self._numbers, np.int64).reshape(-1, len(_NUMBERS))[:, _NUMBERS.index(name)]

    def _texts_of(self, name: str) -> np.ndarray:
        return np.frombuffer(self._texts, np.int32).reshape(-1, len(_TEXTS))[:, _TEXTS.index(name)]

    def contents(self) -> tuple[np.ndarray, np.ndarray]:
        """The row of each different content, in the order of their hashes, and which of these each row has, int64 [photos]."""
        # As texts, numpy takes zeros at the end for none; but all are of one length.
        _, first, which = np.unique(np.frombuffer(self._hashes, "S32"), return_index=True, return_inverse=True)
        return first, which

    def unique(self) -> np.ndarray:
        """The rows that are the first of their content and view, int64, in the order of the hashes."""
        _, content_of = self.contents()
        views = self.column("view")
        _, first = np.unique(content_of * (views.max(initial=0) + 1) + views, return_index=True)
        return first

    def labels(self) -> tuple[list[str], np.ndarray]:
        """The labels in the order of the classifier's outputs, and which of them each row has, int64 [photos]."""
        numbers, which = np.unique(self._texts_of("label"), return_inverse=True)
        labels = [self._known.of_number[number] for number in numbers]
        order = sorted(range(len(labels)), key=labels.__getitem__)
        places = np.empty(len(labels), int)
        places[order] = np.arange(len(labels))
        return [labels[number] for number in order], places[which]

    def counts(self) -> dict[str, int]:
        """How many rows have each label, in the order of the classifier's outputs."""
        labels, which = self.labels()
        return dict(zip(labels, np.bincount(which).tolist()))

    def of_several_labels(self) -> np.ndarray:
        """The rows whose content has another label elsewhere, int64."""
        (first, content_of), (_, label_of) = self.contents(), self.labels()
        torn = np.zeros(len(first), bool)
        torn[content_of[label_of != label_of[first][content_of]]] = True
        return np.flatnonzero(torn[content_of])

    def has(self, name: str, text: str) -> np.ndarray:
        """Which rows have a text in a column, bool [photos]."""
        return self._texts_of(name) == self._known.get(text, -1)

    def where(self, kept: np.ndarray) -> Photos:
        """The rows for which ``kept``, bool [photos], is true."""
        return self if kept.all() else Photos(compress(self, kept))

    def followed_by(self, others: Photos) -> Photos:
        """These rows, and then the others."""
        return Photos(chain(self, others)) if others else self

    def divided(self, splits: np.ndarray) -> Photos:
        """The same rows, each in the split of this number of ``SPLITS``. Nothing can be added to them."""
        divided = copy.copy(self)
        divided._texts = array("i", self._texts)
        divided._texts_of("split")[:] = np.array([self._known[split] for split in SPLITS])[splits]
        return divided


_NO_HASH = bytes(32)
"""In the place of a hash that is not known; nobody has seen a file that has it."""


INDEX, SKIPPED = "index.csv", "skipped.csv"
"""What the files of ``write_photos`` and ``write_skipped`` are called in a task's output."""

LISTED = 1000
"""Names that a manifest lists at most, of photos or classes."""


def write_photos(path: Path, photos: Iterable[Photo]) -> None:
    """Write an index as CSV, a row for each photo, whole or not at all."""
    files.write_csv(path, chain([Photo._fields], photos))


def each_photo(path: Path) -> Iterator[Photo]:
    """Read an index that ``write_photos`` wrote, a row at a time."""
    with open(path, **files.AS_ON_DISK) as file:
        yield from _rows(file)


def _rows(lines: Iterable[str]) -> Iterator[Photo]:
    texts = csv.reader(lines)
    next(texts, None)  # the heading
    return map(from_texts, texts)


def from_texts(texts: Sequence[str]) -> Photo:
    """The row of the texts of a line. Raises ValueError where they are none of a row."""
    path, label, digest, size, kind, width, height, reencode, problem, split, view = texts
    numbers = int(size), int(width), int(height), int(view)
    if len(bytes.fromhex(digest)) not in (0, len(_NO_HASH)) or not 0 <= min(numbers) <= max(numbers) < 2**63:
        raise ValueError(f"{path} has numbers that are out of range")
    if reencode not in ("True", "False"):
        raise ValueError(f"{path} is neither to be re-encoded nor not: {reencode}")
    # What is the same in many rows is kept once.
    label, kind, problem, split = map(sys.intern, (label, kind, problem, split))
    return Photo(path, label, digest, numbers[0], kind, *numbers[1:3], reencode == "True", problem, split, numbers[3])


def read_photos(path: Path) -> Photos:
    """The index that ``write_photos`` wrote."""
    return Photos(each_photo(path))


def write_skipped(path: Path, skipped: Iterable[Photo]) -> None:
    """Write which photos are left out, and why, as CSV for a person to read."""
    files.write_csv(path, [("path", "label", "reason"), *((photo.path, photo.label, photo.problem) for photo in skipped)])


def read_skipped(path: Path) -> list[Photo]:
    """Read what ``write_skipped`` wrote."""
    with open(path, **files.AS_ON_DISK) as file:
        return [Photo(row["path"], row["label"], problem=row["reason"]) for row in csv.DictReader(file)]


def read_as_indexed(photo: Photo, folder: Path) -> bytes:
    """The bytes of a photo's file. Raises PhotoChanged where they are gone, or others by now."""
    try:
        data = images.read_file(folder / photo.path)
    except BadImage as error:
        raise PhotoChanged(str(error)) from error
    if files.sha256_bytes(data) != photo.sha256:
        raise PhotoChanged("it changed while the run was going on; the next run takes it as it is then")
    return data


def in_order(photo: Photo) -> tuple[str, str]:
    """The key by which rows are sorted."""
    return photo.path, photo.label


def fingerprint(photos: Iterable[Photo]) -> str:
    """The snapshot of a data set: a hash of paths, labels and contents, the same wherever the folder lies.

    How photos are read is a part of it, since a snapshot holds what their headers said.
    """
    digest = sha256(images.PREPROCESSING_VERSION.encode())
    for photo in photos:
        row = "\0".join((photo.path, photo.label, photo.sha256 or photo.problem)) + "\n"
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def write_snapshot(path: Path, photos: Iterable[Photo]) -> None:
    """Write a snapshot, sealed: its fingerprint does not say what the headers of the photos did, and vectors depend on that."""
    files.write_sealed_csv(path, chain([Photo._fields], photos))


def read_snapshot(path: Path, snapshot: str) -> Photos:
    """The photos of a snapshot, named by its fingerprint and perhaps a number behind a point.

    Raises UserError where the file is not what ``write_snapshot`` wrote, and removes it.
    """
    try:
        with files.open_sealed_csv(path) as lines:
            photos = Photos(_rows(lines))
    except (OSError, ValueError, csv.Error):
        photos = Photos()
    if fingerprint(photos) != snapshot.partition(".")[0]:
        path.unlink(missing_ok=True)
        raise UserError(f"{path} was damaged or is gone; run again: it is made anew from the photos as they are then")
    return photos
