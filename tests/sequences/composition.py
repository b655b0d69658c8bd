"""Composes what left, by dp-accounting alone: nothing of the product's accounting is used.

In: counted losses of public constants. Out: a lower bound of their epsilon.
Guarantees: it is below the exact value, by about 0.01: the loss distributions are rounded the other
way than the product's, on a coarser grid.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.privacy_accountant import NeighboringRelation

GRID = 1e-3
ZERO_OUT = NeighboringRelation.REPLACE_SPECIAL


class Loss(NamedTuple):
    """One mechanism, applied `steps` times.

    `kind`: `sampled` (Gaussian of noise `sigma` on a sample at rate `q`), `gaussian` or `pure`
    (`sigma` is epsilon). `threshold`: what it takes of delta.
    """

    kind: str
    sigma: float
    q: float = 1.0
    steps: int = 1
    threshold: float = 0.0


def compose(losses: Iterable[Loss], delta: float) -> float:
    """Return a lower bound of epsilon at `delta`; 0 for nothing."""
    counted: Counter[Loss] = Counter()
    for loss in losses:
        counted[loss._replace(steps=1)] += loss.steps
    return _compose(frozenset(counted.items()), delta)


@functools.cache
def _compose(counted: frozenset[tuple[Loss, int]], delta: float) -> float:
    """The same, of how often each single application took place."""
    pure = sum(loss.sigma * count for loss, count in counted if loss.kind == "pure")
    left = delta - sum(loss.threshold * count for loss, count in counted)
    whole: Any = None
    for loss, count in sorted(counted):
        if loss.kind == "pure":
            continue
        if left <= 0:
            return math.inf
        part = _distribution(loss).self_compose(count)
        whole = part if whole is None else whole.compose(part)
    if whole is None:
        return pure
    return pure + max(0.0, float(whole.get_epsilon_for_delta(left)))


@functools.cache
def _distribution(loss: Loss) -> Any:
    """The privacy loss of one application."""
    return pld.from_gaussian_mechanism(
        loss.sigma,
        pessimistic_estimate=False,
        value_discretization_interval=GRID,
        sampling_prob=loss.q,
        use_connect_dots=False,
        neighboring_relation=ZERO_OUT,
    )
