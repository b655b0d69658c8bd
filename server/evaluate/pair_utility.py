"""What released image + mask pairs are worth to a researcher, measured on public real pairs.

In: released pairs, public reference pairs and who their patients are. Out: findings for the report: a segmentation network
trained on the release and tested on reference patients (TSTR), the same trained on the other half of the reference patients
(TRTR), their ratio, Hausdorff distances, and how image and mask agree. Guaranteed: both networks are tested on the same
patients, whom neither training saw; configuration and epoch come from a part of each one's own training pairs. Not: whether the
reference resembles the hospitals' patients, or whether the release's starting checkpoint has seen the reference.

Source: methods/dp-training.md 9; common/measure/pair_utility.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.arrays import Pairs
from common.measure import pair_utility as utility
from server.evaluate.comparison import halves
from server.evaluate.findings import NOT_EVALUATED, Finding

LEAST_PATIENTS, LEAST_PAIRS = 6, 16
TSTR = "segmentation DSC, trained on the release, tested on public reference pairs"
TRTR = "segmentation DSC, trained on public reference pairs, tested on others"
CONTRAST, COVER = "contrast between inside and outside the mask", "share of pixels in masks"


def evaluate_pairs(
    pairs: Pairs,
    reference_pairs: Pairs | None,
    reference_patient_of: NDArray[np.int64] | None,
    *,
    recipe: utility.Recipe = utility.SMALL,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Return the findings on released `pairs`; both sets uint8 [N, S, S, 2] of one size S, masks 0 or 255.

    No reference, too few patients or pairs: "not evaluated". `progress` counts epochs of both trainings.
    """
    if reference_pairs is None or reference_patient_of is None:
        return _silent("no public reference pairs were given") + _agreement(pairs, "")
    agreement = _agreement(pairs, "") + _agreement(reference_pairs, ", reference")
    patients = len(np.unique(reference_patient_of))
    if patients < LEAST_PATIENTS or min(len(pairs), len(reference_pairs)) < LEAST_PAIRS:
        why = f"needs {LEAST_PATIENTS} public patients and {LEAST_PAIRS} pairs a side, has {patients} patients"
        return _silent(why) + agreement
    train, test = halves(len(reference_pairs), reference_patient_of)
    epochs = len(recipe.grid) * recipe.epochs
    synthetic = utility.utility(
        pairs, reference_pairs[test], reference_patient_of[test],
        recipe=recipe, seed=seed, progress=lambda done, _: progress(done, 2 * epochs),
    )  # fmt: skip
    real = utility.utility(
        reference_pairs[train], reference_pairs[test], reference_patient_of[test],
        recipe=recipe, seed=seed, group_of=reference_patient_of[train],
        progress=lambda done, _: progress(epochs + done, 2 * epochs),
    )  # fmt: skip
    return _findings(synthetic, real, recipe) + agreement


def _findings(
    synthetic: utility.Utility, real: utility.Utility, recipe: utility.Recipe
) -> list[Finding]:
    """Both results and their ratio."""
    how = (
        f"half U-Net of width {recipe.width}, one seed; {len(real.dsc_by_patient)} public patients, {real.images} images; "
        "epoch chosen on a part of the training pairs"
    )
    ratio = utility.ratio(synthetic, real)
    found = [
        _finding(TSTR, synthetic.dsc, "Dice, mean of patients", how, synthetic.dsc_interval),
        _finding(TRTR, real.dsc, "Dice, mean of patients", how, real.dsc_interval),
        _finding("segmentation DSC, release over real", ratio.value, "ratio", how, ratio.interval),
    ]
    for end, result in (("", synthetic), (", trained on real", real)):
        empty = f"{how}; in {result.penalised} images one mask was empty: the diagonal"
        found.append(
            _finding(f"balanced average Hausdorff distance{end}", result.bahd_mm, "pixels", empty)
        )
        found.append(_finding(f"95 % Hausdorff distance{end}", result.hd95_mm, "pixels", empty))
    return found


def _finding(
    name: str, value: float, unit: str, how: str, interval: tuple[float, float] | None = None
) -> Finding:
    if interval is None:
        return Finding(name, round(value, 4), unit, how)
    low, high = (round(end, 4) for end in interval)
    return Finding(
        name, round(value, 4), f"{unit}; 95 % interval {low} to {high}", how, interval=(low, high)
    )


def _silent(why: str) -> list[Finding]:
    return [Finding(name, None, "", why, NOT_EVALUATED) for name in (TSTR, TRTR)]


def _agreement(pairs: Pairs, end: str) -> list[Finding]:
    """Whether masks lie on something: how much they cover, and brightness inside against outside."""
    inside = pairs[..., 1] > 127
    covered = float(inside.mean())
    found = [Finding(COVER + end, round(covered, 4), "share", "counted")]
    if 0 < covered < 1:
        gap = float(pairs[..., 0][inside].mean()) - float(pairs[..., 0][~inside].mean())
        found.append(
            Finding(CONTRAST + end, round(gap, 2), "grey levels of 255", "mean over all pairs")
        )
    return found
