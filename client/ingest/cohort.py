"""Reads a frozen, patient-indexed cohort on the hospital's disk.

Guarantees: `verify` compares a digest over everything that a reader sees.
Not covered: how a cohort is built (build.py).

A cohort's folder holds
  images.npy      uint8 [N, S, S, C], memory-mapped; of volumes, patches with C = 2: image and mask
                  (0 or 255)
  index.sqlite    patients (pseudonym, aliases) and images (patient, label, side, keyed digest)
  quarantine.csv  opaque file id and reason code of everything that did not enter; `build.locate`
                  finds the file again, on site
  cohort.json     label names, counts, key fingerprint, and the digest over all but the quarantine
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import RefusedError
from common.storage.files import read_capped
from common.wire.messages import canonical

FORMAT = "kohort-cohort-1"
CHUNK_ROWS = 256


@dataclass(frozen=True, eq=False)
class Cohort:
    """Frozen images by patient.

    `images`: uint8 [N, H, W, C], memory-mapped. `patient_of`, `labels`: int64 [N]. `laterality`:
    int8 [N] (0 unknown, 1 left, 2 right). `pseudonyms[p]` names patient p. `aliases[p]` holds every
    pseudonym of that person, sorted.
    """

    folder: Path
    images: NDArray[np.uint8]
    patient_of: NDArray[np.int64]
    labels: NDArray[np.int64]
    laterality: NDArray[np.int8]
    pseudonyms: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    label_names: tuple[str, ...]
    digest: str

    @property
    def patient_count(self) -> int:
        """Return the number of distinct persons."""
        return len(self.pseudonyms)

    def images_of(self, patient: int) -> NDArray[np.int64]:
        """Return the positions of one patient's images."""
        return np.flatnonzero(self.patient_of == patient)

    @classmethod
    def open(cls, folder: Path) -> Cohort:
        """Return the cohort in `folder`; raises RefusedError when its parts do not fit together."""
        try:
            # the three files
            facts = json.loads(read_capped(folder / "cohort.json", 1 << 20))
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            rows, names, other_names = _read_index(folder / "index.sqlite")
            index = np.array(rows, dtype=np.int64).reshape(-1, 3)
            shape = (len(index), facts["size_px"], facts["size_px"], facts["channels"])
            # the parts must fit together: every image has a patient, every patient an image
            whole = facts["format"] == FORMAT and images.shape == shape and images.dtype == np.uint8
            if not whole or set(index[:, 0].tolist()) != set(range(len(names))):
                raise ValueError
            label_names = tuple(facts["label_names"])
            digest = str(facts["digest"])
        except (OSError, ValueError, KeyError, TypeError, sqlite3.Error) as error:
            raise RefusedError(
                f"{folder}: not a whole cohort of {FORMAT}", hint="ingest again into a new folder"
            ) from error
        return cls(
            folder,
            images,
            patient_of=index[:, 0].copy(),
            labels=index[:, 1].copy(),
            laterality=index[:, 2].astype(np.int8),
            pseudonyms=names,
            aliases=other_names,
            label_names=label_names,
            digest=digest,
        )

    def verify(self) -> None:
        """Read everything and raise RefusedError when the digest does not fit."""
        found = digest_contents(
            self.images,
            self.patient_of,
            self.labels,
            self.laterality,
            self.aliases,
            self.label_names,
        )
        if found != self.digest:
            raise RefusedError(
                f"{self.folder}: the cohort's digest does not fit its images", hint="ingest again"
            )


def _read_index(
    path: Path,
) -> tuple[list[tuple[int, int, int]], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return (patient, label, laterality) by image; by patient the pseudonym, and all of them."""
    # read-only and immutable: no lock, no journal, no write on the hospital's disk
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as index:
        rows = index.execute(
            "SELECT patient, label, laterality FROM image ORDER BY image"
        ).fetchall()
        patients = index.execute("SELECT pseudonym FROM patient ORDER BY patient")
        names = tuple(name for (name,) in patients)
        other: list[list[str]] = [[] for _ in names]
        for patient, name in index.execute(
            "SELECT patient, pseudonym FROM alias ORDER BY patient, pseudonym"
        ):
            other[patient].append(name)
    return rows, names, tuple(map(tuple, other))


def digest_contents(
    images: NDArray[np.uint8],
    patient_of: NDArray[np.int64],
    labels: NDArray[np.int64],
    laterality: NDArray[np.int8],
    names: Sequence[tuple[str, ...]],
    label_names: Sequence[str],
) -> str:
    """Return the SHA-256, in hex, over everything that a reader of the cohort sees."""
    digest = hashlib.sha256(
        canonical([FORMAT, list(images.shape), list(label_names), [list(own) for own in names]])
    )
    # little-endian, so that the digest is the same on every machine
    for array in (patient_of.astype("<i8"), labels.astype("<i8"), laterality.astype("i1")):
        digest.update(array.tobytes())
    # the images in blocks: they need not fit into memory
    for start in range(0, len(images), CHUNK_ROWS):
        digest.update(np.ascontiguousarray(images[start : start + CHUNK_ROWS]).tobytes())
    return digest.hexdigest()
