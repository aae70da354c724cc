"""One downloader for everything: it resumes, retries, checks and arrives whole; and one safe way to unpack."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from pipeline import console, files
from pipeline.console import Report
from pipeline.errors import UserError

CONNECT_SECONDS = 10
READ_SECONDS = 30
ATTEMPTS = 4
"""How often in a row an attempt may fail without having come further. Each goes on where the last one stopped."""

WAIT_SECONDS = 2.0
"""Between the first two attempts; twice as long before each that follows."""

UNREACHABLE_WAIT_SECONDS = 0.5
"""The same where there was no connection: whoever has a fallback wants to know soon."""

QUICK_SECONDS = 3.0
"""A host that took longer than this to be found unreachable is not tried again: it would take as long each time."""

LONGEST_WAIT_SECONDS = 60
"""How long a server may ask to be left alone (Retry-After) and be waited for."""

MODEL_BYTES = 5 * 10**9
"""The most that a model may have, as it is fetched and unpacked."""

PHOTOS_BYTES = 50 * 10**9
"""The most that an archive of photos may unpack to. How large the archive is stands in its profile."""


class Unreachable(UserError):
    """The host cannot be reached: no such name, refused, no answer in time, a proxy's refusal, or a server error."""


class _Passing(Exception):
    """An attempt failed in a way that the next one may not. The message says how.

    Attributes:
        ending: what to raise when no further attempt is made; None where it is that the body broke off.
        wait: seconds before the second attempt.
        asked: seconds that the server wants to be left alone.
    """

    def __init__(self, message: str, ending: UserError | None = None, *, wait: float = WAIT_SECONDS, asked: float = 0) -> None:
        super().__init__(message)
        self.ending, self.wait, self.asked = ending, wait, asked


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int = 0,
    limit: int = MODEL_BYTES,
    report: Report = console.silent,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch ``url`` to ``path`` and return its sha256. What has arrived stays beside it as ``.part``, where the next try goes on.

    Args:
        url: http or https; proxies as in the environment.
        path: where the whole file appears, in one step.
        sha256: what the file has to hash to, where that is known.
        size: its bytes, where they are known.
        limit: the most bytes that it may have, where they are not.
        report: called with bytes done and in all.
        sleep: waits between attempts, longer each time.

    Raises Unreachable where the host cannot be reached, and UserError for anything else: a missing file, a wrong
    checksum, one that is too large, a connection that keeps breaking off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failed, reached = 0, 0
    while True:
        try:
            _continue(url, part, sha256, size, size or limit, report)
            break
        except _Passing as problem:
            have = _length(part)
            failed = 1 if have > reached else failed + 1
            reached = max(reached, have)
            if failed == ATTEMPTS:
                raise problem.ending or _broke_off(url, part, sha256, size, problem) from None
            wait = max(problem.wait * 2.0 ** (failed - 1), problem.asked)
            console.note(f"{urlsplit(url).netloc}: {problem}; trying again in {wait:g} s")
            sleep(wait)
    found = files.sha256_file(part)
    if sha256 and found != sha256:
        _discard(part)
        raise UserError(f"{url} has the sha256 {found}, wanted {sha256}: it is damaged or was replaced; run again")
    os.replace(part, path)
    _discard(part)
    return found


def _broke_off(url: str, part: Path, sha256: str, size: int, problem: _Passing) -> UserError:
    of_all = f" of {size:,}" if size else ""
    on = " to go on from there" if _may_go_on(_Version.read(part), sha256) else ""
    return UserError(f"{url} broke off {ATTEMPTS} times, after {_length(part):,}{of_all} bytes ({problem}); run again{on}")


def _may_go_on(known: _Version | None, sha256: str) -> bool:
    """Whether it would be noticed that the rest of a part is of another version: beforehand, or by the hash of the whole."""
    return bool(sha256 or (known and known.validator))


def _continue(url: str, part: Path, sha256: str, size: int, limit: int, report: Report) -> None:
    """Append to ``part`` what is missing. Raises _Passing where another attempt may come further."""
    known, start = _Version.read(part), _length(part)
    whole = size or (known.total if known else 0)
    if start and start == whole:
        return
    if start > whole > 0 or not _may_go_on(known, sha256):
        start = 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and known and known.validator:
        headers["If-Range"] = known.validator  # a file that changed meanwhile is sent from its beginning
    with _request(url, headers) as response:
        told = _Version.of(response)
        if response.status_code != HTTPStatus.OK and not _fits(response, told, start, known):
            _discard(part)
            raise _Passing("the file on the server is another than the one that was begun")
        if not start or response.status_code == HTTPStatus.OK:  # a server that does not do ranges sends everything again
            start = 0
            _discard(part)
            told.write(part)
        if told.total > limit:
            raise _too_large(url, part, limit)
        total = size or told.total or (known.total if start and known else 0)
        done = _append(response, part, total, limit, report)
    if done > limit:
        raise _too_large(url, part, limit)
    if done < total:
        raise _Passing("the body ended early")


def _append(response: requests.Response, part: Path, total: int, limit: int, report: Report) -> int:
    """Append the body to ``part``, until it is over ``limit``; returns how long the part is now."""
    done = _length(part)
    report(done, max(total, done))
    with open(part, "ab") as file:
        for piece in _pieces(response):
            file.write(piece)
            done += len(piece)
            report(done, max(total, done))
            if done > limit:
                break
    return done


def _too_large(url: str, part: Path, limit: int) -> UserError:
    _discard(part)
    return UserError(f"{url} is larger than the {limit:,} bytes that it may have; correct the address, or fetch it by hand")


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives, so that nothing of it is lost when the connection ends."""
    try:
        # As it is sent: a .tgz that a server declares to be an encoding is not to be unpacked.
        while piece := response.raw.read1(1 << 16, decode_content=False):
            yield piece
    except (urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _Passing(_reason(error)) from None


# --- What a part is a part of ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Version:
    """Which version of a file a server has, or a part is of; kept beside the part. What it does not tell is empty or 0."""

    etag: str
    modified: str
    total: int

    @property
    def validator(self) -> str:
        """What a server compares before it sends the rest. A weak tag (``W/"…"``) is no use for that."""
        return self.etag if self.etag.startswith('"') else self.modified

    @classmethod
    def of(cls, response: requests.Response) -> _Version:
        ranged = _content_range(response)
        length = response.headers.get("Content-Length", "")
        total = ranged[1] if ranged else int(length) if length.isdecimal() and response.status_code == HTTPStatus.OK else 0
        return cls(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), total)

    @classmethod
    def read(cls, part: Path) -> _Version | None:
        try:
            return cls(**files.read_json(_beside(part)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, part: Path) -> None:
        files.write_json(_beside(part), dataclasses.asdict(self))


def _beside(part: Path) -> Path:
    return part.with_name(part.name + "-of")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    # The part first: without its version it is not resumed, but with another's it would be.
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _content_range(response: requests.Response) -> tuple[int, int] | None:
    """Where a partial answer begins, and the bytes of the whole file, 0 if that is not told; None for no partial answer."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status_code != HTTPStatus.PARTIAL_CONTENT or not found:
        return None
    return int(found[1]), int(found[2]) if found[2] != "*" else 0


def _fits(response: requests.Response, told: _Version, start: int, known: _Version | None) -> bool:
    """Whether a partial answer goes on at ``start``, with the version that was begun. Not every server heeds If-Range."""
    ranged = _content_range(response)
    if not ranged or ranged[0] != start:
        return False
    if not start or not known:
        return True
    same_total = len({told.total, known.total} - {0}) < 2
    return told.etag == known.etag and told.modified in ("", known.modified) and same_total


# --- Asking ---------------------------------------------------------------------------------------------------------------


def _request(url: str, headers: dict[str, str]) -> requests.Response:
    """Ask for ``url``. An answer that brings no file raises _Passing, Unreachable or UserError."""
    began = time.monotonic()
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except requests.ConnectionError as error:
        reason = f"cannot be reached ({_reason(error)})"
        unreachable = Unreachable(f"{urlsplit(url).netloc} {reason}")
        if time.monotonic() - began > QUICK_SECONDS:
            raise unreachable from None
        raise _Passing(reason, unreachable, wait=UNREACHABLE_WAIT_SECONDS) from None
    except requests.Timeout:
        reason = f"did not answer within {READ_SECONDS} s"
        raise _Passing(reason, Unreachable(f"{urlsplit(url).netloc} {reason}")) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # a redirect may lead to nonsense
        raise UserError(f"{url} cannot be fetched ({_reason(error)}); correct the address") from None
    if response.status_code in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        return response
    with response:
        raise _refusal(url, response)


def _refusal(url: str, response: requests.Response) -> Exception:
    """What an answer without a file is: passing, a host that cannot be reached, or a wrong address."""
    host, status = urlsplit(url).netloc, response.status_code
    answer = f"answers {status} {response.reason}"
    if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        asked = _retry_after(response)
        if asked > LONGEST_WAIT_SECONDS:
            return Unreachable(f"{host} {answer}, and asks to be left alone for {asked:.0f} s")
        return _Passing(answer, Unreachable(f"{host} {answer}"), asked=asked)
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return Unreachable(f"{host} {answer}")
    if status == HTTPStatus.FORBIDDEN and requests.utils.get_environ_proxies(url):
        return Unreachable(f"the proxy {answer} for {host}")
    return UserError(f"{url} {answer}; correct the address")


def _retry_after(response: requests.Response) -> float:
    """The seconds that a server asks to be left alone; 0 where it does not, or not so that it can be understood."""
    with contextlib.suppress(urllib3.exceptions.InvalidHeader):
        return urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    return 0


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words; requests wraps it in several layers."""
    innermost = str(getattr(error, "args", [error])[0])
    for words, plain in (
        ("NameResolutionError", "the name cannot be resolved"),
        ("Connection refused", "connection refused"),
        ("ConnectTimeoutError", f"no connection within {CONNECT_SECONDS} s"),
        ("ProxyError", "the proxy refuses"),
        ("SSLError", "no secure connection"),
        ("Read timed out", f"nothing came for {READ_SECONDS} s"),
        ("IncompleteRead", "the body ended early"),
        ("Connection reset", "connection reset"),
    ):
        if words in repr(error) or words in innermost:
            return plain
    return innermost.splitlines()[0][:120] if innermost else type(error).__name__


def unpack(archive: Path, folder: Path, limit: int = MODEL_BYTES) -> str:
    """Unpack a tar or zip archive so that ``folder`` appears whole; a single folder at its top is left out.

    Plain files and folders only: names that lead out of the folder, links and devices are refused, and so is an archive
    of more than ``limit`` bytes. What a Mac adds is left out.

    Returns the name of the folder at the top that was left out, empty where there was none. Raises UserError.
    """
    temporary = files.beside(folder)
    temporary.mkdir(parents=True)
    try:
        # A tar file that ends in a zip file, which a Keras model is, looks like a zip file too.
        is_zip = zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive)
        (_unpack_zip if is_zip else _unpack_tar)(archive, temporary, limit)
        entries = [entry for entry in temporary.iterdir() if not entry.name.startswith(".")]
        if not entries:
            raise UserError(f"{archive} is empty; correct the address it came from")
        top = entries[0] if len(entries) == 1 and entries[0].is_dir() else temporary
        files.move_folder(top, folder)
        return "" if top == temporary else top.name
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, *_ERRORS_OF_NAMES):
            raise
        raise UserError(f"{archive} is no archive that can be unpacked ({_words(error)}); fetch it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_added_by_a_mac(name: str) -> bool:
    """Whether a name in an archive or on a disk is that of what a Mac keeps beside each file: ``._model.pb``, ``__MACOSX/…``."""
    return any(part == "__MACOSX" or part.startswith("._") for part in Path(name).parts)


_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""What the names in an archive can do to a healthy disk: too long, a file where another has a folder, no letters."""


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: …{str(error.filename)[-40:]}"
    return str(error).partition("\n")[0].rstrip(":")


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
    with tarfile.open(archive) as tar:
        unpacked = 0
        for member in tar:
            unpacked += member.size
            _check(archive, member.name, member.isreg() or member.isdir(), unpacked, limit)
            if is_added_by_a_mac(member.name):
                continue
            member.mode = 0o755 if member.isdir() else 0o644
            member.uid = member.gid = os.getuid()
            tar.extract(member, folder, set_attrs=True, numeric_owner=True, **_DATA_FILTER)
        # The checksum of a .gz stands at its end, behind what a tar file is read to.
        assert tar.fileobj is not None
        while unpacked <= limit and (padding := tar.fileobj.read(1 << 20)):
            unpacked += len(padding)


# Python's own check on top of ours, where this Python has it (3.10.12, 3.11.4, 3.12).
_DATA_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as packed:
        unpacked = 0
        for member in packed.infolist():
            unpacked += member.file_size
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), unpacked, limit)
            if not is_added_by_a_mac(member.filename):
                packed.extract(member, folder)


def _check(archive: Path, name: str, is_plain: bool, unpacked: int, limit: int) -> None:
    """Raise UserError for a member that is no plain file or folder, leads out, or makes the archive too large."""
    if not is_plain:
        raise UserError(f"{archive} holds {name!r}, which is neither a file nor a folder; it is refused")
    if name.startswith("/") or ".." in Path(name).parts:
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder; it is refused")
    if unpacked > limit:
        raise UserError(f"{archive} unpacks to more than {limit:,} bytes and is refused; unpack it by hand and name the folder")
