"""What a classifier is worth, for people: one page, a model card beside it, and the same figures as JSON and CSV.

of_training(folder, …)      of a training, on its test photos
of_photos(folder, …)        of an exported classifier, on other labelled photos

report.html           opens from disk, loads nothing, runs nothing
model_card.md         of a training
evaluation.json       every figure
misclassified.csv     suspected_labels.csv  near_duplicates.csv  skipped.csv      what the page shows the beginning of
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import dataset, evaluation, files, second_look
from pipeline.dataset import Photo
from pipeline.packed import Packed
from pipeline.report import page
from pipeline.report.findings import Findings, Suspected, TwinPhotos

FIGURES = "evaluation.json"


@dataclass(frozen=True)
class Origin:
    """How a training came about, as its page tells it.

    Attributes:
        data: name of the data set.
        drawn: the same where its pictures are drawn, else nothing.
        settings: name, value, and whether it is the default, of each.
        command: to make it again.
        timings: seconds by task.
        warnings: of the photos, a line each.
        live: the folder of the version that is live while the page is made, if there is one.
        verdict: of the gate.
        since: what changed in the photos since that version, as ``changes.Changes.as_json`` has it, and the name of the ``version``.
        checks: what the checks before the training came to, as ``checks.Outcome.as_json`` has it.
    """

    data: str
    drawn: str
    settings: list[tuple[str, str, bool]]
    command: str
    timings: dict[str, float]
    warnings: list[str]
    live: Path | None
    verdict: dict[str, Any]
    since: dict[str, Any] | None = None
    checks: Sequence[dict[str, Any]] = ()


def of_training(
    folder: Path, *, packed: Path, training: Path, classifier: Path, photos: Path, origin: Origin, formats: Sequence[Path] = ()
) -> dict[str, Any]:
    """Evaluate a classifier on its test photos, and write page, card and figures into ``folder``.

    Args:
        packed, training, classifier, formats: the outputs of the tasks before.
        photos: the folder of the photos; one that is gone from it is not shown.

    Returns what the manifest says: ``drawn``, the ``temperature``, and the figures in short (``evaluation``).
    """
    rows, matrix = dataset.read_photos(packed / dataset.INDEX), Packed(packed)
    rows = rows.where(rows.column("view") == 0)  # the first of the matrix
    labels, truth = rows.labels()
    splits = {split: np.flatnonzero(rows.has("split", split)) for split in dataset.SPLITS}
    logits = evaluation.read_logits(training)
    temperature = evaluation.fit_temperature(logits[dataset.VALIDATION], truth[splits[dataset.VALIDATION]])
    everything = np.arange(len(rows))
    mean, _ = second_look.centre(matrix, everything)
    twins = second_look.twins(matrix, [splits[split] for split in dataset.SPLITS], mean)
    suspects = second_look.suspects(matrix, everything, truth, len(labels))
    findings = Findings(
        data=origin.data,
        measured_on="test",
        photos_folder=photos,
        measured=[rows[row] for row in splits[dataset.TESTING]],
        logits=logits[dataset.TESTING],
        truth=truth[splits[dataset.TESTING]],
        evaluation=evaluation.evaluate(logits[dataset.TESTING], truth[splits[dataset.TESTING]], labels, temperature),
        all_photos=rows,
        suspects=[
            Suspected(rows[one.row], labels[one.suggested], one.suggested_probability, one.label_probability) for one in suspects.found
        ],
        checked=suspects.checked,
        not_suggested=[labels[number] for number in suspects.absent],
        by_cross_validation=True,
        twins=[TwinPhotos(rows[twin.row], rows[twin.twin], twin.cosine) for twin in twins.found],
        compared=(twins.compared, twins.count),
        skipped=dataset.read_skipped(packed / dataset.SKIPPED),
        drawn=origin.drawn,
    )
    figures = _short(findings)
    exported = files.read_json(classifier / files.MANIFEST)
    more = [files.read_json(folder_of / files.MANIFEST)["formats"] for folder_of in formats]
    exported["formats"] = {name: said for part in (exported["formats"], *more) for name, said in part.items()}
    page.write_training(folder, findings, figures, origin, training, exported)
    _write_tables(folder, findings, figures)
    return {"data": origin.data, "drawn": origin.drawn, "temperature": temperature, "evaluation": figures, "verdict": origin.verdict}


def of_photos(
    folder: Path,
    *,
    classifier: dict[str, Any],
    name: str,
    photos: Sequence[Photo],
    skipped: Sequence[Photo],
    logits: np.ndarray,
    where: Path,
    learned: int = 0,
) -> dict[str, Any]:
    """Evaluate a classifier on labelled photos, and write page and figures into ``folder``. Returns the figures in short.

    Args:
        classifier, name: its manifest, and the name of its version.
        photos, logits: the photos with what it says of them, float32 [photos, labels].
        skipped: photos that could not be read.
        where: the folder of the photos.
        learned: how many of the photos the classifier has learned from.
    """
    labels, temperature = classifier["labels"], float(classifier.get("temperature", 1.0))
    number_of = {label: number for number, label in enumerate(labels)}
    truth = np.array([number_of[photo.label] for photo in photos])
    suspects = second_look.doubts(evaluation.softmax(logits, temperature), truth)
    findings = Findings(
        data=classifier["data"],
        measured_on="new",
        photos_folder=where,
        measured=photos,
        logits=logits,
        truth=truth,
        evaluation=evaluation.evaluate(logits, truth, labels, temperature),
        all_photos=photos,
        suspects=[Suspected(photos[one.row], labels[one.suggested], one.suggested_probability, one.label_probability) for one in suspects],
        checked=len(photos),
        not_suggested=[labels[number] for number in second_look.absent(truth, len(labels))],
        by_cross_validation=False,
        twins=None,
        compared=(0, 0),
        skipped=skipped,
        drawn=str(classifier.get("drawn", "")),
        learned=learned,
    )
    figures = {**_short(findings), "learned": learned}
    folder.mkdir(parents=True, exist_ok=True)
    page.write_photos(folder, findings, name, classifier)
    _write_tables(folder, findings, figures)
    return figures


def _short(findings: Findings) -> dict[str, Any]:
    """The figures that a manifest has, by which versions are compared."""
    found = findings.evaluation
    return {
        "accuracy": found.accuracy,
        "interval": list(found.interval),
        "correct": found.correct,
        "count": found.count,
        "top_k": {str(k): share for k, share in found.top_k.items()},
        "macro_f1": found.macro_f1,
        "log_loss": found.calibration.log_loss,
        "calibration_error": found.calibration.error,
        "calibrated_log_loss": found.calibrated.log_loss,
        "calibrated_error": found.calibrated.error,
        "suspected_labels": len(findings.suspects),
        "near_duplicates": None if findings.twins is None else len(findings.twins),
        "accuracy_without_near_duplicates": findings.accuracy_without_twins,
        "photos_fingerprint": dataset.fingerprint(findings.measured),
    }


def _write_tables(folder: Path, findings: Findings, figures: dict[str, Any]) -> None:
    written = {"data": findings.data, "measured_on": findings.measured_on, "drawn": findings.drawn, "made": files.timestamp()}
    files.write_json(folder / FIGURES, {**written, **figures, **findings.evaluation.as_json()})
    guesses = [f"{part}_{number}" for number in (1, 2, 3) for part in ("label", "probability")]
    mistakes = (
        (one.photo.path, one.photo.label, *(cell for label, share in one.top for cell in (label, f"{share:.4f}")))
        for one in findings.mistakes()
    )
    files.write_csv(folder / "misclassified.csv", [("path", "label", *guesses), *mistakes])
    suspects = (
        (
            one.photo.path,
            one.photo.label,
            one.suggested,
            f"{one.label_probability:.4f}",
            f"{one.suggested_probability:.4f}",
            one.photo.split,
        )
        for one in findings.suspects
    )
    heading = ("path", "label", "suggested", "probability_of_label", "probability_of_suggested", "split")
    files.write_csv(folder / "suspected_labels.csv", [heading, *suspects])
    dataset.write_skipped(folder / dataset.SKIPPED, findings.skipped)
    if findings.twins is not None:
        twins = (
            (*(getattr(photo, name) for photo in (one.photo, one.twin) for name in ("path", "label", "split")), f"{one.cosine:.4f}")
            for one in findings.twins
        )
        heading_of_twins = ("path", "label", "split", "twin", "twin_label", "twin_split", "cosine")
        files.write_csv(folder / "near_duplicates.csv", [heading_of_twins, *twins])
