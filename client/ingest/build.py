"""Builds a frozen cohort from a hospital's folder or ZIP archive.

In: a folder of DICOM files and photographs, or of MR series and masks; the plan's intake rules; the
site's pseudonym key; a labels file.
Out: a cohort's folder (cohort.py) and an `IngestReport`.
Guarantees:
  - every file enters or gets a reason
  - nothing that a header or file name says is stored, logged or raised; ids stay as HMACs only.
    The list of eyes that may be one (eyes.py) alone names files, and is the site's
  - one person under several ids is one patient (joins.py), also where only an earlier intake saw
    it; who withdrew does not enter
  - the same files give the same digest, whatever their names and order
  - the folder appears whole or not at all
Not covered: one person under two ids that nothing links; text in pixels that text_detector.py does
not read; fewer than k patients (synthesis refuses them).

  1. list the files; those of an archive are unpacked (archive.py)
  2. read the labels
  3. decode into a spool (sources.py)
  4. identify each image
  5. join the ids of one person (census.py)
  6. choose the images that enter
  7. write, then rename
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from client.ingest.archive import Opened, open_source
from client.ingest.census import Census, Persons, SiteWord
from client.ingest.cohort import CHUNK_ROWS, digest_contents
from client.ingest.cohort_files import write_facts, write_images, write_index
from client.ingest.decisions import CAP_BYTES as PERSONS_CAP_BYTES
from client.ingest.eyes import Eyes, write_eyes
from client.ingest.identify import Identities
from client.ingest.labels import Labels, Wording, read_labels
from client.ingest.listing import LISTING, digest_file, stamp_files, stamp_inputs, write_listing
from client.ingest.persons import ImageRecord
from client.ingest.refused import LIST, write_refused
from client.ingest.request import Limits
from client.ingest.sources import Photographs, Source
from client.ingest.volume_source import Volumes
from client.state.people import PeopleFile
from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named
from common.storage.files import sync_folder
from common.study.intake import Intake

KEY_BYTES = 32

Progress = Callable[[int, int], None]
Phases = Callable[[str, int, int], None]
UNPACKING = "unpacking the archive"
READING = "reading files"
COMPARING = "comparing images"
EYES = "comparing eyes"
WRITING = "writing the cohort"


def show_no_phase(name: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class IngestReport:
    """What became of the files, for the site's own screen.

    `ingested`: files that entered, of `patients` persons. `merged`: persons with several ids;
    `most_ids`: the largest number of ids of one person. `quarantined`: the other files, by reason
    code. `ingested` plus the sum of `quarantined` is the number of files found. `silent`: of the
    files that were read, how many do not name something that the plan wants named. `labels`: how
    the labels file was read, and what of it fits nothing. `joins`: a line for every two or more
    ids that were joined, with the ids. `warnings`: what to look into. `eyes`: what a comparison of
    eyes found.
    """

    ingested: int
    patients: int
    merged: int
    most_ids: int
    quarantined: Mapping[str, int]
    digest: str
    silent: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    joins: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    eyes: tuple[str, ...] = ()


def ingest(
    source: Path,
    intake: Intake,
    key: bytes,
    out: Path,
    *,
    labels_csv: Path | None = None,
    wording: Wording | None = None,
    limits: Limits | None = None,
    people: PeopleFile | None = None,
    aside: Path | None = None,
    word: SiteWord | None = None,
    phases: Phases = show_no_phase,
) -> IngestReport:
    """Build the cohort of `source` in the new folder `out`; return what became of every file.

    `key`: the site's 32 pseudonym bytes. `labels_csv`: the labels file (labels.py); None only if
    the study declares one label. `wording`: the hospital's own words in it. `people`: the site's
    persons; what is found of them is kept there before the cohort appears. `aside`: a folder that
    keeps what is finished, for a start after a kill or a refusal, and the list of refused files; it
    goes when the cohort appears. `word`: what the site says itself of its persons.
    `phases(name, done, total)`: files unpacked, files read (volumes twice: scanned, and read),
    images compared, eyes compared, images written. Raises ConfigurationError (source, labels file,
    doubtful ids, no usable image) and EnvironmentFault (disk full and the like; nothing but `aside`
    is left behind).
    """
    limits = limits or Limits()
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"pseudonym key: {len(key)} bytes, expected {KEY_BYTES}", hint="run kohort-site init"
        )

    # (1) list the files
    unpacking = partial(phases, UNPACKING)
    with open_source(source, out, limits, skip=labels_csv, key=key, progress=unpacking) as opened:
        # (2) read the labels
        names = list(opened.paths)
        masks = intake.volumes is not None
        max_bytes = limits.max_labels_bytes
        labels = read_labels(
            labels_csv, intake.labels, names, max_bytes, masks=masks, wording=wording
        )

        # the state of what is read, before it is read: a later change is seen
        stamps = stamp_files(opened.marks, key)
        said = word or SiteWord()
        stamps |= stamp_settings(labels_csv, wording or Wording(), said, limits, key)

        # (3 to 7) build
        def begin(unfinished: Path) -> _Build:
            build = _Build(intake, key, labels, unfinished, people, aside, said)
            build.stamps = stamps
            return build

        return _build_whole(out, begin, lambda build: build.run(opened, limits, phases))


def _build_whole(
    out: Path, begin: Callable[[Path], _Build], run: Callable[[_Build], IngestReport]
) -> IngestReport:
    """Build in a folder beside `out`, and rename it when it is whole."""
    unfinished = out.with_name(f".{out.name}.partial")
    with _disk_faults(out):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700, parents=True)
        try:
            build = begin(unfinished)
            try:
                report = run(build)
                report = replace(report, eyes=tuple(build.eyes.lines(out)))
            except ConfigurationError:
                build.keep_refused()
                raise
            finally:
                build.source.remove()
            os.rename(unfinished, out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        if build.aside is not None:
            shutil.rmtree(build.aside, ignore_errors=True)
    return report


def stamp_settings(
    labels_csv: Path | None, wording: Wording, word: SiteWord, limits: Limits, key: bytes
) -> dict[str, str]:
    """Return opaque stamps of the labels file, and of what the site says of files and persons."""
    persons = digest_file(word.persons_csv, PERSONS_CAP_BYTES)
    settings = (wording, limits.choices, limits.max_file_bytes, word.accept, persons)
    return stamp_inputs(labels_csv, settings, limits.max_labels_bytes, key)


class _Build:
    """Steps 3 to 7, in the temporary folder."""

    def __init__(
        self,
        intake: Intake,
        key: bytes,
        labels: Labels,
        folder: Path,
        people: PeopleFile | None,
        aside: Path | None,
        word: SiteWord,
    ) -> None:
        self.intake = intake
        self.key = key
        self.folder = folder
        self.people = people
        self.aside = aside
        self.word = word
        self.stamps: dict[str, str] = {}
        self.identities = Identities(key, labels, intake)
        self.joins: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.eyes = Eyes()
        self.source: Source
        if intake.volumes:
            self.source = Volumes(intake, self.identities, folder, aside)
        else:
            self.source = Photographs(intake, self.identities, folder, aside)

    def run(self, opened: Opened, limits: Limits, phases: Phases) -> IngestReport:
        """Decode, identify, join, choose and write; return the report."""
        files, names = list(opened.paths.values()), list(opened.paths)
        if opened.unpacked:
            self.source.marks = list(opened.marks.values())
        # (3, 4) decode and identify
        self.source.collect(files, names, limits, partial(phases, READING))
        self.identities.labels.check_match()

        # (5, 6) join the ids of one person, and choose the images that enter
        census = Census(self.intake, self.identities, self.source, self.people, self.word)
        persons = census.take(partial(phases, COMPARING), partial(phases, EYES))
        self.joins = census.joins
        self.warnings = census.warnings
        self.eyes = census.eyes
        if not persons:
            raise self._nothing_usable(len(files))

        # (7) write
        digest = self._write(persons, partial(phases, WRITING))
        write_listing(self.folder / LISTING, self.stamps)
        if isinstance(self.source, Photographs):
            write_eyes(self.folder, self.eyes, self.source.names, self.source.spool)
        self.source.remove()
        for path in (*self.folder.iterdir(), self.folder):
            sync_folder(path)
        return self._report(persons, digest)

    def keep_refused(self) -> None:
        """Keep the list of refused files, where no cohort comes about that would hold it."""
        if self.aside is not None:
            write_refused(self.aside / LIST, self.key, self.source.quarantine)

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
            silent=dict(self.source.silent),
            labels=tuple(self.identities.labels.match.lines()),
            joins=self.joins,
            warnings=self.warnings,
        )

    def _nothing_usable(self, files: int) -> ConfigurationError:
        """Return the error for a folder without a usable image; it counts codes, quotes nothing."""
        counts = Counter(reason for _, reason in self.source.quarantine).most_common()
        why = "the folder is empty"
        hint = "name the folder with the DICOM files or photographs"
        if counts:
            why = ", ".join(f"{reason.value} ({count})" for reason, count in counts)
            hint = f"{counts[0][0].sentence} {counts[0][0].fix}"
        if counts and self.aside is not None:
            hint += " `kohort-site quarantine` lists the files."
        return ConfigurationError(
            f"no usable image among {files} files: {why}", hint=hint, code="E-EMPTY-COHORT"
        )

    def _write(self, persons: Persons, progress: Progress) -> str:
        """Write the four files; return the digest."""
        # the cohort's rows: the patient and record of each image, and its row of the spool
        images: list[tuple[int, ImageRecord]] = []
        order: list[int] = []
        for patient, (_, entering) in enumerate(persons):
            images += [(patient, record) for record, _ in entering]
            order += [row for _, row in entering]
        names = tuple(own for own, _ in persons)

        # index and quarantine
        write_index(self.folder / "index.sqlite", names, images)
        write_refused(self.folder / LIST, self.key, self.source.quarantine)

        # pixels, with a digest over all that a reader of the cohort sees; and the facts
        spool = self.source.spool
        shape = (len(order), *spool.shape)
        places = np.array(order, np.int64)
        blocks = (spool[places[i : i + CHUNK_ROWS]] for i in range(0, len(order), CHUNK_ROWS))
        digest = digest_contents(
            shape,
            write_images(self.folder / "images.npy", blocks, shape, progress),
            np.array([patient for patient, _ in images], np.int64),
            np.array([record.label for _, record in images], np.int64),
            np.array([record.laterality for _, record in images], np.int8),
            names,
            tuple(self.intake.labels),
        )
        write_facts(self.folder, self.intake, self.key, (len(images), len(persons)), digest)
        return digest


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
