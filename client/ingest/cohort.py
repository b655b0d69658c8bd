"""A hospital's folder becomes a frozen, patient-indexed cohort on its own disk.

In: a folder with DICOM files and photographs (or MR series and masks: sources.py), the plan's intake rules, the site's
pseudonym key, a labels file.
Out: a folder with

    images.npy       uint8 [N, S, S, C], memory-mapped by readers; of volumes patches, C = 2: image, mask (0 or 255)
    index.sqlite     patients (pseudonym, aliases) and images (patient, label, side, keyed digest)
    quarantine.csv   opaque file id, reason code: everything that did not enter (`locate` finds the file again, on site)
    cohort.json      label names, counts, key fingerprint, digest over all of the above but the quarantine

Guaranteed: every file enters or gets a reason; nothing that a header or file name says is stored, logged or raised
(ids only as HMACs); one person under several ids that share a photograph (or a slice) is one patient; the same files give the
same digest whatever their names and order; the folder appears whole or not at all. Not covered: one person under two ids
with different photographs; text burned into pixels; fewer than k patients (synthesis refuses that).

1. List.  2. Read the labels.  3. Decode (sources.py) into a spool.  4. Identify.  5. Merge persons.  6. Choose images.
   7. Write, rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest.decode import Limits
from client.ingest.identify import Identities
from client.ingest.labels import Labels, read_labels
from client.ingest.persons import Sighting, aliases, chosen, grouped_by_person, keyed_hash
from client.ingest.quarantine import Reason
from client.ingest.sources import Photographs, Source, Volumes
from common.errors import ConfigurationError, EnvironmentFault, RefusedError, disk_faults_named
from common.storage.files import read_capped, sync_folder
from common.study.intake import Intake
from common.wire.messages import canonical

FORMAT = "kohort-cohort-1"
KEY_BYTES = 32
CHUNK_ROWS = 256
SCHEMA = """
CREATE TABLE patient (patient INTEGER PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE alias (pseudonym TEXT PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient) STRICT;
CREATE TABLE image (image INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient,
                    label INTEGER NOT NULL, laterality INTEGER NOT NULL, digest TEXT NOT NULL) STRICT;
"""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Frozen images by patient. `images` uint8 [N, H, W, C] memory-mapped; `patient_of`, `labels` int64 [N];
    `laterality` int8 [N] (0 unknown, 1 left, 2 right). `pseudonyms[p]` names patient p; `aliases[p]` holds every
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
        """Return the cohort in `folder`. Raises RefusedError when its parts do not fit together (`verify` reads every
        byte)."""
        try:
            facts = json.loads(read_capped(folder / "cohort.json", 1 << 20))
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            rows, names, other_names = _read_index(folder / "index.sqlite")
            index = np.array(rows, dtype=np.int64).reshape(-1, 3)
            shape = (len(index), facts["size_px"], facts["size_px"], facts["channels"])
            whole = facts["format"] == FORMAT and images.shape == shape and images.dtype == np.uint8
            if not whole or set(index[:, 0].tolist()) != set(range(len(names))):
                raise ValueError
            label_names = tuple(facts["label_names"])
            digest = str(facts["digest"])
        except (OSError, ValueError, KeyError, TypeError, sqlite3.Error) as error:
            raise RefusedError(
                f"{folder}: not a whole cohort of {FORMAT}", hint="ingest again into a new folder"
            ) from error
        patient_of = index[:, 0].copy()
        labels = index[:, 1].copy()
        laterality = index[:, 2].astype(np.int8)
        return cls(
            folder, images, patient_of, labels, laterality, names, other_names, label_names, digest
        )

    def verify(self) -> None:
        """Read everything and raise RefusedError when the digest does not fit."""
        found = _digest(
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


@dataclass(frozen=True)
class IngestReport:
    """What became of the files: for the site's eyes alone. `ingested` files of `patients` persons, `merged` of them
    under several ids (`most_ids` at most), the rest by reason code; `ingested` + the sum of `quarantined` = files
    found.
    """

    ingested: int
    patients: int
    merged: int
    most_ids: int
    quarantined: Mapping[str, int]
    digest: str


def ingest(
    source: Path,
    intake: Intake,
    key: bytes,
    out: Path,
    *,
    labels_csv: Path | None = None,
    limits: Limits | None = None,
    progress: Progress = lambda done, total: None,
) -> IngestReport:
    """Build the cohort of `source` in the new folder `out`, and return what became of every file.

    `key`: the site's 32 pseudonym bytes. `labels_csv`: labels.py says its columns; None only if the study declares
    one label. Raises ConfigurationError (folders, labels file, no usable image), EnvironmentFault (disk full and the
    like; nothing is left behind).
    """
    limits = limits or Limits()
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"pseudonym key: {len(key)} bytes, expected {KEY_BYTES}", hint="run kohort-site init"
        )
    files = listed(source, out, limits, skip=labels_csv)  # 1
    relative = [_relative(path, source) for path in files]
    masks = intake.volumes is not None
    labels = read_labels(
        labels_csv, intake.labels, relative, limits.max_labels_bytes, masks=masks
    )  # 2
    partial = out.with_name(f".{out.name}.partial")
    with _disk_faults(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        try:
            build = _Build(intake, key, labels, partial)
            report = build.run(files, relative, limits, progress)
            os.rename(partial, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return report


def listed(source: Path, out: Path, limits: Limits, *, skip: Path | None) -> list[Path]:
    """Return every file below `source`, sorted, links included (they are quarantined, never followed), `skip` left
    out."""
    if not source.is_dir():
        raise ConfigurationError(
            f"{source}: not a folder", hint="name the folder with the DICOM files or photographs"
        )
    if out.exists() or out.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(
            f"{out}: must be a new folder outside {source}",
            hint="a cohort is frozen; name a new one",
        )
    skipped = skip.resolve() if skip else None
    files: list[Path] = []
    unreadable: list[Path] = []
    for folder, folders, names in os.walk(
        source, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found = (Path(folder, name) for name in (*names, *links))
        files.extend(path for path in found if skipped is None or path.resolve() != skipped)
        if len(files) > limits.max_files:
            raise ConfigurationError(
                f"{source}: more than {limits.max_files} files", hint="split the folder"
            )
    return sorted(files + unreadable)


def locate(source: Path, key: bytes, file_id: str) -> Path | None:
    """Return the file below `source` with this opaque id of quarantine.csv. Site-local: the answer is a file name."""
    paths = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    return next((path for path in paths if _file_id(key, _relative(path, source)) == file_id), None)


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _file_id(key: bytes, relative: str) -> str:
    """The opaque id under which a file stands in quarantine.csv."""
    return keyed_hash(key, "file", relative)


class _Build:
    """Steps 3 to 7 in the temporary folder."""

    def __init__(self, intake: Intake, key: bytes, labels: Labels, folder: Path) -> None:
        self.intake = intake
        self.key = key
        self.folder = folder
        self.identities = Identities(key, labels, intake)
        kind = Volumes if intake.volumes else Photographs
        self.source: Source = kind(intake, self.identities, folder / "spool")

    def run(
        self, files: Sequence[Path], relative: Sequence[str], limits: Limits, progress: Progress
    ) -> IngestReport:
        """Decode, identify, merge, choose, write."""
        self.source.collect(files, relative, limits, progress)  # 3, 4
        persons = self._persons() if self.source.sightings else []  # 5, 6
        if not persons:
            raise self._nothing_usable(len(files))
        digest = self._write(persons)  # 7
        self.source.spool.unlink()
        for path in (*self.folder.iterdir(), self.folder):
            sync_folder(path)
        ids = [len(names) for names, _ in persons]
        counts = Counter(reason.value for _, reason in self.source.quarantine)
        used = {sighting.position for _, images in persons for sighting, _ in images}
        entered = sum(self.source.file_count(position) for position in used)
        return IngestReport(
            entered,
            len(persons),
            sum(n > 1 for n in ids),
            max(ids),
            dict(sorted(counts.items())),
            digest,
        )

    def _persons(self) -> list[tuple[tuple[str, ...], list[tuple[Sighting, int]]]]:
        """Each person's pseudonyms and entering images with their rows of the spool, in the cohort's order.

        An id under an issuer joins the same id without one: counting one person as two would be the unsafe mistake.
        """
        persons = []
        said = self.identities.said
        sightings = [
            replace(s, pseudonyms=tuple(n for n in s.pseudonyms if n in said))
            for s in self.source.sightings
        ]
        for person in grouped_by_person(sightings, self.source.alike()):
            fates = chosen(
                person, ordinal=self.intake.ordinal_labels, one_eye=self.intake.stratify_laterality
            )
            entering = [fate for fate in fates.values() if isinstance(fate, Sighting)]
            for position, fate in fates.items():
                if isinstance(fate, Reason):
                    self.source.refuse(position, fate)
            if entering:
                rows = self.source.rows(sorted(entering, key=lambda s: s.digest))
                persons.append((aliases(person), rows))
        return sorted(persons, key=lambda person: person[0])

    def _nothing_usable(self, files: int) -> ConfigurationError:
        """The error for a folder in which no image can be used; it counts codes and quotes nothing."""
        counts = Counter(reason for _, reason in self.source.quarantine).most_common()
        why = (
            ", ".join(f"{reason.value} ({count})" for reason, count in counts)
            or "the folder is empty"
        )
        hint = (
            counts[0][0].sentence
            if counts
            else "name the folder with the DICOM files or photographs"
        )
        return ConfigurationError(
            f"no usable image among {files} files: {why}", hint=hint, code="E-EMPTY-COHORT"
        )

    def _write(self, persons: Sequence[tuple[tuple[str, ...], list[tuple[Sighting, int]]]]) -> str:
        """The four files; returns the digest."""
        images = [
            (patient, s) for patient, (_, entering) in enumerate(persons) for s, _ in entering
        ]
        order = [row for _, entering in persons for _, row in entering]
        spool = self.source.images()
        write_images(
            self.folder / "images.npy",
            (spool[order[i : i + CHUNK_ROWS]] for i in range(0, len(order), CHUNK_ROWS)),
            (len(order), *spool.shape[1:]),
        )
        all_names = tuple(names for names, _ in persons)
        _write_index(self.folder / "index.sqlite", all_names, images)
        fates = sorted(
            f"{_file_id(self.key, name)},{reason.value}" for name, reason in self.source.quarantine
        )
        (self.folder / "quarantine.csv").write_text(
            "\n".join(["file,code", *fates]) + "\n", encoding="ascii"
        )
        digest = _digest(
            np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False),
            np.array([patient for patient, _ in images], np.int64),
            np.array([s.label for _, s in images], np.int64),
            np.array([s.laterality for _, s in images], np.int8),
            all_names,
            tuple(self.intake.labels),
        )
        facts = {
            "format": FORMAT,
            "images": len(order),
            "patients": len(persons),
            "size_px": self.intake.size_px,
            "channels": self.intake.planes,
            "label_names": list(self.intake.labels),
            "intake": hashlib.sha256(canonical(self.intake.model_dump(mode="json"))).hexdigest(),
            "key_fingerprint": keyed_hash(self.key, "fingerprint"),
            "digest": digest,
        }
        (self.folder / "cohort.json").write_text(
            json.dumps(facts, indent=1) + "\n", encoding="utf-8"
        )
        return digest


def write_images(path: Path, blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """Write uint8 `blocks` as one .npy of `shape` by plain writes: on a full disk a memory map would kill the process
    instead."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            file.write(np.ascontiguousarray(block).tobytes())


def _write_index(
    path: Path, names: Sequence[tuple[str, ...]], images: Sequence[tuple[int, Sighting]]
) -> None:
    with closing(sqlite3.connect(path)) as index, index:
        index.executescript(SCHEMA)
        index.executemany(
            "INSERT INTO patient VALUES (?, ?)", ((p, own[0]) for p, own in enumerate(names))
        )
        index.executemany(
            "INSERT INTO alias VALUES (?, ?)",
            ((name, p) for p, own in enumerate(names) for name in own),
        )
        rows = (
            (i, patient, s.label, s.laterality, s.digest) for i, (patient, s) in enumerate(images)
        )
        index.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?)", rows)


def _read_index(
    path: Path,
) -> tuple[list[tuple[int, int, int]], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(patient, label, laterality) by image, pseudonyms by patient, all pseudonyms by patient."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as index:
        rows = index.execute(
            "SELECT patient, label, laterality FROM image ORDER BY image"
        ).fetchall()
        names = tuple(
            name for (name,) in index.execute("SELECT pseudonym FROM patient ORDER BY patient")
        )
        other: list[list[str]] = [[] for _ in names]
        for patient, name in index.execute(
            "SELECT patient, pseudonym FROM alias ORDER BY patient, pseudonym"
        ):
            other[patient].append(name)
    return rows, names, tuple(map(tuple, other))


def _digest(
    images: NDArray[np.uint8],
    patient_of: NDArray[np.int64],
    labels: NDArray[np.int64],
    laterality: NDArray[np.int8],
    names: Sequence[tuple[str, ...]],
    label_names: Sequence[str],
) -> str:
    """SHA-256, in hex, over everything that a reader of the cohort sees."""
    digest = hashlib.sha256(
        canonical([FORMAT, list(images.shape), list(label_names), [list(own) for own in names]])
    )
    for array in (patient_of.astype("<i8"), labels.astype("<i8"), laterality.astype("i1")):
        digest.update(array.tobytes())
    for start in range(0, len(images), CHUNK_ROWS):
        digest.update(np.ascontiguousarray(images[start : start + CHUNK_ROWS]).tobytes())
    return digest.hexdigest()


@contextmanager
def _disk_faults(out: Path) -> Iterator[None]:
    """Errors of the disk under `out`, SQLite's too, as one EnvironmentFault with its fix."""
    try:
        with disk_faults_named("cannot write the cohort", out):
            yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        hint = (
            "free some space there and start again; nothing was lost"
            if full
            else "check the folder and its owner"
        )
        code = "E-DISK-FULL" if full else None
        raise EnvironmentFault(
            f"cannot write the cohort {out}: database error", hint=hint, code=code
        ) from error
