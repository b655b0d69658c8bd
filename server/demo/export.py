"""What the invented hospitals share: people, identifiers, and the truth about an export."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SYLLABLES = "bar dem fel gor hin jak lun mer nol pes rud sav tor vel wim zan".split()


@dataclass(frozen=True)
class Truth:
    """What a hospital's folder really holds.

    `identifiers` are strings of at least 8 characters that must never leave it.
    """

    folder: Path
    labels_csv: Path
    persons: int
    files: int
    broken: int
    identifiers: tuple[str, ...]
    persons_by_label: Mapping[str, int]


@dataclass(frozen=True)
class Person:
    """An invented patient. Dates are YYYYMMDD."""

    name: str
    patient_id: str
    birth_date: str
    study_date: str
    laterality: str


@dataclass
class Export:
    """The folder that is being written, and the identifying strings in it."""

    folder: Path
    chance: random.Random
    tag: str
    identifiers: list[str] = field(default_factory=list)
    files: int = 0

    def note(self, text: str) -> str:
        """Remember `text` as identifying, and return it."""
        self.identifiers.append(text)
        return text

    def truth(
        self, out: Path, persons: int, broken: int, persons_by_label: Mapping[str, int]
    ) -> Truth:
        """Return the truth of the finished export in `out`; each identifier stands once."""
        identifiers = tuple(dict.fromkeys(self.identifiers))
        labels = out / "labels.csv"
        return Truth(
            self.folder, labels, persons, self.files, broken, identifiers, persons_by_label
        )


def invent_person(export: Export, laterality: str) -> Person:
    """Return a new person, all of whose strings are noted as identifying."""
    chance = export.chance
    family, given = ("".join(chance.choices(SYLLABLES, k=3)).upper() for _ in range(2))
    birth = f"{chance.randint(1930, 1990)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    study = f"{chance.randint(2015, 2024)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    patient_id = f"MRN-{export.tag}-{chance.randrange(10**7):07d}"
    for text in (family, given, birth, study, patient_id):
        export.note(text)
    return Person(f"{family}^{given}", patient_id, birth, study, laterality)


def write_labels(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write the labels file; the first row names the columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def uid(export: Export, kind: str) -> str:
    """Return a DICOM UID below 2.25, from the export's generator."""
    text = f"{export.tag} {kind} {export.chance.random()}"
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"
