"""Reads the two kinds of hospital folders into one form; photographs here, volumes beside.

In: the files, their names, the intake rules.
Out, after `collect`: a record for each image that shows somebody; pairs of images that are the
same; and the entering images' rows in the spool, uint8 [S, S, planes].
Guarantees: every file is part of a record or has a reason in `quarantine`.
Not covered: series of slices (volume_source.py); who is whom, and what enters (census.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.ingest import decode
from client.ingest.crops import same_crops
from client.ingest.exposure import same_exposures
from client.ingest.finished import entries_of, finished_work, go_on
from client.ingest.identify import Identities, Owner
from client.ingest.likeness import count_fields, join_alike, reduce_images
from client.ingest.persons import ImageRecord
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import (
    TEXT_BYTES,
    Limits,
    Photograph,
    Settings,
    Take,
    Wanted,
)
from client.ingest.rows import RowFile
from common.arrays import Integers
from common.study.intake import Intake

Pairs = Iterator[tuple[int, int]]
Progress = Callable[[int, int], None]


class Source(ABC):
    """The contents of a folder.

    `quarantine`: (name below the source, reason) of each file that did not enter. `silent`: how
    many files that were read do not name something that the plan wants named.
    `records[i].position` is i. `spool`: the images, uint8 [rows, S, S, planes]. `fields`: what
    tells which records are alike (likeness.py), a row each. Both are files in `folder`, until
    `remove`. `aside`: where finished work is kept for a later start (finished.py); None: nowhere.
    `marks`: what tells of each file whether it changed, where its times cannot (archive.py).
    """

    def __init__(
        self, intake: Intake, identities: Identities, folder: Path, aside: Path | None = None
    ) -> None:
        self.intake = intake
        self.identities = identities
        self.aside = aside
        self.marks: Sequence[str] | None = None
        self.records: list[ImageRecord] = []
        self.quarantine: list[tuple[str, Reason]] = []
        self.silent: Counter[str] = Counter()
        side = intake.size_px
        self.spool = RowFile(folder / "spool", (side, side, intake.planes), np.uint8)
        self.fields = RowFile(folder / "fields", (count_fields(self._look_px()),), np.uint16)

    @abstractmethod
    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Progress,
    ) -> None:
        """Decode everything into the spool."""

    @abstractmethod
    def alike(self, progress: Progress) -> Pairs:
        """Yield pairs of records that join those whose images are the same, or nearly so.

        `progress(done, total)` counts records.
        """

    @abstractmethod
    def rows(self, entering: Sequence[ImageRecord]) -> list[tuple[ImageRecord, int]]:
        """Return the images that one person gives, each with its row of the spool.

        `entering` is sorted by digest.
        """

    @abstractmethod
    def refuse(self, position: int, reason: Reason) -> None:
        """Note why a record does not enter."""

    @abstractmethod
    def file_count(self, position: int) -> int:
        """Return the number of files of a record."""

    def remove(self) -> None:
        """Close and delete the files of this source."""
        self.spool.remove()
        self.fields.remove()

    def _look_px(self) -> int:
        """The side of the pictures that are compared."""
        return self.intake.size_px

    def _settings(self, limits: Limits) -> Settings:
        patches = 0
        take = Take()
        choices = limits.choices
        memory_bytes = limits.decode_memory_bytes
        if choices.find_text:
            memory_bytes += TEXT_BYTES
        if self.intake.volumes:
            patches = self.intake.volumes.patches_per_patient
            take = Take(**self.intake.volumes.take.model_dump())
            memory_bytes = limits.volume_memory_bytes
            choices = replace(choices, find_text=False)
        return Settings(
            size_px=self.intake.size_px,
            channels=self.intake.channels,
            modalities=tuple(self.intake.dicom_modalities),
            window=self.intake.window,
            max_file_bytes=limits.max_file_bytes,
            max_pixel_bytes=limits.max_pixel_bytes,
            memory_bytes=memory_bytes,
            timeout_s=limits.decode_timeout_s,
            max_volume_bytes=limits.max_volume_bytes,
            volume_timeout_s=limits.volume_timeout_s,
            patches=patches,
            wanted=Wanted.of(self.intake),
            choices=choices,
            take=take,
        )


class Photographs(Source):
    """One file, one image. `names[i]`: the file of record i, below the source."""

    def __init__(
        self, intake: Intake, identities: Identities, folder: Path, aside: Path | None = None
    ) -> None:
        super().__init__(intake, identities, folder, aside)
        self.names: list[str] = []

    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Progress,
    ) -> None:
        """Decode each file (decode.py) that is not finished; those of nobody are refused."""
        settings = self._settings(limits)
        entries = entries_of(files, names, self.identities.key, self.marks)

        def decode_missing(paths: list[Path]) -> Iterator[Photograph | Reason]:
            return decode.decode_all(paths, settings, limits.workers)

        with finished_work(self.aside, self.identities.key, settings) as work:
            photographs = go_on(work, entries, files, decode_missing)
            for done, (name, outcome) in enumerate(zip(names, photographs, strict=True), 1):
                # a file that cannot be decoded, or that is nobody's, has a reason
                try:
                    if isinstance(outcome, Reason):
                        raise Unusable(outcome)
                    self._take(name, outcome)
                except Unusable as refusal:
                    self.quarantine.append((name, refusal.reason))
                progress(done, len(files))

    def _take(self, name: str, photograph: Photograph) -> None:
        """Note whose photograph it is, and write it to the spool. Raises Unusable for nobody's."""
        owner = Owner(photograph.patient_id, photograph.issuer, photograph.laterality)
        record = self.identities.make_record(
            len(self.records), owner, (name,), photograph.digest, (photograph.study,)
        )
        self.silent.update(photograph.silent)
        self.spool.append(photograph.pixels[None])
        self.fields.append(reduce_images(photograph.pixels[None]))
        self.records.append(record)
        self.names.append(name)

    def alike(self, progress: Progress) -> Pairs:
        """Yield pairs of photographs that correlate, are of one exposure, or crops of one."""

        def show(first: int) -> Progress:
            return lambda done, total: progress((first * total + done) // 3, total)

        yield from join_alike(self.fields, show(0))
        yield from same_exposures(self.fields, show(1))
        yield from same_crops(self.fields, self._number_persons(), show(2))

    def _number_persons(self) -> Integers:
        """A number for each record; those of the same ids share one."""
        numbers: dict[tuple[str, ...], int] = {}
        own = [numbers.setdefault(one.pseudonyms, len(numbers)) for one in self.records]
        return np.array(own, np.int64)

    def rows(self, entering: Sequence[ImageRecord]) -> list[tuple[ImageRecord, int]]:
        """Return one row for every photograph."""
        return [(record, record.position) for record in entering]

    def refuse(self, position: int, reason: Reason) -> None:
        """Note the reason for the file."""
        self.quarantine.append((self.names[position], reason))

    def file_count(self, position: int) -> int:
        """Return 1."""
        return 1
