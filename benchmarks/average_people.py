"""The people of quality_fundus.py by role: IDRiD as right eyes, NIH radiographs by patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import chest_split, fundus_sources, fundus_split
from common.arrays import Images, Labels

ROOT = Path(__file__).parents[1]
GRADES = np.array([0, 1, 1, 2, 2])  # none, mild-moderate, severe


@dataclass(frozen=True)
class Set:
    """uint8 images [N, S, S, C], label [N], person [N] from 0."""

    images: Images
    labels: Labels
    person_of: Labels

    def rows(self, which: NDArray[Any]) -> Set:
        """The same for some images; persons keep their numbers."""
        return Set(self.images[which], self.labels[which], self.person_of[which])

    def renumbered(self) -> Set:
        """The same with persons counted from 0 without gaps."""
        return Set(
            self.images,
            self.labels,
            np.unique(self.person_of, return_inverse=True)[1].astype(np.int64),
        )


@dataclass(frozen=True)
class Part:
    """One data set by role; `queries`: images of members in no average (none in fundus)."""

    name: str
    classes: tuple[str, ...]
    members: Set
    heldout: Set
    public: Set
    queries: Set
    checkpoint: Path
    channels: int
    flip: bool  # whether a mirrored training image is of the same kind


def fundus_part(checkpoint: Path, data: Path) -> Part:
    """IDRiD, framed as at a hospital, as right eyes with the three grades of the plan."""

    def of(people: fundus_split.People) -> Set:
        images = np.where(
            people.right[:, None, None, None], people.images, people.images[:, :, ::-1]
        )
        return Set(np.ascontiguousarray(images), GRADES[people.grades], np.arange(len(people)))

    roles = {name: of(people) for name, people in fundus_sources.idrid_people(data, 64).items()}
    pool = join(roles["members"], roles["heldout"])
    member = deal_members(pool.labels, len(roles["members"].labels))
    nobody = pool.rows(np.zeros(0, np.int64))
    classes = ("none", "mild-moderate", "severe")
    return Part(
        "fundus",
        classes,
        pool.rows(member).renumbered(),
        pool.rows(~member).renumbered(),
        roles["public"],
        nobody,
        checkpoint,
        3,
        True,
    )


def join(first: Set, second: Set) -> Set:
    """Both sets' people."""
    images = np.concatenate([first.images, second.images])
    labels = np.concatenate([first.labels, second.labels])
    return Set(images, labels, np.arange(len(labels)))


def deal_members(labels: Labels, members: int) -> NDArray[np.bool_]:
    """Which of the people, none of whom the checkpoint has seen, play members: the same share of
    each label, at random.
    """
    rng = np.random.default_rng(2026)
    member = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        member[rows[: round(members * len(rows) / len(labels))]] = True
    return member


def chest_part(checkpoint: Path, data: Path) -> Part:
    """NIH radiographs; the last image of a member who has several is kept back."""
    sets = {}
    for role in chest_split.ROLES:
        found = chest_split.radiographs(data / "cxr_nih_covid_64.npz", role)
        sets[role] = one_label(Set(found.images, found.labels, found.patient_of))
    kept, queries = keep_one_back(sets["members"])
    return Part(
        "chest",
        chest_split.LABELS,
        kept,
        sets["heldout"],
        sets["public"],
        queries,
        checkpoint,
        1,
        False,
    )


def keep_one_back(members: Set) -> tuple[Set, Set]:
    """The members without, and with only, the last image of each who has several."""
    last = last_of_several(members.person_of)
    kept = np.setdiff1d(np.arange(len(members.labels)), last)
    return members.rows(kept), members.rows(last)


def last_of_several(person_of: Labels) -> Labels:
    """The row of the last image of each person who has more than one."""
    found = []
    for person in np.unique(person_of):
        rows = np.flatnonzero(person_of == person)
        if len(rows) > 1:
            found.append(rows[-1])
    return np.sort(np.array(found, np.int64))


def one_label(given: Set) -> Set:
    """Only the images with a person's highest label, as the product's roster has it
    (client/synthesize/group.py).
    """
    highest = np.zeros(given.person_of.max() + 1, np.int64)
    np.maximum.at(highest, given.person_of, given.labels)
    return given.rows(np.flatnonzero(given.labels == highest[given.person_of])).renumbered()
