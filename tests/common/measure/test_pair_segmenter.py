"""Training chooses by validation alone, repeats by its seed, and starts again when it failed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.measure import pair_segmenter
from tests.bars import RECIPE, bars

torch.set_num_threads(1)


def test_the_best_epoch_and_configuration_are_those_of_the_validation_part() -> None:
    useless, useful = pair_segmenter.Choice(0.0, 1e-9), pair_segmenter.Choice(0.0, 5e-3)
    for grid in ((useless, useful), (useful, useless)):
        found = pair_segmenter.fit(bars(24, 0), replace(RECIPE, grid=grid, epochs=2), 0)
        assert found.choice == useful
        assert 1 <= found.epoch <= 2


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_start_that_died_is_made_again_from_another_seed_and_slower(
    monkeypatch: pytest.MonkeyPatch, everywhere: bool
) -> None:
    seeds, rates, real = [], [], pair_segmenter._train
    held = bars(8, 0)[pair_segmenter._split(np.arange(8), RECIPE.validation_share, 5)[1]]
    # masks empty, or vessel throughout
    dead = pair_segmenter.dice_of_pairs(np.full(held.shape[:3], everywhere), held)

    def dies_once(*args: object) -> pair_segmenter.Segmenter:
        seeds.append(args[4])
        rates.append(args[3].learning_rate)  # type: ignore[attr-defined]
        found = real(*args)  # type: ignore[arg-type]
        return replace(found, validation_dsc=dead if len(seeds) == 1 else 0.9)

    monkeypatch.setattr(pair_segmenter, "_train", dies_once)
    assert pair_segmenter.fit(bars(8, 0), replace(RECIPE, epochs=1), 5).validation_dsc == 0.9
    assert seeds == [5, 5 + pair_segmenter.SEED_STRIDE]
    assert rates[1] == rates[0] / 2


def test_no_patient_is_in_both_parts() -> None:
    groups = np.repeat(np.arange(7), 3)
    kept, held = pair_segmenter._split(groups, 0.2, 0)
    assert not set(groups[kept]) & set(groups[held])
    assert len(kept) + len(held) == len(groups)


def test_a_seed_repeats_and_leaves_torchs_generator_alone() -> None:
    recipe = replace(RECIPE, epochs=1, augment=True)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, two = (pair_segmenter.fit(bars(16, 0), recipe, 4) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True)
    )


def test_progress_counts_every_epoch_of_the_grid() -> None:
    seen: list[tuple[int, int]] = []
    grid = (pair_segmenter.Choice(0.0, 1e-3), pair_segmenter.Choice(0.1, 1e-3))
    pair_segmenter.fit(
        bars(8, 0),
        replace(RECIPE, grid=grid, epochs=2),
        0,
        progress=lambda d, t: seen.append((d, t)),
    )
    # a start that died counts its epochs again
    assert sorted(set(seen)) == [
        (1, 4),
        (2, 4),
        (3, 4),
        (4, 4),
    ]
