"""Writes the files of a cohort that cohort.py reads: index, pixels and facts.

In: each patient's pseudonyms, each image's patient and record, the pixels block by block.
Out: index.sqlite, images.npy, cohort.json in a folder that is not a cohort yet.
Guarantees: each image stands with its patient; a full disk is an error, not the end of the process.
Not covered: what enters (build.py).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.cohort import FORMAT
from client.ingest.persons import ImageRecord, keyed_hash
from common.study.intake import Intake
from common.wire.messages import canonical

SCHEMA = """
CREATE TABLE patient (patient INTEGER PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE alias (pseudonym TEXT PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient) STRICT;
CREATE TABLE image (image INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient,
                    label INTEGER NOT NULL, laterality INTEGER NOT NULL,
                    digest TEXT NOT NULL) STRICT;
"""

Progress = Callable[[int, int], None]


def write_index(
    path: Path, names: Sequence[tuple[str, ...]], images: Sequence[tuple[int, ImageRecord]]
) -> None:
    """Write index.sqlite: each patient's pseudonyms, and each image's patient and record."""
    with closing(sqlite3.connect(path)) as index, index:
        index.executescript(SCHEMA)
        for patient, own in enumerate(names):
            index.execute("INSERT INTO patient VALUES (?, ?)", (patient, own[0]))
        for patient, own in enumerate(names):
            index.executemany("INSERT INTO alias VALUES (?, ?)", ((name, patient) for name in own))
        for row, (patient, record) in enumerate(images):
            values = (row, patient, record.label, record.laterality, record.digest)
            index.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?)", values)


def write_images(
    path: Path, blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], progress: Progress
) -> Iterator[NDArray[np.uint8]]:
    """Write uint8 `blocks` as one .npy of `shape`, as far as they are asked for; yield each."""
    # by plain writes: on a full disk a memory map would kill the process
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        done = 0
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)
            yield block
            done += len(block)
            progress(done, shape[0])


def write_facts(
    folder: Path, intake: Intake, key: bytes, counts: tuple[int, int], digest: str
) -> None:
    """Write cohort.json; `counts`: images and patients."""
    images, patients = counts
    facts = {
        "format": FORMAT,
        "images": images,
        "patients": patients,
        "size_px": intake.size_px,
        "channels": intake.planes,
        "label_names": list(intake.labels),
        "intake": hashlib.sha256(canonical(intake.hashed_fields())).hexdigest(),
        "key_fingerprint": keyed_hash(key, "fingerprint"),
        "digest": digest,
    }
    (folder / "cohort.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
