from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import make_photos

from benchmarks import features
from pipeline import backbones, dataset, indexing, network, scan


def test_rooted_rows_are_as_long_as_each_other() -> None:
    found = features.rooted(np.array([[4.0, 0.0, 9.0], [0.0, 0.0, 0.0], [-1e-9, 16.0, 0.0]]))
    np.testing.assert_allclose(found, [[2 / 13**0.5, 0, 3 / 13**0.5], [0, 0, 0], [0, 1, 0]], atol=1e-6)


def test_parts_are_joined_at_one_scale_that_the_training_rows_say() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(200, 3)), 1000 * rng.normal(size=(200, 2))]
    training = np.arange(200) < 150
    parts[0][~training] *= 50
    found = features.joined(parts, training)
    assert found.shape == (200, 5)
    np.testing.assert_allclose([found[training][:, :3].var(axis=0).mean(), found[training][:, 3:].var(axis=0).mean()], 1, rtol=1e-5)


def test_tensors_of_a_network_and_what_a_head_names_by_them(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 20, size=48)
    photos = scan.of_folder(tmp_path / "photos", scan.Memory(tmp_path / "memory.csv"))
    tensors = (backbones.BOTTLENECK, *features.EARLIER)
    vectors, *earlier = features.features(photos, tmp_path / "photos", features.LITE0, tensors, tmp_path)
    alone = network.load(tmp_path / features.LITE0)((tmp_path / "photos" / photos[7].path).read_bytes())
    np.testing.assert_allclose(vectors[7], alone, atol=1e-4)
    assert [part.shape for part in earlier] == [(len(photos), channels) for channels in (40, 112, 192)]
    named = features._named(photos, [[vectors, *earlier], [vectors]], 0, tmp_path)
    testing = {
        (0, photo.path)
        for photo in indexing.split(photos, testing_percentage=10, validation_percentage=10, seed=0)
        if photo.split == dataset.TESTING
    }
    assert named == dict.fromkeys(testing, True)
