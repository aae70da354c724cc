"""Photos become an index: checked, and divided into training, validation and testing.

index = make_index(photos, …)                 those that can be used, those that cannot, and what a person should know
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from pipeline.dataset import LISTED, SPLITS, TESTING, TRAINING, VALIDATION, Photo, Photos
from pipeline.errors import UserError
from pipeline.words import readable, shortened

FEW_PHOTOS = 20
"""A class with fewer photos gets a warning: two of them would be its whole test."""

_NAMES_OF_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


@dataclass(frozen=True)
class Index:
    """A data set, ready to be worked on.

    Attributes:
        photos: those that can be used, sorted by path, each with its split.
        skipped: those that cannot, each with its problem, and folders without a photo.
        warnings: what a person should know of the data set, a line each.
    """

    photos: Photos
    skipped: Photos
    warnings: list[str]

    @property
    def labels(self) -> list[str]:
        return self.photos.labels()[0]


def figures(index: Index) -> dict[str, Any]:
    """What a manifest says of an index: counts by split and by class, how many were left out, and the warnings.

    ``reencoded`` are paths of photos that the bare graph would read wrongly or not at all, the first LISTED of them.
    """
    photos = index.photos
    reencoded = np.flatnonzero(photos.column("reencode"))
    return {
        "photos": len(photos),
        "splits": {split: int(photos.has("split", split).sum()) for split in SPLITS},
        "classes": photos.counts(),
        "skipped": sum(not photo.is_folder for photo in index.skipped),
        "reencoded_count": len(reencoded),
        "reencoded": [readable(photos[row].path) for row in reencoded[:LISTED]],
        "warnings": index.warnings,
    }


def make_index(scanned: Photos, *, testing_percentage: float, validation_percentage: float, seed: int, unreadable_limit: float) -> Index:
    """Check a scanned data set and split it.

    Args:
        scanned: the photos, those with a problem among them.
        testing_percentage, validation_percentage: of the photos, for the two splits beside training.
        seed: of the split.
        unreadable_limit: the share of photos with a problem, in percent, above which nothing is trained.

    Raises UserError where no classifier can be made of it, and says why.
    """
    fine = scanned.has("problem", "")
    good, skipped = scanned.where(fine), scanned.where(~fine)
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
    _check_labels(good, set(scanned.labels()[0]) - {""}, of_no_class)
    photos = split(good, testing_percentage=testing_percentage, validation_percentage=validation_percentage, seed=seed)
    return Index(photos, skipped, warnings + _warnings(photos, skipped.labels()[0]))


def _check_labels(good: Photos, all_labels: set[str], of_no_class: list[Photo]) -> None:
    labels = good.labels()[0]
    if len(labels) < 2:
        found = f"only one class with photos ({readable(labels[0])})" if labels else "no class with photos"
        count = len(of_no_class)
        hint = f"; {count} are of no class (the first, {readable(of_no_class[0].path)}: {of_no_class[0].problem})" if count else ""
        if len(deeper := _folders_in_classes(good)) > 1:
            hint += f"; if the folders in {readable(labels[0])} are the classes ({shortened(deeper)}), name it as the folder of the photos"
        raise UserError(f"the data set has {found}; a classifier needs photos of two or more classes, in a folder each or in a table{hint}")
    if _NAMES_OF_SPLITS.issuperset(label.casefold() for label in labels) and (deeper := _folders_in_classes(good)):
        raise UserError(
            f"the photos are divided already: the classes would be {shortened(labels)}, and not the folders in them ({shortened(deeper)}); "
            "put all photos of a class into one folder, or name one of them as the folder of the photos"
        )
    for label in sorted(all_labels):
        if not readable(label) == label or len(label.splitlines()) != 1 or label != label.strip("\r\n"):
            raise UserError(f"the label {label!r} cannot be a line of labels.txt; make it valid UTF-8 without line breaks")


def _folders_in_classes(photos: Photos) -> list[str]:
    """The names of the folders in the classes' folders, if all photos lie in such; empty otherwise, as with a table's labels."""
    found = set()
    for photo in photos:
        label, *deeper = photo.path.split("/")[:-1] or [""]
        if label != photo.label or not deeper:
            return []
        found.add(readable(deeper[0]))
    return sorted(found)


def _warnings(photos: Photos, skipped_labels: list[str]) -> list[str]:
    warnings = []
    counts = photos.counts()
    few = [f"{label} ({count})" for label, count in counts.items() if count < FEW_PHOTOS]
    if few:
        warnings.append(f"fewer than {FEW_PHOTOS} photos in {len(few)} of {len(counts)} classes: {shortened(few)}")
    gone = sorted(set(skipped_labels) - {*counts, ""})
    if gone:
        warnings.append(f"classes without a photo that can be used are left out: {shortened(gone)}")
    by_case = collections.defaultdict(list)
    for label in counts:
        by_case[label.casefold()].append(label)
    alike = [" and ".join(labels) for labels in by_case.values() if len(labels) > 1]
    if alike:
        warnings.append(f"labels that differ only in case are kept apart: {shortened(alike)}")
    named: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for photo in map(photos.__getitem__, photos.of_several_labels()):
        named[photo.sha256].setdefault(photo.label, photo.path)
    torn = [" and ".join(f"{readable(path)} as {label}" for label, path in paths.items()) for paths in named.values()]
    if torn:
        warnings.append(f"exact duplicates under more than one label: {len(torn)} ({shortened(torn)})")
    return warnings


# --- Split ----------------------------------------------------------------------------------------------------------


def split(photos: Photos, *, testing_percentage: float, validation_percentage: float, seed: int) -> Photos:
    """Give each photo its split by a hash, so that neither moving the folder nor adding photos moves a photo.

    What decides is the name before ``_nohash_`` where a photo has one (as in TensorFlow's retrain.py: pictures of one
    object stay together), else its content. Photos with one content, or one such name, form a group that is never torn.
    A class that would be without one of the splits lends it its group of the lowest rank, until another one comes.

    Raises UserError for a class with fewer groups than splits.
    """
    group_of, ranks = _groups(photos, seed)
    percent = 100 * ranks
    splits = np.full(len(ranks), SPLITS.index(TRAINING))
    splits[percent < validation_percentage + testing_percentage] = SPLITS.index(TESTING)
    splits[percent < validation_percentage] = SPLITS.index(VALIDATION)
    _lend(photos, group_of, ranks, splits)
    return photos.divided(splits[group_of])


def _groups(photos: Photos, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The group of each photo, int64 [photos], and the rank of each group in 0..1, float64.

    Contents are joined by a name, over any number of steps (union-find); a group has the number of one of its contents.
    """
    first, content_of = photos.contents()
    ranks = np.fromiter((_rank(seed, f"sha256:{photos[row].sha256}") for row in first), float, len(first))
    parent: dict[int, int] = {}

    def root(content: int) -> int:
        while (above := parent.get(content, content)) != content:
            parent[content] = content = parent.get(above, above)
        return content

    names = {row: name for row, name in enumerate(map(_name_of, photos.paths())) if name is not None}
    content_of_name: dict[str, int] = {}
    for row, name in names.items():
        content = int(content_of[row])
        parent[root(content)] = root(content_of_name.setdefault(name, content))
    if not names:
        return content_of, ranks
    group_of = np.array([root(content) for content in content_of.tolist()])
    least: dict[int, str] = {}
    for row, name in names.items():
        least[group_of[row]] = min(least.get(group_of[row], name), name)
    for group, name in least.items():
        ranks[group] = _rank(seed, f"name:{name}")
    return group_of, ranks


def _name_of(path: str) -> str | None:
    """What decides instead of the content, if something does."""
    name, found, _ = path.rpartition("/")[2].partition("_nohash_")
    return name if found else None


def _rank(seed: int, key: str) -> float:
    """A number in 0..1 that depends on nothing but the seed and the key."""
    digest = sha256(f"{seed}/{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _lend(photos: Photos, group_of: np.ndarray, ranks: np.ndarray, splits: np.ndarray) -> None:
    """Change ``splits`` until no class is without one of them."""
    labels, label_of = photos.labels()
    order = np.argsort(label_of, kind="stable")
    of_labels = np.split(group_of[order], np.flatnonzero(np.diff(label_of[order])) + 1)
    groups_of = {label: groups[np.sort(np.unique(groups, return_index=True)[1])] for label, groups in zip(labels, of_labels)}
    few = [f"{label} ({len(groups)})" for label, groups in groups_of.items() if len(groups) < len(SPLITS)]
    if few:
        raise UserError(
            f"too few different photos to have each of {', '.join(SPLITS)} in: {shortened(few)}; "
            f"add photos until each class has {len(SPLITS)} or more, or remove the class"
        )
    # A group that lies in two classes may empty a split of one when it fills one of the other, so look again, but not for ever.
    for _ in range(len(SPLITS)):
        lent = False
        for groups in groups_of.values():
            for wanted in range(len(SPLITS)):
                of_groups = splits[groups]
                held = np.bincount(of_groups, minlength=len(SPLITS))
                if not held[wanted]:
                    most = of_groups[held[of_groups] == np.max(held)][0]
                    given = groups[of_groups == (0 if held[0] > 1 else most)]  # training first
                    splits[given[ranks[given].argmin()]] = wanted
                    lent = True
        if not lent:
            return
    torn = [label for label, groups in groups_of.items() if len(np.unique(splits[groups])) < len(SPLITS)]
    if torn:
        raise UserError(f"no split has photos of every class, because of duplicates under several labels: {shortened(torn)}")
