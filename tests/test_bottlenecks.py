from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from pipeline import bottlenecks, checkpoint, dataset, files, indexing, scan
from pipeline import packed as packed_module
from pipeline.backbones import Backbone
from pipeline.bottlenecks import Statistics
from pipeline.dataset import Photos
from pipeline.errors import UserError
from pipeline.extraction import Extraction
from pipeline.images import Distortions
from pipeline.network import Network
from pipeline.packed import PACKED, Packed
from pipeline.tensorflow_v1 import tf
from pipeline.vector_cache import VectorCache

WIDTH = 8


def vector_of(data: bytes) -> np.ndarray:
    """Stands for a network: a vector that the bytes decide."""
    return np.random.default_rng(zlib.crc32(data)).normal(size=WIDTH).astype(np.float32)


def one_by_one(run: Callable[[bytes, np.ndarray], np.ndarray], threads: int = 2) -> Network:
    """A network that takes an image at a time."""
    return Network(lambda data, drawn: run(data, drawn)[np.newaxis], batch=1, threads=threads)


STAND_IN = Network(lambda *given: np.stack([vector_of(data) for data in given[:3]]), batch=3, threads=2)


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "vectors", WIDTH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos", 20)
    return tmp_path / "photos"


@pytest.fixture
def photos(folder: Path, tmp_path: Path) -> Photos:
    scanned = scan.of_folder(folder, scan.Memory(tmp_path / "memory.csv"))
    return indexing.split(scanned, testing_percentage=10, validation_percentage=10, seed=0)


# --- Filling it --------------------------------------------------------------------------------------------------------


def test_each_content_is_computed_once(folder: Path, photos: Photos, cache: VectorCache) -> None:
    (folder / "red/copy.png").write_bytes((folder / "red/000.png").read_bytes())
    twin = next(p for p in photos if p.path == "red/000.png")._replace(path="red/copy.png")
    calls: list[int] = []
    lock = threading.Lock()

    def network(data: bytes) -> np.ndarray:
        with lock:
            calls.append(1)
        return vector_of(data)

    filled = bottlenecks.compute(Photos([*photos, twin]), folder, lambda: one_by_one(lambda data, drawn: network(data)), cache)
    assert (filled.computed, filled.cached, filled.problems) == (60, 0, {})
    assert len(calls) == 60
    assert cache.read(twin.sha256).tobytes() == vector_of((folder / "red/000.png").read_bytes()).tobytes()  # type: ignore[union-attr]


def test_only_what_is_missing_or_damaged_is_computed(folder: Path, photos: Photos, cache: VectorCache) -> None:
    bottlenecks.compute(photos, folder, lambda: STAND_IN, cache)
    cache.path(photos[3].sha256).write_bytes(b"cut")
    cache.path(photos[4].sha256).unlink()
    checked: list[tuple[int, int]] = []
    computed: list[tuple[int, int]] = []
    filled = bottlenecks.compute(
        photos, folder, lambda: STAND_IN, cache, checked=lambda *one: checked.append(one), report=lambda *one: computed.append(one)
    )
    assert (filled.computed, filled.cached, filled.damaged) == (2, 58, [photos[3].path])
    assert checked == [(0, 60), (60, 60)]  # as many at a time as are packed
    assert computed == [(58, 60), (60, 60)] or computed == [(58, 60), (59, 60), (60, 60)]
    assert all(cache.read(photo.sha256) is not None for photo in photos)


def test_the_network_is_not_loaded_where_nothing_is_missing(folder: Path, photos: Photos, cache: VectorCache) -> None:
    bottlenecks.compute(photos, folder, lambda: STAND_IN, cache)

    def load() -> Network:
        raise AssertionError("loaded")

    assert bottlenecks.compute(photos, folder, load, cache).cached == 60


def test_a_photo_that_fails_is_named_with_its_reason_and_the_others_go_on(folder: Path, photos: Photos, cache: VectorCache) -> None:
    (folder / "blue/001.png").write_bytes((folder / "blue/002.png").read_bytes())
    (folder / "blue/003.png").unlink()
    refused = (folder / "blue/005.png").read_bytes()

    def network(data: bytes) -> np.ndarray:
        if data == refused:
            raise tf.errors.InvalidArgumentError(None, None, "broken in the middle")
        if data == (folder / "blue/007.png").read_bytes():
            return np.full(WIDTH, np.inf, np.float32)
        return vector_of(data)

    filled = bottlenecks.compute(photos, folder, lambda: one_by_one(lambda data, drawn: network(data)), cache)
    assert filled.problems == {
        "blue/001.png": "it changed while the run was going on; the next run takes it as it is then",
        "blue/003.png": "cannot be read: No such file or directory",
        "blue/005.png": "cannot be decoded, it is damaged or of a rare kind: broken in the middle",
        "blue/007.png": "the network gives numbers for it that are not finite",
    }
    assert filled.changed == ["blue/001.png", "blue/003.png"]
    assert filled.computed == 56


def test_of_files_with_one_content_any_will_do(folder: Path, photos: Photos, cache: VectorCache) -> None:
    original = next(photo for photo in photos if photo.path == "red/000.png")
    twins = [original._replace(path=f"red/copy{number}.png") for number in (1, 2)]
    shutil.copy(folder / original.path, folder / twins[1].path)
    (folder / original.path).unlink()
    rows = Photos([*photos, *twins])
    seen: list[tuple[int, int]] = []
    filled = bottlenecks.compute(rows, folder, lambda: STAND_IN, cache, report=lambda *one: seen.append(one))
    assert (filled.different, filled.computed, filled.problems, filled.changed) == (60, 60, {}, [])
    assert seen == sorted(seen) and seen[-1] == (60, 60)
    (folder / twins[1].path).unlink()
    cache.path(original.sha256).unlink()
    filled = bottlenecks.compute(rows, folder, lambda: STAND_IN, cache)
    assert filled.different == 60
    assert filled.problems == dict.fromkeys([original.path, *(twin.path for twin in twins)], "cannot be read: No such file or directory")


def test_a_folder_or_a_pipe_in_a_vectors_place_makes_room_for_it(folder: Path, photos: Photos, cache: VectorCache) -> None:
    (cache.path(photos[0].sha256) / "inside").mkdir(parents=True)
    cache.path(photos[1].sha256).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(cache.path(photos[1].sha256))
    filled = bottlenecks.compute(photos, folder, lambda: STAND_IN, cache)
    assert (filled.computed, filled.damaged) == (60, [photos[0].path, photos[1].path])
    assert all(cache.read(photo.sha256) is not None for photo in photos)


def test_two_runs_on_one_cache_end_in_whole_files(folder: Path, photos: Photos, cache: VectorCache) -> None:
    threads = [threading.Thread(target=bottlenecks.compute, args=(photos, folder, lambda: STAND_IN, cache)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.read(photo.sha256) is not None for photo in photos)
    assert not list(cache.path("").parent.rglob("*.tmp"))


def test_what_another_run_has_computed_meanwhile_is_not_computed_again(folder: Path, photos: Photos, cache: VectorCache) -> None:
    calls: list[bytes] = []

    def overtaken(data: bytes, drawn: np.ndarray) -> np.ndarray:
        calls.append(data)
        if len(calls) == 1:
            bottlenecks.compute(photos, folder, lambda: STAND_IN, cache)
        return vector_of(data)

    filled = bottlenecks.compute(photos, folder, lambda: one_by_one(overtaken, 1), cache)
    assert (filled.computed, filled.cached, len(calls)) == (1, 59, 1)


# --- Distorted views ---------------------------------------------------------------------------------------------------


DISTORTED = Extraction(distorted_views=2, distortions=Distortions(flip_left_right=True, random_crop=20, random_brightness=10), seed=3)


def test_views_are_rows_of_the_training_photos_and_computed_once(folder: Path, photos: Photos, tmp_path: Path) -> None:
    views = DISTORTED.views_of(photos)
    training = [photo.path for photo in photos if photo.split == dataset.TRAINING]
    assert [(row.path, row.view) for row in views] == [(path, view) for view in (1, 2) for path in training]
    cache = VectorCache(tmp_path / "vectors", WIDTH, tmp_path / "views")
    seen: dict[tuple[bytes, bytes], int] = {}

    def network(data: bytes, drawn: np.ndarray) -> np.ndarray:
        seen[data, drawn.tobytes()] = len(drawn)
        return vector_of(data + drawn.tobytes())

    rows = [*photos, *views]
    bottlenecks.compute(Photos(rows), folder, lambda: one_by_one(network), cache, drawn=DISTORTED.drawn)
    assert len(seen) == len(rows)
    assert sorted(seen.values()) == [0] * len(photos) + [7] * len(views)
    again = bottlenecks.compute(Photos(rows), folder, lambda: one_by_one(network), cache, drawn=DISTORTED.drawn)
    assert (again.computed, again.cached) == (0, len(rows))
    bottlenecks.pack(rows, cache, WIDTH, tmp_path)
    data = (folder / views[5].path).read_bytes()
    row = Packed(tmp_path)[np.array([len(photos) + 5])]
    assert row.tobytes() == vector_of(data + DISTORTED.drawn(views[5]).tobytes()).tobytes()


def test_a_view_depends_on_photo_number_and_seed_alone(photos: Photos) -> None:
    views = DISTORTED.views_of(photos)
    moved = views[0]._replace(path="elsewhere/1.png", label="other", split="testing")
    assert DISTORTED.drawn(moved).tobytes() == DISTORTED.drawn(views[0]).tobytes()
    others = [views[0]._replace(view=2), views[0]._replace(sha256="00" * 32)]
    assert len({DISTORTED.drawn(row).tobytes() for row in [views[0], *others]}) == 3
    assert replace(DISTORTED, seed=4).drawn(views[0]).tobytes() != DISTORTED.drawn(views[0]).tobytes()


BACKBONE = Backbone("net", 224, 127.0, 128.0, WIDTH, 0, "aa", "bb", "", "")


def test_the_key_of_vectors_covers_all_that_decides_their_numbers() -> None:
    extractions = [Extraction(), Extraction(precision="bfloat16"), Extraction(average_views="mirror")]
    backbones = [
        replace(BACKBONE, graph_sha256="cc"),
        replace(BACKBONE, input_size=192),
        replace(BACKBONE, mean=0.0),
        replace(BACKBONE, std=1.0),
    ]
    keys = [extraction.key(BACKBONE) for extraction in extractions] + [Extraction().key(backbone) for backbone in backbones]
    assert len(set(keys)) == len(keys)
    distorted = [DISTORTED, replace(DISTORTED, seed=4), replace(DISTORTED, distortions=Distortions(random_crop=20))]
    assert len({extraction.views_key(BACKBONE) for extraction in distorted}) == 3
    # The photos themselves are the same with distorted views or without, and more views keep those that are there.
    assert {extraction.key(BACKBONE) for extraction in distorted} == {Extraction().key(BACKBONE)}
    assert replace(DISTORTED, distorted_views=9).views_key(BACKBONE) == DISTORTED.views_key(BACKBONE)


# --- The packed matrix -------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(photos: Photos, folder: Path, cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> VectorCache:
    monkeypatch.setattr(bottlenecks, "ROWS_PER_CHUNK", 7)
    monkeypatch.setattr(bottlenecks, "CHUNKS_PER_CHECKPOINT", 2)
    bottlenecks.compute(photos, folder, lambda: STAND_IN, cache)
    return cache


def test_rows_are_in_the_order_of_the_index(photos: Photos, filled: VectorCache, tmp_path: Path) -> None:
    statistics = bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    matrix = Packed(tmp_path)[np.arange(60)]
    assert [row.tobytes() for row in matrix] == [filled.read(p.sha256).tobytes() for p in photos]  # type: ignore[union-attr]
    assert dataset.read_photos(tmp_path / dataset.INDEX) == photos
    training = matrix[[p.split == dataset.TRAINING for p in photos]].astype(np.float64)
    for found in (statistics, bottlenecks.read_statistics(tmp_path)):
        assert found.count == len(training)
        np.testing.assert_allclose(found.mean, training.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.squares, training.var(axis=0) * len(training), atol=1e-10)


def files_of(folder: Path) -> dict[str, str]:
    kept = (PACKED, dataset.INDEX)
    tensors = {name: repr(checkpoint.read(folder, name)) for name in ("global_step", "count", "mean", "sum_of_squares")}
    return {**{name: files.sha256_file(folder / name) for name in kept}, **tensors}


@pytest.mark.parametrize("rows_before_the_kill", [5, 15, 30, 59])
def test_a_killed_pack_goes_on_and_ends_in_the_same_bytes(
    photos: Photos, filled: VectorCache, tmp_path: Path, rows_before_the_kill: int
) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path / "whole")
    killed = tmp_path / "killed"

    def kill(done: int, total: int) -> None:
        if done >= rows_before_the_kill:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bottlenecks.pack(photos, filled, WIDTH, killed, kill)
    seen: list[int] = []
    bottlenecks.pack(photos, filled, WIDTH, killed, lambda done, total: seen.append(done))
    assert files_of(killed) == files_of(tmp_path / "whole")
    saved = rows_before_the_kill // 14 * 14  # a checkpoint each 2 chunks of 7 rows
    assert seen[0] <= saved + 7


def test_a_pack_of_other_photos_starts_over(photos: Photos, filled: VectorCache, tmp_path: Path) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    bottlenecks.pack(photos[1:], filled, WIDTH, tmp_path)
    assert len(Packed(tmp_path)) == 59
    assert Packed(tmp_path)[np.array([0])].tobytes() == filled.read(photos[1].sha256).tobytes()  # type: ignore[union-attr]


def test_rows_that_never_reached_the_disk_are_packed_again(photos: Photos, filled: VectorCache, tmp_path: Path) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    whole = files_of(tmp_path)
    packed = tmp_path / PACKED
    packed.write_bytes(packed.read_bytes()[:300])
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize("damage", ["a row", "the header", "all of it"])
def test_what_was_altered_since_a_kill_is_packed_again(photos: Photos, filled: VectorCache, tmp_path: Path, damage: str) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    whole = files_of(tmp_path)
    with open(tmp_path / PACKED, "r+b") as packed:
        packed.seek({"a row": 300, "the header": 20, "all of it": 0}[damage])
        packed.write(b"\x7f")
        packed.truncate(0 if damage == "all of it" else None)
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    assert files_of(tmp_path) == whole


def test_a_vector_that_went_away_meanwhile_is_named(photos: Photos, filled: VectorCache, tmp_path: Path) -> None:
    filled.path(photos[9].sha256).unlink()
    with pytest.raises(UserError, match="went away or was altered during the run; run again"):
        bottlenecks.pack(photos, filled, WIDTH, tmp_path)


def test_its_checkpoint_comes_back_in_plain_tensorflow(photos: Photos, filled: VectorCache, tmp_path: Path) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    latest = tf.train.latest_checkpoint(str(tmp_path / "there"))
    with tf.Graph().as_default(), tf.Session() as running:
        tf.train.import_meta_graph(latest + ".meta").restore(running, latest)
        assert running.run("global_step/Read/ReadVariableOp:0") == 60


def test_statistics_lose_no_digits_over_a_large_mean() -> None:
    rows = np.random.default_rng(0).normal(1e6, 1, (1000, 3))
    statistics = Statistics.nothing(3)
    for start in range(0, 1000, 64):
        statistics.add(rows[start : start + 64])
    np.testing.assert_allclose(statistics.squares / 1000, rows.var(axis=0), rtol=1e-9)


def test_packed_rows_are_read_in_any_order(photos: Photos, filled: VectorCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    monkeypatch.setattr(packed_module, "ROWS_AT_ONCE", 7)
    packed, whole = Packed(tmp_path), np.load(tmp_path / PACKED)
    assert packed.shape == (60, WIDTH)
    for rows in (np.arange(60), np.arange(60)[::-1], [], [3], [59, 0, 1, 2, 2, 3], np.random.default_rng(0).integers(0, 60, 200)):
        np.testing.assert_array_equal(packed[rows], whole[np.asarray(rows, int)])
    with open(tmp_path / PACKED, "r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    assert len(packed[range(59)]) == 59
    with pytest.raises(OSError, match="bottlenecks.npy ends before row 59"):
        packed[[58, 59]]


@pytest.mark.parametrize("damage", ["cut in a row", "no CSV"])
def test_a_damaged_index_has_all_packed_anew(photos: Photos, filled: VectorCache, tmp_path: Path, damage: str) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    whole, index = files_of(tmp_path), tmp_path / dataset.INDEX
    data = index.read_bytes()
    index.write_bytes(data[: len(data) // 2 - 3] if damage == "cut in a row" else data[:200] + b'\r\0"' + data[200:])
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    assert files_of(tmp_path) == whole
