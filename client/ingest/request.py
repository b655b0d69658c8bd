"""What the parent and the decoding child tell each other of volumes: values, so that the parent needs no codec.

In and out: nothing. Guaranteed: no pydicom, no nibabel here. Not: the protocol (decode.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.ingest.quarantine import Reason

Kind = Literal["slice", "segmentation", "nifti"]

LOOK_PX = 64
SLICE_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Caps:
    """What of plan and limits concerns volumes."""

    size_px: int
    modalities: tuple[str, ...]
    window: tuple[float, float] | None
    max_file_bytes: int
    max_pixel_bytes: int
    max_volume_bytes: int


@dataclass(frozen=True)
class Scan:
    """What one file says of itself. `series`, `frame`: UIDs of the series and frame of reference, of a segmentation those of
    the series it was drawn on; `content`: SHA-256 of the file, in hex. NIfTI names neither patient nor series.
    """

    kind: Kind
    content: str
    patient_id: str = ""
    issuer: str = ""
    series: str = ""
    frame: str = ""


@dataclass(frozen=True)
class VolumeFiles:
    """The slices of one series, in any order, and its mask, if it has one."""

    slices: tuple[Path, ...]
    mask: tuple[Kind, Path] | None


@dataclass(frozen=True, eq=False)
class Cut:
    """What became of one volume. `digest`: SHA-256 of its values; `slices`: digests of the slices that show anything; `look`
    uint8 [64, 64, 1]; `patches` uint8 [2 x half, S, S, 2] (volumes.py), or none and the `refusal` of its mask.
    """

    digest: bytes
    slices: tuple[bytes, ...]
    look: NDArray[np.uint8]
    refusal: Reason | None
    patches: NDArray[np.uint8]
