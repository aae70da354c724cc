"""One downloader for everything: it resumes, retries, checks and arrives whole; and one safe way to unpack."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from pipeline import files
from pipeline.console import Report
from pipeline.errors import UserError

CONNECT_SECONDS = 10
READ_SECONDS = 60
ATTEMPTS = 4
"""How often in a row a download may break off without having come further. Each attempt goes on where the last stopped."""

MAX_UNPACKED_BYTES = 50 * 10**9


class Unreachable(UserError):
    """The host cannot be reached: no such name, refused, no answer in time, a proxy's refusal, or a server error."""


class _BrokeOff(Exception):
    """The connection ended before the body did."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int = 0,
    report: Report = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Fetch ``url`` to ``path`` and return its sha256. What has arrived stays beside it as ``.part``, where the next try goes on.

    Args:
        url: http or https; proxies as in the environment.
        path: where the whole file appears, in one step.
        sha256: what the file has to hash to, where that is known.
        size: its bytes, where they are known.
        report: called with bytes done and in all.
        sleep: waits between attempts, longer each time.

    Raises Unreachable where the host cannot be reached, and UserError for anything else: a missing file, a wrong
    checksum, a connection that keeps breaking off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    attempt, reached = 0, 0
    while True:
        try:
            _continue(url, part, size, report)
            break
        except _BrokeOff as error:
            have = part.stat().st_size if part.exists() else 0
            attempt = 1 if have > reached else attempt + 1
            reached = max(reached, have)
            if attempt == ATTEMPTS:
                of_all = f" of {size:,}" if size else ""
                raise UserError(
                    f"{url} broke off {ATTEMPTS} times, after {have:,}{of_all} bytes ({error}); run again to go on from there"
                ) from None
            sleep(2.0**attempt)
    _version_of(part).unlink(missing_ok=True)
    found = files.sha256_file(part)
    if sha256 and found != sha256:
        part.unlink()
        raise UserError(f"{url} has the sha256 {found}, wanted {sha256}: it is damaged or was replaced; run again")
    os.replace(part, path)
    return found


def _version_of(part: Path) -> Path:
    """The file beside a part that keeps which version of the file it is part of: its ETag, or when it was modified."""
    return part.with_name(part.name + "-of")


def _continue(url: str, part: Path, size: int, report: Report) -> None:
    """Append to ``part`` what is missing; ``size`` 0 means what the server says."""
    start = part.stat().st_size if part.exists() else 0
    if size and start > size:
        part.unlink()
        start = 0
    if size and start == size:
        return
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if _version_of(part).is_file():
            headers["If-Range"] = _version_of(part).read_text()  # a file that changed meanwhile is sent from its beginning
    with _request(url, headers) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise _BrokeOff("the file on the server is no longer than what was fetched of it")
        # A server that does not do ranges sends everything again.
        content_range = response.headers.get("Content-Range", "")
        resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")
        done = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = size or (done + int(length) if length.isdigit() else 0)
        _keep_version(part, response)
        with open(part, "ab" if resumed else "wb") as file:
            try:
                for piece in response.iter_content(1 << 16):
                    file.write(piece)
                    done += len(piece)
                    report(done, max(total, done))
                    if total and done > total:
                        break
            except (requests.RequestException, ConnectionError) as error:
                raise _BrokeOff(_reason(error)) from None
    if total and done > total:
        part.unlink()
        raise UserError(f"{url} is larger than the {total:,} bytes that it should have; correct what is wanted")
    if done < total:
        raise _BrokeOff("the body ended early")


def _keep_version(part: Path, response: requests.Response) -> None:
    tag = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")  # a weak tag (W/"…") is no use for ranges
    if version:
        files.write_atomic(_version_of(part), version.encode())
    else:
        _version_of(part).unlink(missing_ok=True)


def _request(url: str, headers: dict[str, str]) -> requests.Response:
    """Ask for ``url``. An answer that brings no file raises Unreachable or UserError."""
    host = urlsplit(url).netloc
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except requests.ConnectionError as error:
        raise Unreachable(f"{host} cannot be reached ({_reason(error)})") from None
    except requests.Timeout:
        raise Unreachable(f"{host} did not answer within {READ_SECONDS} s") from None
    except requests.RequestException as error:
        raise UserError(f"{url} cannot be fetched ({error}); correct the address") from None
    status = response.status_code
    if status >= 500 or status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        problem: UserError = Unreachable(f"{host} answers {status} {response.reason}")
    elif status == HTTPStatus.FORBIDDEN and requests.utils.get_environ_proxies(url):
        problem = Unreachable(f"the proxy answers 403 {response.reason} for {host}")
    elif status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
        problem = UserError(f"{url} answers {status} {response.reason}; correct the address")
    else:
        return response
    response.close()
    raise problem


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


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive so that ``folder`` appears whole; a single folder at its top is left out.

    Plain files and folders only: names that lead out of the folder, links and devices are refused, and so is an archive
    of more than MAX_UNPACKED_BYTES. Raises UserError.
    """
    temporary = files.beside(folder)
    temporary.mkdir(parents=True)
    try:
        (_unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar)(archive, temporary)
        entries = [entry for entry in temporary.iterdir() if not entry.name.startswith(".")]
        if not entries:
            raise UserError(f"{archive} is empty; correct the address it came from")
        top = entries[0] if len(entries) == 1 and entries[0].is_dir() else temporary
        files.move_folder(top, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise  # the disk's fault and not the archive's
        raise UserError(f"{archive} is no archive that can be unpacked ({error}); remove it and run again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        unpacked = 0
        for member in tar:
            unpacked += member.size
            _check(archive, member.name, member.isreg() or member.isdir(), unpacked)
            member.mode = 0o755 if member.isdir() else 0o644
            member.uid = member.gid = os.getuid()
            tar.extract(member, folder, set_attrs=True, numeric_owner=True, **_DATA_FILTER)


# Python's own check on top of ours, where this Python has it (3.10.12, 3.11.4, 3.12).
_DATA_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        unpacked = 0
        for member in packed.infolist():
            unpacked += member.file_size
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), unpacked)
            packed.extract(member, folder)


def _check(archive: Path, name: str, is_plain: bool, unpacked: int) -> None:
    """Raise UserError for a member that is no plain file or folder, leads out, or makes the archive too large."""
    if not is_plain:
        raise UserError(f"{archive} holds {name!r}, which is neither a file nor a folder; it is refused")
    if name.startswith("/") or ".." in Path(name).parts:
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder; it is refused")
    if unpacked > MAX_UNPACKED_BYTES:
        raise UserError(f"{archive} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes and is refused")
