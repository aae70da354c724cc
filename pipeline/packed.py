"""The packed bottlenecks of a data set: a matrix, and the index that says what its rows are. Read without TensorFlow."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PACKED = "bottlenecks.npy"

ROWS_AT_ONCE = 4096
"""The most rows in one read, which returns 2 GB at most."""


def npy_header(*shape: int) -> bytes:
    """What a file of NumPy begins with where float32 of this shape follow."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


class Packed:
    """The packed bottlenecks in a folder, float32 [rows, width]: a file, of which only what is asked for is read.

    It is read and not mapped: what a process has touched of a map counts as its memory, and the system maps up to a megabyte
    around each row.
    """

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / PACKED, "rb")  # noqa: SIM115
        version = np.lib.format.read_magic(self._file)
        assert version == (1, 0)
        self.shape, _, _ = np.lib.format.read_array_header_1_0(self._file)
        self._begin = self._file.tell()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """A copy of some rows, by number. Raises OSError where the file is shorter than it says."""
        numbers = np.asarray(rows, np.int64)
        vectors = np.empty((len(numbers), self.shape[1]), np.float32)
        # Neighbours are read at once.
        starts = np.flatnonzero((np.diff(numbers, prepend=-2) != 1) | (np.arange(len(numbers)) % ROWS_AT_ONCE == 0))
        for start, stop in zip(starts, np.append(starts[1:], len(numbers))):
            size, position = (int(count) * 4 * self.shape[1] for count in (stop - start, numbers[start]))
            data = os.pread(self._file.fileno(), size, self._begin + position)
            if len(data) != size:
                raise OSError(f"{self._file.name} ends before row {numbers[stop - 1]}")
            vectors[start:stop] = np.frombuffer(data, "<f4").reshape(-1, self.shape[1])
        return vectors
