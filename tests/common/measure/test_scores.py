"""Figures of predictions are what their definitions say."""

import numpy as np
import pytest

from common.measure.scores import score_predictions, weighted_kappa

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
