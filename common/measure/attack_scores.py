"""How attackers score candidates against released images: a large score says "took part".

In: features of releases and of candidates as float64 rows [N, D].
Out: scores [N].
Not covered: an attacker who trains a network (server/evaluate/siamese.py).
Sources: Chen et al. 2020 (GAN-Leaks) for the nearest release; van Breugel et al. 2023 (DOMIAS) for
the density ratio.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.arrays import Flags, Floats, Labels

COMPONENTS = 64


def distances(a: Floats, b: Floats) -> Floats:
    """Return Euclidean distances [A, B] of rows."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def nearness(candidates: Floats, released: Floats, comparable: Flags | None = None) -> Floats:
    """Return minus the distance of each candidate to its nearest release, [N].

    `comparable` bool [N, R] limits which releases count.
    """
    found = distances(candidates, released)
    if comparable is not None:
        found = np.where(comparable, found, np.inf)
    return np.asarray(-found.min(axis=1))


def density_ratio(
    candidates: Floats,
    released: Floats,
    reference: Floats,
    own: Labels | None = None,
    comparable: Flags | None = None,
) -> Floats:
    """Return log p_released / p_reference of each candidate, [N], by Gaussian kernels on every row.

    The kernels' width is the median distance of a reference row to its nearest other. `own` int [N]
    is the row of `reference` that is the candidate itself and is left out; -1 where there is none.
    `comparable` bool [N, R] limits which releases count.
    """
    # the kernels' width, from the reference alone
    among = distances(reference, reference)
    np.fill_diagonal(among, np.inf)
    width = max(float(np.median(among.min(axis=1))), 1e-12)

    # distances to the reference; a candidate is no evidence for itself
    apart = distances(candidates, reference)
    if own is not None:
        known = np.flatnonzero(own >= 0)
        apart[known, own[known]] = np.inf

    # distances to the releases that count
    near = distances(candidates, released)
    if comparable is not None:
        near = np.where(comparable, near, np.inf)
    return _log_density(near, width) - _log_density(apart, width)


def best_by_person(scores: Floats, person_of: Labels) -> Floats:
    """Return each person's largest score, because an attacker has all images of a person.

    `person_of` [N] counts from 0.
    """
    best = np.full(int(person_of.max()) + 1, -np.inf)
    np.maximum.at(best, person_of, scores)
    return best


def whiten(
    features: Mapping[str, Floats], fit_on: str, components: int = COMPONENTS
) -> dict[str, Floats]:
    """Return every set of features as principal components of about unit variance.

    They are fitted on the rows of `fit_on` alone.
    """
    rows = features[fit_on]
    middle = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - middle, full_matrices=False)
    count = int(min(components, len(rows) - 1, (singular > 1e-9 * singular[0]).sum()))
    variance = np.maximum(singular**2, 1e-4 * singular[0] ** 2) / len(rows)
    directions = axes[:count].T / np.sqrt(variance)[:count]
    return {name: np.asarray((x - middle) @ directions) for name, x in features.items()}


def combine(scores: Mapping[str, Floats]) -> Floats:
    """Return the mean of all attackers' scores, each scaled to mean 0 and deviation 1."""
    standard = [(x - x.mean()) / (x.std() + 1e-12) for x in scores.values()]
    return np.asarray(np.mean(standard, axis=0))


def _log_density(apart: Floats, width: float) -> Floats:
    """Log of the mean Gaussian kernel of each row's distances, up to a constant.

    Rows at an infinite distance do not count.
    """
    exponent = -((apart / width) ** 2) / 2
    top = exponent.max(axis=1, keepdims=True)
    people = np.maximum(np.isfinite(apart).sum(axis=1), 1)
    return np.asarray(top[:, 0] + np.log(np.exp(exponent - top).sum(axis=1) / people))
