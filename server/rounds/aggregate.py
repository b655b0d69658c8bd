"""The step of a round by the plan's rule, as pure functions over values.

  theta' = theta + step; by the mean, step = sum_i w_i delta_i / sum_i w_i over the accepted sites i
In: the global weights, the public weights of the accepted sites, their updates one at a time.
Out: new weights.
Guarantees: the sum runs in float64 in the order of site names and is rounded to float32 once, so
the order of arrival changes no byte; memory is one accumulator and one update; what is not finite,
of another shape or below the quorum is refused; no step is longer than the plan's max_update_norm.
Not covered: where updates lie and who sent them (gathering.py, intake.py); the sum itself
(common/study/averaging.py); the other rules (robust.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import PolicyError
from common.privacy.boundary import norm_of
from common.study.averaging import begin, check_fits, finish, fold
from common.study.plan import Study
from common.wire.tensors import Arrays
from server.rounds.intake import Accepted
from server.rounds.robust import Scratch, norm_shares, trimmed_step, within


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
        check_fits(weights, arrays)
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


def _check_quorum(sites: int, quorum: int) -> None:
    """Raise PolicyError (E-QUORUM) below the quorum."""
    if sites < quorum:
        raise PolicyError(
            f"{sites} accepted updates, the plan's quorum is {quorum}", code="E-QUORUM"
        )
