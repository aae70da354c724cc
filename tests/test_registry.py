from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import Project

from pipeline import files, registry
from pipeline.__main__ import main
from pipeline.errors import UserError


def classifier(folder: Path, key: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("output_graph.pb", "labels.txt"):
        (folder / name).write_text(key)
    files.write_manifest(folder, {"key": key})
    return folder


def publish(tmp_path: Path, key: str) -> Path:
    folder, exports = tmp_path / "runs" / key, tmp_path / "exports"
    while True:
        live = registry.live(exports)
        try:
            return registry.publish(
                [folder if folder.exists() else classifier(folder, key)],
                exports,
                print,
                instead_of=registry.key_of(live) if live else "",
            )
        except registry.Overtaken:
            continue


KEYS = ["a" * 16, "b" * 16, "c" * 16]


def test_versions_count_up_and_the_newest_is_live(tmp_path: Path) -> None:
    published = [publish(tmp_path, key) for key in KEYS]
    assert [path.name for path in published] == ["0001-aaaaaaaa", "0002-bbbbbbbb", "0003-cccccccc"]
    assert registry.versions(tmp_path / "exports") == published
    assert registry.live(tmp_path / "exports") == published[-1]
    assert (tmp_path / "exports/latest/labels.txt").read_text() == KEYS[-1]


def test_what_is_live_already_is_not_published_twice(tmp_path: Path) -> None:
    first = publish(tmp_path, KEYS[0])
    assert publish(tmp_path, KEYS[0]) == first
    assert registry.versions(tmp_path / "exports") == [first]


def test_a_lost_pointer_is_made_again(tmp_path: Path) -> None:
    first = publish(tmp_path, KEYS[0])
    (tmp_path / "exports/latest").unlink()
    assert publish(tmp_path, KEYS[0]) == first
    assert registry.live(tmp_path / "exports") == first


def test_a_pointer_made_by_hand_names_the_same_version(tmp_path: Path) -> None:
    first, link = publish(tmp_path, KEYS[0]), tmp_path / "link"
    publish(tmp_path, KEYS[1])
    link.symlink_to(tmp_path)
    for written in (first, link / "exports" / first.name, f"../exports/{first.name}/"):
        (tmp_path / "exports/latest").unlink()
        (tmp_path / "exports/latest").symlink_to(written)
        assert registry.live(tmp_path / "exports") == first


def test_a_candidate_that_was_judged_against_another_live_version_is_not_published(tmp_path: Path) -> None:
    publish(tmp_path, KEYS[0])
    second = publish(tmp_path, KEYS[1])
    candidate = classifier(tmp_path / "runs" / KEYS[2], KEYS[2])
    for judged_against in ("", KEYS[0]):
        with pytest.raises(registry.Overtaken):
            registry.publish([candidate], tmp_path / "exports", print, instead_of=judged_against)
    assert registry.live(tmp_path / "exports") == second


def test_the_parts_of_a_version_lie_in_one_folder_with_one_manifest(tmp_path: Path) -> None:
    first = classifier(tmp_path / "runs" / "classifier", KEYS[0])
    parts = [first]
    for number, name in enumerate(("tflite", "saved_model")):
        part = tmp_path / "runs" / name
        (part / name).mkdir(parents=True)
        (part / name / "model").write_text(name)
        files.write_manifest(part, {"key": "x", "task": name, "seconds": number, "formats": {name: number}})
        parts.append(part)
    version = registry.publish(parts, tmp_path / "exports", print, instead_of="")
    assert (version / "tflite/model").read_text() == "tflite"
    assert not files.damage(version, contents=True)
    manifest = files.read_json(version / files.MANIFEST)
    assert manifest["key"] == KEYS[0]
    assert manifest["formats"] == {"tflite": 0, "saved_model": 1}
    assert manifest["timings"]["saved_model"] == 1
    with pytest.raises(ValueError, match="two parts of an export have a file labels.txt"):
        registry.publish([first, first], tmp_path / "others", print, instead_of="")
    assert registry.versions(tmp_path / "others") == []


def test_rolling_back_and_what_may_go(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    one, two, three = (publish(tmp_path, key) for key in KEYS)
    assert registry.before_live(exports) == two
    copy = tmp_path / "served/labels"
    registry.roll_back(one, print, {"labels.txt": copy})
    assert registry.live(exports) == one
    assert copy.read_text() == KEYS[0]
    assert registry.before_live(exports) is None
    assert registry.superfluous(exports, 0) == []  # what was rolled back stays, or a run would make it again, and live
    registry.roll_back(three, print)
    assert registry.superfluous(exports, 1) == registry.superfluous(exports, 0) == [one, two]
    assert registry.superfluous(exports, 2) == [one]
    assert registry.superfluous(exports, 9) == []
    registry.pin(two, True, print)
    assert registry.superfluous(exports, 0) == [one]
    (exports / "latest").unlink()
    assert registry.superfluous(exports, 0) == []  # it is not known which of them was live
    registry.roll_back(three, print)
    assert registry.prune(exports, 0, print) == [one]
    assert registry.versions(exports) == [two, three]
    (two / "labels.txt").write_text("altered")
    with pytest.raises(UserError, match=r"is damaged \(labels.txt has 7 bytes and not 16\) and does not go live; name another version"):
        registry.roll_back(two, print)
    assert registry.live(exports) == three
    assert publish(tmp_path, "d" * 16).name == "0004-dddddddd"


def test_a_prune_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    version = publish(tmp_path, KEYS[0])
    shutil.copytree(version, left := version.with_name(".0000-aaaaaaaa.1-a.tmp"))
    assert registry.prune(version.parent, 0, print) == []
    assert not left.exists()


def test_where_the_pins_cannot_be_read_nothing_goes(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for data in ("first", "second"):
        for key, before in zip(KEYS, ["", *KEYS]):
            made = classifier(inside.root / "store" / data / key, key)
            registry.publish([made], inside.root / "exports" / data, print, instead_of=before)
    (inside.root / "exports/second/pinned").write_bytes(b"0001-aaaaaaaa\xff\n")
    for command in (["list", "second"], ["prune", "--keep", "0", "--delete"], ["pin", "second"]):
        assert main(["exports", *command]) == 30
        assert re.fullmatch(
            r"error: .*/exports/second/pinned is damaged, it is not UTF-8; write the versions .*, or remove it\n", capsys.readouterr().err
        )
    assert [len(registry.versions(inside.root / "exports" / data)) for data in ("first", "second")] == [3, 3]


def test_what_is_no_version_any_more_is_named(tmp_path: Path) -> None:
    first, second, third = (publish(tmp_path, key) for key in KEYS)
    exports = tmp_path / "exports"
    assert registry.problems(exports) == []
    (first / files.MANIFEST).write_bytes(b"\0" * 100)
    shutil.rmtree(second)
    second.write_text("a file")
    damaged = [f"{path} is damaged (manifest.json is missing or damaged)" for path in (first, second)]
    assert registry.problems(exports) == damaged
    for name in ("gone", "latest"):
        (exports / "latest").unlink()
        (exports / "latest").symlink_to(name)
        assert registry.problems(exports) == [*damaged, f"{exports / 'latest'} names no version that can be read"]
    assert third.is_dir()


def test_a_pipe_where_a_note_belongs_keeps_nobody_waiting(tmp_path: Path) -> None:
    version = publish(tmp_path, KEYS[0])
    for name, read in (
        (registry.PINNED, lambda: registry.pinned(version.parent)),
        (registry.PENDING, lambda: registry.is_pending(version)),
    ):
        os.mkfifo(version.parent / name)
        with pytest.raises(OSError, match="not a file"):
            read()


def test_a_version_without_its_manifest_is_not_there(tmp_path: Path) -> None:
    first = publish(tmp_path, KEYS[0])
    (tmp_path / "exports" / "0002-bbbbbbbb").mkdir()
    (first / files.MANIFEST).unlink()
    assert registry.versions(tmp_path / "exports") == []
    assert registry.live(tmp_path / "exports") is None
    assert registry.live(tmp_path / "nothing") is None


def test_readers_never_miss_the_latest_while_it_flips(tmp_path: Path) -> None:
    versions = [publish(tmp_path, key) for key in KEYS]
    stop = threading.Event()
    seen: set[str] = set()
    missed: list[int] = []

    def read() -> None:
        while not stop.is_set():
            folder = registry.live(tmp_path / "exports")
            if folder is None or (folder / "labels.txt").read_text() != (folder / "output_graph.pb").read_text():
                missed.append(1)
            else:
                seen.add(folder.name)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        give_up = time.monotonic() + 60
        for i in itertools.count():
            registry.roll_back(versions[i % 3], print)
            # They may not have come to their turn by then.
            if i >= 300 and (len(seen) == len(versions) or time.monotonic() > give_up):
                break
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not missed
    assert len(seen) == len(versions)


def test_two_publishers_at_once_lose_nothing(tmp_path: Path) -> None:
    for key in KEYS:
        classifier(tmp_path / "runs" / key, key)
    threads = [threading.Thread(target=publish, args=(tmp_path, key)) for key in KEYS for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = registry.versions(tmp_path / "exports")
    assert sorted(registry.key_of(version) for version in versions) == KEYS
    assert [path.name[:4] for path in versions] == ["0001", "0002", "0003"]
    assert registry.live(tmp_path / "exports") in versions
    assert not list((tmp_path / "exports").glob(".*tmp"))


def test_a_kill_while_copying_leaves_the_last_good_one_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(tmp_path, KEYS[0])
    original = shutil.copy2

    def half(source: Path, destination: Path) -> None:
        original(source, destination)
        shutil.copytree(destination.parent, destination.parent.with_name(".0002-killed.1-a.tmp"))  # what kill -9 would leave
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(registry.shutil, "copy2", half)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, KEYS[1])
    assert registry.live(tmp_path / "exports") == first
    assert registry.versions(tmp_path / "exports") == [first]
    assert publish(tmp_path, KEYS[1]).name == "0002-bbbbbbbb"
    assert not list((tmp_path / "exports").glob(".*.tmp"))


def test_a_version_that_a_kill_kept_from_going_live_is_pending_until_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = publish(tmp_path, KEYS[0]), tmp_path / "exports/0002-bbbbbbbb"

    def killed(version: Path, copies: registry.Copies) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(registry, "_make_live", killed)
        publish(tmp_path, KEYS[1])
    assert registry.live(second.parent) == first
    assert registry.is_pending(second)
    assert not registry.is_pending(first)
    assert publish(tmp_path, KEYS[1]) == second == registry.live(second.parent)
    registry.roll_back(first, print)
    assert not registry.is_pending(second)


def test_find_takes_a_folder_a_graph_or_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = registry.publish([classifier(tmp_path / "runs" / "x", KEYS[0])], tmp_path / "exports" / "flowers", print, instead_of="")
    for name in ("flowers", str(version), str(version / "output_graph.pb"), str(version.parent / "latest"), str(version.parent)):
        assert registry.find(name, tmp_path / "exports").resolve() == version
    with pytest.raises(UserError, match="'roses' is neither .* published are: flowers"):
        registry.find("roses", tmp_path / "exports")
    with pytest.raises(UserError, match="none is published yet: run make retrain first"):
        registry.find("roses", tmp_path / "nothing")
    (version.parent / "latest").unlink()
    with pytest.raises(UserError, match=r"no version of flowers is live; .* exports rollback flowers VERSION \(0001-aaaaaaaa\)"):
        registry.find("flowers", tmp_path / "exports")


def test_a_damaged_version_is_not_made_live_again(tmp_path: Path) -> None:
    first = publish(tmp_path, KEYS[0])
    publish(tmp_path, KEYS[1])
    (first / "labels.txt").write_text("x" * 16)  # of the same size
    assert publish(tmp_path, KEYS[0]).name == "0003-aaaaaaaa"
    assert (tmp_path / "exports/latest/labels.txt").read_text() == KEYS[0]


def test_a_damaged_classifier_is_not_published(tmp_path: Path) -> None:
    first = publish(tmp_path, KEYS[0])
    (classifier(tmp_path / "runs" / KEYS[1], KEYS[1]) / "labels.txt").write_text("x" * 16)
    with pytest.raises(UserError, match=r"is not published, it is damaged \(labels.txt was altered\); remove it and run again"):
        publish(tmp_path, KEYS[1])
    assert registry.live(tmp_path / "exports") == first
    assert registry.versions(tmp_path / "exports") == [first]


def test_a_candidate_is_measured_against_what_was_live_where_that_is_damaged_or_the_pointer_lost(tmp_path: Path) -> None:
    exports, names = tmp_path / "exports", ["output_graph.pb", "photos.csv.gz"]  # the second was not kept in these versions
    first, second, third = (publish(tmp_path, key) for key in KEYS)
    registry.roll_back(second, print)
    assert registry.rival(exports, "new", names) == second
    (second / "labels.txt").unlink()
    assert registry.rival(exports, "new", names) == second  # what is compared is whole
    assert registry.rival(exports, KEYS[1], names) == first  # not with itself
    (second / "output_graph.pb").write_text("cut")
    assert registry.rival(exports, "new", names) == first  # the third was rolled back
    (exports / "latest").unlink()
    assert registry.rival(exports, "new", names) == third
    assert registry.rival(tmp_path / "nothing", "new", names) is None


def test_formats_come_to_lie_beside_and_another_one_makes_another_version(tmp_path: Path) -> None:
    def with_formats(*names: str) -> Path:
        made = tmp_path / "runs" / KEYS[0]
        folders = [tmp_path / "runs" / name for name in names]
        for folder in folders:
            if not folder.exists():
                folder.mkdir(parents=True)
                (folder / f"{folder.name}.lite").write_text(folder.name)
                files.write_manifest(folder, {"key": "d" * 16, "task": folder.name, "seconds": 1, "formats": {folder.name: {"bytes": 3}}})
        parts = [made if made.exists() else classifier(made, KEYS[0]), *folders]
        return registry.publish(parts, tmp_path / "exports", print, instead_of=KEYS[0])

    plain, small, both = with_formats(), with_formats("small"), with_formats("small", "large")
    assert [path.name[:4] for path in (plain, small, both)] == ["0001", "0002", "0003"]
    assert files.damage(both, contents=True) == ""
    assert (both / "large.lite").read_text() == "large"
    manifest = files.read_json(both / files.MANIFEST)
    assert manifest["key"] == KEYS[0]
    assert list(manifest["formats"]) == ["small", "large"]
    assert registry.holds(both, KEYS[0], ["large"])
    assert not registry.holds(small, KEYS[0], ["large"])
    assert not registry.holds(both, KEYS[1], [])
    assert with_formats("large") == both  # made before, with more than is asked for


def test_what_is_written_into_a_published_file_does_not_reach_the_original(tmp_path: Path) -> None:
    version = publish(tmp_path, KEYS[0])
    with open(version / "labels.txt", "r+b") as file:
        file.truncate(3)
    assert (tmp_path / "runs" / KEYS[0] / "labels.txt").read_text() == KEYS[0]
