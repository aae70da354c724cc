"""What changed in the photos of a data set between two indexes, and the list of photos that a published version keeps of its own.

write_photos(version / PHOTOS, photos)        paths, labels, contents and splits, packed
found = between(each_photo(version / PHOTOS), photos)
sentence(found.as_json())                     10 photos added, 1 moved or renamed; new classes: 1 (tulips)
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import gzip
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.dataset import TESTING, Photo, in_order
from pipeline.words import readable, shortened

PHOTOS = "photos.csv.gz"
"""In a version: its photos. So what changed is known when the store was pruned, too."""

_COLUMNS = ("path", "label", "sha256", "split")

NAMED = 10
"""Photos that are named, of each kind of change."""


def write_photos(path: Path, photos: Iterable[Photo]) -> None:
    """Write the list of photos, whole or not at all; the same photos give the same bytes."""
    with (
        files.open_atomic(path, "wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,  # what it holds is mostly hashes, which no level makes smaller
        io.TextIOWrapper(packed, **files.AS_ON_DISK) as file,
    ):
        writer = files.csv_writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows((photo.path, photo.label, photo.sha256, photo.split) for photo in photos)


def each_photo(path: Path) -> Iterator[Photo]:
    """Read what ``write_photos`` wrote, a photo at a time."""
    with gzip.open(path, "rt", **files.AS_ON_DISK) as file:
        rows = csv.reader(file)
        next(rows, None)
        for name, label, sha256, split in rows:
            yield Photo(name, label, sha256, split=split)


def learned(version: Path, photos: Iterable[Photo]) -> int:
    """How many of these photos the classifier in ``version`` was trained on, or chosen with; 0 where it does not say."""
    if not (version / PHOTOS).is_file():
        return 0
    known = {photo.sha256 for photo in each_photo(version / PHOTOS) if photo.split != TESTING}
    return sum(photo.sha256 in known for photo in photos)


@dataclass
class Counted:
    """How many photos changed in one way, and the first of them by name."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(readable(name))


@dataclass
class Changes:
    """What changed in the photos.

    Attributes:
        added, removed: photos whose content is new, or gone.
        edited: photos of another content under the same path and label, unless it was there under another label.
        moved: photos of the same content and label under another path; ``old → new``.
        relabelled: photos of the same content under another label.
        new_classes, gone_classes: labels.
    """

    added: Counted = field(default_factory=Counted)
    removed: Counted = field(default_factory=Counted)
    edited: Counted = field(default_factory=Counted)
    moved: Counted = field(default_factory=Counted)
    relabelled: Counted = field(default_factory=Counted)
    new_classes: list[str] = field(default_factory=list)
    gone_classes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


WORDS = {"added": "added", "removed": "removed", "edited": "edited", "moved": "moved or renamed", "relabelled": "relabelled"}


def is_any(changes: dict[str, Any]) -> bool:
    """Whether ``Changes.as_json`` has any; new classes and those that are gone come with photos."""
    return any(changes[name]["count"] for name in WORDS)


def sentence(changes: dict[str, Any]) -> str:
    """``Changes.as_json`` in a few words."""
    counts = [f"{changes[name]['count']} {words}" for name, words in WORDS.items() if changes[name]["count"]]
    if counts:
        first = next(changes[name]["count"] for name in WORDS if changes[name]["count"])
        counts[0] = counts[0].replace(" ", " photo " if first == 1 else " photos ", 1)
    parts = [", ".join(counts)] if counts else ["the same photos"]
    for name, words in (("new_classes", "new classes"), ("gone_classes", "classes gone")):
        if changes[name]:
            parts.append(f"{words}: {len(changes[name])} ({shortened(changes[name])})")
    return "; ".join(parts)


def between(old: Iterable[Photo], new: Iterable[Photo]) -> Changes:
    """What changed from one index to another, both sorted by ``dataset.in_order``.

    They are read side by side, so that only what differs is held.
    """
    changes, labels_before, labels_now = Changes(), set(), set()
    gone: list[Photo] = []
    came: list[Photo] = []
    replaced: list[tuple[Photo, Photo]] = []
    for before, now in _side_by_side(old, new):
        if before:
            labels_before.add(before.label)
        if now:
            labels_now.add(now.label)
        if before and now:
            if before.sha256 != now.sha256:
                replaced.append((before, now))
        elif before:
            gone.append(before)
        elif now:
            came.append(now)
    _match(gone, came, replaced, changes)
    changes.new_classes = [readable(label) for label in sorted(labels_now - labels_before)]
    changes.gone_classes = [readable(label) for label in sorted(labels_before - labels_now)]
    return changes


def _side_by_side(old: Iterable[Photo], new: Iterable[Photo]) -> Iterator[tuple[Photo | None, Photo | None]]:
    """The rows of two sorted indexes; those of one path and label together."""
    olds, news = iter(old), iter(new)
    before, now = next(olds, None), next(news, None)
    while before or now:
        take_old = before is not None and (now is None or in_order(before) <= in_order(now))
        take_new = now is not None and (before is None or in_order(now) <= in_order(before))
        yield before if take_old else None, now if take_new else None
        before = next(olds, None) if take_old else before
        now = next(news, None) if take_new else now


def _match(gone: list[Photo], came: list[Photo], replaced: list[tuple[Photo, Photo]], changes: Changes) -> None:
    """Tell what moved or was relabelled from what was removed, added or edited, by the contents.

    ``replaced`` are those of one path and label. Where two classes whose photos have the same names change places, they are all
    that there is.
    """
    labelled: dict[tuple[str, str], list[Photo]] = collections.defaultdict(list)
    for photo in reversed(gone):
        labelled[photo.sha256, photo.label].append(photo)
    others = []
    for photo in came:  # first those with the same label, so that of two copies the right one is taken for moved
        if twins := labelled.get((photo.sha256, photo.label)):
            changes.moved.add(f"{twins.pop().path} → {photo.path}")
        else:
            others.append(photo)
    left: dict[str, list[Photo]] = collections.defaultdict(list)
    for photo in chain(*labelled.values(), (before for before, _ in replaced)):
        left[photo.sha256].append(photo)
    unknown = []
    for photo in sorted((*others, *(now for _, now in replaced)), key=in_order):
        twins = left.get(photo.sha256, [])
        if twin := next((twin for twin in reversed(twins) if twin.label != photo.label), None):
            twins.remove(twin)
            changes.relabelled.add(f"{photo.path}: {twin.label} → {photo.label}")
        else:
            unknown.append(photo)
    lost = {in_order(photo): photo for twins in left.values() for photo in twins}
    for photo in unknown:
        (changes.edited if lost.pop(in_order(photo), None) else changes.added).add(photo.path)
    for _, photo in sorted(lost.items()):
        changes.removed.add(photo.path)
