from __future__ import annotations

import os
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photos

from pipeline import bottlenecks, checkpoint, dataset, files
from pipeline.bottlenecks import Statistics, VectorCache
from pipeline.dataset import Photo
from pipeline.errors import BadImage, UserError
from pipeline.tensorflow_v1 import tf

WIDTH = 8


def vector_of(data: bytes) -> np.ndarray:
    """Stands for a network: a vector that the bytes decide."""
    return np.random.default_rng(zlib.crc32(data)).normal(size=WIDTH).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "vectors", WIDTH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos", 20)
    return tmp_path / "photos"


@pytest.fixture
def photos(folder: Path, tmp_path: Path) -> list[Photo]:
    scanned = dataset.scan(folder, dataset.Memory(tmp_path / "memory.csv"))
    return dataset.split(scanned, testing_percentage=10, validation_percentage=10, seed=0)


# --- The cache ---------------------------------------------------------------------------------------------------------


def test_a_vector_comes_back_and_numpy_reads_its_file(cache: VectorCache) -> None:
    vector = vector_of(b"x")
    cache.write("ab" * 32, vector)
    assert cache.read("ab" * 32).tobytes() == vector.tobytes()  # type: ignore[union-attr]
    assert np.load(cache.path("ab" * 32)).tobytes() == vector.tobytes()
    assert cache.read("cd" * 32) is None


def damaged(data: bytes, how: str) -> bytes:
    zeros = b"\0" * (len(data) - 100)
    flipped = bytearray(data)
    flipped[-20] ^= 4
    not_finite = data[:-36] + np.array([np.nan], "<f4").tobytes() + data[-32:-4]
    return {
        "cut short": data[:-9],
        "longer": data + b"\0",
        "empty": b"",
        "zero-filled": data[:100] + zeros,
        "a flipped bit": bytes(flipped),
        "not finite": not_finite + zlib.crc32(not_finite).to_bytes(4, "little"),
        "comma text": b"0.1,0.2,0.3",
    }[how]


@pytest.mark.parametrize("how", ["cut short", "longer", "empty", "zero-filled", "a flipped bit", "not finite", "comma text"])
def test_a_damaged_file_is_no_vector(cache: VectorCache, how: str) -> None:
    cache.write("ab" * 32, vector_of(b"x"))
    path = cache.path("ab" * 32)
    path.write_bytes(damaged(path.read_bytes(), how))
    assert cache.read("ab" * 32) is None


def test_a_vector_of_another_width_is_no_vector(cache: VectorCache, tmp_path: Path) -> None:
    VectorCache(tmp_path / "vectors", WIDTH + 1).write("ab" * 32, np.zeros(WIDTH + 1, np.float32))
    assert cache.read("ab" * 32) is None


def test_only_vectors_are_written(cache: VectorCache) -> None:
    for wrong in (np.zeros(WIDTH + 1), np.full(WIDTH, np.nan)):
        with pytest.raises(ValueError, match="wanted 8 finite numbers"):
            cache.write("ab" * 32, wrong)


# --- Filling it --------------------------------------------------------------------------------------------------------


def test_each_content_is_computed_once(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    (folder / "red/copy.png").write_bytes((folder / "red/000.png").read_bytes())
    twin = replace(next(p for p in photos if p.path == "red/000.png"), path="red/copy.png")
    calls: list[int] = []
    lock = threading.Lock()

    def network(data: bytes) -> np.ndarray:
        with lock:
            calls.append(1)
        return vector_of(data)

    filled = bottlenecks.compute([*photos, twin], folder, lambda: network, cache)
    assert (filled.computed, filled.cached, filled.problems) == (60, 0, {})
    assert len(calls) == 60
    assert cache.read(twin.sha256).tobytes() == vector_of((folder / "red/000.png").read_bytes()).tobytes()  # type: ignore[union-attr]


def test_only_what_is_missing_or_damaged_is_computed(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    bottlenecks.compute(photos, folder, lambda: vector_of, cache)
    cache.path(photos[3].sha256).write_bytes(b"cut")
    cache.path(photos[4].sha256).unlink()
    filled = bottlenecks.compute(photos, folder, lambda: vector_of, cache)
    assert (filled.computed, filled.cached, filled.damaged) == (2, 58, 1)
    assert all(cache.read(photo.sha256) is not None for photo in photos)


def test_the_network_is_not_loaded_where_nothing_is_missing(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    bottlenecks.compute(photos, folder, lambda: vector_of, cache)

    def load() -> bottlenecks.Network:
        raise AssertionError("loaded")

    assert bottlenecks.compute(photos, folder, load, cache).cached == 60


def test_a_photo_that_fails_is_named_with_its_reason_and_the_others_go_on(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    (folder / "blue/001.png").write_bytes((folder / "blue/002.png").read_bytes())
    (folder / "blue/003.png").unlink()
    refused = (folder / "blue/005.png").read_bytes()

    def network(data: bytes) -> np.ndarray:
        if data == refused:
            raise BadImage("cannot be decoded: broken in the middle")
        if data == (folder / "blue/007.png").read_bytes():
            return np.full(WIDTH, np.inf, np.float32)
        return vector_of(data)

    filled = bottlenecks.compute(photos, folder, lambda: network, cache)
    assert filled.problems == {
        "blue/001.png": "it changed while the run was going on; the next run takes it as it is then",
        "blue/003.png": "cannot be read: No such file or directory",
        "blue/005.png": "cannot be decoded: broken in the middle",
        "blue/007.png": "the network gives numbers for it that are not finite",
    }
    assert filled.computed == 56


def test_a_folder_or_a_pipe_in_a_vectors_place_makes_room_for_it(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    (cache.path(photos[0].sha256) / "inside").mkdir(parents=True)
    cache.path(photos[1].sha256).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(cache.path(photos[1].sha256))
    filled = bottlenecks.compute(photos, folder, lambda: vector_of, cache)
    assert (filled.computed, filled.damaged) == (60, 2)
    assert all(cache.read(photo.sha256) is not None for photo in photos)


def test_two_runs_on_one_cache_end_in_whole_files(folder: Path, photos: list[Photo], cache: VectorCache) -> None:
    threads = [threading.Thread(target=bottlenecks.compute, args=(photos, folder, lambda: vector_of, cache)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.read(photo.sha256) is not None for photo in photos)
    assert not list(cache.path("").parent.rglob("*.tmp"))


# --- The real network --------------------------------------------------------------------------------------------------


def test_the_network_gives_the_same_bytes_from_any_number_of_threads(backbone_folder: Path, folder: Path) -> None:
    network = bottlenecks.load_network(backbone_folder)
    pictures = [path.read_bytes() for path in sorted(folder.rglob("*.png"))[:8]]
    alone = [network(data).tobytes() for data in pictures]
    together: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, network(pictures[i]).tobytes())) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone


def test_a_photo_that_fails_only_when_decoded_has_a_reason(backbone_folder: Path, folder: Path) -> None:
    data = bytearray((folder / "red/000.png").read_bytes())
    data[200:400] = bytes(200)
    with pytest.raises(BadImage, match="cannot be decoded") as failure:
        bottlenecks.load_network(backbone_folder)(bytes(data))
    assert "\n" not in str(failure.value)


# --- The packed matrix -------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(photos: list[Photo], folder: Path, cache: VectorCache, monkeypatch: pytest.MonkeyPatch) -> VectorCache:
    monkeypatch.setattr(bottlenecks, "ROWS_PER_CHUNK", 7)
    monkeypatch.setattr(bottlenecks, "CHUNKS_PER_CHECKPOINT", 2)
    bottlenecks.compute(photos, folder, lambda: vector_of, cache)
    return cache


def test_rows_are_in_the_order_of_the_index(photos: list[Photo], filled: VectorCache, tmp_path: Path) -> None:
    statistics = bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    matrix = bottlenecks.read_packed(tmp_path)
    assert [row.tobytes() for row in matrix] == [filled.read(p.sha256).tobytes() for p in photos]  # type: ignore[union-attr]
    assert dataset.read_photos(tmp_path / bottlenecks.INDEX) == photos
    training = matrix[[p.split == dataset.TRAINING for p in photos]].astype(np.float64)
    for found in (statistics, bottlenecks.read_statistics(tmp_path)):
        assert found.count == len(training)
        np.testing.assert_allclose(found.mean, training.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.squares, training.var(axis=0) * len(training), atol=1e-10)


def files_of(folder: Path) -> dict[str, str]:
    kept = (bottlenecks.PACKED, bottlenecks.INDEX)
    tensors = {name: repr(checkpoint.read(folder, name)) for name in ("global_step", "count", "mean", "sum_of_squares")}
    return {**{name: files.sha256_file(folder / name) for name in kept}, **tensors}


@pytest.mark.parametrize("rows_before_the_kill", [5, 15, 30, 59])
def test_a_killed_pack_goes_on_and_ends_in_the_same_bytes(
    photos: list[Photo], filled: VectorCache, tmp_path: Path, rows_before_the_kill: int
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


def test_a_pack_of_other_photos_starts_over(photos: list[Photo], filled: VectorCache, tmp_path: Path) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    bottlenecks.pack(photos[1:], filled, WIDTH, tmp_path)
    assert len(bottlenecks.read_packed(tmp_path)) == 59
    assert bottlenecks.read_packed(tmp_path)[0].tobytes() == filled.read(photos[1].sha256).tobytes()  # type: ignore[union-attr]


def test_rows_that_never_reached_the_disk_are_packed_again(photos: list[Photo], filled: VectorCache, tmp_path: Path) -> None:
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    whole = files_of(tmp_path)
    packed = tmp_path / bottlenecks.PACKED
    packed.write_bytes(packed.read_bytes()[:300])
    bottlenecks.pack(photos, filled, WIDTH, tmp_path)
    assert files_of(tmp_path) == whole


def test_a_vector_that_went_away_meanwhile_is_named(photos: list[Photo], filled: VectorCache, tmp_path: Path) -> None:
    filled.path(photos[9].sha256).unlink()
    with pytest.raises(UserError, match="went away or was altered during the run; run again"):
        bottlenecks.pack(photos, filled, WIDTH, tmp_path)


def test_its_checkpoint_comes_back_in_plain_tensorflow(photos: list[Photo], filled: VectorCache, tmp_path: Path) -> None:
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
