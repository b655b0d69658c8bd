"""The rows of metadata.csv, each with the digests that SHA256SUMS has for its files.

Guarantees: a row names files that a release may hold, and that SHA256SUMS lists; nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.forms import mask_of
from kohort.layout import METADATA, SUMS, TEXT_CAP_BYTES, parse_sums
from kohort.verification import read_rows


@dataclass(frozen=True)
class Row:
    """One image: its file and its mask's file below the release, their SHA-256, and its label.

    `mask` and `mask_digest` are empty where the release is not of pairs. `facts` are all columns
    of metadata.csv as text, such as `k` and `mechanism`.
    """

    file: str
    digest: str
    label: str
    mask: str
    mask_digest: str
    facts: dict[str, str]


def read_table(folder: Path, labels: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows in the table's order; raises RefusedError for a file that is not listed."""
    digests = parse_sums(read_capped(folder / SUMS, TEXT_CAP_BYTES))
    return tuple(_row(facts, digests, labels) for facts in read_rows(folder, METADATA))


def _row(facts: dict[str, str], digests: dict[str, str], labels: tuple[str, ...]) -> Row:
    """One row; its names are looked up, so that none leads out of the folder."""
    file = facts.get("file_name") or ""
    mask = mask_of(facts)
    label = facts.get("label") or ""
    for name in (file, mask) if mask else (file,):
        if name not in digests:
            raise RefusedError(f"{METADATA}: {name!r} is not listed in {SUMS}")
    if label not in labels:
        raise RefusedError(f"{METADATA}: {file}: label {label!r}, expected one of {labels}")
    return Row(file, digests[file], label, mask, digests.get(mask, ""), facts)
