"""What lies in a data set's folder, or what a table names there; only what changed since the last look is read.

photos = of_folder(folder, Memory(file))      a folder per class
photos = of_table(table, Memory(file))
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import glob
import os
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import chain, groupby
from pathlib import Path

from pipeline import dataset, files, images
from pipeline.console import Report, silent
from pipeline.dataset import Photo, Photos, in_order
from pipeline.errors import BadImage, DataMissing, UserError
from pipeline.machine import map_in_threads
from pipeline.tables import Row, Table
from pipeline.words import readable

_RACY_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again within its time stamp (2 s on FAT)."""

_NEVER_NS = 2**63 - 1
"""As late as a time can be (the year 2262); some file systems know later ones."""

_NOT_A_PHOTO = "not a photo"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells, without opening it, that a file is the one that was read before; as in git's index."""

    bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


NO_STAMP = Stamp(0, 0, 0)
"""Of a file that is not there."""


class Memory:
    """What the last scan found: path, size and times → the row, a sealed CSV file sorted by path.

    A file that is lost, altered in any bit or of a version that reads photos otherwise costs a rehash.
    """

    _HEADING = ["mtime_ns", "ctime_ns", *Photo._fields, f"preprocessing {images.PREPROCESSING_VERSION}"]

    def __init__(self, file: Path) -> None:
        self._file = file
        self.count = 0
        """Rows that there were, once all files were recalled."""

    def recall(self, found: Iterable[tuple[str, Stamp]]) -> Iterator[tuple[str, Stamp, Photo | None]]:
        """Each file of these, which are sorted by path, with its row; None where it is unknown or has changed since.

        The two are read side by side, so that neither is held.
        """
        remembered = self._rows()
        known = next(remembered, None)
        for path, stamp in found:
            while known and known[1].path < path:
                known = next(remembered, None)
            yield path, stamp, known[1] if known and known[1].path == path and known[0] == stamp else None
        collections.deque(remembered, maxlen=0)  # to count them

    def _rows(self) -> Iterator[tuple[Stamp, Photo]]:
        try:
            with files.open_sealed_csv(self._file) as lines:
                rows = csv.reader(lines)
                if next(rows, None) == self._HEADING:
                    for mtime_ns, ctime_ns, *texts in rows:
                        photo = dataset.from_texts(texts)
                        self.count += 1
                        yield Stamp(photo.bytes, int(mtime_ns), int(ctime_ns)), photo
        except (OSError, ValueError, csv.Error):
            return

    def keep(self, rows: Iterable[tuple[Stamp, Photo]], read_at_ns: int) -> None:
        """Remember these rows and no others, but for those that may still change within their time stamp."""
        settled = ((stamp, photo) for stamp, photo in rows if photo.sha256 and max(stamp.mtime_ns, stamp.ctime_ns) < read_at_ns - _RACY_NS)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = ((stamp.mtime_ns, stamp.ctime_ns, *photo) for stamp, photo in settled)
        files.write_sealed_csv(self._file, chain([self._HEADING], lines))

    def forget(self, paths: Iterable[str]) -> None:
        """Have these files read again by the next scan, whatever their stamps are."""
        forgotten = set(paths)
        self.keep(((stamp, photo) for stamp, photo in self._rows() if photo.path not in forgotten), _NEVER_NS)


def of_folder(folder: Path, memory: Memory, report: Report = silent) -> Photos:
    """The photos in ``folder``, sorted by path, hashed and checked by their headers.

    A photo that cannot be used has its ``problem``. Hidden files, ``__MACOSX`` and files that neither are images nor are
    named like one are left out. Raises DataMissing where the folder is missing.
    """
    if not folder.is_dir():
        raise DataMissing(f"there is no folder {folder}; put a folder for each class of photos there, or name another one")
    found = (item for item in _walk(folder) if _label_of(item[0]))
    looked_at = _look(folder, found, memory, report)
    photos = looked_at.where(~looked_at.has("problem", _NOT_A_PHOTO))
    odd = _beside_the_classes(folder, set(photos.labels()[0]))
    return Photos(merge(photos, odd, key=in_order)) if odd else photos


def of_table(table: Table, memory: Memory, report: Report = silent) -> Photos:
    """The photos that a table names, as ``of_folder`` has them; one that has two labels there comes twice.

    A file that is missing or no photo, and a line that gives no label, are rows with a problem. Raises UserError where the
    table cannot be understood.
    """
    rows = sorted(table.read(), key=lambda row: row[:2])
    found = ((path, _stamp(table.folder / path)) for path, _ in groupby(rows, key=_path_of))
    photos = _look(table.folder, found, memory, report)
    named = zip(photos, groupby(rows, key=_path_of))
    return Photos(photo._replace(label=row.label, problem=row.problem or photo.problem) for photo, (_, same) in named for row in same)


def _path_of(row: Row) -> str:
    return row.path


def _look(folder: Path, found: Iterable[tuple[str, Stamp]], memory: Memory, report: Report) -> Photos:
    """The rows of files that come sorted by path, labelled by their folders; only those are read that the memory lacks."""
    now_ns = time.time_ns()
    photos, times, unread = Photos(), array("q"), array("q")  # there may be a million of them
    for path, stamp, known in memory.recall(found):
        if known is None:
            unread.append(len(photos))
        photos.append(known or Photo(path, _label_of(path), bytes=stamp.bytes))
        times.extend(min(ns, _NEVER_NS) for ns in (stamp.mtime_ns, stamp.ctime_ns))
    report(0, len(unread))
    for done, (row, photo) in enumerate(zip(unread, map_in_threads(lambda row: _read(folder, photos[row]), unread)), 1):
        photos.put(row, photo)
        report(done, len(unread))
    if unread or len(photos) != memory.count:
        stamps = (Stamp(photo.bytes, *both) for photo, both in zip(photos, zip(times[::2], times[1::2])))
        memory.keep(zip(stamps, photos), now_ns)
    return photos


def _beside_the_classes(folder: Path, labels: set[str]) -> list[Photo]:
    """What a person should hear of: photos that lie in no class folder, and class folders without a photo."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if _is_folder(entry):
                if entry.name not in labels:
                    found.append(Photo(f"{entry.name}/", entry.name, problem="the folder holds no photo"))
            elif _is_named_like_one(entry.name):
                found.append(Photo(entry.name, "", problem="it lies beside the class folders; move it into one"))
    return sorted(found, key=in_order)


def _walk(root: Path) -> Iterator[tuple[str, Stamp]]:
    """The files below ``root``, sorted by path, through links, but never round in a circle."""
    pending = [("", *_inside(str(root), frozenset()))]
    while pending:
        prefix, names, above = pending[-1]
        if not names:
            pending.pop()
            continue
        path = prefix + names.pop()
        if path.endswith("/"):
            pending.append((path, *_inside(f"{root}/{path[:-1]}", above)))
            continue
        try:
            status = os.stat(f"{root}/{path}")
        except OSError:  # a link that leads nowhere, or a file that went away since
            yield path, NO_STAMP
            continue
        if stat.S_ISREG(status.st_mode):
            yield path, Stamp.of(status)
        elif _is_named_like_one(path):  # a pipe or a device
            yield path, NO_STAMP


def _inside(folder: str, above: frozenset[tuple[int, int]]) -> tuple[list[str], frozenset[tuple[int, int]]]:
    """The names in a folder, those of folders with a slash, in falling order; and which folders one is in there."""
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            return [], above
        with os.scandir(folder) as entries:
            names = [f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries if not _is_hidden(entry.name)]
    except FileNotFoundError:  # it went away since
        return [], above
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}); make it readable or move it away") from error
    return sorted(names, reverse=True), above | {here}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _stamp(path: Path) -> Stamp:
    try:
        return Stamp.of(path.stat())
    except OSError:
        return NO_STAMP


def _is_named_like_one(name: str) -> bool:
    return Path(name).suffix.lower() in images.EXTENSIONS


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _read(folder: Path, photo: Photo) -> Photo:
    """Hash and header of a file, of which path, label and size are known."""
    named_like_one = _is_named_like_one(photo.path)
    if photo.bytes > images.MAX_BYTES and not named_like_one:  # a film, say
        return photo._replace(problem=_NOT_A_PHOTO)
    try:
        data = images.read_file(folder / photo.path)
    except BadImage as error:
        return photo._replace(problem=str(error))
    photo = photo._replace(sha256=files.sha256_bytes(data))
    try:
        header = images.read_header(data)
    except BadImage as error:
        return photo._replace(problem=str(error) if named_like_one or images.looks_like_one(data) else _NOT_A_PHOTO)
    return photo._replace(**dataclasses.asdict(header))


def _label_of(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""


def photos_in(names: Iterable[str], *, listed: Sequence[str] = ()) -> list[Path]:
    """The files that a person means by ``names``: files as they are, what a training would take from folders, nested ones too,
    and what patterns like ``photos/**/*.jpg`` fit.

    ``listed`` are more names, from a list that may be older than the folders: one that is not there any more is kept.

    Raises UserError for a name that is none of these.
    """
    found: list[Path] = []
    for name in names:
        if not os.path.lexists(name) and (fitting := sorted(glob.glob(name, recursive=True))):
            found += [path for one in fitting for path in _meant_by(Path(one))]
        elif os.path.lexists(name):
            found += _meant_by(Path(name))
        else:
            raise UserError(f"there is no file or folder {readable(name)}; name photos, or folders that hold some")
    found += [path for name in listed for path in _meant_by(Path(name))]
    if not found:
        raise UserError("there are no photos in the folders named; name photos, or folders that hold some")
    return found


def _meant_by(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
    except OSError:  # the name is too long, or its folder may not be read: who opens it says so
        return [path]
    return [path / name for name, stamp in _walk(path) if _is_named_like_one(name) or _is_one(path, name, stamp)]


def _is_one(folder: Path, name: str, stamp: Stamp) -> bool:
    return _read(folder, Photo(name, "", bytes=stamp.bytes)).problem != _NOT_A_PHOTO
