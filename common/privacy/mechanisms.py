"""Privacy mechanisms as frozen values that carry their own sensitivity, adjacency and epsilon.

In: public constants of a study plan. Out: a description for statements, a canonical JSON event for ledger and accountants.
Guaranteed: every number follows from the fields; an event of an unknown mechanism, or with an unknown field, is refused.
Not: drawing noise (noise.py), composing events (accounting.py), wording statements (statements.py), calibrating noise
(calibration.py), or knowing whether the data were really clipped.

Every mechanism on latents (`Latent`) says: sensitivity and norm, adjacency, d, k, grouping, epsilon per coordinate and per
image, delta, expected cosine, and what its groups allow to claim. `losses` is what the accountants compose.

Sources: Abadi et al. 2016 (subsampled Gaussian); Shibata et al. 2023 and methods/dp-glow.md, sections 5 and 6 (Laplace);
Balle and Wang 2018 (Gaussian, calibration.py); Bhowmick et al. 2018 (PrivUnit, privunit.py).
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from common.errors import ConfigurationError, RefusedError
from common.privacy import privunit
from common.privacy.anchors import NoisyAnchors, anchors_event
from common.privacy.calibration import analytic_noise_multiplier, clipped_variance, cosine
from common.privacy.statements import described, stated

if TYPE_CHECKING:
    from common.study.plan import Study
    from common.study.synthesis import PrivatizePlan

ZERO_OUT = "zero-out of one patient"
PLAIN_DIMENSION = 2**20
Grouping = Literal["similar", "similar-swap", "cells", "random"]
DATA_INDEPENDENT = ("random",)  # groupings in which no pixel decides who is in a group
Loss = tuple[
    Literal["gaussian", "laplace", "pure"], float
]  # a Gaussian's noise over sensitivity; the others' epsilon


@dataclass(frozen=True)
class SubsampledGaussian:
    """`steps` private steps: Poisson sampling of patients at rate `q`, clip to L2 norm C, noise sigma·C. Adjacency: zero-out.

    `dimension` is the largest number of trainable parameters it covers (for `sampler_delta`); `model` names them in reports.
    """

    q: float
    noise_multiplier: float
    steps: int
    dimension: int = PLAIN_DIMENSION
    model: str = ""

    def __post_init__(self) -> None:
        _require("q", self.q, 0.0 < self.q <= 1.0, "a rate in (0, 1]")
        _require(
            "noise_multiplier",
            self.noise_multiplier,
            0.0 < self.noise_multiplier < math.inf,
            "a positive number",
        )
        _require(
            "steps",
            self.steps,
            isinstance(self.steps, int) and self.steps >= 1,
            "a whole number from 1",
        )
        _require("dimension", self.dimension, self.dimension >= 1, "a whole number from 1")

    @property
    def covers_patient(self) -> bool:
        """Yes: patients are the unit of sampling and clipping."""
        return True

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return _canonical("subsampled_gaussian", self)

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
        """One line for reports: `gan: subsampled gaussian: q=0.064, sigma=1.87, 2,000 steps, zero-out`."""
        label = f"{self.model}: " if self.model else ""
        return f"{label}subsampled gaussian: q={self.q:.4g}, sigma={self.noise_multiplier:g}, {self.steps:,} steps, zero-out"


@dataclass(frozen=True)
class LatentLaplace:
    """Discrete Laplace noise on the sum of `k` clipped latents of `dimension` coordinates. Replace-one; pure epsilon.

    `clip`: "box" (every abs z <= radius) or "l1_ball" (sum of abs z <= radius·dimension). `scale`: Laplace scale b of the
    released *mean*, in latent units. `grouping`: "random" (no pixel decides who is in a group) or one by the data.
    `lattice_step`: the grid h of the latents.
    """

    clip: Literal["box", "l1_ball"]
    radius: float
    dimension: int
    k: int
    grouping: Grouping
    scale: float
    lattice_step: float = 2**-10

    def __post_init__(self) -> None:
        _require("clip", self.clip, self.clip in ("box", "l1_ball"), "box or l1_ball")
        _require_group(self)
        for name in ("radius", "scale", "lattice_step"):
            _require(name, getattr(self, name), _positive(getattr(self, name)), "a positive number")
        _require("radius", self.radius, self.radius_in_steps >= 1, "at least one lattice step")

    @property
    def steps(self) -> int:
        """One: all groups of a release together are one application (each patient is in one group)."""
        return 1

    @property
    def radius_in_steps(self) -> int:
        """The clip radius on the lattice: largest abs q of a coordinate (box), or largest sum of abs q (l1 ball)."""
        return math.floor(
            self.radius * (self.dimension if self.clip == "l1_ball" else 1) / self.lattice_step
        )

    @property
    def sum_scale_in_steps(self) -> float:
        """The scale of the noise on the sum of k latents, in lattice steps: what `Noise.discrete_laplace` takes."""
        return self.k * self.scale / self.lattice_step

    @property
    def sum_sensitivity_in_steps(self) -> int:
        """L1 sensitivity of the sum under replace-one: 2·C·d (box) or 2·R1 (l1 ball); the mean has this / k."""
        return 2 * self.radius_in_steps * (self.dimension if self.clip == "box" else 1)

    @property
    def epsilon_per_image(self) -> float:
        """Pure epsilon of one released mean (of one image where k = 1), over all its coordinates."""
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
        """Between a mean of k independent standard latents, clipped, and its release; methods/dp-glow.md, section 5."""
        return cosine(clipped_variance(self.clip, self.radius) / self.k / (2 * self.scale**2))

    @property
    def epsilon_per_coordinate(self) -> float:
        """Epsilon of a single coordinate. In an l1 ball one coordinate can carry all of the image's epsilon."""
        return 2 * self.radius_in_steps / self.sum_scale_in_steps

    @property
    def covers_patient(self) -> bool:
        """Whether epsilon holds per patient: only where the data did not choose the groups."""
        return covers_patient(self)

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return _canonical("latent_laplace", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        sensitivity = self.sum_sensitivity_in_steps * self.lattice_step / self.k
        return {
            "mechanism": "latent_laplace",
            **asdict(self),
            "norm": "l1",
            "sensitivity": sensitivity,
            **described(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints; it never calls epsilon per coordinate the whole. `whole`: all latent coordinates D."""
        if self.clip == "box":
            name, per_coordinate = "box", f"ε={self.epsilon_per_coordinate:,.4g} per coordinate = "
        else:
            compared = 6.0 / (self.k * self.scale)
            name, per_coordinate = (
                "l1_ball",
                f"(a box of 3 would be ε={compared:,.4g} per coordinate) ",
            )
        return f"laplace {name}: {per_coordinate}{stated(self, whole)}"


@dataclass(frozen=True)
class LatentGaussian:
    """Gaussian noise, rounded to the lattice, on the sum of `k` latents in the l2 ball of radius sqrt(dimension). Replace-one.

    `epsilon` and `delta` hold per released mean (per image where k = 1), over all its coordinates; the noise follows from them.
    """

    dimension: int
    k: int
    grouping: Grouping
    epsilon: float
    delta: float
    lattice_step: float = 2**-10

    def __post_init__(self) -> None:
        _require_group(self)
        _require(
            "epsilon", self.epsilon, _positive(self.epsilon), "epsilon per image, a positive number"
        )
        _require(
            "delta",
            self.delta,
            _positive(self.delta) and self.delta < 1,
            "a number between 0 and 1",
        )
        _require("lattice_step", self.lattice_step, self.lattice_step == 2**-10, "2^-10")

    @property
    def steps(self) -> int:
        """One: all groups of a release together are one application (each patient is in one group)."""
        return 1

    @property
    def clip(self) -> Literal["l2_ball"]:
        """The clip set: the ball in which a standard normal latent's own length lies."""
        return "l2_ball"

    @property
    def radius(self) -> float:
        """sqrt(dimension), in latent units."""
        return math.sqrt(self.dimension)

    @property
    def squared_radius_in_steps(self) -> int:
        """The largest sum of squares of a clipped latent on the lattice, exact."""
        return self.dimension * round(1 / self.lattice_step) ** 2

    @property
    def noise_multiplier(self) -> float:
        """The noise's deviation over the sensitivity 2 sqrt(d) of the sum."""
        return analytic_noise_multiplier(self.epsilon, self.delta)

    @property
    def sum_deviation_in_steps(self) -> float:
        """The deviation of the noise on the sum of k latents, in lattice steps."""
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
        """Between a mean of k independent standard latents and its release: SNR k / (4 d sigma^2)."""
        return cosine(self.k / (4 * self.dimension * self.noise_multiplier**2))

    @property
    def covers_patient(self) -> bool:
        """Whether epsilon holds per patient: only where the data did not choose the groups."""
        return covers_patient(self)

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return _canonical("latent_gaussian", self)

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
            **described(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints. `whole`: all latent coordinates D."""
        return f"gaussian l2_ball: {stated(self, whole)}"


@dataclass(frozen=True)
class PrivUnit:
    """A private direction for the direction of one image's latent (privunit.py). Any two images; pure epsilon per image."""

    dimension: int
    epsilon: float
    lattice_step: float = 2**-10

    def __post_init__(self) -> None:
        largest, most = privunit.LARGEST_DIMENSION, privunit.LARGEST_EPSILON
        fits = isinstance(self.dimension, int) and 2 <= self.dimension <= largest
        _require(
            "dimension",
            self.dimension,
            fits,
            f"2 to {largest} (`components` of a public basis reduce it)",
        )
        _require(
            "epsilon",
            self.epsilon,
            _positive(self.epsilon) and 0.01 <= self.epsilon <= most,
            f"0.01 to {most:g} per image",
        )
        _require("lattice_step", self.lattice_step, self.lattice_step == 2**-10, "2^-10")

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
        """sqrt(dimension), in latent units: the length to which latent and release are scaled."""
        return math.sqrt(self.dimension)

    @property
    def squared_radius_in_steps(self) -> int:
        """The largest sum of squares of a direction on the lattice, exact."""
        return self.dimension * round(1 / self.lattice_step) ** 2

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
        return _canonical("privunit", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        return {
            "mechanism": "privunit",
            **asdict(self),
            "clip": self.clip,
            "radius": self.radius,
            "norm": "direction",
            "sensitivity": "any two directions",
            **described(self),
        }

    def statement(self, whole: int | None = None) -> str:
        """The sentence a release prints. `whole`: all latent coordinates D."""
        return f"privunit: {stated(self, whole)}"


Latent: TypeAlias = LatentLaplace | LatentGaussian | PrivUnit
Mechanism: TypeAlias = SubsampledGaussian | Latent | NoisyAnchors
KINDS: dict[str, type[Mechanism]] = {
    "subsampled_gaussian": SubsampledGaussian,
    "latent_laplace": LatentLaplace,
    "latent_gaussian": LatentGaussian,
    "privunit": PrivUnit,
    "noisy_anchors": NoisyAnchors,
}


def mechanism_from(event: str) -> Mechanism:
    """The mechanism of a canonical JSON event. Raises `RefusedError` (E-MECHANISM) for anything unknown or out of range."""
    try:
        data = json.loads(event)
        kind = KINDS[data.pop("mechanism")]
        if set(data) != {field.name for field in fields(kind)}:
            raise KeyError("fields")
        return kind(**data)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
        raise RefusedError(
            f"mechanism: expected an event of {sorted(KINDS)} with exactly its fields, got {event[:120]!r}",
            hint="both sides must run the same version of kohort",
            code="E-MECHANISM",
        ) from error


def round_event(study: "Study", model: str, dimension: int) -> SubsampledGaussian:
    """What one round of training `model` ("gan", "glow", "wgan") spends at a site; `dimension`: its trainable parameters."""
    plan = study.models.trained()[model]
    return SubsampledGaussian(
        study.sampling_rate(plan), plan.noise_multiplier, plan.local_steps, dimension, model
    )


def latent_event(study: "Study") -> Latent:
    """The mechanism of the plan's `synthesis.privatize`, from public constants alone. Raises ConfigurationError without one.

    With egress `single` each image is of one patient: k = 1, and no group can depend on the data.
    """
    synthesis = study.synthesis
    if synthesis is None or synthesis.privatize is None or study.models.glow is None:
        raise ConfigurationError(
            "privatize: the plan has no synthesis.privatize, or no models.glow"
        )
    single = synthesis.privatize.egress == "single"
    grouping: Any = "random" if single else synthesis.grouping
    return latent_mechanism(
        synthesis.privatize, level_dimension(study), 1 if single else synthesis.k, grouping
    )


def image_event(study: "Study") -> Latent | NoisyAnchors | None:
    """What the plan's images spend or declare: the mechanism of `synthesis.anchors` or of `synthesis.privatize`, or None."""
    if study.synthesis is None:
        return None
    return anchors_event(study) or (
        latent_event(study) if study.synthesis.privatizes_averages else None
    )


def charged_image_event(study: "Study") -> Latent | NoisyAnchors | None:
    """What the plan's images spend of each patient's epsilon, beside the updates: `image_event` where it covers patients."""
    event = image_event(study)
    return event if event is not None and event.covers_patient else None


def latent_mechanism(plan: "PrivatizePlan", coordinates: int, k: int, grouping: Grouping) -> Latent:
    """The mechanism of a `privatize` section for averages of k; `coordinates`: of its levels, before any basis."""
    dimension = plan.components or coordinates
    if plan.mechanism == "gaussian":
        return LatentGaussian(dimension, k, grouping, _given(plan.epsilon), _given(plan.delta))
    if plan.mechanism == "privunit":
        _require("k", k, k == 1, "1: privunit privatizes one image (egress: single)")
        return PrivUnit(dimension, _given(plan.epsilon))
    return LatentLaplace(
        plan.clip or "l1_ball", _given(plan.radius), dimension, k, grouping, _given(plan.scale)
    )


def level_dimension(study: "Study") -> int:
    """The latent coordinates of the plan's `privatize.levels`: all D, or the top level's (every split halves what stays)."""
    whole, glow = study.latent_dimension, study.models.glow
    top = (
        study.synthesis is None
        or study.synthesis.privatize is None
        or study.synthesis.privatize.levels == "top"
    )
    return whole >> (glow.levels - 1) if glow is not None and top else whole


def covers_patient(mechanism: Latent) -> bool:
    """Whether epsilon holds per patient: only where the data did not choose the groups, or where there is none (k = 1)."""
    return mechanism.grouping in DATA_INDEPENDENT or mechanism.k == 1


def _require_group(mechanism: LatentLaplace | LatentGaussian) -> None:
    names = get_args(Grouping)
    _require(
        "grouping", mechanism.grouping, mechanism.grouping in names, f"one of {', '.join(names)}"
    )
    for name in ("dimension", "k"):
        value = getattr(mechanism, name)
        _require(name, value, isinstance(value, int) and value >= 1, "a whole number from 1")


def _positive(value: float) -> bool:
    return 0.0 < value < math.inf


def _given(value: float | None) -> float:
    """A number that the plan's own checks made sure of."""
    if value is None:
        raise ConfigurationError(
            "privatize: a number of the mechanism is missing", hint="validate the plan first"
        )
    return value


def _canonical(kind: str, mechanism: Mechanism) -> str:
    return json.dumps(
        {"mechanism": kind, **asdict(mechanism)},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"mechanism: {name}: expected {expected}, got {value!r}")
