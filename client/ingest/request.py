"""The values that the parent and the decoding child exchange, so that the parent needs no codec.

Guarantees: no pydicom, no nibabel here.
Not covered: the protocol (decode.py, decode_child.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from client.ingest.quarantine import Reason
from common.arrays import Pixels

if TYPE_CHECKING:
    from common.study.intake import Intake

Kind = Literal["slice", "segmentation", "nifti"]

LOOK_PX = 64
SLICE_DIGEST_BYTES = 16
ANSWER_CAP_BYTES = 1 << 14
ENDS = "ends"  # in a refusal: whether the child ends with it
CHILD_BYTES = 1 << 30  # the address space of a child that decodes photographs
VOLUME_CHILD_BYTES = 2 << 30
TEXT_BYTES = 1 << 27  # what the networks that find text take beside it
MOST_DECODERS = 16


BODY_PART = "body part"
VIEW = "view"


@dataclass(frozen=True)
class Wanted:
    """What the plan wants that a header says, beside its modality; empty: any.

    `colour`: whether it takes colour photographs of the eye alone.
    """

    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    presentation: tuple[str, ...] = ()
    colour: bool = False

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Wanted:
        """Return what `asdict` gave and JSON carried: its lists become tuples again."""
        lists = (raw["body_parts"], raw["views"], raw["presentation"])
        body_parts, views, presentation = map(tuple, lists)
        return cls(body_parts, views, presentation, colour=bool(raw["colour"]))

    @classmethod
    def of(cls, intake: Intake) -> Wanted:
        """Return what a plan's intake rules want."""
        colour = intake.channels == 3 and "OP" in intake.dicom_modalities
        return cls(
            intake.taken_body_parts, intake.taken_views, intake.taken_presentation, colour=colour
        )

    @property
    def named(self) -> tuple[str, ...]:
        """What a header should name, in words."""
        names = {BODY_PART: self.body_parts, VIEW: self.views}
        return tuple(name for name, wanted in names.items() if wanted)


@dataclass(frozen=True)
class Choices:
    """What the site decided about its own files (`data` of site.yaml).

    `refuse_silent`: whether a file whose header does not name the body part or the view is refused.
    `accept_derived`: whether the site vouches for derived, secondary images. `find_text`: whether
    photographs are searched for text in their pixels (text_detector.py).
    """

    refuse_silent: bool = False
    accept_derived: bool = False
    find_text: bool = False


def child_bytes(choices: Choices) -> int:
    """Return the address space of a child that decodes photographs."""
    if choices.find_text:
        return CHILD_BYTES + TEXT_BYTES
    return CHILD_BYTES


@dataclass(frozen=True)
class Take:
    """Which part of a series that holds several makes the volume (parts.py).

    `component`: magnitude or phase. `echo`, `time`: first or last.
    """

    component: str = "magnitude"
    echo: str = "first"
    time: str = "first"


@dataclass(frozen=True)
class Caps:
    """The part of plan and limits that concerns volumes."""

    size_px: int
    modalities: tuple[str, ...]
    window: tuple[float, float] | None
    max_file_bytes: int
    max_pixel_bytes: int
    max_volume_bytes: int
    wanted: Wanted = Wanted()
    choices: Choices = Choices()
    take: Take = Take()


@dataclass(frozen=True)
class Scan:
    """What one file states of itself.

    `series`, `frame`, `study`: the UIDs of the series, of the frame of reference and of the study.
    A segmentation states those of the series it was drawn on: none, one, or several with a
    backslash between them. `content`: SHA-256 of the file, or of what a segmentation marks, in
    hex. NIfTI names neither patient nor series.
    """

    kind: Kind
    content: str
    patient_id: str = ""
    issuer: str = ""
    series: str = ""
    frame: str = ""
    study: str = ""


@dataclass(frozen=True)
class Glance:
    """What one file shows without its pixels: whose it is, and in which series.

    `kind`: `dicom`, `photograph` or `nifti`; the others know no person. `laterality`: 0 unknown,
    1 left, 2 right.
    """

    kind: str
    patient_id: str = ""
    laterality: int = 0
    series: str = ""
    issuer: str = ""
    study: str = ""


@dataclass(frozen=True)
class VolumeFiles:
    """The slices of one series, in any order, and its mask, if it has one."""

    slices: tuple[Path, ...]
    mask: tuple[Kind, Path] | None


@dataclass(frozen=True, eq=False)
class Cut:
    """The result of one volume.

    `digest`: SHA-256 of its values. `slices`: digests of the slices that show anything. `look`:
    uint8 [64, 64, 1]. `patches`: uint8 [2 x half, S, S, 2], half = ceil(patches a person / 2); none
    where the mask has a `refusal`. `left_out`: the files, by position, that are no part of it.
    """

    digest: bytes
    slices: tuple[bytes, ...]
    look: NDArray[np.uint8]
    refusal: Reason | None
    patches: NDArray[np.uint8]
    left_out: Mapping[int, Reason] = field(default_factory=dict)


def count_decoders(asked: int, child_bytes: int = CHILD_BYTES) -> int:
    """Return how many children of one size decode at the same time: as many as asked for.

    0 asks for one a core that this process may use, at most MOST_DECODERS, and no more than fit
    into half of the machine's memory.
    """
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, MOST_DECODERS, memory_bytes // (2 * child_bytes)))


@dataclass(frozen=True)
class Limits:
    """What one ingest may use.

    `max_pixel_bytes` bounds rows x columns x frames x samples x bytes of one file, and what a
    compressed file inflates to. `max_volume_bytes` bounds rows x columns x slices x 4 of one
    series; a child holds one volume at a time. `decode_memory_bytes`, `volume_memory_bytes`: the
    address space of a child that decodes photographs, or volumes. Grey images of 8,000 x 8,000
    pixels and 16 bits fit with any codec, JPEG in colour up to 9,400 x 9,400, and photographs in
    JPEG 2000 up to about 5,000 x 5,000. A codec that finds too little memory for a larger image
    says `undecodable`, or that it lacks memory.
    `workers`: children at work at the same time. `choices`: what the site decided.
    """

    max_files: int = 1_000_000
    max_file_bytes: int = 256 << 20
    max_pixel_bytes: int = 256 << 20
    max_labels_bytes: int = 64 << 20
    decode_memory_bytes: int = CHILD_BYTES
    volume_memory_bytes: int = VOLUME_CHILD_BYTES
    decode_timeout_s: float = 30.0
    max_volume_bytes: int = 512 << 20
    volume_timeout_s: float = 300.0
    workers: int = field(default_factory=lambda: count_decoders(0))
    choices: Choices = Choices()


@dataclass(frozen=True)
class Settings:
    """What the child needs of the plan and the limits."""

    size_px: int
    channels: int
    modalities: tuple[str, ...]
    window: tuple[float, float] | None
    max_file_bytes: int
    max_pixel_bytes: int
    memory_bytes: int
    timeout_s: float
    max_volume_bytes: int = 512 << 20
    volume_timeout_s: float = 300.0
    patches: int = 0  # of one person, in a study of volumes
    wanted: Wanted = Wanted()
    choices: Choices = Choices()
    take: Take = Take()

    @property
    def caps(self) -> Caps:
        """Return the part that concerns volumes."""
        sizes = (self.max_file_bytes, self.max_pixel_bytes, self.max_volume_bytes)
        plan = (self.wanted, self.choices, self.take)
        return Caps(self.size_px, self.modalities, self.window, *sizes, *plan)


@dataclass(frozen=True)
class Photograph:
    """A decoded and framed photograph.

    `pixels`: uint8 [S, S, C]. `digest`: SHA-256 of the decoded pixels before framing. DICOM only:
    raw id, issuer, side (0 unknown, 1 left, 2 right) and StudyInstanceUID. `silent`: what the plan
    wants a header to name and this one does not.
    """

    pixels: Pixels
    digest: bytes
    is_dicom: bool
    patient_id: str
    issuer: str
    laterality: int
    silent: tuple[str, ...] = ()
    study: str = ""
