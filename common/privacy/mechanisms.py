"""Privacy mechanisms as frozen values that carry their own sensitivity, adjacency and epsilon.

In: public constants of a study plan. Out: a description for statements, a canonical JSON event for ledger and accountants.
Guaranteed: every number follows from the fields; an event of an unknown mechanism, or with an unknown field, is refused.
Not: drawing noise (noise.py), composing events (accounting.py), or knowing whether the data were really clipped.

Sources: Abadi et al. 2016 (subsampled Gaussian); Shibata et al. 2023 and methods/dp-glow.md, sections 5 and 6 (Laplace).
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from common.errors import ConfigurationError, RefusedError

if TYPE_CHECKING:
    from common.study import Study

ZERO_OUT = "zero-out of one patient"
REPLACE_ONE = "replace-one patient"
PLAIN_DIMENSION = 2**20


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
        _require("noise_multiplier", self.noise_multiplier, 0.0 < self.noise_multiplier < math.inf, "a positive number")
        _require("steps", self.steps, isinstance(self.steps, int) and self.steps >= 1, "a whole number from 1")
        _require("dimension", self.dimension, self.dimension >= 1, "a whole number from 1")

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
    released *mean*, in latent units. `grouping`: "random" (no pixel decides who is in a group) or "similar".
    `lattice_step`: the grid h of the latents.
    """

    clip: Literal["box", "l1_ball"]
    radius: float
    dimension: int
    k: int
    grouping: Literal["random", "similar"]
    scale: float
    lattice_step: float = 2**-10

    def __post_init__(self) -> None:
        _require("clip", self.clip, self.clip in ("box", "l1_ball"), "box or l1_ball")
        _require("grouping", self.grouping, self.grouping in ("random", "similar"), "random or similar")
        for name in ("radius", "scale", "lattice_step"):
            _require(name, getattr(self, name), 0.0 < getattr(self, name) < math.inf, "a positive number")
        for name in ("dimension", "k"):
            value = getattr(self, name)
            _require(name, value, isinstance(value, int) and value >= 1, "a whole number from 1")
        _require("radius", self.radius, self.radius_in_steps >= 1, "at least one lattice step")

    @property
    def steps(self) -> int:
        """One: all groups of a release together are one application (each patient is in one group)."""
        return 1

    @property
    def radius_in_steps(self) -> int:
        """The clip radius on the lattice: largest abs q of a coordinate (box), or largest sum of abs q (l1 ball)."""
        return math.floor(self.radius * (self.dimension if self.clip == "l1_ball" else 1) / self.lattice_step)

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
    def epsilon_per_coordinate(self) -> float:
        """Epsilon of a single coordinate. In an l1 ball one coordinate can carry all of the image's epsilon."""
        return 2 * self.radius_in_steps / self.sum_scale_in_steps

    @property
    def covers_patient(self) -> bool:
        """Whether epsilon holds per patient: only where the data did not choose the groups."""
        return self.grouping == "random" or self.k == 1

    def event(self) -> str:
        """The canonical JSON of the mechanism: what the ledger hashes."""
        return _canonical("latent_laplace", self)

    def describe(self) -> dict[str, Any]:
        """All constants and everything that follows from them."""
        return {
            "mechanism": "latent_laplace",
            **asdict(self),
            "adjacency": REPLACE_ONE,
            "norm": "l1",
            "sensitivity": self.sum_sensitivity_in_steps * self.lattice_step / self.k,
            "epsilon_per_coordinate": self.epsilon_per_coordinate,
            "epsilon_per_image": self.epsilon_per_image,
            "delta": 0.0,
            "unit": "patient" if self.covers_patient else "average",
            "statement": self.statement(),
        }

    def statement(self) -> str:
        """The sentence a release prints (methods/dp-glow.md, section 6); it never calls epsilon per coordinate the whole."""
        if self.clip == "box":
            name, per_coordinate = "box", f"ε={self.epsilon_per_coordinate:,.4g} per coordinate = "
        else:
            compared = 6.0 / (self.k * self.scale)
            name, per_coordinate = "l1_ball", f"(a box of 3 would be ε={compared:,.4g} per coordinate) "
        unit = "image" if self.k == 1 else "average"
        text = f"laplace {name}: {per_coordinate}ε={_grouped(self.epsilon_per_image)} per {unit}"
        if self.k > 1:
            text += (
                " and per patient" if self.covers_patient else ", grouping by similarity not covered, no ε per patient"
            )
        return f"{text}, replace-one, d={self.dimension:,}, k={self.k}, {self.grouping} groups"


Mechanism: TypeAlias = SubsampledGaussian | LatentLaplace
KINDS: dict[str, type[SubsampledGaussian] | type[LatentLaplace]] = {
    "subsampled_gaussian": SubsampledGaussian,
    "latent_laplace": LatentLaplace,
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
    return SubsampledGaussian(study.sampling_rate(plan), plan.noise_multiplier, plan.local_steps, dimension, model)


def latent_event(study: "Study") -> LatentLaplace:
    """The mechanism of the plan's `synthesis.privatize`, from public constants alone. Raises ConfigurationError without one."""
    synthesis, glow = study.synthesis, study.models.glow
    if synthesis is None or synthesis.privatize is None or glow is None:
        raise ConfigurationError("privatize: the plan has no synthesis.privatize, or no models.glow")
    plan = synthesis.privatize
    dimension = study.intake.channels * study.intake.size_px**2  # every split halves what stays
    dimension = dimension if plan.levels == "all" else dimension >> (glow.levels - 1)
    return LatentLaplace(plan.clip, plan.radius, dimension, synthesis.k, synthesis.grouping, plan.scale)


def _canonical(kind: str, mechanism: Mechanism) -> str:
    return json.dumps({"mechanism": kind, **asdict(mechanism)}, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _grouped(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigurationError(f"mechanism: {name}: expected {expected}, got {value!r}")
