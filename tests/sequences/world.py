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
    """One person: ids, label, and the number of the photograph that the folder holds now."""

    ids: list[str]
    label: str
    photograph: int = 0


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
        """Add a patient with one photograph under each id; return the person's number."""
        person = len(self.patients)
        names = [f"id-{person}-{number}" for number in range(ids)]
        self.patients.append(Patient(names, label))
        self._write(person)
        return person

    def add_id(self, person: int) -> None:
        """Give a person a further id, under which the same photograph lies again."""
        patient = self.patients[person]
        patient.ids.append(f"id-{person}-{len(patient.ids)}")
        self._write(person)

    def photograph_again(self, person: int) -> None:
        """Replace a person's photograph by a new one."""
        self.patients[person].photograph += 1
        self._write(person)

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

    def _write(self, person: int) -> None:
        """Put a person's files into the folder, and the labels of all beside it."""
        self.folder.mkdir(exist_ok=True)
        patient = self.patients[person]
        for name in patient.ids:
            facts = {"id": name, "person": person, "photograph": patient.photograph}
            (self.folder / f"{name}.photo").write_text(json.dumps(facts))
        for size in SIZES:
            pixels = draw(person, patient.photograph, size)
            self.shown_by[_key(pixels)] = (person, patient.photograph)
        with open(self.labels_csv, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", "patient", "label"))
            for one in self.patients:
                table.writerows((f"{name}.photo", name, one.label) for name in one.ids)


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
