"""Writes an invented hospital's MR export with vessel masks, with known truth.

In: phantom volumes (server/public_data/phantoms.py).
Out: a folder of MR slices, DICOM SEG and NIfTI masks, a labels file, and `Truth`.
Guarantees: the same hospital index and volumes give the same bytes; every identifying string stands
in `Truth.identifiers`; no file's name says where its slice lies.
Not covered: anything but test data; DICOM conformance beyond what readers need.

The files differ as those of real hospitals do: oblique grids, slice numbers that count backwards,
stored values of five kinds, masks of two formats, repeated scans, one volume under two patient ids.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.demo.export import Export, Person, Truth, invent_person, write_labels
from server.demo.vessel_masks import write_mask, write_segmentation
from server.demo.vessel_series import (
    Scan,
    Volume,
    new_path,
    oblique_affine,
    write_header,
    write_slices,
)

BROKEN = ("missing-slice", "no-mask", "mask-grid", "truncated", "not-dicom")
STORED = ("plain", "rescaled", "signed", "inverted", "run-length")
NIFTI_EVERY = 3
SECOND_SCANS = 2


def write_vessel_hospital(
    volumes: Sequence[Volume], out: Path, hospital_index: int, *, label: str = "vessels"
) -> Truth:
    """Write `out`/dicom and `out`/labels.csv, one person for each of `volumes`.

    Returns the truth; `Truth.broken` counts the files of the broken series.
    Raises OSError when `out` cannot be written.
    """
    (out / "dicom").mkdir(parents=True)
    chance = random.Random(f"kohort demo vessel hospital {hospital_index}")
    export = Export(out / "dicom", chance, f"{hospital_index:02d}")
    rows = [("patient", "label", "mask")]
    second_every = max(1, len(volumes) // SECOND_SCANS)
    for number, volume in enumerate(volumes):
        # one series with its mask for each person
        person = invent_person(export, "")
        scan = _scan(export, person, volume.image, volume.mask, number)
        write_slices(export, person, scan)
        nifti = number % NIFTI_EVERY == 2
        mask = write_mask(export, person, scan, number, nifti=nifti)
        rows.append((person.patient_id, label, mask))

        # a second scan for a few, and the first volume once more under another patient id
        if not nifti and number % second_every == 0:
            later = _scan_again(volume.image, chance)
            _write_segmented(export, person, later, volume.mask, number + 1)
        if number == 0:
            alias = invent_person(export, "")
            rows.append((alias.patient_id, label, ""))
            _write_segmented(export, alias, volume.image, volume.mask, number)

    # one broken series of each kind
    whole = export.files
    for kind in BROKEN:
        person = invent_person(export, "")
        rows.append((person.patient_id, label, ""))
        _write_broken(export, person, kind, volumes[-1])
    write_labels(out / "labels.csv", rows)
    return export.truth(out, len(volumes), export.files - whole, {label: len(volumes)})


def _write_segmented(
    export: Export, person: Person, image: NDArray[np.float32], mask: NDArray[np.uint8], number: int
) -> None:
    """Write a series and its mask as DICOM SEG."""
    scan = _scan(export, person, image, mask, number)
    write_slices(export, person, scan)
    write_segmentation(export, person, scan)


def _scan(
    export: Export, person: Person, image: NDArray[np.float32], mask: NDArray[np.uint8], number: int
) -> Scan:
    """A new series on an oblique grid of its own."""
    stored = STORED[number % len(STORED)]
    head = write_header(export, person)
    return Scan(image, mask, oblique_affine(export.chance), head, stored, backwards=number % 2 == 1)


def _scan_again(image: NDArray[np.float32], chance: random.Random) -> NDArray[np.float32]:
    """The same person, scanned again a little later."""
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, 0.02, image.shape)
    return np.clip(np.roll(image, 1, axis=2) + noise, 0, 1).astype(np.float32)


def _write_broken(export: Export, person: Person, kind: str, volume: Volume) -> None:
    """Write one series that cannot be used, for the reason that `kind` names.

    Its pixels are turned, so that they equal nobody else's.
    """
    if kind == "not-dicom":
        new_path(export, person, ".log").write_bytes(f"export log of {person.name}\n".encode())
        return
    turned = BROKEN.index(kind)
    image = np.ascontiguousarray(np.rot90(volume.image[::-1], turned, axes=(1, 2)))
    mask = np.ascontiguousarray(np.rot90(volume.mask[::-1], turned, axes=(1, 2)))
    scan = _scan(export, person, image, mask, 0)

    # damage the slices
    slices = write_slices(export, person, scan)
    if kind == "missing-slice":
        slices[len(slices) // 2].unlink()
        export.files -= 1
    elif kind == "truncated":
        slices[1].write_bytes(slices[1].read_bytes()[: -image[1].size])  # half of its pixels

    # write the mask on another grid, on the series' own, or not at all
    if kind == "mask-grid":
        moved = scan.affine.copy()
        moved[:3, 3] += 3.0
        write_segmentation(export, person, replace(scan, affine=moved))
    elif kind != "no-mask":
        write_segmentation(export, person, scan)
