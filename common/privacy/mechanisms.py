"""The subsampled Gaussian mechanism of training, and the list of all mechanisms.

In: public constants of a study plan, or a ledger's canonical JSON event. Out: a frozen mechanism.
Guarantees: an event of an unknown mechanism, or with an unknown field, is refused.
Not covered: drawing noise (noise.py), composing events (accounting.py).
Source: Abadi et al. 2016.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from common.errors import ConfigurationError, RefusedError, damage_named
from common.privacy.anchors import NoisyAnchors
from common.privacy.canonical import canonical_event, is_count, is_positive, require
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit

ZERO_OUT = "zero-out of one patient"
PLAIN_DIMENSION = 2**20


@dataclass(frozen=True)
class SubsampledGaussian:
    """`steps` private steps under zero-out adjacency.

    A step samples patients at rate `q` (Poisson), clips each to L2 norm C and adds noise sigma·C.
    `dimension`: the largest number of trainable parameters that it covers (for `sampler_delta`).
    `model` names them in reports.
    """

    q: float
    noise_multiplier: float
    steps: int
    dimension: int = PLAIN_DIMENSION
    model: str = ""

    def __post_init__(self) -> None:
        require("q", self.q, 0.0 < self.q <= 1.0, "a rate in (0, 1]")
        sigma = self.noise_multiplier
        require("noise_multiplier", sigma, is_positive(sigma), "a positive number")
        require("steps", self.steps, is_count(self.steps), "a whole number from 1")
        require("dimension", self.dimension, is_count(self.dimension), "a whole number from 1")

    @property
    def covers_patient(self) -> bool:
        """Yes: patients are the unit of sampling and clipping."""
        return True

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return canonical_event("subsampled_gaussian", self)

    def describe(self) -> dict[str, Any]:
        """All constants, with adjacency and sensitivity (in units of the clip norm)."""
        return {
            "mechanism": "subsampled_gaussian",
            **asdict(self),
            "adjacency": ZERO_OUT,
            "sensitivity": 1.0,
            "norm": "l2",
            "unit": "patient",
        }

    def statement(self) -> str:
        """One line for reports.

        `gan: subsampled gaussian: q=0.064, sigma=1.87, 2,000 steps, zero-out`.
        """
        label = f"{self.model}: " if self.model else ""
        return (
            f"{label}subsampled gaussian: q={self.q:.4g}, sigma={self.noise_multiplier:g}, "
            f"{self.steps:,} steps, zero-out"
        )


Mechanism: TypeAlias = SubsampledGaussian | Latent | NoisyAnchors
PLAIN = (str, int, float, type(None))  # of an event's values
KINDS: dict[str, type[Mechanism]] = {
    "subsampled_gaussian": SubsampledGaussian,
    "latent_laplace": LatentLaplace,
    "latent_gaussian": LatentGaussian,
    "privunit": PrivUnit,
    "noisy_anchors": NoisyAnchors,
}


def mechanism_from(event: str) -> Mechanism:
    """Return the mechanism of a canonical JSON event.

    Raises RefusedError (E-MECHANISM) for anything unknown or out of range.
    """
    damage = RefusedError(
        f"mechanism: expected an event of {sorted(KINDS)} with exactly its fields, "
        f"got {event[:120]!r}",
        hint="both sides must run the same version of kohort",
        code="E-MECHANISM",
    )
    with damage_named(damage):
        data = json.loads(event)
        kind = KINDS[data.pop("mechanism")]
        plain = all(isinstance(value, PLAIN) for value in data.values())
        if not plain or set(data) != {field.name for field in fields(kind)}:
            raise KeyError("fields")
        try:
            mechanism = kind(**data)
        except ConfigurationError as error:
            raise damage from error
        # what has no canonical spelling, such as an infinite number, is no event
        mechanism.event()
        return mechanism
