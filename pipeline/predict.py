"""Use a classifier from Python.

    from pipeline.predict import load

    for prediction in load("flowers").predict(["photo.jpg", "another.png"]):
        print(prediction.path, prediction.problem or prediction.scores[0].label)

In the folder of a project, or anywhere with a path to an export.
"""

from __future__ import annotations

from pathlib import Path

from pipeline import classifier, settings
from pipeline.classifier import Classifier, Prediction, Score

__all__ = ["Classifier", "Prediction", "Score", "load"]


def load(name: str | Path) -> Classifier:
    """Load a classifier: the live one of a data set of this project by its name, or an export by its folder or its ``.pb``.

    A pointer like ``latest`` is resolved once: what is published later is not noticed.

    Raises UserError where there is none, with what there is, or where it is damaged.
    """
    return classifier.load(settings.export_named(str(name)))
