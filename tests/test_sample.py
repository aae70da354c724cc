from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import files, sample


def test_drawn_from_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sample.draw(tmp_path / name, 2, seed)
    hashes = {name: [files.sha256_file(path) for path in sorted((tmp_path / name).rglob("*.jpg"))] for name in "abc"}
    assert hashes["a"] == hashes["b"]
    assert len({*hashes["a"], *hashes["c"]}) == 20  # 5 kinds × 2, all different, and others with another seed


def test_a_smaller_sample_is_a_part_of_a_larger_one(tmp_path: Path) -> None:
    for name, per_class in (("small", 2), ("large", 3)):
        sample.draw(tmp_path / name, per_class, 1)
    small, large = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")} for name in ("small", "large")
    )
    assert (len(small), len(large)) == (10, 15)
    assert small.items() < large.items()


def test_pictures_are_varied_in_size_and_light(tmp_path: Path) -> None:
    sample.draw(tmp_path, 6, 1)
    pictures = [Image.open(path) for path in sorted(tmp_path.rglob("*.jpg"))]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert len({picture.size for picture in pictures}) > 20
    light = [np.asarray(picture.convert("L")).mean() for picture in pictures]
    assert max(light) - min(light) > 60


def test_colour_alone_does_not_tell_the_kinds_apart() -> None:
    """The nearest mean colour names far fewer pictures rightly than a network that sees shapes."""
    colours = {kind: np.array([np.asarray(sample.draw_picture(kind, i, 1)).mean(axis=(0, 1)) for i in range(12)]) for kind in sample.KINDS}
    means = {kind: values.mean(axis=0) for kind, values in colours.items()}
    right = sum(
        min(means, key=lambda other: float(np.linalg.norm(value - means[other]))) == kind
        for kind, values in colours.items()
        for value in values
    )
    assert right / 60 < 0.6
