"""Figures of predictions are what their definitions say."""

import numpy as np
import pytest

from common.measure.scores import area_under_curve, score_predictions, weighted_kappa

FIGURES = {
    "all right": ([0, 1, 2, 2], [0, 1, 2, 2], 1.0, 1.0, 1.0),
    "one class for everything": ([0, 0, 0, 0], [0, 0, 1, 2], 0.5, 0.0, 2 / 9),
    "off by one weighs a quarter of off by two": ([1, 0], [0, 2], 0.0, None, 0.0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_what_definitions_say(name: str) -> None:
    predicted, truth, accuracy, kappa, f1 = FIGURES[name]
    found = score_predictions(np.array(predicted), np.array(truth), 3)
    assert found.accuracy == accuracy
    assert found.macro_f1 == pytest.approx(f1)
    assert kappa is None or found.kappa == pytest.approx(kappa)


def test_kappa_of_a_known_table() -> None:
    # Cohen 1968 by hand: observed disagreement 2*1 + 1*4 over 10, expected from the margins
    table = np.array([[3, 1, 0], [1, 2, 0], [1, 0, 2]], float)
    weights = np.array([[0, 1, 4], [1, 0, 1], [4, 1, 0]])
    expected = sum(
        weights[i, j] * table[i].sum() * table[:, j].sum() / 10 for i in range(3) for j in range(3)
    )
    assert weighted_kappa(table) == pytest.approx(1 - 6 / expected)
    assert weighted_kappa(np.array([[5.0, 0], [0, 0]])) == 0.0


def test_recall_of_a_class_that_is_not_there_is_no_number() -> None:
    assert np.isnan(score_predictions(np.array([0, 1]), np.array([0, 0]), 2).recall[1])


def test_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    truth = np.array([0, 0, 1, 1])
    assert area_under_curve(np.array([0.1, 0.2, 0.3, 0.4]), truth) == 1.0
    assert area_under_curve(np.array([0.4, 0.3, 0.2, 0.1]), truth) == 0.0
    # ties count half
    assert area_under_curve(np.zeros(4), truth) == 0.5
    assert area_under_curve(np.array([1.0, 3.0, 2.0, 3.0]), truth) == pytest.approx(0.625)
    assert np.isnan(area_under_curve(np.zeros(4), np.ones(4, np.int64)))
