"""Measures released image and mask pairs by a segmentation network, on public real pairs.

In: released pairs; public reference pairs with the patient of each.
Out: findings on networks trained on the release (TSTR) and on half of the reference (TRTR), and on
how image and mask agree.
Guarantees: both networks are tested on the same patients, whom neither training saw; configuration
and epoch come from a part of each one's own training pairs.
Not covered: whether the reference resembles the hospitals' patients, or was seen by the release's
starting checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.arrays import Labels, Pairs
from common.measure import pair_segmenter
from common.measure import pair_utility as utility
from server.evaluate.comparison import halves
from server.evaluate.findings import Finding, missing, with_interval

LEAST_PATIENTS = 6
LEAST_PAIRS = 16
TSTR = "segmentation DSC, trained on the release, tested on public reference pairs"
TRTR = "segmentation DSC, trained on public reference pairs, tested on others"
RATIO = "segmentation DSC, release over real"
CONTRAST = "contrast between inside and outside the mask"
COVER = "share of pixels in masks"


def evaluate_pairs(
    pairs: Pairs,
    reference_pairs: Pairs | None,
    reference_patient_of: Labels | None,
    *,
    recipe: pair_segmenter.Recipe = pair_segmenter.SMALL,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Return the findings on released `pairs`.

    Both sets are uint8 [N, S, S, 2] of one size S, with masks of 0 or 255. Without a reference, or
    with too few patients or pairs, the findings are "not evaluated". `progress` counts the epochs
    of both trainings.
    """
    # what needs no training
    agreement = _agreement(pairs, "")
    if reference_pairs is None or reference_patient_of is None:
        return _report_missing("no public reference pairs were given") + agreement
    agreement += _agreement(reference_pairs, ", reference")

    # are there enough patients and pairs?
    patients = len(np.unique(reference_patient_of))
    if patients < LEAST_PATIENTS or min(len(pairs), len(reference_pairs)) < LEAST_PAIRS:
        why = (
            f"needs {LEAST_PATIENTS} public patients and {LEAST_PAIRS} pairs a side, "
            f"has {patients} patients"
        )
        return _report_missing(why) + agreement

    synthetic, real = _train_both(
        pairs, reference_pairs, reference_patient_of, recipe, seed, progress
    )
    return _findings(synthetic, real, recipe) + agreement


def _train_both(
    pairs: Pairs,
    reference_pairs: Pairs,
    reference_patient_of: Labels,
    recipe: pair_segmenter.Recipe,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[utility.Utility, utility.Utility]:
    """Train on the release and on half of the reference; test both on the other half."""
    train, test = halves(len(reference_pairs), reference_patient_of)
    tested = reference_pairs[test]
    tested_patients = reference_patient_of[test]
    epochs = len(recipe.grid) * recipe.epochs

    # train on the release
    synthetic = utility.utility(
        pairs,
        tested,
        tested_patients,
        recipe=recipe,
        seed=seed,
        progress=lambda done, _: progress(done, 2 * epochs),
    )

    # train on half of the reference
    real = utility.utility(
        reference_pairs[train],
        tested,
        tested_patients,
        recipe=recipe,
        seed=seed,
        group_of=reference_patient_of[train],
        progress=lambda done, _: progress(epochs + done, 2 * epochs),
    )
    return synthetic, real


def _findings(
    synthetic: utility.Utility, real: utility.Utility, recipe: pair_segmenter.Recipe
) -> list[Finding]:
    """The findings on both results and their ratio."""
    # overlap
    how = (
        f"half U-Net of width {recipe.width}, one seed; "
        f"{len(real.dsc_by_patient)} public patients, {real.images} images; "
        "epoch chosen on a part of the training pairs"
    )
    unit = "Dice, mean of patients"
    ratio = utility.ratio(synthetic, real)
    found = [
        with_interval(TSTR, synthetic.dsc, synthetic.dsc_interval, unit, how),
        with_interval(TRTR, real.dsc, real.dsc_interval, unit, how),
        with_interval(RATIO, ratio.value, ratio.interval, "ratio", how),
    ]

    # distances between the contours
    for end, result in (("", synthetic), (", trained on real", real)):
        empty = f"{how}; in {result.penalised} images one mask was empty: the diagonal"
        balanced = round(result.bahd_mm, 4)
        name = f"balanced average Hausdorff distance{end}"
        found.append(Finding(name, balanced, "pixels", empty))
        largest = round(result.hd95_mm, 4)
        found.append(Finding(f"95 % Hausdorff distance{end}", largest, "pixels", empty))
    return found


def _report_missing(why: str) -> list[Finding]:
    """The findings where nothing was trained."""
    return [missing(name, why) for name in (TSTR, TRTR)]


def _agreement(pairs: Pairs, end: str) -> list[Finding]:
    """Whether masks lie on something: how much they cover, and brightness inside and outside."""
    inside = pairs[..., 1] > 127
    covered = float(inside.mean())
    found = [Finding(COVER + end, round(covered, 4), "share", "counted")]
    if 0 < covered < 1:
        images = pairs[..., 0]
        gap = float(images[inside].mean()) - float(images[~inside].mean())
        name = CONTRAST + end
        found.append(Finding(name, round(gap, 2), "grey levels of 255", "mean over all pairs"))
    return found
