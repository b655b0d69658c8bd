"""One published release as the catalogue shows it.

In: the folder of a release that was verified. Out: a `Shown`: its entry, its documents, pictures.
Guarantees: every figure comes from the release's own signed files.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from common.arrays import Pixels
from common.errors import RefusedError, damage_named
from common.problems import describe
from common.storage.files import file_digest, read_capped
from common.study.plan import load_study
from kohort import layout, signatures
from kohort.catalogue import Entry, folder_of
from kohort.forms import mask_of
from kohort.manifest import Manifest, read_manifest
from kohort.sign_off import read_sign_offs

PICTURES = 24
PAIRS = 8
SHEETS = (layout.CONTACT_SHEET, "contact_sheet.png")  # the second of format 1
REPORTS = (layout.FINDINGS, "evaluation.json")


@dataclass(frozen=True)
class Picture:
    """One picture to show: its file, its label, its pixels, and those of its mask."""

    file: str
    label: str
    pixels: Pixels
    mask: Pixels | None = None


@dataclass(frozen=True)
class Shown:
    """A release: entry, manifest, statement, report, images a label, the contact sheet's path.

    `by`: the signers who vouch for it besides the operator.
    """

    folder: Path
    entry: Entry
    manifest: Manifest
    statement: Mapping[str, Any]
    report: Mapping[str, Any]
    counts: Mapping[str, int]
    rows: tuple[Mapping[str, str], ...]
    sheet: str
    by: tuple[str, ...]

    def pictures(self) -> list[Picture]:
        """Return the first pictures of each label, as many of each as of the others."""
        most = PAIRS if self.entry.k is None else PICTURES
        each = max(1, most // len(self.counts))
        taken: Counter[str] = Counter()
        found = []
        for row in self.rows:
            label = row["label"]
            if taken[label] < each:
                taken[label] += 1
                mask = mask_of(row)
                pixels = _pixels(self.folder / row["file_name"])
                outline = _pixels(self.folder / mask) if mask else None
                found.append(Picture(row["file_name"], label, pixels, outline))
        return found


def read_shown(folder: Path) -> Shown:
    """Return what a verified release says of itself.

    Raises RefusedError for one whose texts no catalogue may hold.
    """
    manifest = read_manifest(folder)
    rows = _rows(folder)
    counts = {label: 0 for label in manifest.labels}
    for row in rows:
        counts[row["label"]] += 1
    sums = read_capped(folder / layout.SUMS, layout.TEXT_CAP_BYTES)
    signed = tuple(one.name for one in read_sign_offs(folder, manifest, sums))
    names = {entry.path for entry in manifest.files}
    return Shown(
        folder=folder,
        entry=_entry(folder, manifest),
        manifest=manifest,
        statement=_json(folder / "privacy_statement.json"),
        report=_json(folder / next(name for name in REPORTS if name in names)),
        counts=counts,
        rows=rows,
        sheet=next((name for name in SHEETS if name in names), ""),
        by=signed,
    )


def _entry(folder: Path, manifest: Manifest) -> Entry:
    """Its row of the catalogue."""
    fields = {
        "name": manifest.name,
        "version": manifest.version,
        "path": folder_of(manifest.name, manifest.version),
        "sums": file_digest(folder / layout.SUMS),
        "key": signatures.fingerprint(signatures.parse_public(manifest.operator_key)),
        "title": manifest.title,
        "date": manifest.date,
        "licence": load_study(folder / "study.yaml").release.licence,
        "images": manifest.images,
        "labels": manifest.labels,
        "sites": len(manifest.sites),
        "size_bytes": sum(entry.size_bytes for entry in manifest.files),
        "k": manifest.k,
        "grouping": manifest.grouping,
        "epsilon": manifest.epsilon,
        "delta": manifest.delta,
    }
    try:
        return Entry.model_validate(fields)
    except ValidationError as error:
        said = "; ".join(describe(item) for item in error.errors())
        raise RefusedError(
            f"{folder}: cannot stand in a catalogue: {said}",
            hint="build it anew from a plan whose texts stand on one line",
        ) from error


def _rows(folder: Path) -> tuple[Mapping[str, str], ...]:
    """The table of its images."""
    text = read_capped(folder / layout.METADATA, layout.TEXT_CAP_BYTES).decode()
    return tuple(csv.DictReader(io.StringIO(text, newline="")))


def _json(path: Path) -> dict[str, Any]:
    """One of its documents."""
    with damage_named(RefusedError(f"{path}: not a JSON object")):
        return dict(json.loads(read_capped(path, layout.TEXT_CAP_BYTES)))


def _pixels(path: Path) -> Pixels:
    """One picture, uint8 [H, W] or [H, W, 3]."""
    with damage_named(RefusedError(f"{path}: not a picture")), Image.open(path) as picture:
        return np.asarray(picture.convert("RGB" if picture.mode != "L" else "L"))
