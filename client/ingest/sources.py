"""The two kinds of hospital folders, photographs and volumes, brought to one form: sightings, and rows of a spool.

In: the files, their names, the intake rules. Out, after `collect`: a sighting for each image (photograph or volume) that shows
somebody, pairs of images that are the same, and for the images that enter their rows in the spool, uint8 [S, S, planes].
Guaranteed: every file is part of a sighting or has a reason in `quarantine`; the spool holds one photograph a row, or the
patches of volumes; a person gives `patches_per_patient` patches, half of them centred on vessels, shared out among the person's
volumes. Not: who is whom and what enters (persons.py, cohort.py).
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.ingest import decode
from client.ingest.decode import Decoder, Limits, Settings
from client.ingest.identify import Identities, Owner
from client.ingest.link import Series, link
from client.ingest.persons import Sighting, keyed_hash, near_duplicates
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Cut, Scan, VolumeFiles
from common.study.intake import Intake

Pairs = Iterable[tuple[int, int]]


class Source(ABC):
    """What a folder holds. `quarantine`: (name below the source, reason); `sightings[i].position == i`."""

    def __init__(self, intake: Intake, identities: Identities, spool: Path) -> None:
        self.intake = intake
        self.identities = identities
        self.spool = spool
        self.sightings: list[Sighting] = []
        self.quarantine: list[tuple[str, Reason]] = []
        self._rows = 0

    @abstractmethod
    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Callable[[int, int], None],
    ) -> None:
        """Decode everything into the spool."""

    @abstractmethod
    def alike(self) -> Pairs:
        """Return pairs of sightings whose images are the same, or nearly so."""

    @abstractmethod
    def rows(self, entering: Sequence[Sighting]) -> list[tuple[Sighting, int]]:
        """Return the images that one person gives, each with its row of the spool; `entering` is sorted by digest."""

    @abstractmethod
    def refuse(self, position: int, reason: Reason) -> None:
        """Note why a sighting does not enter."""

    @abstractmethod
    def file_count(self, position: int) -> int:
        """Return the number of files of a sighting."""

    def images(self) -> NDArray[np.uint8]:
        """Return the spool, uint8 [rows, S, S, planes]."""
        side = self.intake.size_px
        return np.memmap(
            self.spool, np.uint8, "r", shape=(self._rows, side, side, self.intake.planes)
        )

    def _settings(self, limits: Limits) -> Settings:
        volumes = self.intake.volumes
        return Settings(
            size_px=self.intake.size_px,
            channels=self.intake.channels,
            modalities=tuple(self.intake.dicom_modalities),
            window=self.intake.window,
            max_file_bytes=limits.max_file_bytes,
            max_pixel_bytes=limits.max_pixel_bytes,
            memory_bytes=limits.decode_memory_bytes,
            timeout_s=limits.decode_timeout_s,
            max_volume_bytes=limits.max_volume_bytes,
            volume_timeout_s=limits.volume_timeout_s,
            patches=volumes.patches_per_patient if volumes else 0,
        )


class Photographs(Source):
    """One file, one image."""

    def __init__(self, intake: Intake, identities: Identities, spool: Path) -> None:
        super().__init__(intake, identities, spool)
        self._names: list[str] = []

    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Callable[[int, int], None],
    ) -> None:
        """Decode each file (decode.py); those of nobody are refused."""
        with open(self.spool, "wb") as spool:
            photographs = decode.decode_all(files, self._settings(limits), limits.workers)
            for done, (name, outcome) in enumerate(zip(names, photographs, strict=True), 1):
                try:
                    if isinstance(outcome, Reason):
                        raise Unusable(outcome)
                    owner = Owner(outcome.patient_id, outcome.issuer, outcome.laterality)
                    sighting = self.identities.sighting(
                        len(self.sightings), owner, (name,), outcome.digest
                    )
                    spool.write(outcome.pixels.tobytes())
                    self.sightings.append(sighting)
                    self._names.append(name)
                except Unusable as refusal:
                    self.quarantine.append((name, refusal.reason))
                progress(done, len(files))
        self._rows = len(self.sightings)

    def alike(self) -> Pairs:
        """Photographs that correlate."""
        return near_duplicates(self.images())

    def rows(self, entering: Sequence[Sighting]) -> list[tuple[Sighting, int]]:
        """Every photograph is one row."""
        return [(sighting, sighting.position) for sighting in entering]

    def refuse(self, position: int, reason: Reason) -> None:
        """Note it for the file."""
        self.quarantine.append((self._names[position], reason))

    def file_count(self, position: int) -> int:
        """One."""
        return 1


class Volumes(Source):
    """One series and its mask, one volume.

    1. Scan every file.  2. Link slices and masks to series (link.py).  3. Cut each series into patches, ceil(n / 2) on vessels
    and as many anywhere, in case that it is its person's only one.  4. Deal (`rows`).
    """

    def __init__(self, intake: Intake, identities: Identities, spool: Path) -> None:
        super().__init__(intake, identities, spool)
        self._files: list[
            tuple[list[str], list[str]]
        ] = []  # names of slices and of the mask, by sighting
        self._first_row: list[int] = []
        self._looks: list[NDArray[np.uint8]] = []
        self._same_slice: list[tuple[int, int]] = []
        self._slice_of: dict[bytes, int] = {}

    @property
    def _wanted(self) -> int:
        """Patches a person."""
        assert self.intake.volumes is not None
        return self.intake.volumes.patches_per_patient

    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Callable[[int, int], None],
    ) -> None:
        """Steps 1 to 3. Progress counts every file twice: looked at, and read."""
        total = 2 * len(files)
        with (
            decode.decoders(self._settings(limits), limits.workers) as pool,
            open(self.spool, "wb") as spool,
        ):
            scans: dict[int, Scan] = {}
            for position, seen in enumerate(
                pool.each(lambda decoder, path: decoder.scan(path), files)
            ):  # 1
                if isinstance(seen, Unusable):
                    self.quarantine.append((names[position], seen.reason))
                else:
                    scans[position] = seen
                progress(position + 1, total)
            series, fates = link(scans, names, self.identities.labels)  # 2
            self.quarantine += [(names[position], reason) for position, reason in fates]
            requests = [self._request(one, scans, files) for one in series]
            done = total - sum(len(one.slices) + len(one.masks) for one in series)
            for one, cut in zip(series, pool.each(self._cut, requests, ahead=1), strict=True):  # 3
                self._take(one, cut, names, spool.write)
                done += len(one.slices) + len(one.masks)
                progress(done, total)

    def _request(self, one: Series, scans: dict[int, Scan], files: Sequence[Path]) -> VolumeFiles:
        mask = one.masks[0] if one.masks else None
        slices = tuple(files[position] for position in one.slices)
        return VolumeFiles(slices, None if mask is None else (scans[mask].kind, files[mask]))

    def _cut(self, decoder: Decoder, request: VolumeFiles) -> Cut:
        """The choice of patches: a keyed hash of the volume, which nobody without the site's key can foresee."""
        return decoder.cut(
            request,
            lambda digest: hmac.digest(self.identities.key, b"patches\0" + digest, "sha256"),
        )

    def _take(
        self, one: Series, cut: Cut | Unusable, names: Sequence[str], write: Callable[[bytes], int]
    ) -> None:
        """Spool a volume's patches and note whose they are, or why it is not used."""
        slices = [names[p] for p in one.slices]
        masks = [names[p] for p in one.masks]
        if isinstance(cut, Unusable):
            return self._refuse_series(slices, masks, cut.reason, getattr(cut, "at", None))
        try:
            sighting = self.identities.sighting(
                len(self.sightings), one.owner, one.names, cut.digest
            )
        except Unusable as nobody:
            return self._refuse_series(slices, masks, nobody.reason, None)
        if cut.refusal and masks:
            self.quarantine.append((masks.pop(), cut.refusal))
            one.mask_refused = True
        if cut.refusal:
            reason = Reason.MASK_REFUSED if one.mask_refused else Reason.NO_MASK
            sighting = replace(sighting, refusal=sighting.refusal or reason)
        for digest in cut.slices:
            self._same_slice.append(
                (self._slice_of.setdefault(digest, sighting.position), sighting.position)
            )
        write(cut.patches.tobytes())
        self.sightings.append(sighting)
        self._files.append((slices, masks))
        self._first_row.append(self._rows)
        self._looks.append(cut.look)
        self._rows += len(cut.patches)

    def _refuse_series(
        self, slices: Sequence[str], masks: Sequence[str], reason: Reason, at: int | None
    ) -> None:
        """One slice at fault has the reason, the others say so; without one at fault all have it."""
        blamed = at is not None and 0 <= at < len(slices)
        for index, name in enumerate(slices):
            fate = Reason.INCOMPLETE_SERIES if blamed and index != at else reason
            self.quarantine.append((name, fate))
        self.quarantine += [(name, Reason.SERIES_REFUSED) for name in masks]

    def alike(self) -> Pairs:
        """Volumes whose looks correlate, or that share a slice."""
        yield from near_duplicates(np.stack(self._looks))
        yield from ((a, b) for a, b in self._same_slice if a != b)

    def rows(self, entering: Sequence[Sighting]) -> list[tuple[Sighting, int]]:
        """Deal the person's patches to the volumes: those on vessels from the first on, those anywhere from the last."""
        shares = dealt(self._wanted, len(entering))
        half = (self._wanted + 1) // 2
        found: list[tuple[Sighting, int]] = []
        for sighting, (on_vessels, anywhere) in zip(entering, shares, strict=True):
            if not on_vessels + anywhere:
                self.refuse(sighting.position, Reason.SPARE_SERIES)
            for place in (*range(on_vessels), *range(half, half + anywhere)):
                digest = keyed_hash(self.identities.key, "patch", sighting.digest, str(place))
                found.append(
                    (replace(sighting, digest=digest), self._first_row[sighting.position] + place)
                )
        return found

    def refuse(self, position: int, reason: Reason) -> None:
        """Note it for the slices; the mask has nothing left to belong to."""
        self._refuse_series(*self._files[position], reason, None)

    def file_count(self, position: int) -> int:
        """Slices and mask."""
        return sum(map(len, self._files[position]))


def dealt(count: int, volumes: int) -> Iterator[tuple[int, int]]:
    """Yield (on vessels, anywhere) for each of a person's volumes: together ceil(count / 2) and floor(count / 2)."""
    on_vessels = (count + 1) // 2
    anywhere = count // 2
    for index in range(volumes):
        first = on_vessels // volumes + (index < on_vessels % volumes)
        yield first, anywhere // volumes + (index >= volumes - anywhere % volumes)
