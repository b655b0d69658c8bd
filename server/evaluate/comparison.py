"""Distances between released and public reference images, each beside what others reach.

In: two sets of uint8 images, and an extractor of features.
Out: findings.
Guarantees:
  - all rows of a distance are computed with equally many images, against the same half of the
    reference, with no patient in both halves;
  - three rows stand beside the release: the other half itself (the floor), averages of its
    alike pictures (k-Same-Pixel) and its mean image;
  - the same inputs give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from common.arrays import Floats, Images, Integers, Labels
from server.evaluate import distances
from server.evaluate.distances import Estimate
from server.evaluate.extractors import Extractor
from server.evaluate.findings import Finding, missing, with_interval

FRECHET = "Fréchet distance"
KERNEL = "kernel distance"
PRECISION = "precision"
RECALL = "recall"
NEAREST = "nearest reference ratio"
DISTANCES = (FRECHET, KERNEL, PRECISION, RECALL, NEAREST)
FLOOR = ", real against real"
SAME_PIXEL = ", k-Same-Pixel of the reference"
MEAN_IMAGE = ", mean image of the reference"
MOST_IMAGES = 500  # a side: more would not change a shown digit's meaning, only the time
GROUP_SIZE = 10  # of k-Same-Pixel, where a study has no groups
STRIP = 4096  # pixels that are floats at once


@dataclass(frozen=True)
class Compared:
    """Features of one half of the reference, and by row's ending what is compared with them.

    `whole` are both halves: a copy of any of them must show.
    """

    real: Floats
    whole: Floats
    rows: Mapping[str, Floats]
    evidence: str
    how_averaged: str


def compare(
    images: Images,
    reference: Images,
    extractor: Extractor,
    patient_of: Labels | None = None,
    group_size: int = GROUP_SIZE,
) -> list[Finding]:
    """Return distances between released and reference images [N, H, W, C], beside their rows.

    `patient_of` [M] says whose each reference image is; without it each is another person's.
    `group_size` is the k of k-Same-Pixel. Of more than `MOST_IMAGES` a side, some are taken.
    """
    first, second = halves(len(reference), patient_of)
    real = reference[first[:MOST_IMAGES]]
    others = reference[second[:MOST_IMAGES]]
    count = min(len(images), len(others), MOST_IMAGES)
    if min(count, len(real)) < 2:
        why = f"{count} images against {len(real)}: a distance needs two on each side"
        return [missing(name, why) for name in DISTANCES]

    seen = _see(images, real, others, count, group_size, extractor)
    return [
        *_distances(FRECHET, seen, _frechet_of(seen)),
        *_distances(KERNEL, seen, distances.estimate_kernel),
        *_coverage(seen.rows[""], seen, ""),
        *_coverage(seen.rows[FLOOR], seen, FLOOR),
        _nearest(seen),
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


def average_alike(images: Images, group_size: int) -> Images:
    """Return each image [N, H, W, C] averaged with its `group_size` - 1 nearest others in pixels.

    This is what k-Same-Pixel (Newton et al. 2005) shows, but for its partition: here groups
    overlap, so there are as many averages as images. Raises ValueError for fewer images than k.
    """
    if len(images) < group_size:
        raise ValueError(f"k-Same-Pixel: {len(images)} images, k = {group_size}")
    squares = _squared_distances(images)
    averages = np.empty_like(images)
    for i, row in enumerate(squares):
        nearest = np.argsort(row, kind="stable")[:group_size]
        averages[i] = images[nearest].mean(axis=0).round().astype(np.uint8)
    return averages


def _squared_distances(images: Images) -> Floats:
    """Squared distances in pixels of all images to all, exact; one strip of pixels at a time."""
    flat = images.reshape(len(images), -1)
    products = np.zeros((len(flat), len(flat)))
    for start in range(0, flat.shape[1], STRIP):
        strip = flat[:, start : start + STRIP].astype(np.float64)
        products += strip @ strip.T
    own = np.diag(products)
    squares: Floats = own[:, None] + own[None] - 2 * products
    return squares


def _see(
    images: Images,
    real: Images,
    others: Images,
    count: int,
    group_size: int,
    extractor: Extractor,
) -> Compared:
    """Features of all rows, scaled by the reference where the extractor asks for it."""
    # the released images, and the reference
    some = np.random.default_rng(2).permutation(len(images))[:count]
    seen = extractor.features(real)
    rest = extractor.features(others)
    rows = {"": extractor.features(images[some]), FLOOR: rest[:count]}

    # what classical averages reach, and one image for all
    if len(others) >= group_size:
        rows[SAME_PIXEL] = extractor.features(average_alike(others, group_size)[:count])
    mean = others.mean(axis=0, keepdims=True).round().astype(np.uint8)
    rows[MEAN_IMAGE] = np.repeat(extractor.features(mean), count, axis=0)

    # scale by the reference
    if extractor.standardised:
        middle = seen.mean(axis=0)
        scale = seen.std(axis=0) + 1e-6
        rows = {ending: (x - middle) / scale for ending, x in rows.items()}
        seen = (seen - middle) / scale
        rest = (rest - middle) / scale
    return Compared(
        seen,
        np.concatenate([seen, rest]),
        rows,
        f"{extractor.name}; {count} images against {len(real)} public reference images",
        f"each of {count} reference images averaged with its {group_size - 1} most alike",
    )


def _frechet_of(seen: Compared) -> Callable[[Floats, Floats], Estimate]:
    """The Fréchet distance for the sizes at hand."""
    alone = _too_few(seen)

    def estimate(a: Floats, b: Floats) -> Estimate:
        return distances.estimate_frechet(a, b, variances_alone=alone)

    return estimate


def _too_few(seen: Compared) -> bool:
    """Whether a side cannot carry a covariance of all features."""
    count = min(len(seen.rows[""]), len(seen.real))
    return count <= int(seen.real.shape[1])


def _distances(
    name: str, seen: Compared, estimate: Callable[[Floats, Floats], Estimate]
) -> list[Finding]:
    """One distance of the release and of all that stands beside it."""
    unit = "squared MMD"
    if name == FRECHET:
        unit = "squared distance"
        if _too_few(seen):
            unit = "squared distance of means and variances, too few images for covariances"
    findings = []
    for ending in ("", FLOOR, SAME_PIXEL, MEAN_IMAGE):
        evidence = seen.evidence
        if ending not in seen.rows:
            findings.append(missing(name + ending, "the reference has fewer than k images a half"))
            continue
        if ending == SAME_PIXEL:
            evidence = f"{seen.evidence}; {seen.how_averaged}"
        found = estimate(seen.rows[ending], seen.real)
        findings.append(with_interval(name + ending, found.value, found.interval, unit, evidence))
    return findings


def _coverage(rows: Floats, seen: Compared, end: str) -> list[Finding]:
    """Precision (do released images look real?) and recall (is every kind of real image there?)."""
    precision, recall = distances.precision_recall(rows, seen.real)
    return [
        Finding(PRECISION + end, round(precision, 4), "share", seen.evidence),
        Finding(RECALL + end, round(recall, 4), "share", seen.evidence),
    ]


def _nearest(seen: Compared) -> Finding:
    """How near released images are to their nearest real one, beside real to real."""
    ratio = distances.nearest_ratio(seen.rows[""], seen.whole)
    unit = "ratio to the real-to-real median; 0 is a copy"
    return Finding(NEAREST, round(ratio, 4), unit, seen.evidence)
