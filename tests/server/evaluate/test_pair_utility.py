"""Pairs: real beats synthetic beats shuffled, on the same test patients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.measure import pair_segmenter
from common.measure import pair_utility as common_utility
from server.evaluate import pair_utility as utility

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
RECIPE = pair_segmenter.Recipe(
    width=8, epochs=6, batch_size=4, grid=(pair_segmenter.Choice(0.0, 2e-3),)
)


def blocks(count: int, seed: int) -> np.ndarray:
    """Bright rectangles on noise with exact masks, uint8 [N, 16, 16, 2]."""
    rng = np.random.default_rng(seed)
    pairs = np.zeros((count, 16, 16, 2), np.uint8)
    for i, (y, x) in enumerate(rng.integers(1, 9, (count, 2))):
        pairs[i, y : y + 5, x : x + 6, 1] = 255
    pairs[..., 0] = np.where(pairs[..., 1] > 0, 170, 80) + rng.normal(0, 12, pairs.shape[:3])
    return pairs


def values(pairs: np.ndarray, recipe: pair_segmenter.Recipe = RECIPE) -> dict[str, float | None]:
    found = utility.evaluate_pairs(pairs, blocks(80, 1), np.repeat(np.arange(20), 4), recipe=recipe)
    return {f.name: f.value for f in found}


def test_matching_pairs_come_near_real_ones_and_shuffled_masks_do_not() -> None:
    good, bad = blocks(48, 2), blocks(48, 2)
    bad[..., 1] = np.roll(bad[..., 1], 1, axis=0)
    near, far = values(good), values(bad, replace(RECIPE, epochs=2))
    assert near[utility.TSTR] > 0.8 > far[utility.TSTR]  # type: ignore[operator]
    assert near["segmentation DSC, release over real"] > 0.9  # type: ignore[operator]
    assert near[utility.CONTRAST] > 80 > 30 > far[utility.CONTRAST]  # type: ignore[operator]
    assert near[utility.COVER] == far[utility.COVER]


def test_both_networks_are_tested_on_the_same_patients_and_trained_on_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, real = [], common_utility.utility

    def seen(
        train: np.ndarray, test: np.ndarray, patient_of: np.ndarray, **named: object
    ) -> common_utility.Utility:
        calls.append((train, test, patient_of, named.get("group_of")))
        return real(train, test, patient_of, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(common_utility, "utility", seen)
    findings = utility.evaluate_pairs(
        blocks(16, 2), blocks(40, 1), np.repeat(np.arange(10), 4), recipe=replace(RECIPE, epochs=1)
    )
    (train, test, patients, _), (other, again, same, groups) = calls
    assert np.array_equal(test, again) and np.array_equal(patients, same)
    assert np.array_equal(train, blocks(16, 2)) and len(other) + len(test) == 40
    assert isinstance(groups, np.ndarray) and not set(groups) & set(patients)
    shown = next(f for f in findings if f.name == utility.TSTR)
    assert (
        shown.interval is not None
        and "95 % interval" in shown.unit
        and "5 public patients" in shown.evidence
    )


@pytest.mark.parametrize("case", ["no reference", "few patients", "few pairs"])
def test_what_cannot_be_measured_says_so(case: str) -> None:
    pairs = blocks(4 if case == "few pairs" else 20, 0)
    reference = None if case == "no reference" else blocks(20, 1)
    patients = (
        None if case == "no reference" else np.arange(20) % (3 if case == "few patients" else 20)
    )
    found = {f.name: f for f in utility.evaluate_pairs(pairs, reference, patients, recipe=RECIPE)}
    assert all(
        found[name].status == "not evaluated" and found[name].value is None
        for name in (utility.TSTR, utility.TRTR)
    )
    assert found[utility.COVER].status == "shown"
