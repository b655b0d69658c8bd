"""Roles for the NIH chest radiographs: half of the patients public, the others members or held out.

    python -m benchmarks.chest_split FILE.npz --role public --out public.npz

In: cxr_nih_covid_64.npz. Its COVID-19 images have no patient id and are left out.
Guarantees: a patient has one role, by a hash of the id alone, with all images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.storage.files import atomic_write, read_capped

ROLES = ("public", "members", "heldout")
PUBLIC_SHARE = 0.5  # of the patients
MEMBER_SHARE = 0.3  # the rest are held out
LABELS = ("no finding", "pneumonia")
CAP_BYTES = 1 << 28


@dataclass(frozen=True)
class Radiographs:
    """One role: uint8 images [N, 64, 64, 1], label 0 or 1 [N], patient index [N], names [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patient_of: NDArray[np.int64]
    names: tuple[str, ...]


def role_of(patients: NDArray[Any]) -> dict[str, str]:
    """Return each patient's role; `patients` are ids, in any order, with repetitions."""
    order = sorted(
        set(patients.tolist()),
        key=lambda name: hashlib.sha256(f"kohort-chest\0{name}".encode()).hexdigest(),
    )
    first = round(PUBLIC_SHARE * len(order))
    second = round((PUBLIC_SHARE + MEMBER_SHARE) * len(order))
    return {name: ROLES[(i >= first) + (i >= second)] for i, name in enumerate(order)}


def radiographs(file: Path, role: str) -> Radiographs:
    """Return the NIH radiographs of the patients with this role."""
    with np.load(io.BytesIO(read_capped(file, CAP_BYTES)), allow_pickle=False) as data:
        found = {name: data[name] for name in ("images", "labels", "patient", "name")}
    nih = found["labels"] < len(LABELS)
    roles = role_of(found["patient"][nih])
    keep = np.array(
        [ours and roles[p] == role for ours, p in zip(nih, found["patient"], strict=True)]
    )
    images = found["images"][keep][..., None]
    _, patient_of = np.unique(found["patient"][keep], return_inverse=True)
    names = tuple(str(name) for name in found["name"][keep])
    return Radiographs(
        images, found["labels"][keep].astype(np.int64), patient_of.astype(np.int64), names
    )


def main() -> None:
    """Write one role's radiographs as an .npz that `kohort-server pretrain` reads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--role", choices=ROLES, default="public")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = radiographs(options.file, options.role)
    stream = io.BytesIO()
    np.savez_compressed(stream, images=found.images, names=np.array(found.names))
    atomic_write(options.out, stream.getvalue())
    print(
        f"{options.out}: {len(found.images)} radiographs of {found.patient_of.max() + 1} patients"
    )


if __name__ == "__main__":
    main()
