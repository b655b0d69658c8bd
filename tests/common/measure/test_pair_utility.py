"""Train on some pairs, test on other patients: what is chosen sees no test patient, and the order of worth is the known one."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.measure import pair_utility as utility
from common.measure.segmentation import agreement

torch.set_num_threads(1)
RECIPE = utility.Recipe(width=4, epochs=6, batch_size=8, grid=(utility.Choice(0.0, 5e-3),))


def bars(count: int, seed: int) -> np.ndarray:
    """Bright bars on noise with exact masks, uint8 [N, 16, 16, 2]."""
    rng = np.random.default_rng(seed)
    pairs = np.zeros((count, 16, 16, 2), np.uint8)
    for i, (row, thick) in enumerate(
        zip(rng.integers(2, 10, count), rng.integers(2, 5, count), strict=True)
    ):
        pairs[i, row : row + thick, :, 1] = 255
        if rng.random() < 0.5:
            pairs[i] = pairs[i].transpose(1, 0, 2)
    pairs[..., 0] = np.where(pairs[..., 1] > 0, 170, 80) + rng.normal(0, 12, pairs.shape[:3])
    return pairs


def shuffled_masks(pairs: np.ndarray) -> np.ndarray:
    """The same images with the masks of others."""
    wrong = pairs.copy()
    wrong[..., 1] = np.roll(pairs[..., 1], 1, axis=0)
    return wrong


@pytest.fixture(scope="module")
def fitted() -> utility.Segmenter:
    return utility.fit(bars(64, 0), RECIPE, 0)


def test_matching_masks_are_worth_more_than_shuffled_ones(fitted: utility.Segmenter) -> None:
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
    assert not {"test", "patient_of"} & set(inspect.signature(utility.fit).parameters)
    chosen, opened = [], []
    measure = utility.measure

    def seen(
        segmenter: utility.Segmenter, test: np.ndarray, *rest: object, **named: object
    ) -> utility.Utility:
        chosen.append(segmenter)
        opened.append(len(test))
        return measure(segmenter, test, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(utility, "measure", seen)
    grid = (utility.Choice(0.0, 5e-3), utility.Choice(0.1, 1e-3))
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


def test_the_best_epoch_and_configuration_are_those_of_the_validation_part() -> None:
    useless, useful = utility.Choice(0.0, 1e-9), utility.Choice(0.0, 5e-3)
    for grid in ((useless, useful), (useful, useless)):
        found = utility.fit(bars(24, 0), replace(RECIPE, grid=grid, epochs=2), 0)
        assert found.choice == useful
        assert 1 <= found.epoch <= 2


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_start_that_died_is_made_again_from_another_seed(
    monkeypatch: pytest.MonkeyPatch, everywhere: bool
) -> None:
    seeds, real = [], utility._trained
    held = bars(8, 0)[utility._split(np.arange(8), RECIPE.validation_share, 5)[1]]
    dead = utility._dsc(
        np.full(held.shape[:3], everywhere), held
    )  # masks empty, or vessel throughout

    def dies_once(*args: object) -> utility.Segmenter:
        seeds.append(args[4])
        found = real(*args)  # type: ignore[arg-type]
        return replace(found, validation_dsc=dead if len(seeds) == 1 else 0.9)

    monkeypatch.setattr(utility, "_trained", dies_once)
    assert utility.fit(bars(8, 0), replace(RECIPE, epochs=1), 5).validation_dsc == 0.9
    assert seeds == [5, 5 + utility.SEED_STRIDE]


def test_no_patient_is_in_both_parts() -> None:
    groups = np.repeat(np.arange(7), 3)
    kept, held = utility._split(groups, 0.2, 0)
    assert not set(groups[kept]) & set(groups[held])
    assert len(kept) + len(held) == len(groups)


def test_images_are_standardised_by_the_training_pairs_alone(fitted: utility.Segmenter) -> None:
    kept, _ = utility._split(np.arange(64), RECIPE.validation_share, 0)
    train = bars(64, 0)[kept][..., 0]
    assert (fitted.mean, fitted.deviation) == pytest.approx((train.mean(), train.std()))


def test_dice_is_of_a_patients_images_together_and_the_rest_of_each(
    fitted: utility.Segmenter,
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


def test_a_seed_repeats_and_leaves_torchs_generator_alone() -> None:
    recipe = replace(RECIPE, epochs=1, augment=True)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, two = (utility.fit(bars(16, 0), recipe, 4) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True)
    )


def test_progress_counts_every_epoch_of_the_grid() -> None:
    seen: list[tuple[int, int]] = []
    grid = (utility.Choice(0.0, 1e-3), utility.Choice(0.1, 1e-3))
    utility.fit(
        bars(8, 0),
        replace(RECIPE, grid=grid, epochs=2),
        0,
        progress=lambda d, t: seen.append((d, t)),
    )
    assert sorted(set(seen)) == [
        (1, 4),
        (2, 4),
        (3, 4),
        (4, 4),
    ]  # a start that died counts its epochs again


def test_the_ratio_compares_the_same_patients(fitted: utility.Segmenter) -> None:
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
        utility.fit(pairs, RECIPE, 0, group_of=np.arange(groups))
