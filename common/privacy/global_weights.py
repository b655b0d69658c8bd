"""Global weights on the path that the plan implies: rules 15 and 16.

In: the weights before a round, weights of an earlier round, the model's section of the plan.
Out: nothing, or RefusedError with the code of the first rule that does not hold.
Guarantees: what the server's own average makes of accepted updates is never refused; any other
weights lie within `largest_move` of those of the earlier round.
Not covered: which weights within that distance the server chooses; their names and shapes
(boundary.py, rules 5 to 7).

The bound. An average has weights that sum to 1, and every accepted update has a norm of at most
`max_update_norm` (rule 9). So a round moves the weights by at most that, plus what is lost when
the result is rounded to float32: half a unit in the last place of every number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.privacy.boundary import norm_of
from common.privacy.boundary_rules import require
from common.study.families import Family
from common.study.training import TrainedModel
from common.wire.tensors import Arrays

STEP_SLACK = 2e-6  # of a round's bound: the slack of rule 9, and float64 sums
ROUNDING = 1.01 * 2.0**-24  # of the weights' norm, a round: float32, half a unit in the last place
HINT = (
    "these are not the weights that the plan leads to: tell the operator; nothing is spent for it"
)
TINY = 1e-30  # a round: the same for numbers below the normal range of float32


@dataclass(frozen=True)
class Known:
    """Weights of one model that are known: those before round `round`, all float32."""

    round: int
    arrays: Arrays


def largest_move(plan: TrainedModel, rounds: int, norm: float) -> float:
    """Return how far `rounds` honest rounds can move weights of this norm, in L2.

    Over all tensors of the model.
    """
    if rounds == 0:
        return 0.0
    moved = rounds * plan.max_update_norm * (1 + STEP_SLACK)
    return moved + rounds * (ROUNDING * (norm + moved) + TINY)


def check_untrained(
    arrays: Arrays, known: Known, number: int, family: Family, plan: TrainedModel
) -> None:
    """Check that tensors that no round may change are bit for bit the known ones (rule 15).

    `arrays`: the weights before round `number`. Before the known round, these are all tensors.
    """
    for name, array in arrays.items():
        if number > known.round and family.may_change(name, plan.trainable):
            continue
        same = array.tobytes() == known.arrays[name].tobytes()
        require(same, 15, f"{name} differs from the weights before round {known.round}", hint=HINT)


def check_move(arrays: Arrays, known: Known, number: int, plan: TrainedModel) -> None:
    """Check that the weights before round `number` are within the bound of known ones (rule 16)."""
    rounds = number - known.round
    allowed = largest_move(plan, rounds, norm_of(known.arrays))
    moved = _distance(arrays, known.arrays)
    expected = f"{rounds} rounds move by at most {allowed:.6g}"
    # written so that a NaN is refused
    require(moved <= allowed, 16, f"moved by {moved:.6g}, {expected}", hint=HINT)


def _distance(first: Arrays, second: Arrays) -> float:
    """The L2 norm of the difference, in float64."""
    squares = 0.0
    for name, array in first.items():
        difference = array.astype(np.float64) - second[name].astype(np.float64)
        squares += float(np.square(difference).sum())
    return float(np.sqrt(squares))
