"""The page and the model card: findings in words, tables and pictures, as two templates want them."""

from __future__ import annotations

import base64
import collections
import csv
import dataclasses
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline import changes, dataset, evaluation, files, pictures
from pipeline.dataset import Photo
from pipeline.evaluation import Evaluation
from pipeline.report import charts
from pipeline.report.findings import Findings
from pipeline.runs import PAGE
from pipeline.words import percent as breakable_percent
from pipeline.words import readable, shortened

if TYPE_CHECKING:
    from pipeline.report import Origin

PHOTOS_SHOWN = 24
"""In a gallery. Each takes some 15 kB."""

PAIRS_SHOWN = 12
ROWS_SHOWN = 200
"""In a table; a page with more opens slowly on a phone."""

LARGEST_TABLE = 24
"""Classes of a confusion matrix with numbers in it; beyond that it is a drawing."""

PHOTO_SIDE, PHOTO_QUALITY = 240, 80

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"


def percent(share: float) -> str:
    """As ``words.percent``, never broken over two lines."""
    return breakable_percent(share).replace(" ", NARROW_SPACE)


def markdown(text: object) -> str:
    """A text as it is in Markdown, in a table too: nothing in it is a mark, a tag or a new line."""
    one_line = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown
    environment.globals.update(percent=percent, share=lambda value: "–" if value is None else percent(value))
    return environment


def write_training(
    folder: Path, findings: Findings, figures: dict[str, Any], origin: Origin, training: Path, classifier: dict[str, Any]
) -> None:
    """Write ``report.html`` and ``model_card.md`` of a training."""
    tried = _candidates(training)
    backbone = classifier["backbone"]
    content = {
        **_of_findings(findings),
        "is_training": True,
        "subtitle": f"Report on a training · {backbone['name']} · {_today()}",
        "live": _live(origin.live, figures),
        "verdict": origin.verdict,
        "since": _since(origin.since),
        "checks": [{**one, "classes": list(one["classes"].items())[:ROWS_SHOWN]} for one in origin.checks],
        "curves": _curves(training, tried[0]["number"]),
        "sweep": tried[:ROWS_SHOWN],
        "sweep_count": len(tried),
        "formats": _formats(classifier["formats"]),
        "warnings": [readable(line) for line in origin.warnings],
        "command": readable(origin.command),
        "timings": list(origin.timings.items()),
        "settings": [{"name": name, "value": readable(value), "is_default": default} for name, value, default in origin.settings],
        "provenance": _provenance(classifier),
        "day": _today(),
        "backbone": backbone,
        "photos_licence": classifier["photos_licence"],
        "snapshot": classifier["snapshot"],
        "photos_count": len(findings.all_photos),
        "split_counts": [(split, findings.in_split[split]) for split in dataset.SPLITS],
    }
    _write(folder, content, (PAGE, "model_card.md"))


def write_photos(folder: Path, findings: Findings, name: str, classifier: dict[str, Any]) -> None:
    """Write ``report.html`` of a classifier on other labelled photos."""
    content = {
        **_of_findings(findings),
        "is_training": False,
        "live": None,
        "verdict": None,
        "since": None,
        "checks": [],
        "subtitle": f"Evaluation of {name} on the photos of {readable(str(findings.photos_folder))} · {_today()}",
        "warnings": [],
        "command": "",
        "timings": [],
        "settings": [],
        "provenance": [("classifier", name), ("photos", readable(str(findings.photos_folder))), *_provenance(classifier)],
    }
    _write(folder, content, (PAGE,))


def _write(folder: Path, content: dict[str, Any], names: Iterable[str]) -> None:
    environment = _environment()
    style = Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))
    found: Evaluation = content["evaluation"]
    floor = _floor([found.interval[0], *([content["live"]["interval"][0]] if content.get("live") else [])])

    def place(share: float) -> float:
        return round(100 * (share - floor) / (1 - floor), 2)

    content["sections"] = _sections(content)
    templates = {PAGE: "page.html", "model_card.md": "model_card.md"}
    for name in names:
        text = environment.get_template(templates[name]).render(page=content, style=style, place=place, floor=round(100 * floor))
        files.write_atomic(folder / name, readable(text).encode())


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    named = {
        "live": ("Live model", content["is_training"]),
        "since": ("Since the last version", content["since"]),
        "checks": ("Checks", content["checks"]),
        "classes": ("Classes", True),
        "confusion": ("Confusion", True),
        "mistakes": ("Mistakes", True),
        "suspected": ("Labels", True),
        "duplicates": ("Near-duplicates", content["twins"]),
        "calibration": ("Calibration", True),
        "skipped": ("Skipped files", True),
        "training": ("Training", content["is_training"]),
        "sweep": ("Sweep", content["is_training"]),
        "formats": ("Formats", content["is_training"]),
        "made": ("How it was made", True),
    }
    return [(anchor, title) for anchor, (title, is_there) in named.items() if is_there]


def _floor(lows: Sequence[float]) -> float:
    """Where the scale of the headline begins: so that the intervals fill a good part of it."""
    return max(start for start in (0.0, 0.5, 0.8, 0.9) if start <= min(lows))


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


# --- What both kinds of pages tell ------------------------------------------------------------------------------------


def _of_findings(findings: Findings) -> dict[str, Any]:
    found, photos = findings.evaluation, findings.photos_folder
    mistakes = list(findings.mistakes(ROWS_SHOWN))
    return {
        "data": findings.data,
        "drawn": findings.drawn,
        "learned": findings.learned,
        "measured_on": findings.measured_on,
        "evaluation": found,
        "facts": _facts(findings),
        **_classes(findings),
        "matrix": _matrix(found) if len(found.labels) <= LARGEST_TABLE else None,
        "heat": charts.confusion(found.confusion),
        "confused": evaluation.most_confused(found, most=15),
        "reliability": charts.reliability(found.calibration, found.calibrated),
        "shown": PHOTOS_SHOWN,
        "mistakes_count": found.count - found.correct,
        "mistakes": [
            {
                "label": one.photo.label,
                "path": readable(one.photo.path),
                "top": [{"label": label, "probability": share} for label, share in one.top],
                "thumb": thumbnail(photos, one.photo) if number < PHOTOS_SHOWN else "",
            }
            for number, one in enumerate(mistakes)
        ],
        "suspects": _suspects(findings),
        "twins": _twins(findings),
        "skipped": [(readable(photo.path), photo.problem) for photo in findings.skipped[:ROWS_SHOWN]],
        "skipped_lines": len(findings.skipped),
        "skipped_count": sum(not photo.is_folder for photo in findings.skipped),
        "made": time.strftime("Made on %Y-%m-%d at %H:%M UTC", time.gmtime()),
    }


def thumbnail(folder: Path, photo: Photo) -> str:
    """A photo as a small JPEG in a data URI; nothing where it is gone, or is no longer the one that was measured."""
    small = pictures.small(folder / photo.path, photo.sha256, PHOTO_SIDE)
    if small is None:
        return ""
    data = pictures.encoded(small, "JPEG", quality=PHOTO_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _facts(findings: Findings) -> list[dict[str, str]]:
    found = findings.evaluation
    facts = [(f"Among the first {k}", percent(share), "") for k, share in found.top_k.items() if k in (2, 3, 5)]
    facts += [
        ("Mean F1 of the classes", percent(found.macro_f1), "each class weighs the same"),
        (
            "Log loss",
            f"{found.calibration.log_loss:.3f}",
            f"{found.calibrated.log_loss:.3f} at temperature {found.calibrated.temperature:.2f}",
        ),
        ("Calibration error", percent(found.calibration.error), f"{percent(found.calibrated.error)} at that temperature"),
    ]
    return [{"name": name, "value": value, "note": note} for name, value, note in facts]


def _classes(findings: Findings) -> dict[str, Any]:
    """The table of classes: photos by split, and figures; the lowest F1 first."""
    counted = collections.Counter((photo.label, photo.split) for photo in findings.all_photos)
    splits = [split for split in dataset.SPLITS if findings.in_split[split]]
    found = findings.evaluation

    def counts(label: str) -> list[int]:
        return [counted[label, split] for split in splits or [""]]

    worst_first = sorted(found.classes, key=lambda one: (one.f1 is None, one.f1))
    rows = [{**dataclasses.asdict(one), "counts": counts(one.label)} for one in worst_first[:ROWS_SHOWN]]
    totals = [findings.in_split[split] for split in splits or [""]]
    # A class without photos has no recall and no F1, so its precision is left out too: the means are of the same classes.
    there = [one for one in found.classes if one.support]
    means = [evaluation.mean_of([getattr(one, name) for one in there]) for name in ("precision", "recall", "f1")]
    return {"splits": splits or ["photos"], "classes": rows, "totals": totals, "means": means}


def _matrix(found: Evaluation) -> list[dict[str, Any]]:
    rows = zip(found.labels, found.confusion.tolist())
    return [
        {
            "label": label,
            "cells": [{"count": count, "share": count / max(sum(row), 1), "right": i == j} for j, count in enumerate(row)],
        }
        for i, (label, row) in enumerate(rows)
    ]


def _suspects(findings: Findings) -> dict[str, Any]:
    checked, total = findings.checked, len(findings.all_photos)
    of = "all photos" if checked == total else f"{checked:,} of {total:,} photos, at equal distances,"
    if findings.by_cross_validation:
        how = f"The labels of {of} were checked by leaving each photo out and asking a simple model of all the others."
    else:
        trained = (
            f"which has learned from {findings.learned:,} of them, and seldom doubts those"
            if findings.learned
            else "which was not trained on them"
        )
        how = f"The labels of {of} were checked by the classifier itself, {trained}."
    if findings.not_suggested:
        how += f" A class without photos among these is never suggested: {shortened(list(findings.not_suggested))}."
    rows = [
        {
            "label": one.photo.label,
            "path": readable(one.photo.path),
            "split": one.photo.split,
            "suggested": one.suggested,
            "suggested_probability": one.suggested_probability,
            "label_probability": one.label_probability,
            "thumb": thumbnail(findings.photos_folder, one.photo),
        }
        for one in findings.suspects[:PHOTOS_SHOWN]
    ]
    return {"how": how, "count": len(findings.suspects), "rows": rows}


def _twins(findings: Findings) -> dict[str, Any] | None:
    if findings.twins is None:
        return None
    looked, could = findings.compared
    all_of_them = "All validation and test photos" if looked == could else f"{looked:,} of {could:,} validation and test photos"
    without = findings.accuracy_without_twins
    rows = [
        {
            **{name: getattr(one.photo, name) for name in ("label", "split")},
            **{f"twin_{name}": getattr(one.twin, name) for name in ("label", "split")},
            "path": readable(one.photo.path),
            "twin_path": readable(one.twin.path),
            "cosine": one.cosine,
            "thumb": thumbnail(findings.photos_folder, one.photo),
            "twin_thumb": thumbnail(findings.photos_folder, one.twin),
        }
        for one in findings.twins[:PAIRS_SHOWN]
    ]
    return {
        "count": len(findings.twins),
        "rows": rows,
        "compared": f"{all_of_them} were compared with those of the splits before.",
        "without": f"Without them the accuracy is {percent(without)}." if without is not None else "",
    }


# --- What only a training has to tell -----------------------------------------------------------------------------------


def _live(version: Path | None, ours: dict[str, Any]) -> dict[str, Any] | None:
    """This classifier beside the live one, by what its manifest says."""
    manifest = files.read_manifest(version) if version else None
    if version is None or manifest is None:
        return None
    theirs = manifest.get("evaluation") or {"accuracy": manifest["test_accuracy"], "interval": manifest["test_interval"]}
    shown = {
        "accuracy": ("Accuracy", percent),
        "macro_f1": ("Mean F1 of the classes", percent),
        "log_loss": ("Log loss", "{:.3f}".format),
        "calibration_error": ("Calibration error", percent),
        "count": ("Test photos", "{:,}".format),
    }
    rows = [
        {"name": name, "ours": words(ours[key]), "theirs": words(theirs[key]) if key in theirs else "–"}
        for key, (name, words) in shown.items()
    ]
    interval = "{} to {}".format
    rows.insert(
        1,
        {"name": "95 % interval", "ours": interval(*map(percent, ours["interval"])), "theirs": interval(*map(percent, theirs["interval"]))},
    )
    return {
        "name": version.name,
        "made": manifest.get("finished", "")[:10],
        "accuracy": theirs["accuracy"],
        "interval": theirs["interval"],
        "same_photos": theirs.get("photos_fingerprint") == ours["photos_fingerprint"],
        "rows": rows,
    }


def _since(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What changed in the photos, in words and as a table."""
    if found is None:
        return None
    rows = [
        {"what": words, "count": found[name]["count"], "first": found[name]["first"]}
        for name, words in changes.WORDS.items()
        if found[name]["count"]
    ]
    for name, words in (("new_classes", "new classes"), ("gone_classes", "classes gone")):
        if found[name]:
            rows.append({"what": words, "count": len(found[name]), "first": found[name][: changes.NAMED]})
    return {"version": found["version"], "sentence": changes.sentence(found), "rows": rows}


def _candidates(training: Path) -> list[dict[str, Any]]:
    """The candidates of the sweep, the best first, each with its number."""
    with open(training / "candidates.csv", encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = [{**row, "number": number} for number, row in enumerate(csv.DictReader(file))]
    return sorted(rows, key=lambda row: float(row["validation_loss"] or "inf"))


def _curves(training: Path, chosen: int) -> list[dict[str, Any]]:
    """Charts of accuracy and loss over the steps: the chosen candidate, and the others' validation behind it."""
    points: dict[tuple[int, str], list[dict[str, float]]] = collections.defaultdict(list)
    with open(training / "curves.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(row[name]) for name in ("step", "accuracy", "loss")}
            points[int(row["candidate"]), row["curve"]].append(values)
    if (chosen, "validation") not in points:
        return []

    def lines(figure: str) -> list[charts.Line]:
        of = {key: [(value["step"], value[figure]) for value in values] for key, values in points.items()}
        others = [charts.Line("", "faint", line) for (number, curve), line in of.items() if number != chosen and curve == "validation"]
        own = [charts.Line(name, style, of[chosen, name]) for name, style in (("training", "second"), ("validation", "first"))]
        return [*others[:ROWS_SHOWN], *own]

    return [
        {"title": "Accuracy", "svg": charts.curves("Accuracy", lines("accuracy"), "step", percent=True)},
        {"title": "Loss", "svg": charts.curves("Loss", lines("loss"), "step")},
    ]


def _formats(formats: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What was exported, and how each agrees with training."""
    return [
        {
            "file": said["file"],
            "megabytes": said["bytes"] / 1e6,
            "difference": f"{said['checked']['largest_difference']:.2g}",
            "problem": readable(said.get("problem", "")),
            **{name: said["checked"][name] for name in ("photos", "accuracy", "named_alike", "tolerance")},
        }
        for said in formats.values()
    ]


def _provenance(classifier: dict[str, Any]) -> list[tuple[str, str]]:
    backbone = classifier["backbone"]
    versions = ", ".join(f"{name} {version}" for name, version in classifier["versions"].items())
    return [
        ("pretrained network", f"{backbone['name']} ({backbone.get('licence') or 'licence not known'})"),
        ("licence of the photos", classifier["photos_licence"] or "not known"),
        ("snapshot of the photos", classifier["snapshot"]),
        ("key of the classifier", classifier["key"]),
        ("SHA-256 of the graph", classifier["graph_sha256"]),
        ("versions", versions),
    ]
