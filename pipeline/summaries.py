"""What TensorBoard shows of a training: curves of each candidate, histograms, the graph, and the table of a sweep (HParams).

summaries/                       the graph, and histograms of all heads
summaries/candidate-0/training   loss and accuracy of a candidate, as it was trained
summaries/candidate-0/validation loss and accuracy on the validation split
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tensorflow_v1 import tf

if TYPE_CHECKING:
    from pipeline.final_layer import Candidate

MOST_HISTOGRAMS = 20
"""Histograms are large: the classic wrote 72 MB in 4,000 steps."""

CURVES = ("training", "validation")


class Curves:
    """The event files of a training in one folder; one that goes on after a kill tells TensorBoard to drop what lies past ``start``."""

    def __init__(self, folder: Path, candidates: Sequence[Candidate], start: int) -> None:
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
        writer = tf.summary.FileWriter(str(folder))
        if start:
            writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), start)
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
        from tensorboard.plugins.hparams import api

        names = [field.name for field in dataclasses.fields(self._candidates[0])]
        metrics = [api.Metric(tag, group="validation", display_name=f"validation {tag}") for tag in ("accuracy", "loss")]
        self._add(self._all, api.hparams_config_pb(hparams=[api.HParam(name) for name in names], metrics=metrics))
        for number, candidate in enumerate(self._candidates):
            with tf.summary.FileWriter(str(self._folder / candidate_name(number))) as writer:
                self._add(writer, api.hparams_pb(dataclasses.asdict(candidate), trial_id=candidate_name(number)))

    @staticmethod
    def _add(writer: tf.summary.FileWriter, proto: Any) -> None:
        # TensorBoard has classes of its own for TensorFlow's protocol buffers.
        writer.add_summary(tf.Summary.FromString(proto.SerializeToString()), 0)


def candidate_name(number: int) -> str:
    return f"candidate-{number}"
