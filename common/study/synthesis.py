"""The plan's section `synthesis`: groups, alignment and privatization on site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from common.config import FrozenModel
from common.study.fields import Checkpoint

# Of one stratum: as many as the inversion draws generator samples (client/synthesize/invert.py).
MOST_CELLS = 192
PRIVUNIT_LARGEST_DIMENSION = 64  # common/privacy/privunit.py
PRIVUNIT_LARGEST_EPSILON = 16.0  # common/privacy/privunit.py

# What each mechanism of `privatize` needs, and what it may have besides.
PRIVATIZE_KEYS = {
    "laplace": (("radius", "scale"), ("clip",)),
    "gaussian": (("epsilon", "delta"), ()),
    "privunit": (("epsilon",), ()),
}
# Why a mechanism does not take another's key.
PRIVATIZE_WHY = {
    "laplace": "its noise is `scale`; epsilon per coordinate follows from it, "
    "and epsilon per image is d times that",
    "gaussian": "it clips to the l2 ball of radius sqrt(d), "
    "and its noise follows from epsilon and delta per image or average",
    "privunit": "it releases a direction, and pure epsilon per image is its only number",
}


class PrivatizePlan(FrozenModel):
    """Privatization in GLOW's latent space (Shibata et al. 2023)."""

    mechanism: Literal["laplace", "gaussian", "privunit"] = Field(
        default="laplace",
        description="noise on the latents: `laplace` takes radius, scale and clip; `gaussian` "
        "epsilon and delta; "
        "`privunit` epsilon, single images and at most 64 coordinates",
    )
    share: float = Field(
        gt=0,
        le=1,
        description="public share of the groups whose image is privatized; the other images are "
        "aligned averages; 1 with grouping `random`, where epsilon per patient needs every image",
    )
    clip: Literal["box", "l1_ball"] | None = Field(
        default=None,
        description="laplace: set that each latent is clipped to, l1_ball by default; the other "
        "mechanisms take none",
    )
    radius: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="laplace: clip radius, in latent units: of one coordinate (box), or of the "
        "mean over coordinates of |z| (l1_ball)",
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="laplace: scale b of the noise on a released mean, in latent units",
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="gaussian, privunit: epsilon per released image (per average of k), never per "
        "coordinate; "
        "privunit takes at most 16",
    )
    delta: float | None = Field(
        default=None,
        gt=0,
        le=0.01,
        description="gaussian: delta per released image; at most 1/(10 x privacy.planned_patients)",
    )
    levels: Literal["top", "all"] = Field(
        default="top",
        description="latents that are privatized: the flow's top level, or all; the others are "
        "drawn from the flow's prior",
    )
    components: int | None = Field(
        default=None,
        ge=2,
        le=4096,
        description="how many directions of the public `basis` are privatized instead of all "
        "coordinates of `levels`; "
        "set both or neither",
    )
    basis: Checkpoint | None = Field(
        default=None, description="public basis of the latents, made from public images"
    )
    temperature: float = Field(
        default=0.7,
        ge=0,
        le=1.5,
        description="factor on the spread of released latents, applied after the noise",
    )
    prior_temperature: float | None = Field(
        default=None,
        ge=0,
        le=1.5,
        description="factor on the spread of the latents drawn from the prior; `temperature` by "
        "default",
    )
    claim: Literal["patient"] | None = Field(
        default=None,
        description="set to `patient` to refuse the plan unless epsilon holds per patient for "
        "every image (random groups, share 1)",
    )
    egress: Literal["averages", "single"] = Field(
        default="averages",
        description="`averages`: averages of k patients are privatized and sent; `single`: sent "
        "averages stay plain, and a site "
        "that allows it may hand over privatized images of one patient each (`kohort-site "
        "privatize --export`)",
    )

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, data: Any) -> Any:
        """Name a unit that was confused, and give `laplace` its default clip."""
        if not isinstance(data, dict):
            return data
        for name in ("epsilon_per_coordinate", "epsilon_coordinate", "epsilon_per_element"):
            if name in data:
                raise ValueError(
                    f"{name}: expected `epsilon` per image (per average), got {data[name]!r} per "
                    "coordinate; "
                    "an image spends d times its coordinate's epsilon"
                )
        laplace = data.get("mechanism", "laplace") == "laplace"
        if laplace and data.get("clip") is None:
            return {**data, "clip": "l1_ball"}
        return data

    @model_validator(mode="after")
    def _complete(self) -> PrivatizePlan:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """What fits no single field."""
        needed, allowed = PRIVATIZE_KEYS[self.mechanism]
        for name in ("clip", "radius", "scale", "epsilon", "delta"):
            value = getattr(self, name)
            if name in needed and value is None:
                yield f"{name}: mechanism {self.mechanism} needs it, got none"
            if name not in (*needed, *allowed) and value is not None:
                why = PRIVATIZE_WHY[self.mechanism]
                yield f"{name}: mechanism {self.mechanism} takes none, got {value!r}; {why}"
        if self.mechanism == "privunit" and (self.epsilon or 0) > PRIVUNIT_LARGEST_EPSILON:
            yield (
                f"epsilon: privunit draws by rejection, at most {PRIVUNIT_LARGEST_EPSILON:g} per "
                "image, "
                f"got {self.epsilon:g}"
            )
        if self.mechanism == "privunit" and self.egress != "single":
            yield (
                "mechanism: privunit privatizes single images (k = 1): set egress: single, "
                "or take gaussian for averages"
            )
        if (self.components is None) != (self.basis is None):
            yield (
                "components, basis: expected both or neither; "
                "only a public basis orders the directions"
            )


class AnchorsPlan(FrozenModel):
    """Cells and noise of grouping `anchors`: averages under (epsilon, delta)."""

    noise_multiplier: float = Field(
        ge=0.3,
        le=1000,
        description="sigma: noise on all sums and counts together, over what one patient can "
        "change",
    )
    threshold_delta: float = Field(
        gt=0,
        le=0.01,
        description="part of privacy.delta that the threshold on noisy counts takes; at most half "
        "of it",
    )
    components: int = Field(
        default=32, ge=2, le=64, description="coordinates of a patient's whitened code"
    )
    cells_per_stratum: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CELLS,
        description="cells of each stratum; by default planned_patients / 3k, shared out among "
        "the strata",
    )
    basis: Checkpoint | None = Field(
        default=None,
        description="public directions of codes, made from public photographs, in place of those "
        "of generator samples",
    )

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`basis` came after the first signed plans: without one, their bytes stay."""
        fields: dict[str, Any] = serialize(self)
        if self.basis is None:
            fields.pop("basis", None)
        return fields


class Synthesis(FrozenModel):
    """Groups, alignment and privatization on site (Jeon et al. 2022)."""

    k: int = Field(
        ge=2,
        le=10_000,
        description="fewest distinct patients behind one image; at most privacy.planned_patients",
    )
    grouping: Literal["similar", "similar-swap", "cells", "random", "anchors"] = Field(
        description="how patients are grouped: by likeness of their images (similar, "
        "similar-swap, cells), by chance alone "
        "(random), or in cells around public codes, published under noise (anchors)",
    )
    anchors: AnchorsPlan | None = Field(
        default=None, description="set with grouping `anchors`, and with no other"
    )
    coarse_cells: int = Field(
        default=0,
        ge=0,
        le=64,
        description="cells along each side of a grid in which an average also keeps its members' "
        "mean residual: what their codes cannot hold; at most a quarter of intake.size_px; 0: none",
    )
    windows: int = Field(
        default=2,
        ge=1,
        le=16,
        description="windows along each side in which alignment compares texture; must divide "
        "intake.size_px",
    )
    inversion_steps: int = Field(
        ge=0, le=10_000, description="optimisation steps that refine the code of one image"
    )
    alignment_steps: int = Field(
        ge=0, le=10_000, description="optimisation steps that align one group's average"
    )
    content_weight: float = Field(
        default=0.1, ge=0, description="weight of the content term in the alignment's loss"
    )
    style_weight: float = Field(
        default=1.0, ge=0, description="weight of the texture term in the alignment's loss"
    )
    trust_weight: float = Field(
        default=0.05,
        ge=0,
        description="weight of the term that keeps an aligned code near the group's average",
    )
    group_by: Literal["codes", "colour"] = Field(
        default="codes",
        description="space of likeness and of cells: whitened codes, or the mean colour of the "
        "inverted image",
    )
    spread_directions: int = Field(
        default=0,
        ge=0,
        le=64,
        description="principal directions of the generator's codes along which the variance that "
        "averaging removes is restored; "
        "0: none",
    )
    spread_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="how much of that variance is restored, as a power of each direction's "
        "factor; 1: all",
    )
    outputs_per_group: int = Field(
        default=1,
        ge=1,
        le=100,
        description="images made from one group; further ones are variations",
    )
    max_images_per_site: int = Field(
        ge=1, le=100_000, description="most images that one site sends"
    )
    privatize: PrivatizePlan | None = Field(
        default=None, description="set to privatize images in the latent space of models.glow"
    )

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`coarse_cells` came after the first signed plans: its default leaves their bytes."""
        fields: dict[str, Any] = serialize(self)
        if self.coarse_cells == 0:
            fields.pop("coarse_cells", None)
        return fields

    @property
    def needs_generator(self) -> bool:
        """Whether the generator makes or groups any image.

        It does not where all of `random` groups are privatized: then the flow makes every image.
        """
        if self.grouping != "random":
            return True
        return not self.privatizes_all

    @property
    def privatizes_averages(self) -> bool:
        """Whether the averages that are sent are privatized.

        With egress `single` they stay plain: the section is about images that a site hands over.
        """
        return self.privatize is not None and self.privatize.egress == "averages"

    @property
    def privatizes_all(self) -> bool:
        """Whether every average that is sent is a privatized one."""
        return self.privatize is not None and self.privatizes_averages and self.privatize.share == 1
