"""Accuracy, kappa, F1, recall and area under the curve of predicted against true classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.arrays import Floats, Labels


@dataclass(frozen=True)
class Scores:
    """Figures of one set of predictions.

    `recall` is by class, NaN for a class that the truth does not have.
    """

    accuracy: float
    kappa: float
    macro_f1: float
    recall: tuple[float, ...]


def score_predictions(predicted: Labels, truth: Labels, classes: int) -> Scores:
    """Return the figures of predicted against true class indices [N]."""
    # how often each true class was predicted as each class
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, predicted), 1)
    right = np.diag(table)
    true = table.sum(1)
    said = table.sum(0)

    # F1 of each class is 2·right / (true + said)
    f1 = 2 * right / np.maximum(true + said, 1)
    with np.errstate(invalid="ignore"):
        recall = right / true
    return Scores(
        accuracy=float(right.sum() / len(truth)),
        kappa=weighted_kappa(table),
        macro_f1=float(f1[(true + said) > 0].mean()),
        recall=tuple(recall.tolist()),
    )


def weighted_kappa(table: Floats) -> float:
    """Return Cohen's kappa with quadratic weights (Cohen 1968); 0 where chance cannot err.

    `table` [truth, predicted] holds counts.
    """
    places = np.arange(len(table))
    weights = (places[:, None] - places[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1)
    chance = float((weights * expected).sum())
    if chance <= 0:
        return 0.0
    return 1 - float((weights * table).sum()) / chance


def area_under_curve(scores: Floats, truth: Labels) -> float:
    """Return the share of pairs of a 1 and a 0 that scores [N] put in the right order.

    A tie counts half. NaN where `truth` [N] holds no 1 or no 0.
    """
    ones = scores[truth == 1][:, None]
    zeros = scores[truth == 0][None]
    if not ones.size or not zeros.size:
        return float("nan")
    return float(((ones > zeros) + 0.5 * (ones == zeros)).mean())
