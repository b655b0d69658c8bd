"""What the invented hospitals share: people, identifiers, and the truth about an export."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYLLABLES = "bar dem fel gor hin jak lun mer nol pes rud sav tor vel wim zan".split()


@dataclass(frozen=True)
class Truth:
    """What a hospital's folder really holds. `identifiers`: strings of at least 8 characters that
    must never leave it.
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
    """The folder being written, and the identifying strings in it."""

    folder: Path
    chance: random.Random
    tag: str
    identifiers: list[str] = field(default_factory=list)
    files: int = 0

    def note(self, text: str) -> str:
        """Remember `text` as identifying."""
        self.identifiers.append(text)
        return text


def invent_person(export: Export, laterality: str) -> Person:
    """Return a person whose every string is noted."""
    chance = export.chance
    family, given = ("".join(chance.choices(SYLLABLES, k=3)).upper() for _ in range(2))
    birth = f"{chance.randint(1930, 1990)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    study = f"{chance.randint(2015, 2024)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    patient_id = f"MRN-{export.tag}-{chance.randrange(10**7):07d}"
    for text in (family, given, birth, study, patient_id):
        export.note(text)
    return Person(f"{family}^{given}", patient_id, birth, study, laterality)


def uid(export: Export, kind: str) -> str:
    """Return a deterministic 2.25 UID."""
    text = f"{export.tag} {kind} {export.chance.random()}"
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"
