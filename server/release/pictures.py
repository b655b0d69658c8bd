"""Writes the pictures of a release, their table and their contact sheet (step 5 of the build)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from common.arrays import Images, Pixels
from common.study.plan import Study
from kohort import layout
from kohort.forms import MASK, MASK_NIFTI
from kohort.png import Picture
from server.public_data.pictures import contact_sheet, marked_png_bytes, shrink, triptychs
from server.release.items import Items
from server.release.pairs import nifti_bytes

SHOWN_IMAGES = 198  # on the contact sheet
SHOWN_PAIRS = 48  # on the contact sheet and the page
PAIR_COLUMNS = 4
PAIR_GAP_PX = 8
IMAGE_HEADER = ("file_name", "label", "k", "grouping", "mechanism", "synthetic")
PAIR_HEADER = ("file_name", MASK, MASK_NIFTI, "label", "mechanism", "synthetic")
Progress = Callable[[int, int], None]
Row = tuple[str | int, ...]


def write_items(part: Path, items: Items, study: Study, progress: Progress) -> None:
    """Write pictures by label folder (torchvision's and Hugging Face's layout) and their table."""
    if items.masks is None:
        write_images(part, items, study, progress)
    else:
        write_pairs(part, items, items.masks, study, progress)


def write_images(part: Path, items: Items, study: Study, progress: Progress) -> None:
    """Write every picture, metadata.csv and the contact sheet of the first ones, made small."""
    # what the table says of every image
    groups: Row = (0, "none")
    if study.synthesis:
        groups = (study.synthesis.k, study.synthesis.grouping)

    # the pictures
    rows: list[Row] = []
    digests: dict[str, str] = {}
    columns = zip(items.images, items.labels, items.privatized, strict=True)
    for i, (image, stratum, privatized) in enumerate(columns):
        label = study.strata()[stratum]
        name = file_name(i, label)
        digests[name] = _write_picture(part / name, image)
        rows.append((name, label, *groups, _mechanism(study, bool(privatized)), "yes"))
        progress(i + 1, len(items.images))

    # the table, and the first pictures on one sheet: their order is a shuffle
    _write_table(part / layout.METADATA, IMAGE_HEADER, rows)
    _write(part / layout.PIXELS, pixels_json(digests))
    shown = np.stack([shrink(image) for image in items.images[:SHOWN_IMAGES]])
    _write(part / layout.CONTACT_SHEET, marked_png_bytes(contact_sheet(shown)))


def write_pairs(part: Path, items: Items, masks: Images, study: Study, progress: Progress) -> None:
    """Write every picture, and its mask under the same number as PNG and as NIfTI."""
    # pictures and masks
    rows: list[Row] = []
    digests: dict[str, str] = {}
    columns = zip(items.images, items.labels, masks, strict=True)
    for i, (image, stratum, mask) in enumerate(columns):
        label = study.strata()[stratum]
        name = file_name(i, label)
        png = f"masks/{i:05d}.png"
        nifti = f"masks/{i:05d}.nii.gz"
        digests[name] = _write_picture(part / name, image)
        digests[png] = _write_picture(part / png, mask)
        _write(part / nifti, nifti_bytes(mask))
        rows.append((name, png, nifti, label, "dp-generator", "yes"))
        progress(i + 1, len(items.images))

    # the table, and the first few pairs on one sheet
    _write_table(part / layout.METADATA, PAIR_HEADER, rows)
    _write(part / layout.PIXELS, pixels_json(digests))
    shown = triptychs(items.images[:SHOWN_PAIRS], masks[:SHOWN_PAIRS])
    sheet = contact_sheet(shown, columns=PAIR_COLUMNS, pad=PAIR_GAP_PX)
    _write(part / layout.CONTACT_SHEET, marked_png_bytes(sheet))


def file_name(index: int, label: str) -> str:
    """Return a picture's path in the release."""
    return f"{layout.PICTURES}/{label}/{index:05d}.png"


def pixel_digest(image: Pixels) -> str:
    """Return the digest by which `kohort detect` finds uint8 pixels [H, W], [H, W, 1] or [H, W, 3].

    It does not depend on the PNG around them (kohort/png.py).
    """
    height, width = image.shape[:2]
    rgb = np.broadcast_to(image.reshape(height, width, -1), (height, width, 3))
    return Picture(width, height, rgb.tobytes()).digest()


def pixels_json(digests: Mapping[str, str]) -> bytes:
    """Return the list of all pictures with the digests of their pixels."""
    return (json.dumps(digests, indent=0, sort_keys=True) + "\n").encode()


def _write_picture(path: Path, image: Pixels) -> str:
    """Write a picture that is marked as synthetic; returns the digest of its pixels."""
    _write(path, marked_png_bytes(image))
    return pixel_digest(image)


def _mechanism(study: Study, privatized: bool) -> str:
    """What made a picture, as metadata.csv says it."""
    synthesis = study.synthesis
    if privatized and synthesis and synthesis.privatize:
        return synthesis.privatize.mechanism
    return "average"


def _write_table(path: Path, header: Row, rows: Iterable[Row]) -> None:
    """Write a CSV file whose lines end in a newline alone."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(table.getvalue(), encoding="utf-8")


def _write(path: Path, data: bytes) -> None:
    """Write a file, and its folder where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
