"""Mechanisms on the latents of images: frozen values with their own sensitivity and epsilon.

In: public constants of a study plan. Out: a description for statements, a canonical JSON event.
Guarantees: every number follows from the fields; `losses` is what the accountants compose.
Not covered: drawing noise (noise.py), composing events (accounting.py), wording (statements.py),
or whether the data were really clipped (client/synthesize/privatize.py).

Sources: Shibata et al. 2023 (Laplace); Balle and Wang 2018 (Gaussian, calibration.py);
Bhowmick et al. 2018 (PrivUnit, privunit.py). What we changed: docs/methods/dp-glow.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from common.privacy import privunit
from common.privacy.calibration import analytic_noise_multiplier, clipped_variance, cosine
from common.privacy.canonical import canonical_event, is_count, is_positive, require
from common.privacy.statements import describe_latent, latent_statement

LATTICE_STEP = 2**-10  # of the latents
Grouping = Literal["similar", "similar-swap", "cells", "random"]
DATA_INDEPENDENT = ("random",)  # groupings in which no pixel decides who is in a group
# A Gaussian's noise over its sensitivity, or the epsilon of the others.
Loss = tuple[Literal["gaussian", "laplace", "pure"], float]


@dataclass(frozen=True)
class LatentLaplace:
    """Discrete Laplace noise on the sum of `k` clipped latents. Replace-one; pure epsilon.

    `clip`: "box" (every |z| <= radius) or "l1_ball" (sum of |z| <= radius·dimension).
    `scale`: Laplace scale b of the released *mean*, in latent units. `lattice_step`: the grid h of
    the latents. `grouping`: "random" (no pixel decides who is in a group) or one by the data.
    """

    clip: Literal["box", "l1_ball"]
    radius: float
    dimension: int
    k: int
    grouping: Grouping
    scale: float
    lattice_step: float = LATTICE_STEP

    def __post_init__(self) -> None:
        require("clip", self.clip, self.clip in ("box", "l1_ball"), "box or l1_ball")
        _require_group(self)
        for name in ("radius", "scale", "lattice_step"):
            value = getattr(self, name)
            require(name, value, is_positive(value), "a positive number")
        require("radius", self.radius, self.radius_in_steps >= 1, "at least one lattice step")

    @property
    def steps(self) -> int:
        """One: a patient is in one group, so all groups of a release are one application."""
        return 1

    @property
    def radius_in_steps(self) -> int:
        """The clip radius on the lattice.

        The largest |q| of a coordinate (box), or the largest sum of |q| (l1 ball).
        """
        coordinates = self.dimension if self.clip == "l1_ball" else 1
        return math.floor(self.radius * coordinates / self.lattice_step)

    @property
    def sum_scale_in_steps(self) -> float:
        """Scale of the noise on the sum of k latents, in lattice steps."""
        return self.k * self.scale / self.lattice_step

    @property
    def sum_sensitivity_in_steps(self) -> int:
        """L1 sensitivity of the sum under replace-one: 2·C·d (box) or 2·R1 (l1 ball).

        The mean has this over k.
        """
        coordinates = self.dimension if self.clip == "box" else 1
        return 2 * self.radius_in_steps * coordinates

    @property
    def epsilon_per_image(self) -> float:
        """Pure epsilon of one released mean (one image where k = 1), over all its coordinates."""
        return self.sum_sensitivity_in_steps / self.sum_scale_in_steps

    @property
    def delta(self) -> float:
        """Zero: pure epsilon."""
        return 0.0

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What the accountants compose."""
        return (("laplace", self.epsilon_per_image),)

    @property
    def expected_cosine(self) -> float:
        """Between a mean of k independent standard latents, clipped, and its release."""
        return cosine(clipped_variance(self.clip, self.radius) / self.k / (2 * self.scale**2))

    @property
    def epsilon_per_coordinate(self) -> float:
        """Epsilon of a single coordinate.

        In an l1 ball one coordinate can carry all of the image's epsilon.
        """
        return 2 * self.radius_in_steps / self.sum_scale_in_steps

    @property
    def covers_patient(self) -> bool:
        """Whether epsilon holds per patient: only where the data did not choose the groups."""
        return covers_patient(self)

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return canonical_event("latent_laplace", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        sensitivity = self.sum_sensitivity_in_steps * self.lattice_step / self.k
        return {
            "mechanism": "latent_laplace",
            **asdict(self),
            "norm": "l1",
            "sensitivity": sensitivity,
            **describe_latent(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints; it never calls epsilon per coordinate the whole.

        `whole`: all latent coordinates D.
        """
        if self.clip == "box":
            per_coordinate = f"ε={self.epsilon_per_coordinate:,.4g} per coordinate = "
            return f"laplace box: {per_coordinate}{latent_statement(self, whole)}"
        return f"laplace l1_ball: {latent_statement(self, whole)}"


@dataclass(frozen=True)
class LatentGaussian:
    """Gaussian noise, rounded to the lattice, on the sum of `k` latents clipped to an l2 ball.

    Replace-one; the ball's radius is sqrt(dimension). `epsilon` and `delta` hold per released mean
    (per image where k = 1), over all its coordinates; the noise follows from them.
    """

    dimension: int
    k: int
    grouping: Grouping
    epsilon: float
    delta: float
    lattice_step: float = LATTICE_STEP

    def __post_init__(self) -> None:
        _require_group(self)
        given = "epsilon per image, a positive number"
        require("epsilon", self.epsilon, is_positive(self.epsilon), given)
        proper = is_positive(self.delta) and self.delta < 1
        require("delta", self.delta, proper, "a number between 0 and 1")
        _require_step(self.lattice_step)

    @property
    def steps(self) -> int:
        """One: a patient is in one group, so all groups of a release are one application."""
        return 1

    @property
    def clip(self) -> Literal["l2_ball"]:
        """The clip set: the ball with the typical length of a standard normal latent."""
        return "l2_ball"

    @property
    def radius(self) -> float:
        """sqrt(dimension), in latent units."""
        return math.sqrt(self.dimension)

    @property
    def squared_radius_in_steps(self) -> int:
        """The largest sum of squares of a clipped latent on the lattice, exact."""
        return _squared_radius(self.dimension, self.lattice_step)

    @property
    def noise_multiplier(self) -> float:
        """The noise's standard deviation over the sensitivity 2 sqrt(d) of the sum."""
        return analytic_noise_multiplier(self.epsilon, self.delta)

    @property
    def sum_deviation_in_steps(self) -> float:
        """The standard deviation of the noise on the sum of k latents, in lattice steps."""
        return self.noise_multiplier * 2 * self.radius / self.lattice_step

    @property
    def epsilon_per_image(self) -> float:
        """Epsilon (at `delta`) of one released mean, over all its coordinates."""
        return self.epsilon

    @property
    def epsilon_per_coordinate(self) -> float:
        """The same: in a ball one coordinate can carry all of the image's epsilon."""
        return self.epsilon

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What the accountants compose."""
        return (("gaussian", self.noise_multiplier),)

    @property
    def expected_cosine(self) -> float:
        """Between a mean of k independent standard latents and its release.

        By the signal-to-noise ratio k / (4 d sigma^2).
        """
        return cosine(self.k / (4 * self.dimension * self.noise_multiplier**2))

    @property
    def covers_patient(self) -> bool:
        """Whether epsilon holds per patient: only where the data did not choose the groups."""
        return covers_patient(self)

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return canonical_event("latent_gaussian", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        return {
            "mechanism": "latent_gaussian",
            **asdict(self),
            "clip": self.clip,
            "radius": self.radius,
            "noise_multiplier": self.noise_multiplier,
            "norm": "l2",
            "sensitivity": 2 * self.radius / self.k,
            **describe_latent(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints. `whole`: all latent coordinates D."""
        return f"gaussian l2_ball: {latent_statement(self, whole)}"


@dataclass(frozen=True)
class PrivUnit:
    """A private direction for the direction of one image's latent. Any two images; pure epsilon."""

    dimension: int
    epsilon: float
    lattice_step: float = LATTICE_STEP

    def __post_init__(self) -> None:
        largest = privunit.LARGEST_DIMENSION
        fits = isinstance(self.dimension, int) and 2 <= self.dimension <= largest
        dimensions = f"2 to {largest} (`components` of a public basis reduce it)"
        require("dimension", self.dimension, fits, dimensions)
        most = privunit.LARGEST_EPSILON
        proper = is_positive(self.epsilon) and 0.01 <= self.epsilon <= most
        require("epsilon", self.epsilon, proper, f"0.01 to {most:g} per image")
        _require_step(self.lattice_step)

    @property
    def steps(self) -> int:
        """One: all images of a release together are one application (one image of each patient)."""
        return 1

    @property
    def k(self) -> int:
        """One image of one patient."""
        return 1

    @property
    def grouping(self) -> Grouping:
        """No groups, so no data chose them."""
        return "random"

    @property
    def clip(self) -> Literal["sphere"]:
        """The clip set: only the direction counts."""
        return "sphere"

    @property
    def radius(self) -> float:
        """sqrt(dimension), in latent units: the length that latent and release are scaled to."""
        return math.sqrt(self.dimension)

    @property
    def squared_radius_in_steps(self) -> int:
        """The largest sum of squares of a direction on the lattice, exact."""
        return _squared_radius(self.dimension, self.lattice_step)

    @property
    def delta(self) -> float:
        """Zero: pure epsilon."""
        return 0.0

    @property
    def epsilon_per_image(self) -> float:
        """Pure epsilon of one released image, over all its coordinates."""
        return self.epsilon

    @property
    def epsilon_per_coordinate(self) -> float:
        """The same: the coordinates of a direction are not released one by one."""
        return self.epsilon

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What the accountants compose."""
        return (("pure", self.epsilon),)

    @property
    def expected_cosine(self) -> float:
        """Between an image's direction and its release."""
        return privunit.cap(self.dimension, self.epsilon).expected_cosine

    @property
    def covers_patient(self) -> bool:
        """Yes: one image of one patient."""
        return True

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return canonical_event("privunit", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        return {
            "mechanism": "privunit",
            **asdict(self),
            "clip": self.clip,
            "radius": self.radius,
            "norm": "direction",
            "sensitivity": "any two directions",
            **describe_latent(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints. `whole`: all latent coordinates D."""
        return f"privunit: {latent_statement(self, whole)}"


Latent: TypeAlias = LatentLaplace | LatentGaussian | PrivUnit


def covers_patient(mechanism: Latent) -> bool:
    """Return whether epsilon holds per patient: the data did not choose the groups, or k is 1."""
    return mechanism.grouping in DATA_INDEPENDENT or mechanism.k == 1


def _squared_radius(dimension: int, lattice_step: float) -> int:
    """The square of sqrt(dimension) in lattice steps, exact."""
    return dimension * round(1 / lattice_step) ** 2


def _require_group(mechanism: LatentLaplace | LatentGaussian) -> None:
    """Check grouping, dimension and k."""
    names = get_args(Grouping)
    known = mechanism.grouping in names
    require("grouping", mechanism.grouping, known, f"one of {', '.join(names)}")
    for name in ("dimension", "k"):
        value = getattr(mechanism, name)
        require(name, value, is_count(value), "a whole number from 1")


def _require_step(lattice_step: float) -> None:
    """Check that the grid is the one for which the radius is exact."""
    require("lattice_step", lattice_step, lattice_step == LATTICE_STEP, "2^-10")
