"""The downloader against a real HTTP server on loopback that behaves badly in every way a server can."""

from __future__ import annotations

import http.server
import io
import json
import random
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import fetch, files
from pipeline.errors import UserError

BODY = bytes(range(256)) * 4000
SHA256 = files.sha256_bytes(BODY)


@dataclass
class Answer:
    """One answer of the server: of ``body`` what was asked for, up to ``cut`` bytes of it, then the connection ends."""

    status: int = 0
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    last: int | None = None  # where a partial answer ends, if it is shorter than asked for


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY; what it does wrong is told by the path, or by ``script``, an answer for each request."""

    requests: list[tuple[str, str | None]]
    script: list[Answer]
    cuts: int
    slow: threading.Event


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        if self.server.script:
            self.follow(self.server.script.pop(0), int(asked[6:-1]) if asked else 0)
            return
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.rpartition("/")[2]))
            return
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        if self.path == "/silent":
            self.server.slow.wait(30)
            return
        if self.path == "/changed":
            # The file was replaced: If-Range with the old tag gets all of the new one.
            asked = asked if self.headers.get("If-Range") == '"new"' else None
        body = {"/html": b"<html>login</html>", "/longer": BODY + b"more", "/empty": b""}.get(self.path, BODY)
        start = int(asked[6:-1]) if asked and self.path != "/no-ranges" else 0
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if self.path == "/changed":
            self.send_header("ETag", '"new"')
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.path == "/stalls" and self.server.cuts > 0:
            self.server.cuts -= 1
            self.wfile.write(body[start : start + 300_000])
            self.wfile.flush()
            self.server.slow.wait(30)
            return
        if self.path == "/stuck" and start:
            self.connection.shutdown(2)
            return
        if self.path in ("/cuts", "/no-ranges", "/stuck") and self.server.cuts > 0:
            self.server.cuts -= 1
            self.wfile.write(body[start : start + 300_000])
            self.wfile.flush()
            self.connection.shutdown(2)
            return
        self.wfile.write(body[start:])

    def follow(self, answer: Answer, start: int) -> None:
        status = answer.status or (206 if start else 200)
        start = start if status == 206 else 0
        body = answer.body[start : answer.last]
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **answer.headers}
        if status == 206:
            headers.setdefault("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(answer.body)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: answer.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.requests, running.script, running.cuts, running.slow = [], [], 2, threading.Event()
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.slow.set()
    running.shutdown()
    thread.join()
    running.server_close()


def get(server: Server, page: str, path: Path, **changes: object) -> list[float]:
    """Download; returns how long it would have waited between attempts."""
    waits: list[float] = []
    url = f"http://127.0.0.1:{server.server_address[1]}{page}"
    options = {"sha256": SHA256, "size": len(BODY), "sleep": waits.append, **changes}
    fetch.download(url, path, **options)  # type: ignore[arg-type]
    return waits


def test_a_file_arrives_whole_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[int] = []
    assert get(server, "/good", tmp_path / "deep" / "x", report=lambda done, total: seen.append(done)) == []
    assert (tmp_path / "deep" / "x").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    assert seen == sorted(seen)
    assert seen[-1] == len(BODY)


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    get(server, "/redirect", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_connection_that_is_cut_is_taken_up_where_it_stopped(server: Server, tmp_path: Path) -> None:
    assert get(server, "/cuts", tmp_path / "x") == [2, 2]
    assert (tmp_path / "x").read_bytes() == BODY
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in server.requests]
    assert starts[0] == 0
    assert 0 < starts[1] < starts[2]


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    get(server, "/no-ranges", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_download_that_was_killed_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(BODY[:500_000])
    get(server, "/good", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.requests == [("/good", "bytes=500000-")]


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(BODY)
    get(server, "/good", tmp_path / "x")
    assert server.requests == []
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_connection_that_keeps_breaking_off_is_an_error_that_keeps_what_came(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"broke off 4 times, after [\d,]+ of 1,024,000 bytes .*run again to go on"):
        get(server, "/stuck", tmp_path / "x")
    assert (tmp_path / "x.part").stat().st_size > 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/status/404", "answers 404 .*; correct the address"),
        ("/status/403", "answers 403"),
        ("/longer", "is larger than the 1,024,000 bytes"),
        ("/html", "broke off 4 times"),
        ("/empty", "broke off 4 times"),
    ],
)
def test_what_is_no_reason_for_a_fallback_is_an_error(server: Server, tmp_path: Path, page: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        get(server, page, tmp_path / "x")
    assert not isinstance(error.value, fetch.Unreachable)
    assert not (tmp_path / "x").exists()


def test_a_wrong_checksum_is_an_error_and_the_file_is_gone(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has the sha256 {SHA256}, wanted 0000") as error:
        get(server, "/good", tmp_path / "x", sha256="0" * 64)
    assert not isinstance(error.value, fetch.Unreachable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [500, 502, 503, 407])
def test_a_server_error_is_a_host_that_cannot_be_reached(server: Server, tmp_path: Path, status: int) -> None:
    with pytest.raises(fetch.Unreachable, match=f"answers {status}"):
        get(server, f"/status/{status}", tmp_path / "x")
    assert len(server.requests) == (1 if status == 407 else fetch.ATTEMPTS)


def test_a_refused_connection_and_an_unknown_name_are_known_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "QUICK_SECONDS", 60)  # however busy the machine is
    for url, reason in (("http://127.0.0.1:9/x", "connection refused"), ("http://no-such-host.invalid/x", "the name cannot be resolved")):
        waits: list[float] = []
        with pytest.raises(fetch.Unreachable, match=reason):
            fetch.download(url, tmp_path / "x", sha256=SHA256, size=1, sleep=waits.append)
        assert waits == [0.5, 1, 2]


def test_a_host_that_takes_long_to_be_found_unreachable_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "QUICK_SECONDS", -1)
    with pytest.raises(fetch.Unreachable, match="connection refused"):
        fetch.download("http://127.0.0.1:9/x", tmp_path / "x", sleep=lambda seconds: pytest.fail("it waited"))


def test_a_server_that_is_busy_is_asked_again_when_it_wants(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(503, b""), Answer(429, b"", {"Retry-After": "7"}), Answer(500, b"", {"Retry-After": "soon"})]
    assert get(server, "/good", tmp_path / "x") == [2, 7, 8]
    assert (tmp_path / "x").read_bytes() == BODY
    server.script = [Answer(429, b"", {"Retry-After": "3600"})]
    with pytest.raises(fetch.Unreachable, match="answers 429 Too Many Requests, and asks to be left alone for 3600 s"):
        get(server, "/good", tmp_path / "x")


@pytest.mark.parametrize("location", ["http://[bad", "file:///etc/passwd", "http://" + "x" * 70, "/redirect"])
def test_a_redirect_to_nonsense_is_an_error_of_one_line(server: Server, tmp_path: Path, location: str) -> None:
    server.script = [Answer(302, b"", {"Location": location}) for _ in range(40)]
    with pytest.raises(UserError) as error:
        get(server, "/redirect", tmp_path / "x")
    assert "\n" not in str(error.value)
    assert "cannot be" in str(error.value)


def test_a_proxy_that_refuses(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(403))
    with pytest.raises(fetch.Unreachable, match="the proxy answers 403"):
        fetch.download("http://example.invalid/x", tmp_path / "x", sha256=SHA256, size=1, sleep=lambda seconds: None)
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(fetch.Unreachable, match="the proxy refuses"):
        fetch.download("https://example.invalid/x", tmp_path / "x", sha256=SHA256, size=1, sleep=lambda seconds: None)


def test_a_file_of_unknown_hash_and_size(server: Server, tmp_path: Path) -> None:
    for page in ("/good", "/no-length", "/cuts"):
        url = f"http://127.0.0.1:{server.server_address[1]}{page}"
        found = fetch.download(url, tmp_path / "x", sleep=lambda seconds: None)
        assert found == SHA256
        assert (tmp_path / "x").read_bytes() == BODY


def test_a_file_that_was_replaced_meanwhile_is_fetched_from_its_beginning(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"of the old file" * 1000)
    (tmp_path / "x.part-of").write_text(json.dumps({"etag": '"old"', "modified": "", "total": len(BODY)}))
    get(server, "/changed", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


NEW = bytes(reversed(BODY))


def etag(tag: str) -> dict[str, str]:
    return {"ETag": tag}


@pytest.mark.parametrize(
    ("old", "new", "body"),
    [
        ({}, {}, NEW),
        ({}, {}, NEW + b"more"),
        (etag('W/"1"'), etag('W/"2"'), NEW),
        (etag('"1"'), etag('"2"'), NEW),
        (etag('"1"'), {}, NEW),
        (etag('"1"'), etag('"1"'), NEW + b"more"),
        ({"Last-Modified": "Mon, 05 Jan 2015 00:00:00 GMT"}, {"Last-Modified": "Tue, 06 Jan 2015 00:00:00 GMT"}, NEW),
    ],
    ids=["nothing told", "nothing told, longer", "weak tags", "another tag", "no tag any more", "longer", "another date"],
)
def test_two_versions_are_never_mixed(server: Server, tmp_path: Path, old: dict[str, str], new: dict[str, str], body: bytes) -> None:
    """The server replaces the file after a cut, and answers with the rest of the new one, whatever If-Range says."""
    server.script = [Answer(headers=old, cut=100_000)] + [Answer(body=body, headers=new) for _ in range(3)]
    get(server, "/x", tmp_path / "x", sha256="", size=0)
    assert (tmp_path / "x").read_bytes() == body


@pytest.mark.parametrize("headers", [etag('"1"'), {"Last-Modified": "Mon, 05 Jan 2015 00:00:00 GMT"}], ids=["tag", "date"])
def test_the_same_version_is_gone_on_with(server: Server, tmp_path: Path, headers: dict[str, str]) -> None:
    server.script = [Answer(headers=headers, cut=100_000), Answer(headers=headers)]
    get(server, "/x", tmp_path / "x", sha256="", size=0)
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-"]
    assert (tmp_path / "x").read_bytes() == BODY


def test_answers_shorter_than_asked_for_are_put_together(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(206, headers=etag('"1"'), last=end) for end in (1000, 400_000, len(BODY))]
    get(server, "/x", tmp_path / "x", sha256="", size=0)
    assert (tmp_path / "x").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-", "bytes=400000-"]


def test_another_range_than_the_one_asked_for_is_not_taken(server: Server, tmp_path: Path) -> None:
    elsewhere = {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}
    server.script = [Answer(cut=100_000), Answer(206, headers=elsewhere)]
    get(server, "/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_however_little_comes_before_a_cut_is_kept(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(cut=60_000) for _ in range(17)]
    assert get(server, "/x", tmp_path / "x") == [2] * 17
    assert [asked for _, asked in server.requests][1:] == [f"bytes={60_000 * n}-" for n in range(1, 18)]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_file_is_taken_as_it_is_sent_whatever_its_encoding_is_called(server: Server, tmp_path: Path) -> None:
    server.script = [Answer(headers={"Content-Encoding": "gzip"})]
    get(server, "/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize("page", ["/good", "/no-length"])
def test_a_file_above_the_limit_is_not_fetched(server: Server, tmp_path: Path, page: str) -> None:
    with pytest.raises(UserError, match="is larger than the 1,000 bytes that it may have"):
        get(server, page, tmp_path / "x", sha256="", size=0, limit=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "READ_SECONDS", 0.2)
    waits: list[float] = []
    with pytest.raises(fetch.Unreachable, match=r"did not answer within 0\.2 s"):
        get(server, "/silent", tmp_path / "x", sleep=waits.append)
    assert waits == [2, 4, 8]  # whether the server has come to the last request by now is another matter
    assert len(waits) == fetch.ATTEMPTS - 1


def test_a_server_that_stalls_in_the_middle(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine is slow, the server stalls once more than it is told to: that is gone on from just as well."""
    monkeypatch.setattr(fetch, "READ_SECONDS", 0.5)
    assert len(get(server, "/stalls", tmp_path / "x")) >= 2
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.cuts == 0
    starts = [int(asked[6:-1]) if asked else 0 for _, asked in server.requests]
    assert starts == sorted(starts) and starts[0] == 0 < starts[-1]


# --- Archives ------------------------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_an_archive_is_unpacked_without_its_single_top_folder(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tgz", {"photos/red/1.jpg": b"r", "photos/blue/1.jpg": b"b", "photos/LICENSE.txt": b"l"})
    fetch.unpack(packed, tmp_path / "out")
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")) == [
        "LICENSE.txt",
        "blue/1.jpg",
        "red/1.jpg",
    ]


def test_an_archive_of_several_folders_is_unpacked_as_it_is(tmp_path: Path) -> None:
    fetch.unpack(archive(tmp_path / "a.tgz", {"red/1.jpg": b"r", "blue/1.jpg": b"b"}), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["blue", "red"]


@pytest.mark.parametrize(
    "member",
    [
        {"../outside": b"x"},
        {"a/../../outside": b"x"},
        {"/tmp/outside-of-the-test": b"x"},
        {"link": special("link", tarfile.SYMTYPE, "/etc/passwd")},
        {"link": special("link", tarfile.LNKTYPE, "/etc/passwd")},
        {"device": special("device", tarfile.CHRTYPE)},
        {"pipe": special("pipe", tarfile.FIFOTYPE)},
    ],
    ids=["parent", "parent below", "absolute", "symbolic link", "hard link", "device", "pipe"],
)
def test_what_leads_out_of_the_folder_is_refused_and_nothing_stays(tmp_path: Path, member: dict[str, bytes | tarfile.TarInfo]) -> None:
    (tmp_path / "in").mkdir()
    packed = archive(tmp_path / "a.tgz", {"good/1.jpg": b"g", **member})
    with pytest.raises(UserError, match="it is refused"):
        fetch.unpack(packed, tmp_path / "in" / "out")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_zip_archives_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("photos/red/1.jpg", b"r")
    fetch.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/red/1.jpg").read_bytes() == b"r"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for name, member in (("up", "../outside"), ("absolute", "/tmp/outside-of-the-test"), ("link", link)):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as packed:
            packed.writestr(member, b"x")
        with pytest.raises(UserError, match="it is refused"):
            fetch.unpack(tmp_path / f"{name}.zip", tmp_path / name)
        assert not (tmp_path / name).exists()


MADE_ON_A_MAC = {
    "photos/red/1.jpg": b"r",
    "photos/red/._1.jpg": b"a",
    "./._photos": b"a",
    ".DS_Store": b"d",
    "__MACOSX/photos/._red": b"a",
    "__MACOSX/._photos": b"a",
}


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_what_a_mac_adds_to_an_archive_is_left_out(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
            packed.writestr("__MACOSX/", b"")
            for name, content in MADE_ON_A_MAC.items():
                packed.writestr(name, content)
    else:
        archive(tmp_path / "a.tgz", dict(MADE_ON_A_MAC))
    fetch.unpack(tmp_path / f"a.{kind}", tmp_path / "out")
    assert [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")] == ["red", "red/1.jpg"]


def test_an_archive_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unpacks to more than 1,000 bytes"):
        fetch.unpack(archive(tmp_path / "a.tgz", {"x": b"0" * 600, "y": b"0" * 600}), tmp_path / "out", 1000)


@pytest.mark.parametrize(
    "members",
    [{"a": b"x", "a/b": b"y"}, {"a/b": b"y", "a": b"x"}, {"x" * 300: b"x"}],
    ids=["a file with a file in it", "a file where a folder is", "too long"],
)
def test_names_that_no_disk_can_have_are_the_archives_fault(tmp_path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"a.tgz is no archive that can be unpacked \(.*\); fetch it again") as error:
        fetch.unpack(archive(tmp_path / "a.tgz", members), tmp_path / "in" / "out")
    assert len(str(error.value)) < 300
    assert list((tmp_path / "in").iterdir()) == []


def test_a_tar_file_that_ends_in_a_zip_file_is_a_tar_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as packed:
        packed.writestr("config.json", b"{}")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "m.keras", "m.keras")
    fetch.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.keras"]


@pytest.mark.parametrize("content", [b"", b"<html>", None], ids=["empty", "a page", "cut short"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes | None) -> None:
    packed = archive(tmp_path / "a.tgz", {"x/1.jpg": BODY})
    packed.write_bytes(packed.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match="is no archive that can be unpacked|is empty") as error:
        fetch.unpack(packed, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_damage_inside_an_archive_is_noticed(tmp_path: Path, kind: str) -> None:
    noise = random.Random(0).randbytes(300_000)  # is stored as it is, so that only the checksum tells
    info = tarfile.TarInfo("x/1.jpg")
    info.size = len(noise)
    with tarfile.open(tmp_path / "a", f"w:{kind}") as tar:
        tar.addfile(info, io.BytesIO(noise))
    data = bytearray((tmp_path / "a").read_bytes())
    data[150_000] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match="is no archive that can be unpacked"):
        fetch.unpack(tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
