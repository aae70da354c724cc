from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import files


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    assert files.read_regular(tmp_path / "file", 4) == b"four"
    with pytest.raises(OSError, match="4 bytes are more than 3"):
        files.read_regular(tmp_path / "file", 3)
    os.mkfifo(tmp_path / "pipe")  # whoever opens it to read waits for a writer
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="not a file"):
            files.read_regular(tmp_path / name, 4)


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / files.MANIFEST)
    assert files.read_manifest(tmp_path) is None
    for read in (files.read_json, files.sha256_file, lambda path: files.open_sealed_csv(path).__enter__()):
        with pytest.raises(OSError, match="not a file"):
            read(tmp_path / files.MANIFEST)


def test_a_manifest_of_brackets_alone_is_none(tmp_path: Path) -> None:
    (tmp_path / files.MANIFEST).write_text("[" * 200_000)
    assert files.read_manifest(tmp_path) is None


@pytest.mark.parametrize("kind", ["file", "folder", "link", "nothing"])
def test_whatever_is_there_is_removed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("stays")
    path = tmp_path / "path"
    if kind == "folder":
        (path / "deep").mkdir(parents=True)
    elif kind == "link":
        path.symlink_to(tmp_path / "kept")
    elif kind == "file":
        path.write_text("goes")
    files.remove(path)
    assert not os.path.lexists(path)
    assert (tmp_path / "kept" / "file").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "value"
    files.write_atomic(path, b"old")
    with pytest.raises(TypeError):
        files.write_atomic(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, None], "a": "花"}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert "花" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # The test vector of FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "x") == files.sha256_bytes(b"abc") == expected


def test_the_first_folder_to_arrive_is_kept(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
        files.move_folder(tmp_path / name, tmp_path / "deep" / "output")
    assert (tmp_path / "deep" / "output" / "who").read_text() == "first"
    assert not (tmp_path / "second").exists()


def test_a_folder_with_hidden_files_alone_makes_room(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/photo").write_text("x")
    (tmp_path / "output/.git").mkdir(parents=True)
    (tmp_path / "output/.gitkeep").write_text("kept")
    files.move_folder(tmp_path / "new", tmp_path / "output")
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [".git", ".gitkeep", "photo"]
    assert (tmp_path / "output/.gitkeep").read_text() == "kept"
    assert not (tmp_path / "new").exists()


HOLD = """
import sys, time
from pathlib import Path
from pipeline import files
with files.locked(Path(sys.argv[1]), waiting=print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    said: list[str] = []
    got_it = threading.Event()
    is_waiting = threading.Event()

    def second_comer() -> None:
        def waiting(who: str) -> None:
            said.append(who)
            is_waiting.set()

        with files.locked(lock, waiting=waiting):
            got_it.set()

    thread = threading.Thread(target=second_comer)
    thread.start()
    assert is_waiting.wait(30)
    assert f"process {holder.pid} " in said[0]
    assert not got_it.is_set()
    holder.kill()
    assert got_it.wait(30)
    thread.join()
    holder.wait()
    assert not lock.exists()


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with files.locked(tmp_path / "lock", waiting=lambda who: None):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_manifest_that_was_altered_is_none(tmp_path: Path) -> None:
    files.write_manifest(tmp_path, {"key": "k", "accuracy": 0.5, "views": ("a", None)})
    whole = files.read_manifest(tmp_path)
    assert whole and (whole["accuracy"], whole["views"]) == (0.5, ["a", None])
    text = (tmp_path / files.MANIFEST).read_text()
    (tmp_path / files.MANIFEST).write_text(text.replace("0.5", "0.6"))
    assert files.read_manifest(tmp_path) is None
    assert files.damage(tmp_path) == "manifest.json is missing or damaged"
    (tmp_path / files.MANIFEST).write_text('{"key": "k", "files": {}}')  # of a time before they had a hash of their own
    assert files.read_manifest(tmp_path) == {"key": "k", "files": {}}


def test_where_there_are_no_locks_the_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refusing)
    for lock, path in (
        (files.locked(tmp_path / "lock", waiting=lambda who: None), tmp_path / "lock"),
        (files.in_use(tmp_path), tmp_path / files.IN_USE),
        (files.alone(tmp_path), tmp_path / files.IN_USE),
    ):
        with pytest.raises(OSError, match="No locks available") as raised, lock:
            pass
        assert (raised.value.errno, raised.value.filename) == (errno.ENOLCK, str(path))


def test_damage_to_a_finished_folder_is_named(tmp_path: Path) -> None:
    def finished() -> Path:
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep/a.txt").write_text("abc")
        (tmp_path / "b.txt").write_text("")
        files.write_manifest(tmp_path, {"key": "k"})
        return tmp_path

    assert files.damage(tmp_path) == "manifest.json is missing or damaged"
    assert files.damage(finished(), contents=True) == ""
    assert files.damage(tmp_path, names=["b.txt", "c.txt"]) == "c.txt is not in manifest.json"
    (tmp_path / "notes").write_text("a further file is nobody's concern")
    (tmp_path / "deep/a.txt").write_text("xyz")
    assert files.damage(tmp_path) == ""
    assert files.damage(tmp_path, contents=True) == "deep/a.txt was altered"
    assert files.damage(tmp_path, contents=True, names=["b.txt"]) == ""
    (tmp_path / "deep/a.txt").write_text("abcd")
    assert files.damage(tmp_path) == "deep/a.txt has 4 bytes and not 3"
    (tmp_path / "deep/a.txt").unlink()
    assert files.damage(tmp_path) == "deep/a.txt is missing"
