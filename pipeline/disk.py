"""Disk space: what a run will need, by estimate, against what is free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.console import verb
from pipeline.errors import UserError

BLOCK = 4096
"""Bytes that a file takes at least on most file systems."""

INDEX_ROW = 200
"""Bytes of a photo's row in an index, about."""

TIGHT = 0.9
"""Of what is free; a run that needs more of it gets a warning."""


@dataclass(frozen=True)
class Need:
    """What will be written into a folder, which may not be there yet, by estimate."""

    what: str
    folder: Path
    bytes: int


@dataclass(frozen=True)
class FileSystem:
    """What a run needs on one file system.

    Attributes:
        needs: what is written there, each into its folder.
        free: bytes that are free now.
    """

    needs: Sequence[Need]
    free: int

    @property
    def bytes(self) -> int:
        return sum(need.bytes for need in self.needs)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.free

    @property
    def sentence(self) -> str:
        parts = ", ".join(f"{need.what} {size(need.bytes)}" for need in self.needs)
        return f"about {size(self.bytes)} are needed in {self.needs[0].folder} and beside it ({parts}), {size(self.free)} are free"


def size(count: float) -> str:
    """Bytes in words, as a person says them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def vectors(count: int, width: int) -> int:
    """Bytes of so many vectors in the cache, a file each."""
    return count * -(-(4 * width + 132) // BLOCK) * BLOCK


def packed(rows: int, width: int) -> int:
    """Bytes of the packed matrix and its index."""
    return rows * (4 * width + INDEX_ROW)


def training(*, classes: int, width: int, hidden: int, candidates: int, checkpoints: int) -> int:
    """Bytes of the checkpoints of a training: weights, two slots of the optimizer, and the best weights so far, of each candidate."""
    weights = (width + 1) * hidden + (hidden + 1) * classes if hidden else (width + 1) * classes
    return (checkpoints + 1) * candidates * weights * 4 * 4


def classifier(graph: int, photos: int) -> int:
    """Bytes of a classifier and its report: the frozen graph, the same as a checkpoint, pages and the list of photos."""
    return 5 * graph // 2 + 3_000_000 + photos * 60


def by_file_system(needs: Iterable[Need], free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> list[FileSystem]:
    """Needs grouped by file system, those of no bytes left out."""
    found: dict[int, list[Need]] = {}
    for need in needs:
        if need.bytes > 0:
            found.setdefault(os.stat(_that_exists(need.folder)).st_dev, []).append(need)
    return [FileSystem(group, free(_that_exists(group[0].folder))) for group in found.values()]


def _that_exists(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def check(systems: Iterable[FileSystem]) -> list[str]:
    """Warnings where it is tight. Raises UserError where it cannot fit."""
    warnings = []
    for one in systems:
        if not one.fits:
            raise UserError(
                f"the disk is too full for this run: {one.sentence}; make room ({verb('runs', 'prune')}, {verb('cache', 'prune')}), "
                "or move it in [paths] of luigi.cfg"
            )
        if one.bytes > TIGHT * one.free:
            warnings.append(f"the disk is nearly full: {one.sentence}")
    return warnings
