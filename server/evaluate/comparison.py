"""Distances between released and public reference images, each beside its floor.

In: two sets of uint8 images, and an extractor of features.
Out: findings.
Guarantees: the floor is the same distance between two halves of the reference, with no patient in
both; the same inputs give the same numbers.
"""

from __future__ import annotations

import numpy as np

from common.arrays import Floats, Images, Integers, Labels
from server.evaluate import distances
from server.evaluate.extractors import Extractor
from server.evaluate.findings import Finding, missing

FRECHET = "Fréchet distance"
KERNEL = "kernel distance"
PRECISION = "precision"
RECALL = "recall"
NEAREST = "nearest reference ratio"
DISTANCES = (FRECHET, KERNEL, PRECISION, RECALL, NEAREST)
FLOOR = ", real against real"


def compare(
    images: Images, reference: Images, extractor: Extractor, patient_of: Labels | None = None
) -> list[Finding]:
    """Return distances between released and reference images [N, H, W, C], with their floors.

    `patient_of` [M] says whose each reference image is; without it each is another person's.
    """
    # features, scaled by the reference where the extractor asks for it
    released = extractor.features(images)
    real = extractor.features(reference)
    if extractor.standardised:
        middle = real.mean(axis=0)
        scale = real.std(axis=0) + 1e-6
        released = (released - middle) / scale
        real = (real - middle) / scale

    # distances, and their floors between two halves of the reference
    rows = halves(len(real), patient_of)
    first = real[rows[0]]
    second = real[rows[1]]
    evidence = f"{extractor.name}, against public reference images"
    return [
        *_frechet(released, first, second, evidence),
        *_kernel(released, real, first, second, evidence),
        *_coverage(released, real, "", evidence),
        *_coverage(second, first, FLOOR, evidence),
        _nearest(released, real, evidence),
    ]


def halves(count: int, patient_of: Labels | None) -> tuple[Integers, Integers]:
    """Return the positions of two halves of a reference, in a fixed random order.

    No patient is in both.
    """
    patients = np.arange(count)
    if patient_of is not None:
        patients = np.asarray(patient_of)
    names = np.random.default_rng(0).permutation(np.unique(patients))
    inside = np.isin(patients, names[: len(names) // 2])
    rng = np.random.default_rng(1)
    first = rng.permutation(np.flatnonzero(inside))
    second = rng.permutation(np.flatnonzero(~inside))
    return first, second


def _frechet(released: Floats, first: Floats, second: Floats, evidence: str) -> list[Finding]:
    """The Fréchet distance and its floor, at one sample size because it depends on the size."""
    count = min(len(released), len(first), len(second))
    dimension = released.shape[1]
    if count <= dimension:
        why = f"{evidence}: {count} images a side cannot carry a covariance of {dimension} features"
        return [missing(FRECHET, why), missing(FRECHET + FLOOR, why)]
    some = released[np.random.default_rng(2).permutation(len(released))[:count]]
    evidence = f"{evidence}; {count} images a side"
    findings = []
    for name, features in ((FRECHET, some), (FRECHET + FLOOR, second[:count])):
        distance = distances.frechet(features, first[:count])
        findings.append(Finding(name, round(distance, 4), "squared distance", evidence))
    return findings


def _kernel(
    released: Floats, real: Floats, first: Floats, second: Floats, evidence: str
) -> list[Finding]:
    """The kernel distance, which is unbiased at any size, and its floor."""
    if min(len(first), len(second)) < 2:
        why = f"{evidence}: one patient a half"
        return [missing(KERNEL, why), missing(KERNEL + FLOOR, why)]
    findings = []
    for name, a, b in ((KERNEL, released, real), (KERNEL + FLOOR, second, first)):
        found = distances.kernel(a, b)
        # beyond six decimals it is rounding, which differs between processors
        deviation = round(found.deviation, 6)
        spread = f"deviation {deviation:.2g} over subsets of {found.subset_size}"
        value = round(found.value, 5)
        findings.append(Finding(name, value, "squared MMD", f"{evidence}; {spread}"))
    return findings


def _coverage(released: Floats, real: Floats, end: str, evidence: str) -> list[Finding]:
    """Precision (do released images look real?) and recall (is every kind of real image there?)."""
    precision, recall = distances.precision_recall(released, real)
    return [
        Finding(PRECISION + end, round(precision, 4), "share", evidence),
        Finding(RECALL + end, round(recall, 4), "share", evidence),
    ]


def _nearest(released: Floats, real: Floats, evidence: str) -> Finding:
    """How near released images are to their nearest real one, beside real to real."""
    ratio = distances.nearest_ratio(released, real)
    unit = "ratio to the real-to-real median; 0 is a copy"
    return Finding(NEAREST, round(ratio, 4), unit, evidence)
