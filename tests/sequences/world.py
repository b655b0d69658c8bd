"""The patients of one invented hospital, and their photographs on its disk.

In: what happens to them (arrivals, new photographs, further ids). Out: a data folder, a labels
file, and a decoder that reads both in this process.
Guarantees: every photograph is known by its pixels, whatever the product calls its patient.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.ingest.request import Photograph, Settings
from common.arrays import Images

LABELS = ("none", "severe")
SIZES = (32, 64)
BLOCKS = 8  # of one random shade each along a side


@dataclass
class Patient:
    """One person: label, ids, and the number of the photograph in each file."""

    label: str
    ids: list[str] = field(default_factory=list)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    photographs: int = 1


@dataclass
class World:
    """Everybody who was ever a patient. `shown_by`: whose photograph some pixels are."""

    folder: Path
    patients: list[Patient] = field(default_factory=list)
    shown_by: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    @property
    def labels_csv(self) -> Path:
        """The labels file, beside the folder of photographs."""
        return self.folder.with_name("labels.csv")

    def arrive(self, label: str, ids: int = 1) -> int:
        """Add a patient with one photograph, which lies under each id; return the number."""
        person = len(self.patients)
        self.patients.append(Patient(label))
        for _ in range(ids):
            self.add_id(person)
        return person

    def add_id(self, person: int) -> None:
        """Give a person a further id, under which the newest photograph lies again."""
        patient = self.patients[person]
        name = f"id-{person}-{len(patient.ids)}"
        patient.ids.append(name)
        self._put(person, name, patient.photographs - 1)

    def add_view(self, person: int) -> None:
        """Add a photograph, under the first id alone."""
        patient = self.patients[person]
        patient.photographs += 1
        self._put(person, patient.ids[0], patient.photographs - 1)

    def photograph_again(self, person: int) -> None:
        """Replace all of a person's photographs by a new one."""
        patient = self.patients[person]
        for name in patient.files:
            (self.folder / name).unlink()
        patient.files = {}
        patient.photographs += 1
        for name in patient.ids:
            self._put(person, name, patient.photographs - 1)

    def person_of(self, image: Images) -> tuple[int, int]:
        """Return person and photograph of pixels; raises KeyError for nobody's."""
        return self.shown_by[_key(image)]

    def persons_of(self, images: Iterable[Images]) -> frozenset[tuple[int, int]]:
        """Return person and photograph of every image."""
        return frozenset(self.person_of(image) for image in images)

    def decode_all(
        self, paths: Sequence[Path], settings: Settings, workers: int
    ) -> Iterator[Photograph]:
        """Read the hospital's files as its decoding child would."""
        for path in paths:
            yield self.decode(path, settings.size_px)

    def decode(self, path: Path, size_px: int) -> Photograph:
        """Return the photograph in a file."""
        facts = json.loads(path.read_text())
        pixels = draw(facts["person"], facts["photograph"], size_px)
        digest = hashlib.sha256(f"{facts['person']}/{facts['photograph']}".encode()).digest()
        return Photograph(pixels, digest, True, facts["id"], "", 0)

    def _put(self, person: int, name: str, photograph: int) -> None:
        """Put a file into the folder, and write the labels of all files beside it."""
        self.folder.mkdir(exist_ok=True)
        file = f"{name}-{photograph}.photo"
        facts = {"id": name, "person": person, "photograph": photograph}
        (self.folder / file).write_text(json.dumps(facts))
        self.patients[person].files[file] = (name, photograph)
        for size in SIZES:
            self.shown_by[_key(draw(person, photograph, size))] = (person, photograph)
        with open(self.labels_csv, "w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(("file", "patient", "label"))
            for patient in self.patients:
                for known, (owner, _) in patient.files.items():
                    writer.writerow((known, owner, patient.label))


def draw(person: int, photograph: int, size_px: int) -> Images:
    """Return one photograph: uint8 [S, S, 3], unlike every other."""
    random = np.random.default_rng((person, photograph))
    shades = random.integers(0, 256, (BLOCKS, BLOCKS, 3), dtype=np.uint8)
    return shades.repeat(size_px // BLOCKS, 0).repeat(size_px // BLOCKS, 1)


def _key(image: Images) -> bytes:
    """What pixels are known by."""
    return hashlib.sha256(
        str(image.shape).encode() + np.ascontiguousarray(image).tobytes()
    ).digest()
