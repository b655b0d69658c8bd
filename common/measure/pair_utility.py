"""Measures the utility of image and mask pairs: a network trained on them, tested on real patients.

In: training pairs, and pairs of real test patients.
Out: a `Utility`: overlap and distances as means over patients.
Guarantees: the test patients are used once, after training, by `measure`.
Not covered: privacy; the caller knows whose pairs these are.
Sources: Kossen et al. 2022; the measures are in common/measure/segmentation.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.arrays import Floats, Integers, Pairs
from common.measure.pair_segmenter import (
    CPU,
    Choice,
    Groups,
    Progress,
    Recipe,
    Segmenter,
    check_pairs,
    dice_of_pairs,
    fit,
)
from common.measure.segmentation import agreement

BOOTSTRAP_DRAWS = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Utility:
    """Means over patients: `dsc` in [0, 1] with its 95 % bootstrap interval, distances in mm.

    A patient's Dice is of all their images together, as of a volume; distances are means over their
    images. `penalised` counts the images of which only one mask was empty; their distances are the
    diagonal of the image.
    """

    dsc: float
    dsc_interval: tuple[float, float]
    bahd_mm: float
    hd95_mm: float
    images: int
    penalised: int
    dsc_by_patient: tuple[float, ...]
    choice: Choice
    epoch: int
    validation_dsc: float


@dataclass(frozen=True)
class Ratio:
    """Dice trained on synthetic over Dice trained on real pairs (TSTR/TRTR), same test patients.

    The 95 % interval resamples the same patients for both.
    """

    value: float
    interval: tuple[float, float]


def utility(
    train: Pairs,
    test: Pairs,
    patient_of: Groups,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    group_of: Groups | None = None,
    device: torch.device = CPU,
    progress: Progress = lambda done, total: None,
) -> Utility:
    """Return the utility of `train` on `test`, both uint8 [N, S, S, 2] (image, mask 0 or 255).

    `patient_of` [len(test)] numbers the test patients. `group_of` [len(train)] says which training
    pairs belong to one patient, so that validation is by patient.
    Raises ConfigurationError for unusable pairs.
    """
    check_pairs(test, patient_of, "test pairs")
    segmenter = fit(
        train, recipe or Recipe(), seed, group_of=group_of, device=device, progress=progress
    )
    return measure(segmenter, test, patient_of, seed=seed)


def measure(
    segmenter: Segmenter,
    test: Pairs,
    patient_of: Groups,
    *,
    spacing_mm: float = 1.0,
    seed: int = 0,
) -> Utility:
    """Return the measures of a trained network on the test patients, and use them nowhere else."""
    # predict
    patients = np.asarray(patient_of)
    check_pairs(test, patients, "test pairs")
    predicted = segmenter.masks(test[..., 0])
    true = test[..., 1] > 127

    # distances of each image, Dice of all images of a patient
    each = [agreement(p, g, spacing_mm) for p, g in zip(predicted, true, strict=True)]
    overlaps = []
    bahd = []
    hd95 = []
    for name in np.unique(patients):
        rows = np.flatnonzero(patients == name)
        overlaps.append(dice_of_pairs(predicted[rows], test[rows]))
        bahd.append(np.mean([each[i].balanced_hausdorff_mm for i in rows]))
        hd95.append(np.mean([each[i].hausdorff95_mm for i in rows]))

    # means over patients
    by_patient = np.array(overlaps)
    drawn = by_patient[_resample(len(by_patient), seed)].mean(axis=1)
    return Utility(
        dsc=float(by_patient.mean()),
        dsc_interval=_interval(drawn),
        bahd_mm=float(np.mean(bahd)),
        hd95_mm=float(np.mean(hd95)),
        images=len(test),
        penalised=sum(a.penalised for a in each),
        dsc_by_patient=tuple(map(float, by_patient)),
        choice=segmenter.choice,
        epoch=segmenter.epoch,
        validation_dsc=segmenter.validation_dsc,
    )


def ratio(synthetic: Utility, real: Utility, seed: int = 0) -> Ratio:
    """Return TSTR/TRTR: Dice of the network trained on synthetic pairs over that of real pairs.

    The interval resamples the same patients for both. Raises ValueError if they were tested on
    different numbers of patients.
    """
    above = np.array(synthetic.dsc_by_patient)
    below = np.array(real.dsc_by_patient)
    if len(above) != len(below):
        raise ValueError(
            f"ratio: tested on {len(above)} and {len(below)} patients, expected the same ones"
        )
    rows = _resample(len(above), seed)
    drawn = above[rows].mean(axis=1) / np.maximum(below[rows].mean(axis=1), 1e-9)
    return Ratio(synthetic.dsc / max(real.dsc, 1e-9), _interval(drawn))


def _resample(count: int, seed: int) -> Integers:
    """Row numbers [BOOTSTRAP_DRAWS, count], drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (BOOTSTRAP_DRAWS, count))


def _interval(drawn: Floats) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(drawn, INTERVAL)
    return float(low), float(high)
