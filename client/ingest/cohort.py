"""Reads a frozen, patient-indexed cohort on the hospital's disk.

Guarantees:
  - who withdrew is in no cohort that is opened: the persons file beside the folder
    (client/state/people.py) is asked each time, here and nowhere else
  - ids that are known as one person are one patient, also where they were found later
  - `verify` compares a digest over everything that was written
Not covered: how a cohort is built (build.py); a process that opened the cohort before a withdrawal.

A cohort's folder holds
  images.npy      uint8 [N, S, S, C], memory-mapped; of volumes, patches with C = 2: image and mask
                  (0 or 255)
  index.sqlite    patients (pseudonym, aliases) and images (patient, label, side, keyed digest)
  quarantine.csv  opaque file id and reason code of everything that did not enter; `refused.py`
                  finds the files again, on site
  files.csv       opaque id and stamp of every file, to see what changed (listing.py)
  cohort.json     label names, counts, key fingerprint, and the digest over all but the two lists
"""

from __future__ import annotations

import hashlib
import json
import mmap
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.state.people import FILE as PEOPLE
from client.state.people import People, PeopleFile
from common.errors import KohortError, RefusedError, disk_faults_named
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
        """Return the cohort in `folder`, without the persons who withdrew.

        Raises RefusedError when its parts do not fit together, or for a damaged persons file.
        """
        whole = cls.read_whole(folder)
        return whole.without_withdrawn(people_of(folder))

    @classmethod
    def read_whole(cls, folder: Path) -> Cohort:
        """Return the cohort as it was written, to recognise whose an image is (whose.py).

        Nothing else may use it: who withdrew is still in it.
        """
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
        except (KohortError, MemoryError):
            raise
        except Exception as error:  # numpy raises anything for a damaged header
            raise _not_whole(folder) from error
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

    def without_withdrawn(self, people: People) -> Cohort:
        """Return the cohort with linked patients joined, and without those who withdrew."""
        persons = _persons(self.aliases, people)
        staying = tuple(dict.fromkeys(filter(None, persons)))
        # the number of each patient from now on; -1 for one who withdrew
        numbers = {names: number for number, names in enumerate(staying)}
        renumbered = np.array([numbers.get(names, -1) for names in persons], np.int64)
        patient_of = renumbered[self.patient_of]
        kept = np.flatnonzero(patient_of >= 0)
        images = self.images
        if len(kept) < len(images):
            images = _copy_rows(self.folder / "images.npy", images, kept)
        return Cohort(
            self.folder,
            images,
            patient_of=patient_of[kept],
            labels=self.labels[kept],
            laterality=self.laterality[kept],
            pseudonyms=tuple(names[0] for names in staying),
            aliases=staying,
            label_names=self.label_names,
            digest=self.digest,
        )

    def verify(self) -> None:
        """Read everything that was written; raise RefusedError when the digest does not fit."""
        whole = Cohort.read_whole(self.folder)
        found = digest_contents(
            whole.images.shape,
            _read_blocks(self.folder / "images.npy", whole.images),
            whole.patient_of,
            whole.labels,
            whole.laterality,
            whole.aliases,
            whole.label_names,
        )
        if found != self.digest:
            raise RefusedError(
                f"{self.folder}: the cohort's digest does not fit its images", hint="ingest again"
            )


def release_pages(images: object) -> None:
    """Let go of the pages of mapped images that were looked at; a later look reads them again.

    So a process' memory does not grow with the images that it has seen.
    """
    if isinstance(images, np.memmap):
        mapped = getattr(images, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)


def _not_whole(folder: Path) -> RefusedError:
    """The refusal of a folder whose parts do not fit together."""
    return RefusedError(
        f"{folder}: not a whole cohort of {FORMAT}", hint="ingest again into a new folder"
    )


def people_of(folder: Path) -> People:
    """Return what the site that a cohort's folder lies in knows of its persons."""
    return PeopleFile(folder.parent / PEOPLE).read()


def persons_of(folder: Path) -> dict[str, int]:
    """Return the person behind every pseudonym of a cohort; who withdrew has none.

    No image is opened. Raises RefusedError as `Cohort.open` does.
    """
    try:
        _, _, aliases = _read_index(folder / "index.sqlite")
    except sqlite3.Error as error:
        raise RefusedError(
            f"{folder}: not a whole cohort of {FORMAT}", hint="ingest again"
        ) from error
    persons = _persons(aliases, people_of(folder))
    found: dict[str, int] = {}
    for number, names in enumerate(dict.fromkeys(persons)):
        found |= dict.fromkeys(names, number)
    return found


def image_marks(folder: Path) -> list[tuple[str, str]]:
    """Return, for every image that was written, a name of its patient and what it is.

    That is: its keyed digest, label and side. Raises RefusedError as `Cohort.open` does.
    """
    query = """SELECT pseudonym, image.digest, label, laterality
               FROM image JOIN patient USING (patient) ORDER BY image"""
    try:
        with closing(_connect(folder / "index.sqlite")) as index:
            rows = index.execute(query).fetchall()
    except sqlite3.Error as error:
        raise _not_whole(folder) from error
    return [(name, f"{digest} {label} {side}") for name, digest, label, side in rows]


def _persons(aliases: Iterable[tuple[str, ...]], people: People) -> list[tuple[str, ...]]:
    """All names of each patient's person, as far as they are known; none if they withdrew."""
    found: list[tuple[str, ...]] = []
    for names in aliases:
        person = people.name_person(names)
        if people.has_withdrawn(person):
            person = ()
        found.append(person)
    return found


def _copy_rows(path: Path, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Some rows of a file's mapped images, in a file without a name beside the cohort's folder.

    By plain reads and writes: memory does not grow with the cohort.
    """
    assert isinstance(images, np.memmap)
    shape = (len(rows), *images.shape[1:])
    if not len(rows):
        return np.empty(shape, np.uint8)
    row_bytes = int(np.prod(shape[1:]))
    folder = path.parent.parent
    with (
        disk_faults_named("cannot leave out who withdrew in", folder),
        open(path, "rb") as source,
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        for row in rows.tolist():
            source.seek(images.offset + row * row_bytes)
            file.write(source.read(row_bytes))
        file.flush()
        # the map keeps the file's contents until the last reader is gone
        return np.memmap(file, np.uint8, "r", shape=shape)


def _read_index(
    path: Path,
) -> tuple[list[tuple[int, int, int]], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return (patient, label, laterality) by image; by patient the pseudonym, and all of them."""
    with closing(_connect(path)) as index:
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


def _connect(path: Path) -> sqlite3.Connection:
    """Open an index read-only and immutable: no lock, no journal, no write."""
    return sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)


def _read_blocks(path: Path, images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The mapped images of a file, block by block, by plain reads: no page stays in memory."""
    assert isinstance(images, np.memmap)
    row_bytes = int(np.prod(images.shape[1:]))
    with open(path, "rb") as file:
        file.seek(images.offset)
        left = images.nbytes
        while left and (block := file.read(min(left, CHUNK_ROWS * row_bytes))):
            left -= len(block)
            yield np.frombuffer(block, np.uint8)


def digest_contents(
    shape: Sequence[int],
    blocks: Iterable[NDArray[np.uint8]],
    patient_of: NDArray[np.int64],
    labels: NDArray[np.int64],
    laterality: NDArray[np.int8],
    names: Sequence[tuple[str, ...]],
    label_names: Sequence[str],
) -> str:
    """Return the SHA-256, in hex, over everything that a reader of the cohort sees.

    `blocks`: the images of this `shape`, in order, some at a time.
    """
    digest = hashlib.sha256(
        canonical([FORMAT, list(shape), list(label_names), [list(own) for own in names]])
    )
    # little-endian, so that the digest is the same on every machine
    for array in (patient_of.astype("<i8"), labels.astype("<i8"), laterality.astype("i1")):
        digest.update(array.tobytes())
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()
