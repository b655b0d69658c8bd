"""The rows of metadata.csv as loaders read them: imagefolder's table and MONAI's datalist.

Guarantees: both follow from the signed table alone, so the server writes and a reader checks them
by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kohort.layout import PICTURES

Row = Mapping[str, str]


def folder_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the rows with `file_name` relative to data/train, where imagefolder looks."""
    shorter = []
    for row in rows:
        name = row["file_name"].removeprefix(f"{PICTURES}/")
        shorter.append({**row, "file_name": name})
    return shorter


def training_list(rows: Sequence[Row], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return MONAI's `training` list, paths relative to the release.

    A pair has its NIfTI mask as `label`, an image the index of its label in `labels`.
    """
    entries: list[dict[str, Any]] = []
    for row in rows:
        label: str | int = row.get("mask_nifti") or labels.index(row["label"])
        entries.append({"image": row["file_name"], "label": label})
    return entries
