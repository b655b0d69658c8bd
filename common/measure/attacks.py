"""Attacks on a set of released images: who took part, and which image is whose; with intervals, and what chance alone gives.

In: features of released images and of candidates (people who took part and people who did not), as float64 rows [N, D].
Out: scores, then figures: AUC, true positive rate at 1 % false positives, precision of links.
Guaranteed: numpy alone; members are compared with non-members of the same stratum only, so that a label or an eye gives nobody
away; intervals are bootstrap intervals over people (95 %); of several attackers the worst is reported beside `chance`, which the
worst of just these attackers reaches by luck alone in 1 of 20 cases; the same inputs and seed give the same numbers.
Not covered: an attacker who trains a network on other releases (server/evaluate/siamese.py re-identifies with one); a bound for every
attacker. Many images of a person: `by_person` first, for intervals count people.

Sources: nearest record: Chen et al. 2020 (GAN-Leaks); density ratio: van Breugel et al. 2023 (DOMIAS); methods/ksalsa.md 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.arrays import Flags, Floats, Labels

FALSE_POSITIVES, LEAST_PEOPLE = 0.01, 8
DRAWS, PERMUTATIONS, INTERVAL = 300, 300, (2.5, 97.5)


@dataclass(frozen=True)
class Membership:
    """One attacker: area under the curve, and true positive rate at 1 % false positives, each with its 95 % interval."""

    attacker: str
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


@dataclass(frozen=True)
class Inference:
    """All attackers, the worst (largest AUC), and the AUC that the worst of them exceeds by luck in 5 % of cases."""

    attackers: tuple[Membership, ...]
    chance: float

    @property
    def worst(self) -> Membership:
        """The attacker of the largest AUC."""
        return max(self.attackers, key=lambda one: one.auc)


@dataclass(frozen=True)
class Links:
    """The share of the `count` candidates nearest to a release that are linked to it, and what random candidates give."""

    precision: float
    interval: tuple[float, float]
    chance: float
    count: int


# ---- scores: large means "took part" ------------------------------------------------------------------------------------
def distances(a: Floats, b: Floats) -> Floats:
    """Return Euclidean distances [A, B] of rows."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def nearness(candidates: Floats, released: Floats, comparable: Flags | None = None) -> Floats:
    """Return minus the distance of each candidate to its nearest release, [N]; `comparable` bool [N, R] limits which count."""
    found = distances(candidates, released)
    return np.asarray(
        -(found if comparable is None else np.where(comparable, found, np.inf)).min(axis=1)
    )


def density_ratio(
    candidates: Floats,
    released: Floats,
    reference: Floats,
    own: Labels | None = None,
    comparable: Flags | None = None,
) -> Floats:
    """Return log p_released / p_reference of each candidate, [N], by Gaussian kernels on every row.

    The kernels' width is the median distance of a reference row to its nearest other. `own` int [N]: the row of `reference`
    that is the candidate, which is then left out (-1: none). `comparable` bool [N, R] limits which releases count.
    """
    among = distances(reference, reference)
    np.fill_diagonal(among, np.inf)
    width = max(float(np.median(among.min(axis=1))), 1e-12)
    apart = distances(candidates, reference)
    if own is not None:
        known = np.flatnonzero(own >= 0)
        apart[known, own[known]] = np.inf
    near = distances(candidates, released)
    near = near if comparable is None else np.where(comparable, near, np.inf)
    return _log_density(near, width) - _log_density(apart, width)


def _log_density(apart: Floats, width: float) -> Floats:
    """Log of the mean Gaussian kernel of each row's distances (up to a constant); a distance of infinity is nobody."""
    exponent = -((apart / width) ** 2) / 2
    top = exponent.max(axis=1, keepdims=True)
    people = np.maximum(np.isfinite(apart).sum(axis=1), 1)
    return np.asarray(top[:, 0] + np.log(np.exp(exponent - top).sum(axis=1) / people))


def by_person(scores: Floats, person_of: Labels) -> Floats:
    """Return each person's largest score: an attacker holds all images of a person. `person_of` [N] counts from 0."""
    best = np.full(int(person_of.max()) + 1, -np.inf)
    np.maximum.at(best, person_of, scores)
    return best


def whitened(
    features: Mapping[str, Floats], fit_on: str, components: int = 64
) -> dict[str, Floats]:
    """Return the principal components of unit variance, fitted on the rows of `fit_on` alone, of every set of features."""
    middle = features[fit_on].mean(axis=0)
    _, singular, axes = np.linalg.svd(features[fit_on] - middle, full_matrices=False)
    count = int(min(components, len(features[fit_on]) - 1, (singular > 1e-9 * singular[0]).sum()))
    scale = np.sqrt(np.maximum(singular**2, 1e-4 * singular[0] ** 2) / len(features[fit_on]))[
        :count
    ]
    return {
        name: np.asarray((x - middle) @ (axes[:count].T / scale)) for name, x in features.items()
    }


def together(scores: Mapping[str, Floats]) -> Floats:
    """Return the mean of the scores, each at mean 0 and deviation 1: the attacker who asks everybody."""
    return np.asarray(
        np.mean([(x - x.mean()) / (x.std() + 1e-12) for x in scores.values()], axis=0)
    )


# ---- figures ------------------------------------------------------------------------------------------------------------
def infer(
    scores: Mapping[str, Floats], member: Flags, stratum: Labels | None = None, *, seed: int = 0
) -> Inference | None:
    """Return the figures of each attacker's scores [N] by name against the truth `member` bool [N], people as rows.

    None when fewer than `LEAST_PEOPLE` of either side are in a stratum that has both.
    """
    strata = np.zeros(len(member), np.int64) if stratum is None else np.asarray(stratum)
    both = np.isin(strata, np.intersect1d(strata[member], strata[~member]))
    member, strata = member[both], strata[both]
    if min(member.sum(), (~member).sum()) < LEAST_PEOPLE:
        return None
    kept = {name: np.asarray(x, np.float64)[both] for name, x in scores.items()}
    rng = np.random.default_rng(seed)
    found = tuple(_membership(name, x, member, strata, rng) for name, x in kept.items())
    return Inference(found, _chance(list(kept.values()), member, strata, rng))


def _membership(
    name: str, x: Floats, member: Flags, strata: Labels, rng: np.random.Generator
) -> Membership:
    """AUC and TPR with their intervals."""
    inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
    same = strata[inside][:, None] == strata[outside][None]
    wins = np.where(same, _wins(x[inside], x[outside]), 0.0)
    ours, theirs = (_resampled(strata[rows], rng) for rows in (inside, outside))
    draws = ((ours @ wins) * theirs).sum(1) / np.maximum(((ours @ same) * theirs).sum(1), 1)
    rates = [_rate(x[inside], a, x[outside], _balanced(strata[outside], b, strata[inside], a))
             for a, b in zip(ours, theirs, strict=True)]  # fmt: skip
    one = np.ones(len(inside)), np.ones(len(outside))
    rate = _rate(
        x[inside], one[0], x[outside], _balanced(strata[outside], one[1], strata[inside], one[0])
    )
    return Membership(
        name, float(wins.sum() / same.sum()), _interval(draws), rate, _interval(np.array(rates))
    )


def _wins(a: Floats, b: Floats) -> Floats:
    """1 where a > b, 1/2 where equal, [A, B]."""
    return np.asarray((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None]))


def _resampled(strata: Labels, rng: np.random.Generator) -> Floats:
    """How often each person is in a bootstrap sample of the same size and strata, [DRAWS, N]."""
    weights = np.zeros((DRAWS, len(strata)))
    for s in np.unique(strata):
        rows = np.flatnonzero(strata == s)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), DRAWS)
    return weights


def _balanced(strata: Labels, weights: Floats, as_in: Labels, their_weights: Floats) -> Floats:
    """The weights of non-members, so that their strata have the members' shares; sum 1."""
    balanced = np.zeros(len(weights))
    for s in np.unique(strata):
        rows = strata == s
        balanced[rows] = (
            weights[rows] * their_weights[as_in == s].sum() / max(weights[rows].sum(), 1e-12)
        )
    return np.asarray(balanced / max(balanced.sum(), 1e-12))


def _rate(inside: Floats, ours: Floats, outside: Floats, theirs: Floats) -> float:
    """The weighted share of members above the lowest threshold that at most 1 % of non-members exceed."""
    order = np.argsort(-outside, kind="stable")
    above = np.concatenate([[0.0], np.cumsum(theirs[order])])[
        :-1
    ]  # weight of those strictly before in the order
    ranked = outside[order]
    above = above[np.searchsorted(-ranked, -ranked, side="left")]  # ties: of those strictly larger
    threshold = ranked[above <= FALSE_POSITIVES + 1e-12].min()
    return float(ours[inside > threshold].sum() / max(ours.sum(), 1e-12))


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.percentile(draws, INTERVAL)
    return float(low), float(high)


def _chance(scores: list[Floats], member: Flags, strata: Labels, rng: np.random.Generator) -> float:
    """The 95th percentile of the worst attacker's AUC when who took part is dealt anew within each stratum."""
    dealt = np.tile(member, (PERMUTATIONS, 1))
    for s in np.unique(strata):
        rows = np.flatnonzero(strata == s)
        dealt[:, rows] = rng.permuted(dealt[:, rows], axis=1)
    inside, outside = dealt.astype(np.float64), (~dealt).astype(np.float64)
    same = (strata[:, None] == strata[None]).astype(np.float64)
    pairs = ((inside @ same) * outside).sum(1)
    worst = np.max(
        [((inside @ (same * _wins(x, x))) * outside).sum(1) / pairs for x in scores], axis=0
    )
    return float(np.percentile(worst, 95))


def links(apart: Floats, linked: Flags, count: int, *, seed: int = 0) -> Links | None:
    """Return the precision of the `count` nearest candidates of each release; `apart` [R, N] distances, infinity where a
    candidate is none of this release; `linked` bool [R, N]. None without a release that has more than `count` candidates."""
    possible = np.isfinite(apart)
    rows = np.flatnonzero(possible.sum(1) > count)
    if not len(rows):
        return None
    nearest = np.argsort(apart[rows], axis=1, kind="stable")[:, :count]
    right = np.take_along_axis(linked[rows], nearest, axis=1).mean(axis=1)
    chance = float(((linked & possible)[rows].sum(1) / possible[rows].sum(1)).mean())
    draws = np.random.default_rng(seed).integers(len(rows), size=(DRAWS, len(rows)))
    return Links(float(right.mean()), _interval(right[draws].mean(axis=1)), chance, count)
