"""Who is one person, and which of a person's images enter: rules over values, without files.

In: `Sighting`s (one decoded image: pseudonyms, label, side, keyed digest) and pairs of near-identical images. Out:
sightings grouped by person, and for each one whether it enters or why not. Guaranteed: two ids joined by identical or
nearly identical pixels, or by the labels file, are one person (a third id joins through either); one person has one
label, and one eye where the study separates them; the outcome does not depend on the order of the files. Not covered:
two different photographs of one person under two ids.

Sources: methods/users.md 4a.3 (pseudonyms), methods/ksalsa.md 3.2 (units, near-duplicates, conflicting labels).
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from client.ingest.quarantine import Reason

NEAR_DUPLICATE_CORRELATION = (
    0.997  # at 64 px; on IDRiD lower thresholds join strangers, whose optic discs look alike
)
NEAR_DUPLICATE_SIZE_PX = 64
BLOCK = 512
PLACEHOLDERS = frozenset(
    "ANONYMOUS ANONYMIZED ANONYMISED ANON UNKNOWN UNKOWN UNDEFINED NONE NULL NIL NA NAN NOID NOPATIENTID NOTAVAILABLE "
    "PATIENT PATIENTID PID ID TEST TESTPATIENT DUMMY EMPTY DEFAULT REMOVED REDACTED DELETED "
    "DEIDENTIFIED".split()
)


@dataclass(frozen=True)
class Sighting:
    """One decoded image. `pseudonyms`: every id that the file or the labels file gives its person; `digest`: keyed,
    of its pixels.

    With a `refusal` it cannot enter, and still tells which ids are one person.
    """

    position: int
    pseudonyms: tuple[str, ...]
    label: int
    laterality: int
    digest: str
    refusal: Reason | None = None


def normalised_id(text: str) -> str:
    """Return an id as it enters the HMAC: NFC, without outer spaces and NULs; leading zeros and case stay."""
    return unicodedata.normalize("NFC", text).strip(" \t\r\n\0").strip()


def is_placeholder(identifier: str) -> bool:
    """Return whether a normalised id names nobody: empty, a filler word, zeros, Xs or one sign repeated."""
    core = "".join(c for c in identifier.upper() if c.isalnum())
    return (
        not core
        or core in PLACEHOLDERS
        or set(core) <= {"0"}
        or set(core) <= {"X"}
        or (len(core) > 5 and len(set(core)) == 1)
    )


def keyed_hash(key: bytes, kind: str, *parts: str) -> str:
    """Return 128 bits of HMAC-SHA-256(key, kind 0 part 0 part ...) in hex."""
    return hmac.digest(key, "\0".join((kind, *parts)).encode("utf-8", "surrogatepass"), "sha256")[
        :16
    ].hex()


def pseudonym(key: bytes, issuer: str, identifier: str) -> str:
    """Return the pseudonym of a patient id under its issuer (users.md 4a.3)."""
    return keyed_hash(key, "patient", normalised_id(issuer), normalised_id(identifier))


def near_duplicates(images: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j, of uint8 images [N, S, S, C] whose grey versions correlate by more than .997 at 64 px.

    Block by block, so memory does not grow with N. Even images correlate with nothing.
    """
    for a in range(0, len(images), BLOCK):
        left = _standardised(images[a : a + BLOCK])
        for b in range(a, len(images), BLOCK):
            right = left if a == b else _standardised(images[b : b + BLOCK])
            rows, columns = np.nonzero(left @ right.T > NEAR_DUPLICATE_CORRELATION)
            pairs = zip((a + rows).tolist(), (b + columns).tolist(), strict=True)
            yield from ((i, j) for i, j in pairs if i < j)


def _standardised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of zero mean and unit length, one per image, at 64 px (96: 48; smaller images: their own size)."""
    grey = images.mean(axis=3, dtype=np.float32)
    if grey.shape[1] > NEAR_DUPLICATE_SIZE_PX:
        step = -(-grey.shape[1] // NEAR_DUPLICATE_SIZE_PX)  # 2 for 96 and 128
        side = grey.shape[1] // step
        grey = grey.reshape(len(grey), side, step, side, step).mean(axis=(2, 4))
    flat = grey.reshape(len(grey), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(
        np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 1e-3), dtype=np.float32
    )


def grouped_by_person(
    sightings: Sequence[Sighting], near: Iterable[tuple[int, int]]
) -> list[list[Sighting]]:
    """Return sightings by person: connected components over shared pseudonyms, equal digests and `near` index pairs."""
    parent: dict[Hashable, Hashable] = {}

    def root(node: Hashable) -> Hashable:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for index, sighting in enumerate(sightings):
        for link in (*sighting.pseudonyms, ("pixels", sighting.digest)):
            parent[root(link)] = root(index)
    for i, j in near:
        parent[root(i)] = root(j)
    persons: dict[Hashable, list[Sighting]] = {}
    for index, sighting in enumerate(sightings):
        persons.setdefault(root(index), []).append(sighting)
    return list(persons.values())


def chosen(
    person: Sequence[Sighting], *, ordinal: bool, one_eye: bool
) -> dict[int, Sighting | Reason]:
    """Return for every position in one person's sightings the sighting that enters (with its final label), or why not.

    1. Identical pixels are one image; it carries the highest of their labels. 2. Different labels: the highest if
       labels are ordinal, else nobody enters. 3. One eye, if the study separates eyes: chosen by keyed digest.
       (ksalsa.md 3.2.2)
    """
    fates: dict[int, Sighting | Reason] = {s.position: s.refusal for s in person if s.refusal}
    candidates = sorted(
        (s for s in person if not s.refusal), key=lambda s: (s.digest, s.pseudonyms, -s.laterality)
    )
    labels = {s.label for s in candidates}
    if len(labels) > 1 and not ordinal:
        return fates | dict.fromkeys((s.position for s in candidates), Reason.CONFLICTING_LABELS)
    entering: list[Sighting] = []
    for _, copies in groupby(candidates, key=lambda s: s.digest):
        first, *others = list(copies)
        fates |= dict.fromkeys((s.position for s in others), Reason.DUPLICATE)
        if max(s.label for s in (first, *others)) == max(labels):
            entering.append(replace(first, label=max(labels)))
        else:
            fates[first.position] = Reason.LOWER_LABEL
    for sighting in entering:
        other_eye = one_eye and sighting.laterality != entering[0].laterality
        fates[sighting.position] = Reason.OTHER_SIDE if other_eye else sighting
    return fates


def aliases(person: Sequence[Sighting]) -> tuple[str, ...]:
    """Return all pseudonyms of one person, sorted; the first is the one the cohort uses."""
    return tuple(sorted({name for sighting in person for name in sighting.pseudonyms}))
