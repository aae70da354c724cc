from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from pipeline import evaluation


def test_accuracy_and_loss_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]))
    labels = np.array([0, 2, 1])
    assert evaluation.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert evaluation.log_loss(logits, labels) == pytest.approx(-np.log([0.7, 0.8, 0.25]).mean())


def test_log_loss_of_huge_logits_is_finite() -> None:
    assert evaluation.log_loss(np.array([[1e4, -1e4]]), np.array([1])) == pytest.approx(2e4)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_of_the_literature(successes: int, count: int, low: float, high: float) -> None:
    """The examples of R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert evaluation.wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert evaluation.wilson_interval(0, 0) == (0, 1)


# --- All figures, against scikit-learn --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> tuple[np.ndarray, np.ndarray]:
    """Logits of 500 photos of seven classes, too sure of themselves, and the truth; the last class is never predicted."""
    rng = np.random.default_rng(0)
    truth = rng.choice(7, 500, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    logits = rng.normal(0, 2, (500, 7))
    logits[np.arange(500), truth] += 3
    logits[:, 6] = -20
    return (2 * logits).astype(np.float32), truth


LABELS = list("abcdefg")


def test_figures_are_those_of_scikit_learn(measured: tuple[np.ndarray, np.ndarray]) -> None:
    logits, truth = measured
    ours, predicted, probabilities = evaluation.evaluate(logits, truth, LABELS), logits.argmax(axis=1), evaluation.softmax(logits)
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    for k, share in ours.top_k.items():
        assert share == pytest.approx(metrics.top_k_accuracy_score(truth, probabilities, k=k))
    assert list(ours.top_k) == [1, 2, 3, 5]
    sane = truth != 6  # scikit-learn takes no probability for smaller than 2e-16
    theirs = metrics.log_loss(truth[sane], probabilities[sane], labels=range(7))
    assert evaluation.calibration(logits[sane], truth[sane], 1.0).log_loss == pytest.approx(theirs)
    assert (ours.confusion == metrics.confusion_matrix(truth, predicted, labels=range(7))).all()
    theirs = metrics.precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)
    for number, one in enumerate(ours.classes):
        figures = [one.precision or 0, one.recall, one.f1, one.support]
        assert figures == pytest.approx([column[number] for column in theirs]), one
    assert ours.classes[6].precision is None
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_calibration_by_hand() -> None:
    """Four photos at 0.9, three of them right, and two at 0.6, both right: (4 * 0.15 + 2 * 0.4) / 6."""
    shares = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    found = evaluation.calibration(np.log(shares), np.array([0, 0, 0, 1, 0, 0]), 1.0)
    assert found.error == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)
    assert [(one.count, round(one.confidence, 6), one.accuracy) for one in found.bins] == [(2, 0.6, 1.0), (4, 0.9, 0.75)]
    assert found.bins[0].low < 0.6 <= found.bins[0].high


def test_the_temperature_has_the_lowest_loss(measured: tuple[np.ndarray, np.ndarray]) -> None:
    logits, truth = measured
    fitted = evaluation.fit_temperature(logits, truth)
    losses = [evaluation.log_loss(logits / t, truth) for t in (fitted * 0.99, fitted, fitted * 1.01)]
    assert losses[1] == min(losses)
    assert evaluation.fit_temperature(logits * 3, truth) == pytest.approx(3 * fitted, rel=1e-4)
    ours = evaluation.evaluate(logits, truth, LABELS, fitted)
    assert ours.calibrated.error < ours.calibration.error
    assert ours.calibrated.temperature == fitted > 1


@pytest.mark.parametrize("truth", [[0, 1], [1, 0]])
def test_the_temperature_is_one_where_the_loss_has_no_minimum(truth: list[int]) -> None:
    assert evaluation.fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array(truth)) == 1.0


def test_the_temperature_of_what_is_no_better_than_noise_is_one() -> None:
    """Some rows are named rightly, but the true logits are no larger than the others: the loss falls for ever with the temperature."""
    assert evaluation.fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1])) == 1.0
    same_for_all = np.tile(np.array([0.1, 0.2, 0.7], np.float32), (3, 1))
    assert evaluation.fit_temperature(same_for_all, np.arange(3)) == 1.0


def test_the_temperature_is_found_where_no_row_is_named_rightly() -> None:
    logits, truth = np.array([[1, 0.9, -5], [0.5, 1, -3], [-4, 2, 1.9]]), np.array([1, 0, 2])
    fitted = evaluation.fit_temperature(logits, truth)
    losses = [evaluation.log_loss(logits / t, truth) for t in (1.0, fitted * 0.99, fitted, fitted * 1.01)]
    assert losses[2] == min(losses)


def test_the_temperature_may_be_far_below_one(measured: tuple[np.ndarray, np.ndarray]) -> None:
    logits, truth = measured
    fitted = evaluation.fit_temperature(logits, truth)
    assert evaluation.fit_temperature(logits / 40, truth) == pytest.approx(fitted / 40, rel=1e-4)
    assert evaluation.fit_temperature(logits / 10_000, truth) == pytest.approx(0.01)


def test_the_temperature_is_that_of_all_rows(measured: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, truth = measured
    whole = evaluation.fit_temperature(logits, truth)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 190)
    assert evaluation.fit_temperature(logits, truth) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("scale", [3, 7, 20])
def test_the_temperature_is_found_among_ten_thousand_classes(scale: float) -> None:
    """A label that is ahead of very many: a step of Newton's method that starts on one side of the minimum ends on the other."""
    logits = np.zeros((145, 10_000))
    logits[:, 0] = scale
    truth = np.repeat([0, 1], [100, 45])
    fitted = evaluation.fit_temperature(logits, truth)
    losses = [evaluation.log_loss(logits / t, truth) for t in (fitted * 0.99, fitted, fitted * 1.01)]
    assert losses[1] == min(losses)


def test_equal_logits_are_ranked_as_argmax_has_it() -> None:
    logits = np.array([[1.0, 1.0, 0.0]] * 3)
    assert evaluation.ranks_of(logits, np.array([0, 1, 2])).tolist() == [0, 1, 2]


def test_mistakes_and_confused_pairs_come_worst_first() -> None:
    logits = np.array([[3.0, 0, 0], [2.0, 0, 0], [0, 9.0, 0], [0, 0, 1.0], [5.0, 0, 0]])
    truth = np.array([0, 1, 0, 2, 1])
    assert evaluation.mistakes(logits, truth).tolist() == [2, 4, 1]
    pairs = evaluation.most_confused(evaluation.evaluate(logits, truth, ["a", "b", "c"]), most=5)
    assert pairs == [evaluation.Confused("b", "a", 2, 1.0), evaluation.Confused("a", "b", 1, 0.5)]


def test_a_class_without_photos_has_neither_recall_nor_f1() -> None:
    (_, without) = evaluation.of_classes(np.array([[2, 1], [0, 0]]), ["a", "b"])
    assert without == evaluation.OfClass("b", support=0, predicted=1, precision=0.0, recall=None, f1=None)


def test_the_mean_is_of_the_shares_that_there_are() -> None:
    assert evaluation.mean_of([0.5, None, 1.0]) == 0.75
    assert evaluation.mean_of([0.0, 1.0]) == 0.5
    assert evaluation.mean_of([None]) == 0.0


def test_a_confused_pair_has_its_share_of_the_true_class() -> None:
    logits = np.eye(2)[[0, 0, 0, 1, 1]]
    (pair,) = evaluation.most_confused(evaluation.evaluate(logits, np.array([0, 0, 0, 0, 1]), ["a", "b"]), most=5)
    assert pair == evaluation.Confused("a", "b", 1, 0.25)


def test_pairs_that_are_confused_equally_often_come_in_the_order_of_the_labels() -> None:
    labels = [f"{number:02d}" for number in range(30)]
    truth, said = (numbers.ravel() for numbers in np.indices((30, 30)))
    pairs = evaluation.most_confused(evaluation.evaluate(np.eye(30)[said], truth, labels), most=1000)
    assert [(pair.label, pair.predicted) for pair in pairs] == [(i, j) for i in labels for j in labels if i != j]


@pytest.mark.parametrize(("classes", "expected"), [(2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (10, [1, 2, 3, 5]), (11, [1, 2, 3, 5, 10])])
def test_among_as_many_labels_as_there_are_each_photo_is_named_rightly_so_it_is_not_said(classes: int, expected: list[int]) -> None:
    found = evaluation.evaluate(np.eye(classes), np.arange(classes), list("abcdefghijk")[:classes])
    assert list(found.top_k) == expected


def test_figures_are_json(measured: tuple[np.ndarray, np.ndarray]) -> None:
    figures = json.loads(json.dumps(evaluation.evaluate(*measured, LABELS).as_json(), allow_nan=False))
    assert figures["confusion"][0][0] == figures["classes"][0]["support"] * figures["classes"][0]["recall"]
    assert figures["most_confused"][0]["count"] > 0
