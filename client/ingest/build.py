"""Builds a frozen cohort from a hospital's folder.

In: a folder of DICOM files and photographs, or of MR series and masks; the plan's intake rules; the
site's pseudonym key; a labels file.
Out: a cohort's folder (cohort.py) and an `IngestReport`.
Guarantees:
  - every file enters or gets a reason
  - nothing that a header or file name says is stored, logged or raised; ids stay as HMACs only
  - one person under several ids that share a photograph or a slice is one patient
  - the same files give the same digest, whatever their names and order
  - the folder appears whole or not at all
Not covered: one person under two ids with different photographs; text burned into pixels; fewer
than k patients (synthesis refuses them).

  1. list the files
  2. read the labels
  3. decode into a spool (sources.py)
  4. identify each image
  5. join the ids of one person
  6. choose the images that enter
  7. write, then rename
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

from client.ingest.cohort import CHUNK_ROWS, FORMAT, digest_contents
from client.ingest.identify import Identities
from client.ingest.labels import Labels, read_labels
from client.ingest.persons import ImageRecord, aliases, choose_images, group_by_person, keyed_hash
from client.ingest.quarantine import Reason
from client.ingest.request import Limits
from client.ingest.sources import Photographs, Source, Volumes
from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named
from common.storage.files import sync_folder
from common.study.intake import Intake
from common.wire.messages import canonical

KEY_BYTES = 32

SCHEMA = """
CREATE TABLE patient (patient INTEGER PRIMARY KEY, pseudonym TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE alias (pseudonym TEXT PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient) STRICT;
CREATE TABLE image (image INTEGER PRIMARY KEY, patient INTEGER NOT NULL REFERENCES patient,
                    label INTEGER NOT NULL, laterality INTEGER NOT NULL,
                    digest TEXT NOT NULL) STRICT;
"""

Progress = Callable[[int, int], None]
Persons = Sequence[tuple[tuple[str, ...], list[tuple[ImageRecord, int]]]]  # pseudonyms, images


@dataclass(frozen=True)
class IngestReport:
    """What became of the files, for the site's own screen.

    `ingested`: files that entered, of `patients` persons. `merged`: persons with several ids;
    `most_ids`: the largest number of ids of one person. `quarantined`: the other files, by reason
    code. `ingested` plus the sum of `quarantined` is the number of files found.
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
    """Build the cohort of `source` in the new folder `out`; return what became of every file.

    `key`: the site's 32 pseudonym bytes. `labels_csv`: the labels file (labels.py); None only if
    the study declares one label. Raises ConfigurationError (folders, labels file, no usable image)
    and EnvironmentFault (disk full and the like; nothing is left behind).
    """
    limits = limits or Limits()
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"pseudonym key: {len(key)} bytes, expected {KEY_BYTES}", hint="run kohort-site init"
        )

    # (1) list the files
    files = list_files(source, out, limits, skip=labels_csv)
    relative = [_relative(path, source) for path in files]

    # (2) read the labels
    masks = intake.volumes is not None
    labels = read_labels(labels_csv, intake.labels, relative, limits.max_labels_bytes, masks=masks)

    # (3 to 7) build in a folder beside `out`, and rename it when it is whole
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


def list_files(source: Path, out: Path, limits: Limits, *, skip: Path | None) -> list[Path]:
    """Return every file below `source` but `skip`, sorted.

    Links are included: they are quarantined, never followed. So are folders that cannot be read.
    Raises ConfigurationError: `source` is no folder, `out` is not a new folder outside it, or there
    are too many files.
    """
    if not source.is_dir():
        raise ConfigurationError(
            f"{source}: not a folder", hint="name the folder with the DICOM files or photographs"
        )
    if out.exists() or out.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(
            f"{out}: must be a new folder outside {source}",
            hint="a cohort is frozen; name a new one",
        )

    # everything below the folder, readable or not
    skipped = None
    if skip:
        skipped = skip.resolve()
    files: list[Path] = []
    unreadable: list[Path] = []
    for folder, folders, names in os.walk(
        source, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        # os.walk counts a link to a folder as a folder, and does not enter it
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = Path(folder, name)
            if skipped is None or path.resolve() != skipped:
                files.append(path)
        if len(files) > limits.max_files:
            raise ConfigurationError(
                f"{source}: more than {limits.max_files} files", hint="split the folder"
            )
    return sorted(files + unreadable)


def locate(source: Path, key: bytes, file_id: str) -> Path | None:
    """Return the file below `source` with this opaque id of quarantine.csv, or None.

    For the site alone: the answer is a file name.
    """
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            if _file_id(key, _relative(path, source)) == file_id:
                return path
    return None


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


def _file_id(key: bytes, relative: str) -> str:
    """The opaque id under which a file stands in quarantine.csv."""
    return keyed_hash(key, "file", relative)


class _Build:
    """Steps 3 to 7, in the temporary folder."""

    def __init__(self, intake: Intake, key: bytes, labels: Labels, folder: Path) -> None:
        self.intake = intake
        self.key = key
        self.folder = folder
        self.identities = Identities(key, labels, intake)
        self.source: Source
        if intake.volumes:
            self.source = Volumes(intake, self.identities, folder / "spool")
        else:
            self.source = Photographs(intake, self.identities, folder / "spool")

    def run(
        self, files: Sequence[Path], relative: Sequence[str], limits: Limits, progress: Progress
    ) -> IngestReport:
        """Decode, identify, join, choose and write; return the report."""
        # (3, 4) decode and identify
        self.source.collect(files, relative, limits, progress)

        # (5, 6) join the ids of one person, and choose the images that enter
        persons: Persons = []
        if self.source.records:
            persons = self._persons()
        if not persons:
            raise self._nothing_usable(len(files))

        # (7) write
        digest = self._write(persons)
        self.source.spool.unlink()
        for path in (*self.folder.iterdir(), self.folder):
            sync_folder(path)
        return self._report(persons, digest)

    def _report(self, persons: Persons, digest: str) -> IngestReport:
        """Count the files that entered, the persons, and the reasons of all other files."""
        # a volume of several patches counts its files once
        used: set[int] = set()
        for _, images in persons:
            used.update(record.position for record, _ in images)
        ids = [len(names) for names, _ in persons]
        counts = Counter(reason.value for _, reason in self.source.quarantine)
        return IngestReport(
            ingested=sum(self.source.file_count(position) for position in used),
            patients=len(persons),
            merged=sum(n > 1 for n in ids),
            most_ids=max(ids),
            quarantined=dict(sorted(counts.items())),
            digest=digest,
        )

    def _persons(self) -> Persons:
        """Each person's pseudonyms, and the entering images with their rows of the spool.

        In the cohort's order.
        """
        persons = []
        for person in group_by_person(self._records(), self.source.alike()):
            # what enters of one person; all else has a reason
            outcomes = choose_images(
                person, ordinal=self.intake.ordinal_labels, one_eye=self.intake.stratify_laterality
            )
            entering: list[ImageRecord] = []
            for position, outcome in outcomes.items():
                if isinstance(outcome, Reason):
                    self.source.refuse(position, outcome)
                else:
                    entering.append(outcome)
            # a person of whom nothing enters is not in the cohort
            if entering:
                rows = self.source.rows(sorted(entering, key=lambda record: record.digest))
                persons.append((aliases(person), rows))
        return sorted(persons, key=lambda person: person[0])

    def _records(self) -> list[ImageRecord]:
        """The source's records, each with the pseudonyms of ids that were stated in that form."""
        # An id under an issuer joins the same id without one: to count one person as two would be
        # the unsafe mistake.
        stated = self.identities.stated
        records = []
        for record in self.source.records:
            names = tuple(name for name in record.pseudonyms if name in stated)
            records.append(replace(record, pseudonyms=names))
        return records

    def _nothing_usable(self, files: int) -> ConfigurationError:
        """Return the error for a folder without a usable image; it counts codes, quotes nothing."""
        counts = Counter(reason for _, reason in self.source.quarantine).most_common()
        why = "the folder is empty"
        hint = "name the folder with the DICOM files or photographs"
        if counts:
            why = ", ".join(f"{reason.value} ({count})" for reason, count in counts)
            hint = counts[0][0].sentence
        return ConfigurationError(
            f"no usable image among {files} files: {why}", hint=hint, code="E-EMPTY-COHORT"
        )

    def _write(self, persons: Persons) -> str:
        """Write the four files; return the digest."""
        # the cohort's rows: the patient and record of each image, and its row of the spool
        images: list[tuple[int, ImageRecord]] = []
        order: list[int] = []
        for patient, (_, entering) in enumerate(persons):
            images += [(patient, record) for record, _ in entering]
            order += [row for _, row in entering]
        names = tuple(own for own, _ in persons)

        # pixels, index and quarantine
        spool = self.source.images()
        write_images(
            self.folder / "images.npy",
            (spool[order[i : i + CHUNK_ROWS]] for i in range(0, len(order), CHUNK_ROWS)),
            (len(order), *spool.shape[1:]),
        )
        _write_index(self.folder / "index.sqlite", names, images)
        self._write_quarantine()

        # the digest over what was written, and the facts
        digest = digest_contents(
            np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False),
            np.array([patient for patient, _ in images], np.int64),
            np.array([record.label for _, record in images], np.int64),
            np.array([record.laterality for _, record in images], np.int8),
            names,
            tuple(self.intake.labels),
        )
        self._write_facts(len(images), len(persons), digest)
        return digest

    def _write_quarantine(self) -> None:
        """Write the opaque id and the reason code of every file that did not enter, sorted."""
        outcomes = []
        for name, reason in self.source.quarantine:
            outcomes.append(f"{_file_id(self.key, name)},{reason.value}")
        (self.folder / "quarantine.csv").write_text(
            "\n".join(["file,code", *sorted(outcomes)]) + "\n", encoding="ascii"
        )

    def _write_facts(self, images: int, patients: int, digest: str) -> None:
        """Write cohort.json."""
        facts = {
            "format": FORMAT,
            "images": images,
            "patients": patients,
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


def write_images(path: Path, blocks: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """Write uint8 `blocks` as one .npy of `shape`."""
    # by plain writes: on a full disk a memory map would kill the process
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            file.write(np.ascontiguousarray(block).tobytes())


def _write_index(
    path: Path, names: Sequence[tuple[str, ...]], images: Sequence[tuple[int, ImageRecord]]
) -> None:
    """Write index.sqlite: each patient's pseudonyms, and each image's patient and record."""
    with closing(sqlite3.connect(path)) as index, index:
        index.executescript(SCHEMA)
        for patient, own in enumerate(names):
            index.execute("INSERT INTO patient VALUES (?, ?)", (patient, own[0]))
        for patient, own in enumerate(names):
            index.executemany("INSERT INTO alias VALUES (?, ?)", ((name, patient) for name in own))
        for row, (patient, record) in enumerate(images):
            values = (row, patient, record.label, record.laterality, record.digest)
            index.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?)", values)


@contextmanager
def _disk_faults(out: Path) -> Iterator[None]:
    """Turn errors of the disk under `out`, SQLite's too, into one EnvironmentFault with its fix."""
    try:
        with disk_faults_named("cannot write the cohort", out):
            yield
    except sqlite3.OperationalError as error:
        # SQLite has codes of its own for a full disk
        hint = "check the folder and its owner"
        code = None
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            hint = "free some space there and start again; nothing was lost"
            code = "E-DISK-FULL"
        raise EnvironmentFault(
            f"cannot write the cohort {out}: database error", hint=hint, code=code
        ) from error
