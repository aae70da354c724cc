"""Files that are whole or not there: atomic writes, hashes, JSON, and locks that end with their process."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class _LineFeeds:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(f"{line[:-2]}\n")


def csv_writer(file: IO[str]) -> Any:
    """A ``csv.writer`` whose lines end in a line feed, and which quotes what has a line feed or a carriage return in it.

    Before Python 3.13, one that is told ``lineterminator="\\n"`` does not quote the latter, which a reader then takes for an end.
    """
    return csv.writer(_LineFeeds(file))


AS_ON_DISK: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
"""How a table with paths in it is opened: they come back as they are on the disk, be they UTF-8 or not, and with line breaks in them."""


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a table, paths in it as they are on the disk, whole or not at all."""
    with open_atomic(path, **AS_ON_DISK) as file:
        csv_writer(file).writerows(rows)


def write_sealed_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a table as ``write_csv`` does, after a line with the SHA-256 of the rest, for ``open_sealed_csv``."""
    with open_atomic(path, **AS_ON_DISK) as file:
        seal = file.write(f"{'':64}\n")
        csv_writer(file).writerows(rows)
        file.flush()
        with open(file.name, "rb") as written:
            written.seek(seal)
            digest = _sha256_of_rest(written)
        file.seek(0)
        file.write(digest)


@contextlib.contextmanager
def open_sealed_csv(path: Path) -> Iterator[IO[str]]:
    """The rows of a table that ``write_sealed_csv`` wrote. Raises ValueError where any bit of it was altered."""
    with open(path, "rb", opener=_regular) as file:
        seal = file.readline(100)
        if seal != f"{_sha256_of_rest(file)}\n".encode():
            raise ValueError(f"{path} was altered")
        file.seek(len(seal))
        yield io.TextIOWrapper(file, **AS_ON_DISK)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    with open(path, "rb", opener=_regular) as file:
        return _sha256_of_rest(file)


def _sha256_of_rest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def sha256_folder(folder: Path) -> str:
    """A hash of the files below a folder, their names and contents, the same wherever the folder lies."""
    rows = [f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n" for path in sorted(folder.rglob("*")) if path.is_file()]
    return sha256_bytes("".join(rows).encode("utf-8", "surrogateescape"))


def size(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def same_content(one: Path, other: Path) -> bool:
    """Whether two files are there and hold the same bytes."""
    try:
        return one.stat().st_size == other.stat().st_size and sha256_file(one) == sha256_file(other)
    except OSError:
        return False


def beside(path: Path) -> Path:
    """A name in ``path``'s folder that nobody else uses, hidden, for something that will be renamed to ``path``."""
    return Path(_beside(path))


def _beside(path: str | Path) -> str:
    # Text: a vector is written for each photo, and Path takes as long over a name as the system over a file.
    folder, name = os.path.split(path)
    return f"{folder or '.'}/.{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what a killed process left in ``folder`` ``beside`` the file ``name``. Hold the lock of it meanwhile."""
    for path in folder.glob(f".{name}.*.tmp"):
        remove(path)


def remove(path: Path) -> None:
    """Remove what is there under this name, if anything is: a folder, a file, a link."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_atomic(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file to write so that a reader sees the old one or the new one, and never a part of it."""
    with _replacing(path) as temporary, open(temporary, mode, **options) as file:
        yield file


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, and never a part of it."""
    with _replacing(path) as temporary, _descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]


@contextlib.contextmanager
def _replacing(path: str | Path) -> Iterator[str]:
    """A file beside ``path`` that takes its place in the end, or is removed where the block fails."""
    temporary = _beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


MOST_OF_A_NOTE = 1 << 24
"""Bytes: more than any small file has that is read whole."""


def read_regular(path: str | Path, most: int = MOST_OF_A_NOTE) -> bytes:
    """The bytes of a regular file of ``most`` bytes at most. Raises OSError, of EINVAL or EFBIG where it is none."""
    descriptor = _regular(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than {most:,}", str(path))
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
    finally:
        os.close(descriptor)
    return data


def _regular(path: str | Path, flags: int) -> int:
    """A descriptor of a regular file. Nothing else is opened: a pipe would be waited for, for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return descriptor


@contextlib.contextmanager
def _descriptor(path: str | Path, flags: int) -> Iterator[int]:
    """A file without the four system calls that ``open`` adds: with a photo to each of many threads they take as long as the rest."""
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def timestamp(moment: float | None = None) -> str:
    """A time (seconds since 1970; now by default) in UTC as manifests have it. As text it sorts."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. Keys keep their order: it is the reader's."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON. Raises OSError, or ValueError where the file is not JSON."""
    try:
        return json.loads(read_regular(path, MOST_OF_JSON).decode())
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


MOST_OF_JSON = 1 << 30

MANIFEST = "manifest.json"
"""Written last into every folder that is an output: a folder without it is not finished."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None where it is missing or damaged, so that the folder is not finished."""
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    is_one = isinstance(manifest, dict) and "key" in manifest and isinstance(manifest.get("files"), dict)
    return manifest if is_one and manifest.get(_SEAL) in (None, _seal_of(manifest)) else None


_SEAL = "sha256"


def _seal_of(manifest: Mapping[str, Any]) -> str:
    """A hash of all that a manifest says, but for this."""
    return sha256_bytes(json.dumps({name: value for name, value in manifest.items() if name != _SEAL}, sort_keys=True).encode())


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Finish a folder: write its manifest, which lists every file in it with its size and its SHA-256, and has one of its own."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    listed = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in paths}
    whole = json.loads(json.dumps({**manifest, "files": listed}))
    write_json(folder / MANIFEST, {**whole, _SEAL: _seal_of(whole)})


UNREADABLE = "cannot be read"
"""In the words for a damage: the file may be whole, and the disk is not there."""


def damage(folder: Path, *, contents: bool = False, names: Sequence[str] | None = None) -> str:
    """What is wrong with a finished folder, in words; nothing where its files are those that its manifest lists.

    Args:
        contents: compare the hashes of the files, where otherwise a stat of each has to do.
        names: of the files to look at; all of them if it is not said.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    for name in manifest["files"] if names is None else names:
        listed, path = manifest["files"].get(name), folder / name
        if listed is None:
            return f"{name} is not in {MANIFEST}"
        try:
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != listed["bytes"]:
                return f"{name} has {size:,} bytes and not {listed['bytes']:,}"
            if contents and sha256_file(path) != listed["sha256"]:
                return f"{name} was altered"
        except OSError as error:
            return f"{name} {UNREADABLE}: {error.strerror}"
    return ""


def holds_anything(folder: Path) -> bool:
    """Whether ``folder`` is there with anything in it that is not hidden; ``.gitkeep`` or ``.DS_Store`` is nothing."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def move_folder(source: Path, destination: Path) -> None:
    """Rename a finished folder into place. Where another process was quicker, its folder is kept and ours removed.

    A folder that holds nothing but hidden files makes room, and they move along.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.is_dir() and not holds_anything(destination):
        for entry in list(destination.iterdir()):
            entry.rename(source / entry.name)
        destination.rmdir()
    try:
        source.rename(destination)
    except OSError:
        if not destination.is_dir():
            raise
        shutil.rmtree(source)


Waiting = Callable[[str], None]
"""Called with a description of who holds a lock, before a wait for it."""


@contextlib.contextmanager
def locked(path: Path, *, waiting: Waiting) -> Iterator[None]:
    """Hold the lock file ``path`` for as long as this process lives; wait while another process does.

    The kernel releases an ``flock`` with its process, so the lock of a dead process is no lock. ``waiting`` is called
    once, with a description of the holder, before the wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
            except BlockingIOError:
                waiting(os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process")
                _lock(descriptor, fcntl.LOCK_EX, path)
            # The holder before us removes the file; a lock on a removed file keeps nobody out.
            if not _is_same_file(descriptor, path):
                continue
            os.ftruncate(descriptor, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


IN_USE = ".in-use"
"""In a folder that is used by many and cleared by one, the file that both lock."""


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep ``alone`` out of ``folder``, beside any number of others that do so; wait while it is cleared."""
    with _flock(folder, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep everybody out who works ``in_use`` of ``folder``. Raises BlockingIOError where somebody does."""
    with _flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        yield


@contextlib.contextmanager
def _flock(folder: Path, how: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, how, folder / IN_USE)
        yield
    finally:
        os.close(descriptor)  # the file stays: a lock on a removed file keeps nobody out


def _lock(descriptor: int, how: int, path: Path) -> None:
    """``flock``, with the name of the file in its errors: some network file systems have no locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:  # BlockingIOError stays one: it goes by the number
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
