"""The rows of metadata.csv as loaders read them: imagefolder's table and MONAI's datalist.

Guarantees: both follow from the signed table alone, so the server writes and a reader checks them
by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kohort.layout import PICTURES

Row = Mapping[str, str]
MASK = "mask_file_name"  # a name that imagefolder reads as a picture
MASK_1 = "mask"  # the same in format 1
MASK_NIFTI = "mask_nifti"


def mask_of(row: Row) -> str:
    """Return the path of a row's mask as PNG; empty where it has none."""
    return row.get(MASK) or row.get(MASK_1) or ""


def folder_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the rows with `file_name` relative to data/train, where imagefolder looks.

    Without masks, which lie in another folder: it follows no path out of its own.
    """
    shorter = []
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in (MASK, MASK_NIFTI)}
        shorter.append({**kept, "file_name": row["file_name"].removeprefix(f"{PICTURES}/")})
    return shorter


def training_list(rows: Sequence[Row], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return MONAI's `training` list, paths relative to the release.

    A pair has its NIfTI mask as `label`, an image the index of its label in `labels`.
    """
    entries: list[dict[str, Any]] = []
    for row in rows:
        label: str | int = row.get(MASK_NIFTI) or labels.index(row["label"])
        entries.append({"image": row["file_name"], "label": label})
    return entries
