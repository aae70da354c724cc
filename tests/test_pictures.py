from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import files, pictures


def photo(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> str:
    Image.new("RGB", size, colour).save(path)
    return files.sha256_file(path)


def test_a_thumbnail_shows_the_whole_photo_in_the_middle_of_a_square(tmp_path: Path) -> None:
    sha256 = photo(tmp_path / "wide.png", (80, 40), (200, 0, 0))
    small = pictures.thumbnail(tmp_path / "wide.png", sha256, 40)
    assert small.size == (40, 40)
    assert small.getpixel((20, 20)) == (200, 0, 0)
    assert small.getpixel((20, 5)) == pictures.BACKGROUND


@pytest.mark.parametrize(("size", "shown"), [((970, 1), (40, 1)), ((1, 3000), (1, 40)), ((81, 162), (20, 40)), ((5, 5), (40, 40))])
def test_a_photo_is_shown_whole_however_thin_it_is(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    sha256 = photo(tmp_path / "photo.png", size, (200, 0, 0))
    small = pictures.small(tmp_path / "photo.png", sha256, 40)
    assert small and small.size == shown
    assert Image.open(io.BytesIO(pictures.encoded(small, "JPEG"))).size == shown


@pytest.mark.parametrize("how", ["gone", "changed", "damaged"])
def test_a_photo_that_cannot_be_shown_is_grey(tmp_path: Path, how: str) -> None:
    path = tmp_path / "photo.png"
    sha256 = photo(path, (50, 50), (0, 200, 0))
    if how == "gone":
        path.unlink()
    elif how == "changed":
        photo(path, (50, 50), (0, 0, 200))
    else:
        path.write_bytes(path.read_bytes()[:60])
        sha256 = files.sha256_file(path)
    assert set(pictures.thumbnail(path, sha256, 20).get_flattened_data()) == {pictures.NO_PHOTO}


def test_a_sheet_has_a_place_for_each_picture_and_caption() -> None:
    page = pictures.sheet(
        [Image.new("RGB", (30, 30), (9 * number, 0, 0)) for number in range(7)], ["a very long caption 花"] * 7, columns=3
    )
    assert page.width == 3 * 36 + 6
    assert page.height == 3 * 50 + 6
    assert page.getpixel((6 + 36 + 15, 6 + 50 + 15)) == (36, 0, 0)  # the fifth


@pytest.mark.parametrize("classes", [2, 30, 300])
def test_a_confusion_matrix_is_dark_where_the_counts_are(classes: int) -> None:
    page = pictures.confusion_matrix(np.eye(classes, dtype=int) * 5, [f"label {number}" for number in range(classes)])
    assert max(page.size) < 1500
    assert len(set(page.get_flattened_data())) > 1
    back = Image.open(io.BytesIO(pictures.encoded(page)))
    assert back.size == page.size
