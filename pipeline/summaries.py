"""What TensorBoard shows of a training: curves of each candidate, histograms, the graph, and the table of a sweep (HParams).

summaries/                       the graph, and histograms of all heads
summaries/candidate-0/training   loss and accuracy of a candidate, as it was trained
summaries/candidate-0/validation loss and accuracy on the validation split
"""

from __future__ import annotations

import collections
import contextlib
import csv
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import dataset, evaluation, files, images, pictures
from pipeline.dataset import Photo
from pipeline.errors import BadImage
from pipeline.packed import Packed
from pipeline.tensorflow_v1 import session, tf
from pipeline.words import readable

MOST_HISTOGRAMS = 20
"""Histograms are large: the classic wrote 72 MB in 4,000 steps."""

CURVES = ("training", "validation")


class Curves:
    """The event files of a training in one folder; one that goes on after a kill tells TensorBoard to drop what lies past ``start``."""

    def __init__(self, folder: Path, candidates: Sequence[Mapping[str, float]], start: int) -> None:
        """``candidates`` are what each was trained with, by name; ``start`` is the step to go on from."""
        if not start:
            files.remove(folder)  # of a run that was killed before its first checkpoint
        _let_writers_fail_quietly()
        self._folder, self._candidates = folder, candidates
        self._all = self._writer(folder, start)
        self._all.add_graph(tf.get_default_graph())
        self._curves = {
            (number, curve): self._writer(folder / candidate_name(number) / curve, start)
            for number in range(len(candidates))
            for curve in CURVES
        }
        if not start:
            self._write_hparams()

    def _writer(self, folder: Path, start: int) -> tf.summary.FileWriter:
        # A file is named by the second, and a run may be killed and started again within one.
        writer = tf.summary.FileWriter(str(folder), filename_suffix=f".{start}")
        if start:
            writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), start + 1)
        return writer

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self._all, *self._curves.values()):
            writer.close()

    def add(self, curve: str, step: int, losses: np.ndarray, accuracies: np.ndarray) -> None:
        """Loss and accuracy of each candidate, [candidates] each, at a step."""
        for number, figures in enumerate(zip(losses, accuracies)):
            values = [tf.Summary.Value(tag=tag, simple_value=figure) for tag, figure in zip(("loss", "accuracy"), figures)]
            self._curves[number, curve].add_summary(tf.Summary(value=values), step)

    def wants_histograms(self, step: int, steps: int, interval: int) -> bool:
        """Whether a look is one of the few that write histograms."""
        looks = -(-steps // interval)
        return step == steps or (step // interval) % -(-looks // MOST_HISTOGRAMS) == 0

    def add_histograms(self, merged: bytes, step: int) -> None:
        self._all.add_summary(merged, step)

    def flush(self) -> None:
        for writer in (self._all, *self._curves.values()):
            writer.flush()

    def _write_hparams(self) -> None:
        """What was tried, for TensorBoard's HParams; the figures are the last ones of the curves."""
        # What its ``api`` gives on; that also loads Keras, which takes a second or more.
        from tensorboard.plugins.hparams import summary_v2 as hparams

        metrics = [hparams.Metric(tag, group="validation", display_name=f"validation {tag}") for tag in ("accuracy", "loss")]
        self._add(self._all, hparams.hparams_config_pb(hparams=[hparams.HParam(name) for name in self._candidates[0]], metrics=metrics))
        for number, candidate in enumerate(self._candidates):
            with tf.summary.FileWriter(str(self._folder / candidate_name(number))) as writer:
                self._add(writer, hparams.hparams_pb(dict(candidate), trial_id=candidate_name(number)))

    @staticmethod
    def _add(writer: tf.summary.FileWriter, proto: Any) -> None:
        # TensorBoard has classes of its own for TensorFlow's protocol buffers.
        writer.add_summary(tf.Summary.FromString(proto.SerializeToString()), 0)


def _let_writers_fail_quietly() -> None:
    """What a writer's thread meets, a full disk for one, its next flush raises. It need not be printed three times before."""
    threading.excepthook = _say_unless_a_writers
    logging.getLogger("tensorflow").addFilter(_is_not_a_writers)


def _say_unless_a_writers(failure: threading.ExceptHookArgs) -> None:
    if failure.thread is None or failure.thread.name != "EventLoggerThread":
        threading.__excepthook__(failure)


def _is_not_a_writers(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("EventFileWriter writer thread error")


def _events(path: Path) -> Iterator[tf.Event]:
    """The events of a file, up to where a full disk or a power cut left it."""
    with contextlib.suppress(tf.errors.DataLossError):
        yield from tf.train.summary_iterator(str(path))


Curve = dict[int, dict[str, float]]
"""By step, what was measured there: loss and accuracy."""


def read_curves(folder: Path, candidates: int) -> dict[tuple[int, str], Curve]:
    """The curves of all candidates, by their number and of CURVES, from the event files in ``folder``. What a kill made the trainer
    write twice is the same twice, and comes once."""
    found = {}
    for number, curve in itertools.product(range(candidates), CURVES):
        points: Curve = collections.defaultdict(dict)
        for path in (folder / candidate_name(number) / curve).glob("events*"):
            for event in _events(path) if path.is_file() else ():
                points[event.step].update((value.tag, value.simple_value) for value in event.summary.value)
        found[number, curve] = {step: values for step, values in sorted(points.items()) if values}
    return found


def write_curves(path: Path, folder: Path, candidates: int) -> None:
    """Write the curves of all candidates as a table, for whoever has no TensorFlow."""
    rows = [
        (number, curve, step, f"{values['loss']:.6g}", f"{values['accuracy']:.6g}")
        for (number, curve), points in read_curves(folder, candidates).items()
        for step, values in points.items()
    ]
    with files.open_atomic(path, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("candidate", "curve", "step", "loss", "accuracy"), *rows])


# --- Pictures and the projector, once a training is through ----------------------------------------------------------

SHOWN = 25
"""Photos on a sheet."""

PROJECTED = 500
"""Vectors that the projector shows: those of test and validation photos, or so many of them."""

SPRITE_SIDE = 48


@dataclass(frozen=True)
class Measured:
    """Photos with what the classifier says of them.

    Attributes:
        rows: of the index, all of one split or of several.
        vectors: float32 [rows, width].
        logits: float32 [rows, classes].
        labels: in the order of the outputs.
    """

    rows: Sequence[Photo]
    vectors: np.ndarray
    logits: np.ndarray
    labels: Sequence[str]

    @property
    def truth(self) -> np.ndarray:
        """The number of each row's label, int [rows]."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        return np.array([number_of[row.label] for row in self.rows], int)

    @property
    def predicted(self) -> list[str]:
        return [self.labels[number] for number in self.logits.argmax(axis=1)]


See = Callable[[bytes, Photo], np.ndarray]
"""The bytes of a photo and its row → pixels as the network gets them, float32 [size, size, 3] in 0..255."""


def seeing(size: int, drawn: Callable[[Photo], np.ndarray]) -> See:
    """How a network with inputs of this size sees photos; ``drawn`` says how a row is distorted."""
    with tf.Graph().as_default():
        encoded, how = tf.placeholder(tf.string, []), tf.placeholder(tf.float32, [None])
        run = session(threads=1).make_callable(images.decode_view(encoded, how, size), [encoded, how])
    return lambda data, row: run(data, drawn(row))


def write_pictures(
    folder: Path, packed: Path, labels: Sequence[str], logits: dict[str, np.ndarray], photos: Path, see: See, seed: int
) -> None:
    """Write sheets of training photos and of misclassified test photos, the confusion matrix, and the projector's files.

    Args:
        folder: of the event files.
        packed: the folder of the packed bottlenecks.
        labels: in the order of the outputs.
        logits: by split, float32 [photos of the split, classes].
        photos: the data set's folder; a photo that is gone from it is a grey square.
        see: how the network sees a photo.
        seed: of which training photos are shown.
    """
    rows, matrix = dataset.read_photos(packed / dataset.INDEX), Packed(packed)

    def measured(split: str, most: int | None = None) -> Measured:
        numbers = np.flatnonzero(rows.has("split", split))[:most]
        return Measured([rows[number] for number in numbers], matrix[numbers], logits[split][: len(numbers)], labels)

    training = np.flatnonzero(rows.has("split", dataset.TRAINING))
    shown = np.random.default_rng(seed).choice(len(training), min(SHOWN, len(training)), replace=False)
    testing = measured(dataset.TESTING)
    _write_pages(folder, [rows[number] for number in training[shown]], testing, photos, see)
    write_projector(folder, [measured(split, PROJECTED // len(logits)) for split in logits], photos)


def _write_pages(folder: Path, training: Sequence[Photo], testing: Measured, photos: Path, see: See) -> None:
    pages = {"confusion_matrix": pictures.confusion_matrix(evaluation.confusion(testing.logits, testing.truth), testing.labels)}
    if seen := _as_seen(training, photos, see):
        pages["training_photos"] = seen
    if wrong := _misclassified(testing, photos):
        pages["misclassified_test_photos"] = wrong
    with tf.Graph().as_default(), tf.summary.FileWriter(str(folder), filename_suffix=".pictures") as writer:
        for tag, page in pages.items():
            data = pictures.encoded(page, "PNG" if tag == "confusion_matrix" else "JPEG")
            image = tf.Summary.Image(height=page.height, width=page.width, colorspace=3, encoded_image_string=data)
            writer.add_summary(tf.Summary(value=[tf.Summary.Value(tag=tag, image=image)]), 0)


def _as_seen(rows: Sequence[Photo], photos: Path, see: See) -> Image.Image | None:
    seen, captions = [], []
    for row in rows:
        try:
            pixels = see(images.readable_bytes(images.read_file(photos / row.path)), row)
        except BadImage:
            continue
        seen.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        captions.append(f"{row.label} (view {row.view})" if row.view else row.label)
    return pictures.sheet(seen, captions, columns=5) if seen else None


def _misclassified(testing: Measured, photos: Path) -> Image.Image | None:
    """The test photos that are named wrongly with the largest confidence."""
    worst = evaluation.mistakes(testing.logits, testing.truth)[:SHOWN]
    if not len(worst):
        return None
    shown = [pictures.thumbnail(photos / testing.rows[number].path, testing.rows[number].sha256, 200) for number in worst]
    captions = [f"{testing.rows[number].label} → {testing.predicted[number]}" for number in worst]
    return pictures.sheet(shown, captions, columns=5)


def write_projector(folder: Path, projected: Sequence[Measured], photos: Path) -> None:
    """Vectors, labels and thumbnails for TensorBoard's projector."""
    vectors = np.concatenate([measured.vectors for measured in projected])
    files.write_atomic(folder / "vectors.bytes", vectors.astype("<f4").tobytes())
    rows = [row for measured in projected for row in measured.rows]
    predicted = [label for measured in projected for label in measured.predicted]
    lines = [("label", "predicted", "split", "photo")]
    lines += [(row.label, label, row.split, readable(row.path)) for row, label in zip(rows, predicted)]
    text = "".join("\t".join(" ".join(cell.split()) for cell in line) + "\n" for line in lines)
    files.write_atomic(folder / "metadata.tsv", text.encode())
    sprite = pictures.grid([pictures.thumbnail(photos / row.path, row.sha256, SPRITE_SIDE) for row in rows])
    files.write_atomic(folder / "sprite.jpg", pictures.encoded(sprite, "JPEG"))
    count, width = vectors.shape
    files.write_atomic(
        folder / "projector_config.pbtxt",
        f"""embeddings {{
  tensor_name: "bottlenecks"
  tensor_shape: {count}
  tensor_shape: {width}
  tensor_path: "vectors.bytes"
  metadata_path: "metadata.tsv"
  sprite {{ image_path: "sprite.jpg" single_image_dim: {SPRITE_SIDE} single_image_dim: {SPRITE_SIDE} }}
}}
""".encode(),
    )


def candidate_name(number: int) -> str:
    return f"candidate-{number}"
