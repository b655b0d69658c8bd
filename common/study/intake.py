"""The plan's section `intake`: which images enter a cohort, and how they look there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from common.config import FrozenModel
from common.study.fields import Label

# keys that came after the first signed plans; left out, a plan keeps its hash and its cohorts
LATER = frozenset({"body_parts", "views", "presentation"})
RADIOGRAPHS = {"CR", "DX"}

BodyPart = Annotated[str, Field(pattern=r"^[A-Z][A-Z ]{0,31}$")]
View = Literal["PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO"]
Presentation = Literal["FOR PRESENTATION", "FOR PROCESSING"]


class Take(FrozenModel):
    """Which part of an MR series that holds several things makes the volume."""

    component: Literal["magnitude", "phase"] = Field(
        default="magnitude",
        description="images of which component enter; images that name no component count as "
        "magnitude",
    )
    echo: Literal["first", "last"] = Field(
        default="first", description="which echo enters, where a series holds several"
    )
    time: Literal["first", "last"] = Field(
        default="first",
        description="which time point or acquisition enters, where a series holds several",
    )


class Volumes(FrozenModel):
    """MR volumes with vessel masks, cut into patches of image and mask (Kossen et al. 2022)."""

    patches_per_patient: int = Field(
        ge=2,
        le=1000,
        description="patches cut from one patient's volume: half are centred on a vessel, half "
        "lie anywhere",
    )
    take: Take = Field(
        default=Take(),
        description="which part of a series enters that holds several: components, echoes, time "
        "points; projections never do",
    )

    @model_serializer(mode="wrap")
    def _leave_out_later_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`take` came after the first signed plans: its default leaves their bytes as they were."""
        fields: dict[str, Any] = serialize(self)
        if self.take == Take():
            fields.pop("take", None)
        return fields


class Intake(FrozenModel):
    """Which images enter a cohort, and how they look there."""

    dicom_modalities: tuple[Literal["OP", "CR", "DX", "MR"], ...] = Field(
        min_length=1,
        description="DICOM Modality values that are accepted; other DICOM files are refused",
    )
    size_px: Literal[32, 64, 96, 128, 256, 512] = Field(
        description="side of the square images, in pixels; models.wgan takes at most 256"
    )
    channels: Literal[1, 3] = Field(description="1: grey, 3: colour (RGB)")
    labels: tuple[Label, ...] = Field(
        min_length=1,
        max_length=100,
        description="labels that an image can have; all of them are public",
    )
    ordinal_labels: bool = Field(
        default=False,
        description="whether `labels` are in order of severity, lowest first: a patient whose "
        "images differ in label "
        "then enters with the highest label and the images that have it; without an order the "
        "patient is left out",
    )
    merge_labels: dict[Label, Label] = Field(
        default_factory=dict,
        description="labels that are released under another name: label -> released name",
    )
    stratify_laterality: bool = Field(
        default=False,
        description="whether left and right are strata of their own; one side of each patient "
        "then enters",
    )
    window: tuple[float, float] | None = Field(
        default=None,
        description="low and high intensity that become 0 and 255, in the unit after the DICOM "
        "rescale; without it the "
        "file's own window counts, else its range (MR volumes: the patient's own 0.1 and 99.9 "
        "percentiles)",
    )
    volumes: Volumes | None = Field(
        default=None,
        description="set for MR volumes with vessel masks (models.wgan); one channel only",
    )

    body_parts: tuple[BodyPart, ...] | None = Field(
        default=None,
        max_length=20,
        description="body parts that a DICOM header may name, in English capitals; []: any. "
        "By default CHEST for CR and DX, any for others",
    )
    views: tuple[View, ...] | None = Field(
        default=None,
        description="views that a DICOM header may name; []: any. By default PA and AP for CR and "
        "DX, any for others",
    )
    presentation: tuple[Presentation, ...] | None = Field(
        default=None,
        description="what a DICOM image may be meant for; []: anything. By default FOR "
        "PRESENTATION for CR and DX: raw detector values are refused",
    )

    @property
    def taken_body_parts(self) -> tuple[str, ...]:
        """The body parts that enter, as stated or by default; empty: any."""
        return self._taken(self.body_parts, "CHEST")

    @property
    def taken_views(self) -> tuple[str, ...]:
        """The views that enter, as stated or by default; empty: any."""
        return self._taken(self.views, "PA", "AP")

    @property
    def taken_presentation(self) -> tuple[str, ...]:
        """What entering images are meant for, as stated or by default; empty: anything."""
        return self._taken(self.presentation, "FOR PRESENTATION")

    def _taken(self, stated: tuple[str, ...] | None, *radiographs: str) -> tuple[str, ...]:
        """What is stated; else what radiographs must be, in a study of radiographs alone."""
        if stated is not None:
            return stated
        return radiographs if set(self.dicom_modalities) <= RADIOGRAPHS else ()

    def unused_later(self) -> set[str]:
        """Return the keys of LATER that hold their default."""
        fields = type(self).model_fields
        return {name for name in LATER if getattr(self, name) == fields[name].default}

    def hashed_fields(self) -> dict[str, Any]:
        """Return what names a cohort and counts in the plan's hash: all but unused later keys."""
        return self.model_dump(mode="json", exclude=self.unused_later())

    @property
    def planes(self) -> int:
        """Channels of a cohort's images: the image's own, and one more for a mask."""
        return self.channels + (self.volumes is not None)

    @property
    def value_count(self) -> int:
        """How many numbers one image has, without its mask."""
        return self.channels * self.size_px**2

    @model_validator(mode="after")
    def _known_labels(self) -> Intake:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label stands twice")
        unknown = sorted(set(self.merge_labels) - set(self.labels))
        if unknown:
            raise ValueError(f"merge_labels: {unknown} are not among labels {list(self.labels)}")
        if self.window and self.window[0] >= self.window[1]:
            raise ValueError(f"window: expected low < high, got {list(self.window)}")
        return self
