"""The step that global weights take by the updates of a round, as pure functions over values.

  theta' = theta + sum_i w_i delta_i / sum_i w_i
In: the global weights, updates one at a time. Out: new weights.
Guarantees: the sum runs in float64 and is rounded to float32 once; what is not finite or of another
shape is refused, and changes nothing; a number that no update moves keeps its bits.
Not covered: which sites count, and by which rule (server/rounds/aggregate.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import RefusedError
from common.wire.tensors import Arrays

Accumulator = dict[str, NDArray[np.float64]]


def begin(weights: Arrays) -> Accumulator:
    """Return an empty sum for these weights."""
    return {name: np.zeros(array.shape, np.float64) for name, array in weights.items()}


def fold(total: Accumulator, delta: Arrays, weight: float) -> None:
    """Add `weight` · `delta` to the sum in place.

    Raises RefusedError (E-AGGREGATE) for an update that does not fit; the sum is then unchanged.
    """
    if not (np.isfinite(weight) and weight > 0):
        raise _refusal(f"a weight is {weight!r}")
    check_fits(total, delta)
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


def step_of_one(weights: Arrays, delta: Arrays) -> Arrays:
    """Return the weights after a round of one site; every rule of aggregation then says the same.

    Raises RefusedError (E-AGGREGATE) for an update that does not fit.
    """
    total = begin(weights)
    fold(total, delta, 1.0)
    return dict(finish(weights, total, 1.0))


def check_fits(weights: Mapping[str, NDArray[Any]], delta: Arrays) -> None:
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
