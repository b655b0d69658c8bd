"""The step of a round by the plan's rule, as pure functions over values.

  theta' = theta + step; by the mean, step = sum_i w_i delta_i / sum_i w_i over the accepted sites i
In: the global weights, the public weights of the accepted sites, their updates one at a time.
Out: new weights.
Guarantees: the sum runs in float64 in the order of site names and is rounded to float32 once, so
the order of arrival changes no byte; memory is one accumulator and one update; what is not finite,
of another shape or below the quorum is refused; no step is longer than the plan's max_update_norm.
Not covered: where updates lie and who sent them (gathering.py, intake.py); the other rules
(robust.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import PolicyError, RefusedError
from common.privacy.boundary import norm_of
from common.study.plan import Study
from common.wire.tensors import Arrays
from server.rounds.intake import Accepted
from server.rounds.robust import Scratch, norm_shares, trimmed_step, within

Accumulator = dict[str, NDArray[np.float64]]


def aggregate(
    study: Study,
    model: str,
    weights: Arrays,
    sites: Collection[str],
    read: Callable[[str], Accepted],
    scratch: Path,
) -> dict[str, NDArray[np.float32]]:
    """Return the new float32 weights by the rule of the plan.

    `scratch`: a folder for files of the trimmed mean. Raises as `average` does.
    """
    shares = {site: study.weight_of(site) for site in sorted(sites)}
    rule = study.aggregation.rule
    if rule == "mean":
        return average(weights, shares, study.quorum, read)
    _check_quorum(len(shares), study.quorum)
    if rule == "norm_weighted":
        norms = {site: norm_of(read(site).arrays) for site in shares}
        return average(weights, norm_shares(shares, norms), study.quorum, read)
    # the trimmed mean needs all sites at once: a few numbers of each, from disk
    files = Scratch(scratch, {name: array.shape for name, array in weights.items()})
    for site in shares:
        arrays = read(site).arrays
        _check_fits(weights, arrays)
        files.add(site, arrays)
    step = trimmed_step(files, list(shares.values()), study.aggregation.trim)
    longest = study.models.trained()[model].max_update_norm
    return finish(weights, within(step, longest), 1.0)


def average(
    weights: Arrays, shares: Mapping[str, float], quorum: int, read: Callable[[str], Accepted]
) -> dict[str, NDArray[np.float32]]:
    """Return the new float32 weights; the updates are read one by one, in order of site name.

    `shares`: the accepted sites' public weights. Raises PolicyError (E-QUORUM) below the quorum,
    RefusedError (E-AGGREGATE) for an update that does not fit.
    """
    _check_quorum(len(shares), quorum)
    total = begin(weights)
    for site in sorted(shares):
        fold(total, read(site).arrays, shares[site])
    return finish(weights, total, sum(shares[site] for site in sorted(shares)))


def begin(weights: Arrays) -> Accumulator:
    """Return an empty sum for these weights."""
    return {name: np.zeros(array.shape, np.float64) for name, array in weights.items()}


def fold(total: Accumulator, delta: Arrays, weight: float) -> None:
    """Add `weight` · `delta` to the sum in place.

    Raises RefusedError (E-AGGREGATE) for an update that does not fit; the sum is then unchanged.
    """
    if not (np.isfinite(weight) and weight > 0):
        raise _refusal(f"a weight is {weight!r}")
    _check_fits(total, delta)
    for name, array in delta.items():
        total[name] += weight * array.astype(np.float64)


def finish(weights: Arrays, total: Accumulator, weight: float) -> dict[str, NDArray[np.float32]]:
    """Return weights + total / weight, rounded once to float32.

    Raises RefusedError where that is not finite.
    """
    new = {}
    for name, array in weights.items():
        moved = array.astype(np.float64) + total[name] / weight
        # a number that no update moves keeps its bits, also the sign of a zero
        moved = np.where(total[name] == 0, array, moved)
        if not (np.abs(moved) <= np.finfo(np.float32).max).all():
            raise _refusal(f"{name} would leave the range of float32")
        new[name] = moved.astype(np.float32)
    return new


def _check_quorum(sites: int, quorum: int) -> None:
    """Raise PolicyError (E-QUORUM) below the quorum."""
    if sites < quorum:
        raise PolicyError(
            f"{sites} accepted updates, the plan's quorum is {quorum}", code="E-QUORUM"
        )


def _check_fits(weights: Mapping[str, NDArray[Any]], delta: Arrays) -> None:
    """Raise RefusedError (E-AGGREGATE) for an update that does not fit the global weights."""
    if set(delta) != set(weights):
        raise _refusal("the update has other tensors than the global weights")
    for name, array in delta.items():
        if (
            array.shape != weights[name].shape
            or array.dtype != np.float32
            or not np.isfinite(array).all()
        ):
            raise _refusal(f"{name} has another shape or dtype, or is not finite")


def _refusal(what: str) -> RefusedError:
    return RefusedError(f"aggregate: {what}", code="E-AGGREGATE")
