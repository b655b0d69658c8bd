"""Train on some pairs, test on other patients: the choice sees no test patient."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.measure import pair_segmenter
from common.measure import pair_utility as utility
from common.measure.segmentation import agreement
from tests.bars import RECIPE, bars, shuffled_masks

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def fitted() -> pair_segmenter.Segmenter:
    return pair_segmenter.fit(bars(64, 0), RECIPE, 0)


def test_matching_masks_are_worth_more_than_shuffled_ones(fitted: pair_segmenter.Segmenter) -> None:
    test, patients = bars(20, 9), np.repeat(np.arange(5), 4)
    good = utility.measure(fitted, test, patients)
    bad = utility.utility(
        shuffled_masks(bars(64, 0)), test, patients, recipe=replace(RECIPE, epochs=1)
    )
    assert good.dsc > 0.85 > bad.dsc + 0.1
    assert good.bahd_mm < bad.bahd_mm
    assert good.dsc_interval[0] <= good.dsc <= good.dsc_interval[1]
    assert good.images == 20 and len(good.dsc_by_patient) == 5


def test_the_chosen_network_is_the_same_whatever_the_test_patients_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not {"test", "patient_of"} & set(inspect.signature(pair_segmenter.fit).parameters)
    chosen, opened = [], []
    measure = utility.measure

    def seen(
        segmenter: pair_segmenter.Segmenter, test: np.ndarray, *rest: object, **named: object
    ) -> utility.Utility:
        chosen.append(segmenter)
        opened.append(len(test))
        return measure(segmenter, test, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(utility, "measure", seen)
    grid = (pair_segmenter.Choice(0.0, 5e-3), pair_segmenter.Choice(0.1, 1e-3))
    recipe, train = replace(RECIPE, grid=grid, epochs=2), bars(24, 0)
    for test in (bars(8, 5), shuffled_masks(bars(12, 6))):
        utility.utility(train, test, np.arange(len(test)), recipe=recipe, seed=3)
    first, second = chosen
    assert opened == [8, 12]  # once each
    assert (first.choice, first.epoch, first.validation_dsc) == (
        second.choice,
        second.epoch,
        second.validation_dsc,
    )
    weights = zip(first.network.parameters(), second.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_images_are_standardised_by_the_training_pairs_alone(
    fitted: pair_segmenter.Segmenter,
) -> None:
    kept, _ = pair_segmenter._split(np.arange(64), RECIPE.validation_share, 0)
    train = bars(64, 0)[kept][..., 0]
    assert (fitted.mean, fitted.deviation) == pytest.approx((train.mean(), train.std()))


def test_dice_is_of_a_patients_images_together_and_the_rest_of_each(
    fitted: pair_segmenter.Segmenter,
) -> None:
    test, patients = bars(6, 3), np.array([7, 7, 2, 2, 2, 7])
    test[0, ..., 1] = 0  # no true voxel: the diagonal, if anything is predicted there
    found, predicted = (
        utility.measure(fitted, test, patients, spacing_mm=2.0),
        fitted.masks(test[..., 0]),
    )
    each = [agreement(p, g, 2.0) for p, g in zip(predicted, test[..., 1], strict=True)]
    dice = []
    for name in (2, 7):
        p, g = predicted[patients == name], test[patients == name][..., 1] > 0
        dice.append(2 * (p & g).sum() / (p.sum() + g.sum()))
    assert found.dsc == pytest.approx(np.mean(dice)) and found.dsc_by_patient == pytest.approx(dice)
    assert found.hd95_mm == pytest.approx(
        np.mean(
            [
                np.mean([each[i].hausdorff95_mm for i in np.flatnonzero(patients == name)])
                for name in (2, 7)
            ]
        )
    )
    assert found.penalised == sum(a.penalised for a in each)


def test_the_ratio_compares_the_same_patients(fitted: pair_segmenter.Segmenter) -> None:
    one = utility.measure(fitted, bars(8, 1), np.arange(8))
    worse = replace(one, dsc=one.dsc / 2, dsc_by_patient=tuple(d / 2 for d in one.dsc_by_patient))
    found = utility.ratio(worse, one)
    assert (found.value, *found.interval) == pytest.approx((0.5, 0.5, 0.5))  # paired: no spread
    with pytest.raises(ValueError, match="same ones"):
        utility.ratio(one, replace(one, dsc_by_patient=(1.0,)))


@pytest.mark.parametrize(
    ("pairs", "groups"),
    [
        (bars(4, 0).astype(np.float32), 4),
        (bars(4, 0)[..., :1], 4),
        (bars(4, 0)[:, :8, :8], 4),
        (bars(4, 0)[:0], 0),
        (bars(4, 0), 3),
        (bars(1, 0), 1),
    ],
)
def test_unusable_pairs_are_refused_in_words(pairs: np.ndarray, groups: int) -> None:
    with pytest.raises(ConfigurationError, match="training pairs"):
        pair_segmenter.fit(pairs, RECIPE, 0, group_of=np.arange(groups))
