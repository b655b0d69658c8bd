"""The mechanism of mode `anchors`: noisy sums and counts of patients' codes in public cells.

In: public constants of a study plan. Out: noise, threshold and radius; a canonical event, a
description, a statement.
Guarantees: every number follows from the fields. All cells of one release together are one Gaussian
mechanism of `noise_multiplier` plus `threshold_delta`, under adding or removing one patient (one
linked component of ids) of one site.
Not covered: drawing noise or publishing (client/synthesize/anchors.py), composing (accounting.py).
Source: own design; docs/methods/k-salsa.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

from common.privacy.canonical import canonical_event, require

ADD_OR_REMOVE = "add or remove one patient"
MOST_LINKED = 2  # ids of one person: a third may have joined two strangers, and stops the batch
COUNT_SHARE = 2.0  # sigma_c / sigma_S
UNIT = "linked component of patient ids at one site"


@dataclass(frozen=True)
class NoisyAnchors:
    """One release of at most `cells` cells with at least `k` patients each.

    Each published cell has one code of `components` coordinates.

    Why it is one Gaussian mechanism:
    1. A patient is in one cell, that of the nearest anchor, with a code of norm R at most. Adding
       one patient moves that cell's sum by at most R and its count by 1, and nothing else.
    2. Sums carry noise sigma_S·R, counts sigma_c. Divided by its noise, this one Gaussian vector
       moves by at most sqrt(1/sigma_S² + 1/sigma_c²) = 1/sigma.
    3. A cell is published if its true count is at least k and its noisy count at least k + tau,
       with tau = sigma_c·Phi^-1(1 - delta).
       Both counts at least k: what is published is a function of the Gaussian vector.
       Both below k: the cell is published in neither case.
       k - 1 against k: the second is published with probability delta at most.
    4. A code is noisy sum / noisy count: post-processing.
    sigma_c = 2·sigma_S, so the counts cost little: sigma_S = sqrt(1.25)·sigma.
    """

    noise_multiplier: float
    components: int
    cells: int
    k: int
    threshold_delta: float

    def __post_init__(self) -> None:
        sigma = self.noise_multiplier
        require("noise_multiplier", sigma, 0.0 < sigma < 1e6, "a number in (0, 1e6)")
        delta = self.threshold_delta
        require("threshold_delta", delta, 0.0 < delta < 0.5, "a number in (0, 0.5)")
        for name in ("components", "cells", "k"):
            value = getattr(self, name)
            fits = type(value) is int and 1 <= value <= 10**6
            require(name, value, fits, "a whole number from 1 to 1e6")

    @property
    def steps(self) -> int:
        """One: all cells of a release together are one application."""
        return 1

    @property
    def dimension(self) -> int:
        """How many numbers get noise: a sum and a count for each cell."""
        return self.cells * (self.components + 1)

    @property
    def covers_patient(self) -> bool:
        """Yes: nobody else's data decide in which cell a patient is."""
        return True

    @property
    def losses(self) -> tuple[tuple[Literal["gaussian"], float], ...]:
        """What the accountants compose; `threshold_delta` is taken off delta first."""
        return (("gaussian", self.noise_multiplier),)

    @property
    def radius(self) -> float:
        """R = sqrt(components): the largest norm of a patient's whitened code.

        A generator sample's code has this norm on average.
        """
        return math.sqrt(self.components)

    @property
    def sum_multiplier(self) -> float:
        """sigma_S: the noise on each coordinate of a sum, in units of R."""
        return self.noise_multiplier * math.sqrt(1 + 1 / COUNT_SHARE**2)

    @property
    def count_multiplier(self) -> float:
        """sigma_c: the noise on a count."""
        return COUNT_SHARE * self.sum_multiplier

    @property
    def threshold(self) -> float:
        """The least noisy count of a cell that is published, k + tau."""
        return self.k - self.count_multiplier * NormalDist().inv_cdf(self.threshold_delta)

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return canonical_event("noisy_anchors", self)

    def describe(self) -> dict[str, Any]:
        """All constants and what follows from them."""
        return {
            "mechanism": "noisy_anchors",
            **asdict(self),
            "adjacency": ADD_OR_REMOVE,
            "unit": UNIT,
            "norm": "l2",
            "sensitivity_of_sums": self.radius,
            "sensitivity_of_counts": 1,
            "sum_multiplier": self.sum_multiplier,
            "count_multiplier": self.count_multiplier,
            "threshold": self.threshold,
            "statement": self.statement(),
        }

    def statement(self) -> str:
        """One line for reports."""
        return (
            "anchors: gaussian sums and counts of whitened codes: "
            f"sigma={self.noise_multiplier:g}, d={self.components}, at most {self.cells:,} cells, "
            f"published from k={self.k} patients and a noisy count of {self.threshold:.1f} on, "
            f"{ADD_OR_REMOVE}, delta {self.threshold_delta:g} for the threshold"
        )
