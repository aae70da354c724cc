from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline import vector_cache
from pipeline.vector_cache import VectorCache

WIDTH = 8
NAME = "ab" * 32
OTHER = "cd" * 32


def vector(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> VectorCache:
    return VectorCache(tmp_path / "vectors", WIDTH, tmp_path / "views")


def test_a_vector_comes_back_and_numpy_reads_its_file(cache: VectorCache) -> None:
    cache.write(vector(), NAME)
    assert cache.read(NAME).tobytes() == vector().tobytes()  # type: ignore[union-attr]
    assert np.load(cache.path(NAME)).tobytes() == vector().tobytes()
    assert cache.read(OTHER) is None


def test_a_view_is_another_vector(cache: VectorCache) -> None:
    for view in range(3):
        cache.write(vector(view), NAME, view)
    assert [cache.read(NAME, view).tobytes() for view in range(3)] == [vector(view).tobytes() for view in range(3)]  # type: ignore[union-attr]
    assert cache.path(NAME).parts[-3] == "vectors"
    assert cache.path(NAME, 2).parts[-3:] == ("views", "ab", f"{NAME}-2.npy")


def damaged(data: bytes, how: str) -> bytes:
    flipped = bytearray(data)
    flipped[-20] ^= 4
    not_finite = data[:-36] + np.array([np.nan], "<f4").tobytes() + data[-32:-4]
    return {
        "cut short": data[:-9],
        "longer": data + b"\0",
        "empty": b"",
        "zero-filled": data[:100] + b"\0" * (len(data) - 100),
        "a flipped bit": bytes(flipped),
        "not finite": not_finite + zlib.crc32(not_finite).to_bytes(4, "little"),
        "comma text": b"0.1,0.2,0.3",
    }[how]


@pytest.mark.parametrize("how", ["cut short", "longer", "empty", "zero-filled", "a flipped bit", "not finite", "comma text"])
def test_a_damaged_file_is_no_vector(cache: VectorCache, how: str) -> None:
    cache.write(vector(), NAME)
    path = cache.path(NAME)
    path.write_bytes(damaged(path.read_bytes(), how))
    assert cache.read(NAME) is None
    assert [found for found, _ in vector_cache.verify(path.parent.parent)] == [path]


def test_a_vector_of_another_width_is_no_vector(cache: VectorCache, tmp_path: Path) -> None:
    VectorCache(tmp_path / "vectors", WIDTH + 1).write(np.zeros(WIDTH + 1, np.float32), NAME)
    assert cache.read(NAME) is None


def test_only_vectors_are_written(cache: VectorCache) -> None:
    for wrong in (np.zeros(WIDTH + 1), np.full(WIDTH, np.nan)):
        with pytest.raises(ValueError, match="wanted 8 finite numbers"):
            cache.write(wrong, NAME)


# --- Looking after it --------------------------------------------------------------------------------------------------


def test_survey_counts_what_is_there(cache: VectorCache, tmp_path: Path) -> None:
    for name in (NAME, OTHER):
        cache.write(vector(), name)
    (found,) = vector_cache.survey(cache.path(NAME).parents[2])
    assert (found.folder, found.count) == (tmp_path / "vectors", 2)
    assert found.bytes == 2 * cache.path(NAME).stat().st_size
    assert vector_cache.survey(tmp_path / "nothing") == []


def test_verify_names_what_is_wrong_with_a_file(cache: VectorCache, tmp_path: Path) -> None:
    cache.write(vector(), NAME)
    folder = cache.path(NAME).parent
    (folder / "a folder.npy").mkdir()
    os.mkfifo(folder / "a pipe.npy")
    (folder / "text.npy").write_text("0.1,0.2,0.3,0.4,0.5")

    def write(name: str, array: np.ndarray) -> None:
        data = io.BytesIO()
        np.save(data, array)
        (folder / name).write_bytes(data.getvalue() + vector_cache._checksum(data.getvalue(), folder / name))

    write("matrix.npy", np.zeros((2, 2), np.float32))
    write("nan.npy", np.full(3, np.nan, np.float32))
    (folder / "nowhere.npy").symlink_to("nothing")
    (folder / "another's.npy").write_bytes(cache.path(NAME).read_bytes())
    (tmp_path / "vectors" / "cd").write_text("no folder")
    looks: list[int] = []
    problems = {path.stem: problem for path, problem in vector_cache.verify(tmp_path / "vectors", lambda: looks.append(1))}
    assert problems == {
        "a folder": "no file that can be read",
        "a pipe": "no file that can be read",
        "text": "no vector",
        "matrix": "an array of float32 [2, 2]",
        "nan": "numbers that are not finite",
        "nowhere": "no file that can be read",
        "another's": "cut short or altered",
        "cd": "no folder of vectors",
    }
    assert len(looks) == 8
    assert vector_cache.survey(tmp_path)[0].count == 8


def test_a_vector_in_anothers_place_is_none(cache: VectorCache, tmp_path: Path) -> None:
    cache.write(vector(), NAME)
    cache.path(OTHER).parent.mkdir()
    cache.path(OTHER).write_bytes(cache.path(NAME).read_bytes())
    assert cache.read(OTHER) is None
    other_model = VectorCache(tmp_path / "of another model", WIDTH)
    other_model.path(NAME).parent.mkdir(parents=True)
    other_model.path(NAME).write_bytes(cache.path(NAME).read_bytes())
    assert other_model.read(NAME) is None


@pytest.mark.parametrize(
    "what",
    ["a link to a folder", "a link to nothing", "a file for the folder", "a link for the folder", "a link in a circle for the folder"],
)
def test_whatever_is_in_the_way_makes_room(cache: VectorCache, tmp_path: Path, what: str) -> None:
    (tmp_path / "vectors").mkdir()
    path = cache.path(NAME)
    if what.endswith("for the folder"):
        target = path.parent.name if "circle" in what else "nothing"
        path.parent.write_text("") if what.startswith("a file") else path.parent.symlink_to(target)
    else:
        path.parent.mkdir()
        path.symlink_to(tmp_path if what.endswith("a folder") else "nothing")
    cache.write(vector(), NAME)
    assert cache.read(NAME) is not None
    assert tmp_path.is_dir()


def test_unused_are_the_vectors_of_other_images(cache: VectorCache, tmp_path: Path) -> None:
    for name in (NAME, OTHER):
        cache.write(vector(), name)
        cache.write(vector(), name, 1)
    for folder in ("vectors", "views"):
        unused = [Path(entry.path) for entry in vector_cache.unused(tmp_path / folder, {NAME})]
        assert [path.name.partition("-")[0].removesuffix(".npy") for path in unused] == [OTHER]
        vector_cache.remove(unused[0])
    assert cache.read(OTHER) is None
    assert cache.read(NAME, 1) is not None
    assert not cache.path(OTHER).parent.exists()
    old, new = (cache.path(NAME).with_name(f".{age}.npy.1-2.tmp") for age in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert [Path(entry.path) for entry in vector_cache.unused(tmp_path / "vectors", {NAME})] == [old]
    for path in (old, new):
        path.unlink()
    vector_cache.remove(cache.path(NAME))
    assert not (tmp_path / "vectors").exists()


def test_what_macos_leaves_in_a_folder_is_nothing_to_verify(cache: VectorCache) -> None:
    cache.write(vector(), NAME)
    folder = cache.path(NAME).parent.parent
    (folder / ".DS_Store").write_bytes(b"note")
    assert list(vector_cache.verify(folder)) == []
    (folder / "note").write_bytes(b"note")
    assert [path.name for path, _ in vector_cache.verify(folder)] == ["note"]
