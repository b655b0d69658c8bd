"""The mechanism of mode `anchors`: noisy sums and counts of patients' codes in cells around public generator latents.

In: public constants of a study plan. Out: noise, threshold and radius; a canonical event, a description, a statement.
Guaranteed: every number follows from the fields, and all cells of one release together are one Gaussian mechanism of
`noise_multiplier` plus `threshold_delta`, under adding or removing one patient (one linked component of ids) of one site.
Not: drawing noise or publishing (client/synthesize/anchors.py), composing with other events (accounting.py).

The proof (methods/ksalsa.md 3.4). A patient is in one cell, the nearest anchor's, with a code of norm R at most, so adding
one moves that cell's sum by R and its count by 1, and nothing else. Sums carry noise sigma_S·R, counts sigma_c: one
Gaussian vector, divided by its noise, moves by sqrt(1/sigma_S² + 1/sigma_c²) = 1/sigma. A cell is published if its true
count is k or more and its noisy count k + tau or more, tau = sigma_c·Phi^-1(1 - delta). Both counts k or more: what is
published is a function of the Gaussian vector. Both less than k: silence. k - 1 against k: the second is published with
probability delta at most. Codes are noisy sum / noisy count: post-processing. sigma_c = 2·sigma_S, so the counts cost
little: sigma_S = sqrt(1.25)·sigma.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from common.errors import ConfigurationError

if TYPE_CHECKING:
    from common.study.plan import Study

ADD_OR_REMOVE = "add or remove one patient"
COUNT_SHARE = 2.0  # sigma_c / sigma_S
UNIT = "linked component of patient ids at one site"


@dataclass(frozen=True)
class NoisyAnchors:
    """One release of at most `cells` cells of `components` coordinates with at least `k` patients each."""

    noise_multiplier: float
    components: int
    cells: int
    k: int
    threshold_delta: float

    def __post_init__(self) -> None:
        _require(
            "noise_multiplier",
            self.noise_multiplier,
            0.0 < self.noise_multiplier < 1e6,
            "a number in (0, 1e6)",
        )
        _require(
            "threshold_delta",
            self.threshold_delta,
            0.0 < self.threshold_delta < 0.5,
            "a number in (0, 0.5)",
        )
        for name in ("components", "cells", "k"):
            value = getattr(self, name)
            _require(
                name,
                value,
                type(value) is int and 1 <= value <= 10**6,
                "a whole number from 1 to 1e6",
            )

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
        """R: the largest norm of a patient's whitened code, sqrt(components), what a generator sample's has on average."""
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
        data = {"mechanism": "noisy_anchors", **asdict(self)}
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

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
            f"anchors: gaussian sums and counts of whitened codes: sigma={self.noise_multiplier:g}, d={self.components}, "
            f"at most {self.cells:,} cells, published from k={self.k} patients and a noisy count of {self.threshold:.1f} on, "
            f"{ADD_OR_REMOVE}, delta {self.threshold_delta:g} for the threshold"
        )


def anchors_event(study: Study) -> NoisyAnchors | None:
    """The mechanism of a plan that groups by anchors, from public constants alone; None for any other plan."""
    synthesis = study.synthesis
    if synthesis is None or synthesis.anchors is None:
        return None
    plan, cells = (
        synthesis.anchors,
        study.cells_per_stratum * len(study.strata()) * len(study.sides()),
    )
    return NoisyAnchors(
        plan.noise_multiplier, plan.components, cells, synthesis.k, plan.threshold_delta
    )


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"mechanism: {name}: expected {expected}, got {value!r}")
