"""What a rule of aggregation costs in noise, beside the plain mean.

In: the plan's rule and number of sites. Out: the efficiency, the variance of the mean of Gaussian
noise over that of the rule; 1 for the mean.
Guarantees: computed by drawing; the same plan gives the same number. Public constants alone.
Not covered: sites of unequal weights, which are taken as equal.

A trimmed mean T of n normal values: T less the mean is independent of the mean (Basu 1955), so
Var T = 1/n + Var(T - mean), and only the second, small part is drawn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from common.study.plan import Study
from common.study.sections import trimmed_sites

DRAWN = 1_000_000  # numbers
FEWEST = 2_000  # draws of all sites


def efficiency(study: Study) -> float:
    """Return which share of its sites' noise reduction the plan's rule keeps, in (0, 1]."""
    if study.aggregation.rule != "trimmed_mean":
        return 1.0
    sites = len(study.sites)
    return trimmed_efficiency(sites, trimmed_sites(study.aggregation.trim, sites))


@lru_cache(maxsize=64)
def trimmed_efficiency(sites: int, out: int) -> float:
    """Return the efficiency of the mean of `sites` values without `out` at each end."""
    if out == 0:
        return 1.0
    draws = max(FEWEST, DRAWN // sites)
    values = np.random.default_rng(0).standard_normal((draws, sites))
    middle = np.sort(values, axis=1)[:, out : sites - out].mean(axis=1)
    extra = float(np.square(middle - values.mean(axis=1)).mean())
    return 1 / (1 + sites * extra)
