"""Reads the hospital's labels file: which label, patient and eye belongs to which image.

In: a CSV (UTF-8, comma or semicolon) with a header that names its columns.
Out: `Labels`, asked once an image.
Guarantees: no cell of the file stands in any message.
Not covered: spreadsheets, other encodings.

  label       required: one of the study's labels
  patient     the patient id as in the DICOM header; required for photographs
  file        path below the source folder, or a file name that occurs once there; required for
              photographs
  laterality  optional: L or R; a DICOM header that names a side wins
  mask        studies of volumes only, optional: the NIfTI mask of the series that `file` is a slice
              of, or of the patient's only series; a path as for `file`

A row with a file speaks for that file. A row without one speaks for all images of the patient, or
for those of its side if it names one. A DICOM file's own patient id and the id in its row are taken
for the same person.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.ingest.persons import normalise_id
from client.ingest.quarantine import Reason, Unusable
from common.errors import ConfigurationError, damage_named
from common.storage.files import read_capped

COLUMNS = {"file", "patient", "label", "laterality"}
SIDES = {"": 0, "L": 1, "LEFT": 1, "OS": 1, "R": 2, "RIGHT": 2, "OD": 2}


@dataclass(frozen=True)
class Row:
    """One row, normalised; label as written."""

    patient: str
    label: str
    laterality: int


@dataclass(frozen=True)
class Labels:
    """Rows by file and by patient.

    `declared`: the study's labels, in order. `everywhere`: there is no labels file, and the only
    label fits all. `masks`: for each mask the (file, patient) of the rows that name it; either may
    be empty.
    """

    declared: tuple[str, ...]
    by_file: dict[str, list[Row]] = field(default_factory=dict)
    by_patient: dict[str, list[Row]] = field(default_factory=dict)
    everywhere: bool = False
    masks: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def row_of_files(self, relatives: Iterable[str]) -> Row | None:
        """Return the row that names one of these files of one image.

        Raises Unusable (ambiguous-label).
        """
        rows: list[Row] = []
        for relative in relatives:
            rows += self.by_file.get(file_key(relative), [])
        return _agree(rows)

    def row_of_patient(self, patient: str, laterality: int) -> Row | None:
        """Return the row for this patient's image of this side (0: side unknown).

        Raises Unusable (ambiguous-label).
        """
        rows = self.by_patient.get(normalise_id(patient), [])
        if not laterality:
            return _agree(rows)
        # rows of this side, else those that name no side
        by_side: dict[int, list[Row]] = {}
        for row in rows:
            by_side.setdefault(row.laterality, []).append(row)
        return _agree(by_side.get(laterality) or by_side.get(0, []))

    def index(self, row: Row | None) -> int:
        """Return the label's position among the declared ones.

        Raises Unusable (no-label, unknown-label).
        """
        if self.everywhere:
            return 0
        if row is None:
            raise Unusable(Reason.NO_LABEL)
        if row.label not in self.declared:
            raise Unusable(Reason.UNKNOWN_LABEL)
        return self.declared.index(row.label)


def _agree(rows: Sequence[Row]) -> Row | None:
    """The row that all rows agree on; a side in which they differ is unknown."""
    if not rows:
        return None
    if len({(row.patient, row.label) for row in rows}) > 1:
        raise Unusable(Reason.AMBIGUOUS_LABEL)
    sides = {row.laterality for row in rows}
    laterality = 0
    if len(sides) == 1:
        laterality = sides.pop()
    return Row(rows[0].patient, rows[0].label, laterality)


def file_key(text: str) -> str:
    """Return a path below the source in the form in which rows and files are compared."""
    return unicodedata.normalize("NFC", text).strip().replace("\\", "/").removeprefix("./")


def read_labels(
    path: Path | None,
    declared: Sequence[str],
    files: Iterable[str],
    max_bytes: int,
    *,
    masks: bool = False,
) -> Labels:
    """Return the labels in `path` for a study with `declared` labels and `files` (relative paths).

    `masks`: the column `mask` is allowed. Raises ConfigurationError: no file although the study has
    several labels; not UTF-8; a missing, unknown or doubled column.
    """
    if path is None:
        if len(declared) == 1:
            return Labels(tuple(declared), everywhere=True)
        raise ConfigurationError(
            f"the study declares {len(declared)} labels, but no labels file was given", hint=_HINT
        )

    # the columns that this study's file may have
    allowed = COLUMNS
    if masks:
        allowed = COLUMNS | {"mask"}
    reader = _reader(path, max_bytes, allowed)

    # its rows
    labels = Labels(tuple(declared))
    full_names = _unique_names(files)
    try:
        for row in reader:
            # a short row lacks cells: they count as empty
            cells = {name: (row.get(name) or "").strip() for name in (*COLUMNS, "mask")}
            _take(labels, cells, full_names)
    except csv.Error as error:
        raise ConfigurationError(
            f"{path}: line {reader.line_num}: not a CSV row", hint=_HINT
        ) from error
    return labels


_HINT = "give a CSV with the columns patient,label[,laterality] or file,patient,label[,laterality]"


def _unique_names(files: Iterable[str]) -> dict[str, str]:
    """Relative paths by bare file name, for the names that occur once below the source."""
    paths: dict[str, list[str]] = {}
    for name in files:
        key = file_key(name)
        paths.setdefault(key.rpartition("/")[2], []).append(key)
    unique = {}
    for bare, full in paths.items():
        if len(full) == 1:
            unique[bare] = full[0]
    return unique


def _reader(path: Path, max_bytes: int, columns: set[str]) -> csv.DictReader[str]:
    """Open the file as CSV; its header must name known columns, each once."""
    # text
    try:
        text = read_capped(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: not UTF-8 text", hint="export the table as CSV in UTF-8"
        ) from error

    # the delimiter is the one that occurs more often in the header
    first = text.partition("\n")[0]
    delimiter = ","
    if first.count(";") > first.count(","):
        delimiter = ";"
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)

    # the header
    damage = ConfigurationError(f"{path}: line 1: not a CSV row", hint=_HINT)
    with damage_named(damage):
        names = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if (
        "label" not in names
        or not {"file", "patient"} & set(names)
        or len(set(names)) != len(names)
        or set(names) - columns
    ):
        raise ConfigurationError(
            f"{path}: line 1: expected columns among {sorted(columns)}, label among them",
            hint=_HINT,
        )
    return reader


def _take(labels: Labels, cells: dict[str, str], full_names: dict[str, str]) -> None:
    """Add one row by its file, else by its patient; a row with neither belongs to nobody."""
    laterality = SIDES.get(cells["laterality"].upper(), 0)
    row = Row(normalise_id(cells["patient"]), cells["label"], laterality)

    # a bare name stands for its only path
    file = file_key(cells["file"])
    file = full_names.get(file, file)
    mask = file_key(cells["mask"])
    mask = full_names.get(mask, mask)

    if mask and (file or row.patient):
        labels.masks.setdefault(mask, []).append((file, row.patient))
    if file:
        labels.by_file.setdefault(file, []).append(row)
    elif row.patient:
        labels.by_patient.setdefault(row.patient, []).append(row)
