"""The plan's section `models`: which models train, in which sizes, with which noise."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from common.config import FrozenModel
from common.models.sizes import (
    FOLLOWS_REST,
    FOLLOWS_SHARE,
    KEEPS_PAINT,
    LOOK,
    LOOK_NUMBERS,
    MASK_FIRST,
)
from common.study.families import FAMILIES
from common.study.fields import Checkpoint, Positive

RMSPROP_DECAY = 0.99  # of the mean of squared gradients
# how many numbers the look of pairs has, and the keys that learn nothing else, in words
LOOK_ALONE = f"{LOOK_NUMBERS}: `architecture: {MASK_FIRST}` with `trainable: [critic.{LOOK}]`"


class TrainedModel(FrozenModel):
    """What every privately trained model states. All are public constants of the plan.

    `betas`: Adam's decays; they are no key of the plan.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)

    rounds: int = Field(
        ge=1,
        le=10_000,
        description="how often the sites train and the server averages their updates",
    )
    local_steps: int = Field(
        ge=1, le=100_000, description="private steps that a site takes in one round"
    )
    learning_rate: Positive = Field(
        description="learning rate of the privately trained network, per private step"
    )
    noise_multiplier: float = Field(
        ge=0.3,
        le=1000,
        description="sigma: standard deviation of the noise on a step's sum of gradients, in "
        "units of `clip`",
    )
    patients_per_step: int = Field(
        ge=1,
        le=100_000,
        description="patients that a step draws on average; over privacy.planned_patients it is "
        "the sampling rate",
    )
    clip: float = Field(
        gt=0, le=1000, description="C: largest L2 norm of one patient's gradient in a step"
    )
    items_per_patient: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="images (or patches) that a drawn patient brings to a step; together they are "
        "clipped to `clip`",
    )
    max_update_norm: Positive = Field(
        description="largest L2 norm of a site's update of one round, over all its tensors; "
        "`kohort-server plan` writes it where it is missing"
    )
    trainable: tuple[str, ...] = Field(
        default=(),
        description="prefixes of the tensors that private gradients change; empty: all",
    )
    start: Checkpoint | None = Field(
        default=None,
        description="public checkpoint with which training starts; a plan without one is not "
        "signed",
    )

    @property
    def steps(self) -> int:
        """All private steps that one site takes for this model."""
        return self.rounds * self.local_steps


class GanPlan(TrainedModel):
    """The style-based generator and its critic (common/models/stylegan.py)."""

    betas: ClassVar[tuple[float, float]] = (0.0, 0.99)

    width: int = Field(
        ge=8,
        le=512,
        description="channels at the image's full size; at smaller sizes up to four times as many",
    )
    latent: int = Field(ge=16, le=512, description="numbers in a latent code")
    generator_learning_rate: Positive = Field(
        description="learning rate of the generator, per generator step"
    )
    critic_steps: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="private critic steps for one generator step; at most `local_steps`",
    )
    loss: Literal["hinge", "logistic"] = Field(
        default="logistic", description="loss of critic and generator"
    )
    fakes_per_item: int = Field(
        default=1, ge=1, le=16, description="generated images that the critic sees per real image"
    )


class WganPlan(TrainedModel):
    """Image + mask pairs (common/models/wgan.py; Kossen et al. 2022)."""

    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)

    architecture: Literal["small", "kossen2022", "mask-first"] = Field(
        default="small",
        description="networks: `small`; the shape of Kossen et al. 2022, which needs at least "
        "64 px; or `mask-first`, whose generator draws a mask and then the image of that mask. "
        f"With `trainable: [critic.{LOOK}]` it learns {LOOK_NUMBERS} numbers, how the sites' pairs "
        "look, and nothing else",
    )
    width: int = Field(
        ge=8, le=512, description="channels of the first critic layer; a multiple of 4"
    )
    generator_width: int = Field(
        ge=8, le=512, description="channels of the generator's last hidden layer; a multiple of 8"
    )
    latent: int = Field(ge=16, le=512, description="numbers in a latent code")
    generator_learning_rate: Positive = Field(
        description="learning rate of the generator, per generator step"
    )
    critic_steps: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="private critic steps for one generator step, at most `local_steps`; with "
        "`adaptive` the number that each "
        "round starts with",
    )
    adaptive: bool = Field(
        default=True,
        description="whether critic steps rise within a round while the critic tells fakes badly "
        "(Bie et al. 2023); it needs "
        "rounds of more than 200 generator steps and the loss hinge or logistic",
    )
    loss: Literal["wgan", "wgan-gp", "hinge", "logistic"] = Field(
        default="hinge",
        description="loss of critic and generator; `wgan` needs `weight_clip`, `wgan-gp` has a "
        "gradient penalty",
    )
    optimizer: Literal["adam", "rmsprop"] = Field(
        default="adam", description="optimiser of critic and generator"
    )
    weight_clip: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="bound on every trained critic weight, applied after each step (Kossen et al. "
        "2022: 0.01)",
    )
    average_decay: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay, per generator step, of the generator's moving average; pairs are "
        "drawn from that average",
    )
    input_noise: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="standard deviation of Gaussian noise on every pair that the critic sees, for "
        "pairs in [-1, 1]; it steadies "
        "training (Arjovsky and Bottou 2017) and is no privacy noise",
    )
    fakes_per_item: int = Field(
        default=1, ge=1, le=16, description="generated pairs that the critic sees per real pair"
    )
    released_pairs: int = Field(
        default=256, ge=1, le=1_000_000, description="pairs of image and mask that a release holds"
    )

    @property
    def learns_scores(self) -> bool:
        """Whether private gradients change layers of the critic, so that its scores say more."""
        return self._names("critic.layers.")

    @property
    def learns_look(self) -> bool:
        """Whether private gradients change the look of real pairs: of `mask-first` alone."""
        return self.architecture == MASK_FIRST and self._names(f"critic.{LOOK}")

    def moves(self, name: str) -> bool:
        """Whether training moves this tensor of the generator; `name` is that inside it."""
        if self.architecture != MASK_FIRST:
            return self.learns_scores
        followed = self.learns_look and name.startswith((*FOLLOWS_SHARE, *FOLLOWS_REST))
        return followed or (self.learns_scores and not name.startswith(KEEPS_PAINT))

    def _names(self, part: str) -> bool:
        """Whether `trainable` has a tensor whose name begins with `part`."""
        chosen = self.trainable
        return not chosen or any(p.startswith(part) or part.startswith(p) for p in chosen)

    @model_validator(mode="after")
    def _bounded(self) -> WganPlan:
        if self.loss == "wgan" and self.weight_clip is None:
            raise ValueError("weight_clip: the loss wgan needs one (Kossen et al. 2022: 0.01)")
        if self.width % 4 or self.generator_width % 8:
            raise ValueError(
                "width, generator_width: expected multiples of 4 and 8, for the group norms"
            )
        return self


class GlowPlan(TrainedModel):
    """The flow (common/models/glow.py)."""

    levels: int = Field(
        ge=1,
        le=7,
        description="levels of the flow; each halves the image's side, which must allow it",
    )
    doublings: int = Field(
        default=0,
        ge=0,
        le=4,
        description="how often the flow has grown to twice its size: each halves the side once "
        "more, before the levels, and names its tensors `glow.doublings.`",
    )
    steps_per_level: int = Field(ge=1, le=64, description="flow steps on each level")
    width: int = Field(ge=8, le=1024, description="hidden channels of the coupling networks")
    input_noise: float = Field(
        default=0.03,
        ge=0,
        le=0.5,
        description="standard deviation of Gaussian noise on training images, for images in "
        "[-0.5, 0.5]; no privacy noise",
    )

    def coordinates(self, values: int, levels: str) -> int:
        """Return how many latent coordinates `levels` (`top` or `all`) has.

        `values`: the numbers of an image. A split halves what stays, a doubling leaves a quarter.
        """
        if levels == "top":
            return values >> (self.levels - 1 + 2 * self.doublings)
        return values


class EncoderPlan(FrozenModel):
    """The inversion encoder: trained on generator samples alone, on site, never sent."""

    steps: int = Field(
        ge=0, le=1_000_000, description="training steps on generator samples; 0: as in `start`"
    )
    learning_rate: Positive = Field(description="learning rate, per step")
    iterations: int = Field(
        default=2,
        ge=1,
        le=10,
        description="how often the encoder corrects the code of one image",
    )
    width: int = Field(
        ge=8,
        le=512,
        description="channels of the encoder's first maps; deeper ones have up to four times as "
        "many",
    )
    start: Checkpoint | None = Field(
        default=None,
        description="public checkpoint with which training starts, trained together with that of "
        "models.gan",
    )


class Models(FrozenModel):
    """Which models the study trains."""

    gan: GanPlan | None = Field(
        default=None, description="generator and critic for images of groups (k-SALSA)"
    )
    glow: GlowPlan | None = Field(
        default=None, description="flow in whose latent space images are privatized (DP-GLOW)"
    )
    wgan: WganPlan | None = Field(
        default=None, description="generator and critic for pairs of image and mask (DP-WGAN)"
    )
    encoder: EncoderPlan | None = Field(
        default=None,
        description="encoder that finds an image's code; synthesis with models.gan needs it",
    )

    def trained(self) -> dict[str, TrainedModel]:
        """Return the privately trained models in the order in which they train."""
        found = {}
        for name in FAMILIES:
            model: TrainedModel | None = getattr(self, name)
            if model is not None:
                found[name] = model
        return found
