"""Data sets: a folder per class, or a table, becomes an index, a row for each photo with its label, content hash and split.

scanned = scan(folder, remembered)            what lies in the folder, reading only what changed
scanned = scan_table(table, remembered)       what a table names
index, skipped = make_index(scanned, …)       checked, and divided into training, validation and testing
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import glob
import operator
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import files, images
from pipeline.console import Report
from pipeline.errors import BadImage, DataMissing, UserError
from pipeline.machine import map_in_threads
from pipeline.tables import Table

TRAINING, VALIDATION, TESTING = SPLITS = ("training", "validation", "testing")

FEW_PHOTOS = 20
"""A class with fewer photos gets a warning: two of them would be its whole test."""

_RACY_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again within its time stamp (2 s on FAT)."""


@dataclass(frozen=True, slots=True)
class Photo:
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
    def is_beside(self) -> bool:
        """Whether it is no photo of a class: one without a label, or a folder (``name/``) that holds none."""
        return not self.label or self.path.endswith("/")


_COLUMNS = [field.name for field in dataclasses.fields(Photo)]
_values_of = operator.attrgetter(*_COLUMNS)


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with files.open_atomic(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


LISTED = 1000
"""Photos that a manifest lists at most, of those that are re-encoded."""


def write_photos(path: Path, photos: Iterable[Photo]) -> None:
    """Write an index as CSV, a row for each photo, whole or not at all."""
    _write_csv(path, chain([_COLUMNS], map(_values_of, photos)))


def each_photo(path: Path) -> Iterator[Photo]:
    """Read an index that ``write_photos`` wrote, a row at a time."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        yield from map(_from_texts, rows)


def _from_texts(texts: Sequence[str]) -> Photo:
    path, label, digest, size, kind, width, height, reencode, problem, split, view = texts
    # What is the same in many rows is kept once: an index may have a million of them.
    label, kind, problem, split = map(sys.intern, (label, kind, problem, split))
    return Photo(path, label, digest, int(size), kind, int(width), int(height), reencode == "True", problem, split, int(view))


def read_photos(path: Path) -> list[Photo]:
    """The index that ``write_photos`` wrote."""
    return list(each_photo(path))


def write_skipped(path: Path, skipped: Iterable[Photo]) -> None:
    """Write which photos are left out, and why, as CSV for a person to read."""
    _write_csv(path, [("path", "label", "reason"), *((photo.path, photo.label, photo.problem) for photo in skipped)])


def read_skipped(path: Path) -> list[Photo]:
    """Read what ``write_skipped`` wrote."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [Photo(row["path"], row["label"], problem=row["reason"]) for row in csv.DictReader(file)]


def _label_of(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""


def readable(path: str) -> str:
    """A path as it can be printed and written as UTF-8: a byte that is not UTF-8 becomes the replacement character."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
    inside = sorted(_walk(path), key=lambda item: item[0])
    return [path / name for name, stamp in inside if _is_named_like_one(name) or _read(path, name, stamp).problem != _NOT_A_PHOTO]


# --- Scan -----------------------------------------------------------------------------------------------------------


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
    """What earlier scans found: (path, size, times) → the row, kept in a CSV file.

    A file that is lost, damaged or of a version that reads photos otherwise costs a rehash.
    """

    _HEADING = ["mtime_ns", "ctime_ns", *_COLUMNS, f"preprocessing {images.PREPROCESSING_VERSION}"]

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: dict[str, tuple[Stamp, Photo]] = {}
        try:
            with open(file, encoding="utf-8", errors="surrogateescape", newline="") as lines:
                rows = csv.reader(lines)
                if next(rows, None) != self._HEADING:
                    return
                for mtime_ns, ctime_ns, *texts in rows:
                    photo = _from_texts(texts)
                    self._rows[photo.path] = Stamp(photo.bytes, int(mtime_ns), int(ctime_ns)), photo
        except FileNotFoundError:
            pass
        except (ValueError, csv.Error):
            self._rows = {}

    def __len__(self) -> int:
        return len(self._rows)

    def recall(self, path: str, stamp: Stamp) -> tuple[Stamp, Photo] | None:
        """The row of a file, unless it is unknown or has changed since."""
        known = self._rows.get(path)
        return known if known and known[0] == stamp else None

    def keep(self, rows: Sequence[tuple[Stamp, Photo]], read_at_ns: int) -> None:
        """Remember these rows and no others, but for those that may still change within their time stamp."""
        settled = [(stamp, photo) for stamp, photo in rows if photo.sha256 and max(stamp.mtime_ns, stamp.ctime_ns) < read_at_ns - _RACY_NS]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        _write_csv(self._file, chain([self._HEADING], ((stamp.mtime_ns, stamp.ctime_ns, *_values_of(photo)) for stamp, photo in settled)))


def scan(folder: Path, memory: Memory, report: Report = lambda done, total: None) -> list[Photo]:
    """The photos in ``folder``, sorted by path, hashed and checked by their headers; only what changed is read.

    A photo that cannot be used has its ``problem``. Hidden files, ``__MACOSX`` and files that neither are images nor are
    named like one are left out. Raises DataMissing where the folder is missing.
    """
    if not folder.is_dir():
        raise DataMissing(f"there is no folder {folder}; put a folder for each class of photos there, or name another one")
    found = (item for item in _walk(folder) if _label_of(item[0]))
    photos = [photo for photo in _look(folder, found, memory, report) if photo.problem != _NOT_A_PHOTO]
    odd = _beside_the_classes(folder, {photo.label for photo in photos})
    return sorted(photos + odd, key=in_order) if odd else photos


def scan_table(table: Table, memory: Memory, report: Report = lambda done, total: None) -> list[Photo]:
    """The photos that a table names, as ``scan`` has them; one that has two labels there comes twice.

    A file that is missing or no photo, and a line that gives no label, are rows with a problem. Raises UserError where the
    table cannot be understood.
    """
    rows = table.read()
    found = ((path, _stamp(table.folder / path)) for path in {row.path for row in rows})
    seen = {photo.path: photo for photo in _look(table.folder, found, memory, report)}
    photos = [replace(seen[row.path], label=row.label, problem=row.problem or seen[row.path].problem) for row in rows]
    return sorted(photos, key=in_order)


def in_order(photo: Photo) -> tuple[str, str]:
    """The key by which rows are sorted."""
    return photo.path, photo.label


def _look(folder: Path, found: Iterable[tuple[str, Stamp]], memory: Memory, report: Report) -> list[Photo]:
    """The rows of files, labelled by their folders and sorted by path; only those are read that the memory lacks."""
    now_ns = time.time_ns()
    rows: list[tuple[Stamp, Photo]] = []
    unread: list[tuple[str, Stamp]] = []
    for path, stamp in found:  # one at a time: there may be a million of them
        if known := memory.recall(path, stamp):
            rows.append(known)
        else:
            unread.append((path, stamp))
    unread.sort(key=lambda item: item[0])
    report(0, len(unread))
    for done, ((_, stamp), photo) in enumerate(zip(unread, map_in_threads(lambda item: _read(folder, *item), unread)), 1):
        rows.append((stamp, photo))
        report(done, len(unread))
    rows.sort(key=lambda row: row[1].path)
    if unread or len(rows) != len(memory):
        memory.keep(rows, now_ns)
    return [photo for _, photo in rows]


def _beside_the_classes(folder: Path, labels: set[str]) -> list[Photo]:
    """What a person should hear of: photos that lie in no class folder, and class folders without a photo."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_class(entry):
                if entry.name not in labels:
                    found.append(Photo(f"{entry.name}/", entry.name, problem="the folder holds no photo"))
            elif _is_named_like_one(entry.name) and not _is_hidden(entry.name):
                found.append(Photo(entry.name, "", problem="it lies beside the class folders; move it into one"))
    return found


_NOT_A_PHOTO = "not a photo"


def _walk(root: Path) -> Iterator[tuple[str, Stamp]]:
    """The files below ``root``, in no order, through links, but never round in a circle."""
    pending = [(str(root), "", frozenset[tuple[int, int]]())]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            inside = [] if here in above else list(os.scandir(folder))
        except FileNotFoundError:  # it went away since
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be listed ({error.strerror}); make it readable or move it away") from error
        for entry in inside:
            path = prefix + entry.name
            if _is_hidden(entry.name):
                continue
            try:
                status = entry.stat()
            except OSError:  # a link that leads nowhere, or a file that went away since
                yield path, NO_STAMP
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append((entry.path, f"{path}/", above | {here}))
            elif stat.S_ISREG(status.st_mode):
                yield path, Stamp.of(status)


def _stamp(path: Path) -> Stamp:
    try:
        return Stamp.of(path.stat())
    except OSError:
        return NO_STAMP


def _is_class(entry: os.DirEntry[str]) -> bool:
    return Path(entry).is_dir() and not _is_hidden(entry.name)  # entry.is_dir() fails on a link that leads in a circle


def _is_named_like_one(name: str) -> bool:
    return Path(name).suffix.lower() in images.EXTENSIONS


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _read(folder: Path, path: str, stamp: Stamp) -> Photo:
    photo = Photo(path, _label_of(path), bytes=stamp.bytes)
    named_like_one = _is_named_like_one(path)
    if stamp.bytes > images.MAX_BYTES and not named_like_one:  # a film, say
        return replace(photo, problem=_NOT_A_PHOTO)
    try:
        data = images.read_file(folder / path)
    except BadImage as error:
        return replace(photo, problem=str(error))
    photo = replace(photo, sha256=files.sha256_bytes(data))
    try:
        header = images.read_header(data)
    except BadImage as error:
        return replace(photo, problem=str(error) if named_like_one else _NOT_A_PHOTO)
    return replace(photo, **dataclasses.asdict(header))


def fingerprint(photos: Iterable[Photo]) -> str:
    """The snapshot of a data set: a hash of paths, labels and contents, the same wherever the folder lies.

    How photos are read is a part of it, since a snapshot holds what their headers said.
    """
    digest = sha256(images.PREPROCESSING_VERSION.encode())
    for photo in photos:
        row = "\0".join((photo.path, photo.label, photo.sha256 or photo.problem)) + "\n"
        digest.update(row.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def read_snapshot(path: Path, snapshot: str) -> list[Photo]:
    """The photos of a snapshot. Raises UserError where the file is not what was written, and removes it."""
    try:
        photos = read_photos(path)
    except (OSError, ValueError, csv.Error):
        photos = []
    if fingerprint(photos) != snapshot:
        path.unlink(missing_ok=True)
        raise UserError(f"{path} was damaged or is gone; run again: it is made anew from the photos as they are then")
    return photos


# --- Index ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """A data set, ready to be worked on.

    Attributes:
        photos: those that can be used, sorted by path, each with its split.
        skipped: those that cannot, each with its problem, and folders without a photo.
        warnings: what a person should know of the data set, a line each.
    """

    photos: list[Photo]
    skipped: list[Photo]
    warnings: list[str]

    @property
    def labels(self) -> list[str]:
        return labels_of(self.photos)


def figures(index: Index) -> dict[str, Any]:
    """What a manifest says of an index: counts by split and by class, how many were left out, and the warnings.

    ``reencoded`` are paths of photos that the bare graph would read wrongly or not at all, the first LISTED of them.
    """
    splits = collections.Counter(photo.split for photo in index.photos)
    classes = collections.Counter(photo.label for photo in index.photos)
    reencoded = [readable(photo.path) for photo in index.photos if photo.reencode]
    return {
        "photos": len(index.photos),
        "splits": {split: splits[split] for split in SPLITS},
        "classes": {label: classes[label] for label in index.labels},
        "skipped": sum(not photo.path.endswith("/") for photo in index.skipped),
        "reencoded_count": len(reencoded),
        "reencoded": reencoded[:LISTED],
        "warnings": index.warnings,
    }


def labels_of(photos: Iterable[Photo]) -> list[str]:
    """The labels in the order of the classifier's outputs."""
    return sorted({photo.label for photo in photos})


def make_index(
    scanned: Sequence[Photo], *, testing_percentage: float, validation_percentage: float, seed: int, unreadable_limit: float
) -> Index:
    """Check a scanned data set and split it.

    Args:
        scanned: the photos, those with a problem among them.
        testing_percentage, validation_percentage: of the photos, for the two splits beside training.
        seed: of the split.
        unreadable_limit: the share of photos with a problem, in percent, above which nothing is trained.

    Raises UserError where no classifier can be made of it, and says why.
    """
    skipped = [photo for photo in scanned if photo.problem]
    good = [photo for photo in scanned if not photo.problem]
    warnings = []
    of_no_class = [photo for photo in skipped if not photo.label]
    if of_no_class:
        named = shortened([readable(photo.path) for photo in of_no_class])
        warnings.append(f"photos of no class are left out: {named} (the first: {of_no_class[0].problem})")
    unusable = [photo for photo in skipped if not photo.is_beside]
    if unusable:
        count = len(good) + len(unusable)
        first = f"{readable(unusable[0].path)}: {unusable[0].problem}"
        if 100 * len(unusable) / count > unreadable_limit:
            raise UserError(
                f"{len(unusable)} of {count} photos cannot be used, more than unreadable_limit = {unreadable_limit:g} %"
                f" (the first: {first}); mend or remove them, or raise the limit"
            )
        warnings.append(f"left out {len(unusable)} of {count} (the first: {first})")
    labels = labels_of(good)
    _check_labels(labels, {photo.label for photo in scanned if photo.label}, of_no_class)
    photos = split(good, testing_percentage=testing_percentage, validation_percentage=validation_percentage, seed=seed)
    return Index(photos, skipped, warnings + _warnings(photos, [photo.label for photo in skipped]))


def _check_labels(labels: list[str], all_labels: set[str], of_no_class: list[Photo]) -> None:
    if len(labels) < 2:
        found = f"only one class with photos ({readable(labels[0])})" if labels else "no class with photos"
        count = len(of_no_class)
        hint = f"; {count} are of no class (the first, {readable(of_no_class[0].path)}: {of_no_class[0].problem})" if count else ""
        raise UserError(f"the data set has {found}; a classifier needs photos of two or more classes, in a folder each or in a table{hint}")
    for label in sorted(all_labels):
        if not readable(label) == label or len(label.splitlines()) != 1 or label != label.strip("\r\n"):
            raise UserError(f"the label {label!r} cannot be a line of labels.txt; make it valid UTF-8 without line breaks")


def _warnings(photos: list[Photo], skipped_labels: list[str]) -> list[str]:
    warnings = []
    counts = collections.Counter(photo.label for photo in photos)
    few = [f"{label} ({count})" for label, count in sorted(counts.items()) if count < FEW_PHOTOS]
    if few:
        warnings.append(f"fewer than {FEW_PHOTOS} photos in {len(few)} of {len(counts)} classes: {shortened(few)}")
    gone = sorted(set(skipped_labels) - {*counts, ""})
    if gone:
        warnings.append(f"classes without a photo that can be used are left out: {shortened(gone)}")
    by_case = collections.defaultdict(list)
    for label in sorted(counts):
        by_case[label.casefold()].append(label)
    alike = [" and ".join(labels) for labels in by_case.values() if len(labels) > 1]
    if alike:
        warnings.append(f"labels that differ only in case are kept apart: {shortened(alike)}")
    label_of: dict[str, str] = {}
    of_several = {photo.sha256 for photo in photos if label_of.setdefault(photo.sha256, photo.label) != photo.label}
    labels_by_content: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for photo in photos:
        if photo.sha256 in of_several:
            labels_by_content[photo.sha256].setdefault(photo.label, photo.path)
    torn = [" and ".join(f"{readable(path)} as {label}" for label, path in paths.items()) for paths in labels_by_content.values()]
    if torn:
        warnings.append(f"exact duplicates under more than one label: {len(torn)} ({shortened(torn)})")
    return warnings


def shortened(items: list[str], most: int = 5) -> str:
    """The first items in words, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


# --- Split ----------------------------------------------------------------------------------------------------------


def split(photos: Sequence[Photo], *, testing_percentage: float, validation_percentage: float, seed: int) -> list[Photo]:
    """Give each photo its split by a hash, so that neither moving the folder nor adding photos moves a photo.

    What decides is the name before ``_nohash_`` where a photo has one (as in TensorFlow's retrain.py: pictures of one
    object stay together), else its content. Photos with one content, or one such name, form a group that is never torn.
    A class that would be without one of the splits lends it its group of the lowest rank.

    Raises UserError for a class with fewer groups than splits.
    """
    group_of = _groups(photos)
    ranks = _ranks(photos, group_of, seed)
    splits = {group: _split_at(rank, testing_percentage, validation_percentage) for group, rank in ranks.items()}
    _lend(photos, group_of, ranks, splits)
    return [replace(photo, split=splits[group]) for photo, group in zip(photos, group_of)]


def _name_key(photo: Photo) -> str:
    name, found, _ = photo.path.rpartition("/")[2].partition("_nohash_")
    return f"name:{name}" if found else ""


def _groups(photos: Sequence[Photo]) -> list[int]:
    """A number for each photo, the same for photos joined by a name or a content, over any number of steps (union-find)."""
    parent = list(range(len(photos)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, photo in enumerate(photos):
        for key in filter(None, (photo.sha256, _name_key(photo))):
            parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(photos))]


def _ranks(photos: Sequence[Photo], group_of: list[int], seed: int) -> dict[int, float]:
    keys: dict[int, str] = {}
    for photo, group in zip(photos, group_of):
        keys[group] = min(keys.get(group, "\U0010ffff"), _name_key(photo) or f"sha256:{photo.sha256}")
    return {group: _rank(seed, key) for group, key in keys.items()}


def _rank(seed: int, key: str) -> float:
    """A number in 0..1 that depends on nothing but the seed and the key."""
    digest = sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(rank: float, testing_percentage: float, validation_percentage: float) -> str:
    percent = 100 * rank
    if percent < validation_percentage:
        return VALIDATION
    return TESTING if percent < validation_percentage + testing_percentage else TRAINING


def _lend(photos: Sequence[Photo], group_of: list[int], ranks: dict[int, float], splits: dict[int, str]) -> None:
    """Change ``splits`` until no class is without one of them."""
    groups_of_label: dict[str, set[int]] = collections.defaultdict(set)
    for photo, group in zip(photos, group_of):
        groups_of_label[photo.label].add(group)
    few = [f"{label} ({len(groups)})" for label, groups in sorted(groups_of_label.items()) if len(groups) < len(SPLITS)]
    if few:
        raise UserError(
            f"too few different photos to have each of {', '.join(SPLITS)} in: {shortened(few)}; "
            f"add photos until each class has {len(SPLITS)} or more, or remove the class"
        )
    # A group that lies in two classes may empty a split of one when it fills one of the other, so look again, but not for ever.
    for _ in range(len(SPLITS)):
        lent = False
        for _, groups in sorted(groups_of_label.items()):
            for wanted in SPLITS:
                held = collections.Counter(splits[group] for group in groups)
                if not held[wanted]:
                    giver = TRAINING if held[TRAINING] > 1 else held.most_common(1)[0][0]
                    splits[min((g for g in groups if splits[g] == giver), key=ranks.__getitem__)] = wanted
                    lent = True
        if not lent:
            return
    torn = sorted(label for label, groups in groups_of_label.items() if len({splits[g] for g in groups}) < len(SPLITS))
    if torn:
        raise UserError(f"no split has photos of every class, because of duplicates under several labels: {shortened(torn)}")
