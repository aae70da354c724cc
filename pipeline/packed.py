"""The packed bottlenecks of a data set: a matrix, and the index that says what its rows are. Read without TensorFlow."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

PACKED = "bottlenecks.npy"
INDEX = "index.csv"

BYTES_MAPPED = 128 << 20
"""Of a packed matrix that is larger, so much is mapped before its pages are given back."""

BYTES_AROUND = 64 << 10
"""Linux maps so much around what is read (its fault-around), where a file is in memory already."""


class Packed:
    """The packed bottlenecks in a folder, float32 [rows, width]: a map of the file, of which only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        with open(folder / PACKED, "rb") as file:
            version = np.lib.format.read_magic(file)
            assert version == (1, 0)
            self.shape, _, _ = np.lib.format.read_array_header_1_0(file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._rows = np.frombuffer(self._map, "<f4", offset=file.tell()).reshape(self.shape)
        self._mapped = 0

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: np.ndarray | list[int]) -> np.ndarray:
        """A copy of some rows, by number."""
        vectors = np.take(self._rows, rows, axis=0)
        self._mapped += len(vectors) * max(BYTES_AROUND, self._rows.itemsize * self.shape[1])
        if self._mapped > BYTES_MAPPED < self._rows.nbytes:
            # Pages stay where the system keeps files, and this process stays small, however large the file is.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._mapped = 0
        return vectors
