"""The people of one source as one hospital: members, held-out people, other photographs of members.

In: framed photographs of a source (benchmarks/fundus_sources.py). Out: a `Part` without public
people: attackers train on the held-out ones.
Guarantees: no person has two roles; roles depend on names, labels and a fixed shuffle alone.
Not covered: repeated photographs of one eye, which no source has. A member's other photograph is
the other eye, mirrored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import fundus_sources
from benchmarks.average_people import GRADES, Part, Set, deal_members, keep_one_back, one_label
from benchmarks.fundus_sources import Photographs

SOURCES = ("idrid", *fundus_sources.MEASURED)
CLASSES = {
    "idrid": ("none", "mild-moderate", "severe"),
    "odir": ("normal", "cataract", "glaucoma"),
    "palm": ("not_pathologic_myopia", "pathologic_myopia"),
}
ONE_CLASS = ("unlabelled",)
MEMBERS = 2 / 3  # of the people


def read_source(data: Path, source: str, size_px: int) -> Photographs:
    """The photographs of a source; of IDRiD those of people whom no checkpoint has seen."""
    if source != "idrid":
        return fundus_sources.read_other(data, source, size_px)
    parts = [fundus_sources.read_idrid(data, role, size_px) for role in ("members", "heldout")]
    columns = ("images", "names", "patients", "labels", "right")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return Photographs(**joined, without_field=sum(part.without_field for part in parts))


def make_part(source: str, found: Photographs, checkpoint: Path, people: int | None = None) -> Part:
    """The source by role, of all its people or of so many; eyes whose side is known as right eyes.

    Of a person's photographs those of the highest label count, as on a hospital's roster. Of a
    member's two, one is averaged and the other kept for the attacker.
    """
    classes = CLASSES.get(source, ONE_CLASS)
    rng = np.random.default_rng(2026)
    order = rng.permutation(len(found))
    everyone = Set(
        as_right_eyes(found)[order],
        find_labels(source, found, classes)[order],
        np.unique(found.patients, return_inverse=True)[1][order].astype(np.int64),
    )
    if people is not None:
        some = rng.permutation(everyone.person_of.max() + 1)[:people]
        everyone = everyone.rows(np.flatnonzero(np.isin(everyone.person_of, some))).renumbered()
    everyone = one_label(everyone)

    # deal persons, each by the one label
    label_of = everyone.labels[np.unique(everyone.person_of, return_index=True)[1]]
    member = deal_members(label_of, round(MEMBERS * len(label_of)))[everyone.person_of]
    members, queries = keep_one_back(everyone.rows(np.flatnonzero(member)).renumbered())
    heldout = everyone.rows(np.flatnonzero(~member)).renumbered()
    nobody = everyone.rows(np.zeros(0, np.int64))
    return Part(source, classes, members, heldout, nobody, queries, checkpoint, 3, True)


def as_right_eyes(found: Photographs) -> np.ndarray:
    """The photographs with left eyes mirrored, where sides are known."""
    if found.right is None:
        return found.images
    right = found.right[:, None, None, None]
    return np.ascontiguousarray(np.where(right, found.images, found.images[:, :, ::-1]))


def find_labels(source: str, found: Photographs, classes: tuple[str, ...]) -> np.ndarray:
    """The number of each photograph's class; 0 where a source has one class."""
    if classes == ONE_CLASS:
        return np.zeros(len(found), np.int64)
    if source == "idrid":
        return GRADES[found.labels.astype(np.int64)]
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[label] for label in found.labels.tolist()], np.int64)
