"""An exported classifier on labelled photos that it was not trained on: the same figures and the same page as of a training."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import changes, files, report, scan
from pipeline.console import Report
from pipeline.dataset import Photo, Photos
from pipeline.errors import DataMissing, UserError
from pipeline.words import readable, shortened

if TYPE_CHECKING:
    from pipeline.classifier import Classifier

LEAST = 1e-30
"""A probability that came out as 0 is taken for so much, so that its logarithm is a number."""


def labelled(version: Path, images: Path) -> Photos:
    """The photos in the class folders of ``images``, those that cannot be used with their problem.

    Raises UserError for a class that the classifier in ``version`` does not know, DataMissing where there are no photos.
    """
    with tempfile.TemporaryDirectory() as folder:
        photos = scan.of_folder(images, scan.Memory(Path(folder) / "scan.csv"))
    fine = photos.has("problem", "")
    if not fine.any():
        if bad := [photo for photo in photos if not photo.is_folder]:
            first = f"{readable(bad[0].path)}: {bad[0].problem}"
            raise DataMissing(f"none of the {len(bad)} photos in {readable(str(images))} can be used (the first, {first}); name others")
        raise DataMissing(f"no photos in the class folders of {readable(str(images))}; put them into a folder for each class there")
    known = files.read_json(version / files.MANIFEST)["labels"]
    for label in photos.where(fine).labels()[0]:
        if label not in known:
            raise UserError(
                f"{readable(label)!r} is no class of {version.name}; its classes are: {shortened(known, 20)}; "
                "rename the folder, or move it away"
            )
    return photos


def evaluate(version: Path, classifier: Classifier, images: Path, photos: Sequence[Photo], out: Path, progress: Report) -> dict[str, Any]:
    """Write page and figures of ``classifier``, the one in ``version``, on these photos of the folder ``images`` into ``out``.

    Returns the figures in short. Raises DataMissing where no photo can be decoded.
    """
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    usable, skipped = [photo for photo in photos if not photo.problem], [photo for photo in photos if photo.problem]
    named, rows = [], []
    progress(0, len(usable))
    for done, (photo, prediction) in enumerate(zip(usable, classifier.predict(images / photo.path for photo in usable)), 1):
        if prediction.problem:
            skipped.append(photo._replace(problem=prediction.problem))
        else:
            shares = np.zeros(len(number_of), np.float32)
            for score in prediction.scores:
                shares[number_of[score.label]] = score.probability
            named.append(photo)
            rows.append(np.log(np.maximum(shares, LEAST)))
        progress(done, len(usable))
    if not named:
        raise DataMissing(f"none of the photos in {readable(str(images))} can be decoded (the first: {skipped[0].problem}); name others")
    return report.of_photos(
        out,
        classifier=files.read_json(version / files.MANIFEST),
        name=f"{version.parent.name}/{version.name}",
        photos=named,
        skipped=sorted(skipped, key=lambda photo: photo.path),
        logits=np.stack(rows),
        where=images,
        learned=changes.learned(version, named),
    )
