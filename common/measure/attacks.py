"""Figures of attacks on released images: who took part, and which image is whose.

In: scores of people (attack_scores.py), and who of them took part.
Out: AUC, true positive rate at 1 % false positives, precision of links, with intervals.
Guarantees:
  - members are compared with non-members of the same stratum only, so a label or an eye alone
    identifies no member;
  - intervals are 95 % bootstrap intervals over people (of links: over releases);
  - the same inputs and seed give the same numbers.
Not covered: a bound for every attacker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.arrays import Flags, Floats, Labels

FALSE_POSITIVES = 0.01
LEAST_PEOPLE = 8
DRAWS = 300
PERMUTATIONS = 300
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Membership:
    """One attacker's figures, each with its 95 % interval.

    `auc` is the area under the curve, `tpr` the true positive rate at 1 % false positives.
    """

    attacker: str
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


@dataclass(frozen=True)
class Inference:
    """All attackers; `chance` is the AUC that the worst of them exceeds by luck in 5 % of cases."""

    attackers: tuple[Membership, ...]
    chance: float

    @property
    def worst(self) -> Membership:
        """The attacker of the largest AUC."""
        return max(self.attackers, key=lambda one: one.auc)


@dataclass(frozen=True)
class Links:
    """The share of the `count` candidates nearest to a release that are linked to it.

    `chance` is this share for random candidates.
    """

    precision: float
    interval: tuple[float, float]
    chance: float
    count: int


def infer(
    scores: Mapping[str, Floats], member: Flags, stratum: Labels | None = None, *, seed: int = 0
) -> Inference | None:
    """Return the figures of each attacker's scores [N] against the truth `member` bool [N].

    Rows are people. Returns None when fewer than `LEAST_PEOPLE` of either side are in a stratum
    that has both.
    """
    strata = np.zeros(len(member), np.int64)
    if stratum is not None:
        strata = np.asarray(stratum)

    # only strata with members and non-members can be compared
    both = np.isin(strata, np.intersect1d(strata[member], strata[~member]))
    member = member[both]
    strata = strata[both]
    if min(member.sum(), (~member).sum()) < LEAST_PEOPLE:
        return None

    # each attacker alone, and what the worst of them would reach by luck
    kept = {name: np.asarray(x, np.float64)[both] for name, x in scores.items()}
    rng = np.random.default_rng(seed)
    found = tuple(_measure_attacker(name, x, member, strata, rng) for name, x in kept.items())
    return Inference(found, _chance_auc(list(kept.values()), member, strata, rng))


def links(apart: Floats, linked: Flags, count: int, *, seed: int = 0) -> Links | None:
    """Return the precision of the `count` nearest candidates of each release.

    `apart` [R, N] holds distances, infinite for a pair that is not possible; `linked` is bool
    [R, N]. Returns None without a release that has more than `count` candidates.
    """
    # the releases that have enough candidates
    possible = np.isfinite(apart)
    rows = np.flatnonzero(possible.sum(1) > count)
    if not len(rows):
        return None

    # the share of the nearest that is right, and of random ones
    nearest = np.argsort(apart[rows], axis=1, kind="stable")[:, :count]
    right = np.take_along_axis(linked[rows], nearest, axis=1).mean(axis=1)
    chance = float(((linked & possible)[rows].sum(1) / possible[rows].sum(1)).mean())

    # the interval over releases
    draws = np.random.default_rng(seed).integers(len(rows), size=(DRAWS, len(rows)))
    return Links(float(right.mean()), _interval(right[draws].mean(axis=1)), chance, count)


def _measure_attacker(
    name: str, x: Floats, member: Flags, strata: Labels, rng: np.random.Generator
) -> Membership:
    """AUC and TPR with their intervals."""
    inside = np.flatnonzero(member)
    outside = np.flatnonzero(~member)
    ours = _resample(strata[inside], rng)
    theirs = _resample(strata[outside], rng)

    # AUC: the share of pairs of one stratum in which the member scores higher
    wins, pairs = _count_wins(x, member, strata, np.ones((1, len(inside))), np.ones(len(outside)))
    auc = float(wins[0] / pairs[0])
    wins, pairs = _count_wins(x, member, strata, ours, theirs)
    draws = wins / np.maximum(pairs, 1)

    # TPR: the strata of non-members weigh as much as those of members
    def rate(a: Floats, b: Floats) -> float:
        balanced = _balance(strata[outside], b, strata[inside], a)
        return _true_positive_rate(x[inside], a, x[outside], balanced)

    rates = [rate(a, b) for a, b in zip(ours, theirs, strict=True)]
    tpr = rate(np.ones(len(inside)), np.ones(len(outside)))
    return Membership(name, auc, _interval(draws), tpr, _interval(np.array(rates)))


def _count_wins(
    x: Floats, member: Flags, strata: Labels, ours: Floats, theirs: Floats
) -> tuple[Floats, Floats]:
    """Weighted pairs of a member and a non-member of one stratum: won by the member, and all.

    A tie counts one half. `ours` [D, members] and `theirs` [D or 1, non-members] are the weights of
    each draw; out: [D] each. From ranks: nothing of size members x non-members is in memory.
    """
    theirs = np.broadcast_to(theirs, (len(ours), (~member).sum()))
    wins = np.zeros(len(ours))
    pairs = np.zeros(len(ours))
    for s in np.unique(strata):
        in_s = strata[member] == s
        out_s = strata[~member] == s
        outside = x[~member][out_s]
        order = np.argsort(outside, kind="stable")
        # the weight of the non-members below each member, and of those not above
        total = np.zeros((len(ours), len(order) + 1))
        np.cumsum(theirs[:, out_s][:, order], axis=1, out=total[:, 1:])
        inside = x[member][in_s]
        below = np.searchsorted(outside[order], inside, side="left")
        not_above = np.searchsorted(outside[order], inside, side="right")
        weights = ours[:, in_s]
        wins += (weights * (total[:, below] + total[:, not_above])).sum(axis=1) / 2
        pairs += weights.sum(axis=1) * total[:, -1]
    return wins, pairs


def _resample(strata: Labels, rng: np.random.Generator) -> Floats:
    """How often each person is in a bootstrap sample of the same size and strata, [DRAWS, N]."""
    weights = np.zeros((DRAWS, len(strata)))
    for s in np.unique(strata):
        rows = np.flatnonzero(strata == s)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), DRAWS)
    return weights


def _balance(strata: Labels, weights: Floats, as_in: Labels, their_weights: Floats) -> Floats:
    """The weights of non-members, so that their strata have the members' shares; sum 1."""
    balanced = np.zeros(len(weights))
    for s in np.unique(strata):
        rows = strata == s
        total = max(weights[rows].sum(), 1e-12)
        balanced[rows] = weights[rows] * their_weights[as_in == s].sum() / total
    return np.asarray(balanced / max(balanced.sum(), 1e-12))


def _true_positive_rate(inside: Floats, ours: Floats, outside: Floats, theirs: Floats) -> float:
    """The weighted share of members above the lowest threshold that at most 1 % of others pass."""
    # non-members from the highest score down
    order = np.argsort(-outside, kind="stable")
    ranked = outside[order]

    # the weight of non-members with a larger score; those that tie do not count
    above = np.concatenate([[0.0], np.cumsum(theirs[order])])[:-1]
    above = above[np.searchsorted(-ranked, -ranked, side="left")]
    threshold = ranked[above <= FALSE_POSITIVES + 1e-12].min()
    return float(ours[inside > threshold].sum() / max(ours.sum(), 1e-12))


def _interval(draws: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, INTERVAL)
    return float(low), float(high)


def _chance_auc(
    scores: list[Floats], member: Flags, strata: Labels, rng: np.random.Generator
) -> float:
    """The 95th percentile of the worst AUC when membership is permuted within each stratum."""
    # permute who took part
    dealt = np.tile(member, (PERMUTATIONS, 1))
    for s in np.unique(strata):
        rows = np.flatnonzero(strata == s)
        dealt[:, rows] = rng.permuted(dealt[:, rows], axis=1)

    # each attacker's AUC over pairs of one stratum, for every permutation: by ranks (Mann and
    # Whitney 1947), the ranks of ties being their mean
    inside = dealt.astype(np.float64)
    least = 0.0
    pairs = 0.0
    for s in np.unique(strata):
        count = float(member[strata == s].sum())
        least += count * (count + 1) / 2
        pairs += count * (float((strata == s).sum()) - count)
    each = [(inside @ _ranks(x, strata) - least) / pairs for x in scores]
    return float(np.percentile(np.max(each, axis=0), 95))


def _ranks(x: Floats, strata: Labels) -> Floats:
    """Each score's rank within its stratum, from 1; ties have the mean of theirs."""
    ranks = np.empty(len(x))
    for s in np.unique(strata):
        rows = np.flatnonzero(strata == s)
        ordered = np.sort(x[rows])
        below = np.searchsorted(ordered, x[rows], side="left")
        not_above = np.searchsorted(ordered, x[rows], side="right")
        ranks[rows] = (below + 1 + not_above) / 2
    return ranks
