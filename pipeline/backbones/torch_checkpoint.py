"""Read the tensors of a PyTorch checkpoint (the format before 1.6) without PyTorch.

The file is a row of pickles: a magic number, the protocol, facts about the system, the state dict with references to
storages, the list of the storages' keys; then each storage as a count (int64, little-endian) and its raw values.
Only the few names that a state dict needs are unpickled; everything else is refused, so the file can run no code.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import UserError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
STORAGE_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage:
    """A reference to values that follow later in the file."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.values: np.ndarray | None = None


class _Tensor:
    """What ``torch._utils._rebuild_tensor_v2`` is called with: a view of a storage."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def array(self) -> np.ndarray:
        values = self.storage.values
        if values is None:
            raise ValueError("a tensor refers to a storage that is not in the file")
        # Strides are real here: a checkpoint that was converted from TensorFlow keeps TensorFlow's layout in memory.
        if len(self.shape) != len(self.stride) or min((*self.shape, *self.stride, self.offset), default=0) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and stride {self.stride}")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        if 0 in self.shape or last >= len(values):
            raise ValueError("a tensor reaches past the end of its storage")
        steps = tuple(step * values.itemsize for step in self.stride)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps))


class _StateDictUnpickler(pickle.Unpickler):
    """Unpickles a state dict and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a state dict")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key = reference[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a reference to a {kind!r} is not allowed in a state dict")
        return self.storages.setdefault(key, _Storage(dtype))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, as arrays in the layout of the file.

    Raises UserError where the file is cut short, of another format, or asks for more than tensors.
    """
    try:
        with open(path, "rb") as file:
            if _StateDictUnpickler(file).load() != MAGIC_NUMBER or _StateDictUnpickler(file).load() != PROTOCOL:
                raise ValueError("it does not begin with the magic number and protocol")
            _StateDictUnpickler(file).load()
            unpickler = _StateDictUnpickler(file)
            tensors: dict[str, _Tensor] = unpickler.load()
            for key in _StateDictUnpickler(file).load():
                storage = unpickler.storages[key]
                (count,) = np.frombuffer(file.read(8), "<i8")
                data = file.read(int(count) * storage.dtype.itemsize)
                storage.values = np.frombuffer(data, storage.dtype, count)
            return {name: tensor.array() for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a PyTorch checkpoint that can be read ({error}); install its package again") from error
