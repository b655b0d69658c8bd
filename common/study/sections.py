"""The plan's small sections: `sites`, `aggregation`, `privacy` and `release`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from common.config import FrozenModel
from common.study.fields import Identifier, Positive


class SitePlan(FrozenModel):
    """A hospital and its public weight in every average."""

    name: Identifier = Field(
        description="the hospital's name: lower-case letters, digits and hyphens, at most 32 "
        "characters"
    )
    weight: Positive = Field(
        default=1.0,
        description="public share in every average, relative to the other sites; never a patient "
        "count",
    )


class Aggregation(FrozenModel):
    """How the sites' updates of a round become one step of the weights."""

    rule: Literal["mean", "trimmed_mean", "norm_weighted"] = Field(
        default="mean",
        description="`mean`: by the sites' public weights; `trimmed_mean`: in each number without "
        "the smallest and the largest values, which bounds what a few hostile sites can do; "
        "`norm_weighted`: a site whose update is longer than the median counts less",
    )
    trim: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="share of the answers that `trimmed_mean` leaves out at each end, rounded down "
        "to whole sites; as many sites may be hostile",
    )


class Continues(FrozenModel):
    """The earlier version of a study, from whose weights this one starts."""

    plan: str = Field(
        pattern=r"[0-9a-f]{64}", description="hash of the earlier version, in lower-case hex"
    )
    rounds: dict[str, Annotated[int, Field(ge=0, le=100_000)]] = Field(
        description="closed rounds that are in the starting weights, by model, over all earlier "
        "versions; the plan's epsilon covers them too"
    )


def trimmed_sites(trim: float, sites: int) -> int:
    """Return how many of so many answers a trimmed mean leaves out at each end."""
    return math.floor(trim * sites + 1e-9)


class Privacy(FrozenModel):
    """The promise for updates: (epsilon, delta) per patient, zero-out, over the whole study."""

    unit: Literal["patient"] = Field(
        default="patient", description="whom the promise is about: one patient with all images"
    )
    epsilon: float = Field(
        gt=0,
        le=100,
        description="epsilon that a patient spends at most over the whole study; a plan that "
        "would spend more is not signed",
    )
    delta: float = Field(
        gt=0,
        le=0.01,
        description="delta of the promise; at most 1/(10 x planned_patients)",
    )
    planned_patients: int = Field(
        ge=1,
        le=10_000_000,
        description="patients that each site is planned with: a public constant that sets the "
        "sampling rate",
    )
    accept_infeasible: bool = Field(
        default=False,
        description="whether the plan may be signed although its noise is more than 20 times the "
        "largest possible signal",
    )
    canaries: int = Field(
        default=300,
        ge=0,
        le=10_000,
        description="invented patients, on coordinates of their own, that each site carries "
        "through its private steps to audit noise and clip (Steinke et al. 2023); half as many "
        "more lie inside the model; they cost no privacy and move no weight; 0: no audit",
    )

    @property
    def largest_delta(self) -> float:
        """The largest delta with a meaning for so many patients: 1/(10 x planned_patients)."""
        return 1 / (10 * self.planned_patients)


class Release(FrozenModel):
    """What the released set says of itself."""

    version: str = Field(
        default="1.0.0",
        pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$",
        description="version of the release: three numbers with dots",
    )
    licence: str = Field(
        default="CC-BY-4.0", max_length=64, description="SPDX identifier of the release's licence"
    )
    models: bool = Field(
        default=True, description="whether the release holds the final weights of the models"
    )
    min_images: int = Field(
        default=1, ge=1, description="fewest images with which a release is built"
    )
    date: str = Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", description="date of the release, YYYY-MM-DD"
    )
