"""Meters of a tally: whether noise and clip are those of the plan, as probabilities.

In: what was measured (tally.py), the plan's constants. Out: at most the probability of measuring
what is as far off in a private step that keeps its promise.
Guarantees: a probability holds for every number of steps and every data set: all tails are bounds.
Not covered: what the gate does with it (canary_audit.py).

Sources: Chernoff's bound for a chi-square; Birgé 2001, lemma 8.1, for a noncentral one.
"""

from __future__ import annotations

import math

import numpy as np

from common.privacy.tally import Heard, Tally

# A clipped row is up to this much shorter than C (eta of client/learn/lattice.py, to d = 1e8).
CLIP_SLACK = 1e-3


def noise_ratio(heard: Heard, steps: int, deviation: float) -> tuple[float, int]:
    """Return the variance of what left-out canaries heard over `deviation`², and the draws.

    1 and 0 without any.
    """
    out = ~heard.included
    draws = int(out.sum()) * steps
    if not draws:
        return 1.0, 0
    return float(heard.squares[out].sum()) / (draws * deviation**2), draws


def freshness_ratio(heard: Heard, steps: int, deviation: float) -> tuple[float, int]:
    """Return the variance of the left-out canaries' sums over `steps`·`deviation`², and the draws.

    Noise that is used in two steps makes it larger, noise that cancels makes it smaller.
    """
    out = ~heard.included
    draws = int(out.sum())
    if not draws or not steps:
        return 1.0, 0
    return float((heard.scores[out] ** 2).sum()) / (draws * steps * deviation**2), draws


def meter_p_value(ratio: float, draws: int) -> float:
    """Return at most the probability of a variance ratio that far from 1 in Gaussian draws.

    Chernoff's bound on a chi-square, both tails; it holds at every number of draws.
    """
    if not draws:
        return 1.0
    if ratio <= 0.0:
        return 0.0
    return min(1.0, 2.0 * math.exp(-draws / 2 * (ratio - 1.0 - math.log(ratio))))


def clip_p_value(heard: Heard, length: float, deviation: float) -> float:
    """Return at most the probability of a mean that far from `length` along drawn canaries.

    `length`: of a clipped canary, C/B. Each drawn canary hears it with one draw of noise.
    """
    draws = int(heard.drawn.sum())
    if not draws:
        return 1.0
    off = abs(mean_length(heard) - length) - CLIP_SLACK * length
    z = max(0.0, off) * math.sqrt(draws) / deviation
    return min(1.0, 2.0 * math.exp(-z * z / 2))


def mean_length(heard: Heard) -> float:
    """Return what a drawn canary heard of itself on average; 0 where none was drawn."""
    draws = int(heard.drawn.sum())
    if not draws:
        return 0.0
    return float(heard.drawn_scores.sum()) / draws


def release_ratio(tally: Tally, deviation: float) -> float:
    """Return the mean square of all trained coordinates that were released, over `deviation`²."""
    return float(tally.released.sum()) / max(1, int(tally.sizes.sum()) * tally.steps) / deviation**2


def release_p_value(tally: Tally, noise_multiplier: float, deviation: float) -> float:
    """Return at most the probability of so small or so large a release, in one tensor or in all.

    What is released is noise and the drawn patients' sum, which is at most C long a patient.
    """
    squares = np.append(tally.released, tally.released.sum()) / deviation**2
    draws = np.append(tally.sizes, tally.sizes.sum()) * tally.steps
    signal = tally.signal / noise_multiplier**2
    least = 1.0
    for square, count in zip(squares, draws, strict=True):
        least = min(least, _tail(float(square), int(count), signal))
    return min(1.0, least * len(squares))


def _tail(square: float, draws: int, signal: float) -> float:
    """At most the probability of a `square` as small as noise cannot be, or as large.

    It is a noncentral chi-square of `draws` degrees of freedom, of noncentrality 0 to `signal`.
    """
    if not draws:
        return 1.0
    if square < draws:  # a signal makes it larger: the smallest is that of noise alone
        return meter_p_value(square / draws, draws)
    excess = square - draws - signal
    if excess <= 0.0:
        return 1.0
    spread = draws + 2.0 * signal
    root = (math.sqrt(spread + 2.0 * excess) - math.sqrt(spread)) / 2.0
    return min(1.0, 2.0 * math.exp(-(root**2)))
