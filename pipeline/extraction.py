"""How photos become vectors, and where those lie. What can be said of it without TensorFlow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import dataset, files, images
from pipeline.backbones import Backbone
from pipeline.dataset import Photo, Photos
from pipeline.images import AS_IT_IS, NO_DISTORTIONS, Distortions
from pipeline.vector_cache import VectorCache

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Extraction:
    """How photos become vectors, beside the backbone.

    Attributes:
        precision: of the arithmetic in the network, of PRECISIONS.
        average_views: the looks at a photo of which its vector is the mean, of ``images.AVERAGES``.
        distorted_views: distorted views of each training photo, trained on beside the photo itself.
        distortions: how they are varied.
        seed: of what is drawn for them.
    """

    precision: str = "float32"
    average_views: str = "none"
    distorted_views: int = 0
    distortions: Distortions = NO_DISTORTIONS
    seed: int = 0

    def key(self, backbone: Backbone) -> str:
        """Names the folder of cached vectors: everything but the photo that decides their numbers."""
        return self._key(backbone)

    def views_key(self, backbone: Backbone) -> str:
        """Names the folder of the distorted views' vectors."""
        return self._key(backbone, *dataclasses.astuple(self.distortions), self.seed)

    def _key(self, backbone: Backbone, *distorted: object) -> str:
        range_of = (backbone.input_size, backbone.mean, backbone.std)
        deciding = (backbone.graph_sha256, range_of, images.PREPROCESSING_VERSION, self.precision, self.average_views, *distorted)
        return f"{backbone.name}-{files.sha256_bytes(repr(deciding).encode())[:16]}"

    def cache(self, folder: Path, backbone: Backbone) -> VectorCache:
        """The cache below ``folder`` for these vectors."""
        return VectorCache(folder / self.key(backbone), backbone.width, folder / self.views_key(backbone))

    def views_of(self, photos: Photos) -> Photos:
        """The distorted views of the photos to train on, a row each."""
        training = np.flatnonzero(photos.has("split", dataset.TRAINING))
        views = range(1, self.distorted_views + 1)
        return Photos(photos[row]._replace(view=view) for view in views for row in training)

    def drawn(self, row: Photo) -> np.ndarray:
        """How the photo of a row is distorted, as a Network takes it."""
        return self.distortions.drawn(row.sha256, row.view, self.seed) if row.view else AS_IT_IS
