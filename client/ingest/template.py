"""Writes a labels file to fill in, and says what a labels file fits, without decoding an image.

In: the data folder, and what each file shows at a glance (glance.py).
Out: a CSV; or `Labels` whose `match` is filled.
Guarantees: no pixel is decoded; a look at headers ends after MOST_HEADERS files or MOST_S seconds,
and says so.
Not covered: whether an image enters; ingest alone decides that.

The rows of a template:
  - a photograph without a header: its file; somebody fills in the patient
  - DICOM with a usable id: the patient, for all images; where sides count, one row a side
  - DICOM without one: its file
  - MR series: one slice, and the patient; where the mask is NIfTI, somebody fills it in
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from client.ingest import decode
from client.ingest.labels import Labels, Wording, read_labels
from client.ingest.persons import is_placeholder, normalise_id
from client.ingest.quarantine import Unusable
from client.ingest.request import Glance, Limits, Settings

MOST_HEADERS = 1000
MOST_S = 20.0
MODALITIES = ("OP", "CR", "DX", "MR")
SIDES = ("", "L", "R")
FORMULA = ("=", "+", "-", "@")  # what makes a spreadsheet compute a cell

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What studies ask of a labels file; without any, every kind of file counts.

    `labels`: the study's; `modalities`: of its DICOM files; `volumes`: MR series with masks;
    `sides`: left and right are kept apart.
    """

    labels: tuple[str, ...] = ()
    modalities: tuple[str, ...] = MODALITIES
    volumes: bool = False
    sides: bool = False


@dataclass(frozen=True)
class Template:
    """A labels file to fill in: its text and what it holds."""

    text: str
    rows: int
    files: int
    unused: int


def write_template(
    files: Mapping[str, Path], asked: Asked, limits: Limits, progress: Progress
) -> Template:
    """Return a labels file for these files; `progress(done, total)` counts files."""
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    unused = 0
    for done, (name, seen) in enumerate(_glances(files, list(files), asked, limits), 1):
        progress(done, len(files))
        if isinstance(seen, Unusable) or seen.kind == "nifti":
            unused += 1
            continue
        key, row = _row(name, seen, asked)
        rows.setdefault(key, row)
    text = io.StringIO()
    table = csv.writer(text)
    columns = ["file", "patient", "label", "laterality"]
    table.writerow([*columns, "mask"] if asked.volumes else columns)
    label = asked.labels[0] if len(asked.labels) == 1 else ""
    for file, patient, side in sorted(rows.values()):
        cells = [_cell(file), _cell(patient), label, side]
        table.writerow([*cells, ""] if asked.volumes else cells)
    return Template(text.getvalue(), len(rows), len(files), unused)


def _row(name: str, seen: Glance, asked: Asked) -> tuple[tuple[str, ...], tuple[str, str, str]]:
    """What is one row, and its file, patient and side."""
    patient = normalise_id(seen.patient_id)
    if is_placeholder(patient):
        return ("file", name), (name, "", "")
    if asked.volumes:
        return ("series", patient, seen.series), (name, patient, "")
    side = SIDES[seen.laterality] if asked.sides else ""
    return ("patient", patient, side), ("", patient, side)


def _cell(text: str) -> str:
    """A cell that a spreadsheet shows and does not compute; the space is not read."""
    return f" {text}" if text.startswith(FORMULA) else text


def _glances(
    files: Mapping[str, Path], names: Sequence[str], asked: Asked, limits: Limits
) -> Generator[tuple[str, Glance | Unusable], None, None]:
    """Yield each name with what its file shows, in order."""
    settings = Settings(
        size_px=32,
        channels=1,
        modalities=asked.modalities,
        window=None,
        max_file_bytes=limits.max_file_bytes,
        max_pixel_bytes=limits.max_pixel_bytes,
        memory_bytes=limits.decode_memory_bytes,
        timeout_s=limits.decode_timeout_s,
    )
    paths = [files[name] for name in names]
    with decode.decoders(settings, limits.workers) as pool:
        seen = pool.each(lambda decoder, path: decoder.glance(path), paths)
        yield from zip(names, seen, strict=True)


def compare_labels(
    files: Mapping[str, Path], labels_csv: Path, asked: Asked, wording: Wording, limits: Limits
) -> tuple[Labels, str]:
    """Return the labels with what fits, and what was looked at if that is not every file.

    Where every row names a file, no header is read: the names tell. Raises ConfigurationError for a
    table that cannot be read.
    """
    labels = read_labels(
        labels_csv,
        asked.labels,
        files,
        limits.max_labels_bytes,
        masks=asked.volumes,
        wording=wording,
    )
    if not labels.match.patient_rows:
        labels.match.unit = "files"
        for name in files:
            labels.match.note_image(labelled=_has_row(labels, [name], Glance("photograph")))
        return labels, ""
    looked = _compare_headers(files, asked, labels, limits)
    if looked == len(files):
        return labels, ""
    return labels, f"the headers of {looked:,} of {len(files):,} files were looked at"


def _compare_headers(
    files: Mapping[str, Path], asked: Asked, labels: Labels, limits: Limits
) -> int:
    """Note which images have a row; return how many files were looked at, evenly spread."""
    step = max(1, -(-len(files) // MOST_HEADERS))
    looked = 0
    series: dict[tuple[str, str], list[str]] = {}
    deadline = time.monotonic() + MOST_S
    with closing(_glances(files, list(files)[::step], asked, limits)) as glances:
        for name, seen in glances:
            looked += 1
            if isinstance(seen, Unusable) or seen.kind == "nifti":
                continue
            if asked.volumes:
                series.setdefault((seen.patient_id, seen.series), []).append(name)
            else:
                labels.match.note_image(labelled=_has_row(labels, [name], seen))
            if time.monotonic() > deadline:
                break
    # a row names one slice of its series
    for (patient, _), names in series.items():
        labels.match.note_image(labelled=_has_row(labels, names, Glance("dicom", patient)))
    return looked


def _has_row(labels: Labels, names: Sequence[str], seen: Glance) -> bool:
    """Whether the labels file has a row, or several that differ, for what a file shows."""
    try:
        row = labels.row_of_files(names)
        return (row or labels.row_of_patient(seen.patient_id, seen.laterality)) is not None
    except Unusable:
        return True
