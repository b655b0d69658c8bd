"""Reads series of slices with their masks: one series, one volume.

In: the files, their names, the intake rules.
Out: what a `Source` gives (sources.py).
Guarantees: a person gives `patches_per_patient` patches, half of them centred on vessels, shared
out among the person's volumes.
Not covered: what a volume is (volumes.py), which slices and masks are of one series (link.py).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from client.ingest import decode
from client.ingest.decode import Decoder
from client.ingest.finished import entries_of, entry_of_series, finished_work, go_on
from client.ingest.identify import Identities
from client.ingest.likeness import join_alike, reduce_images
from client.ingest.link import Series, link
from client.ingest.persons import ImageRecord, keyed_hash
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import LOOK_PX, Cut, Limits, Scan, VolumeFiles
from client.ingest.sources import Pairs, Progress, Source
from common.study.intake import Intake


class Volumes(Source):
    """One series and its mask, one volume.

    1. scan every file
    2. link slices and masks to series (link.py)
    3. cut each series into patches: ceil(n / 2) on vessels and as many anywhere, which is enough
       for a person's only series
    4. deal a person's patches to the volumes (`rows`)
    """

    def __init__(
        self, intake: Intake, identities: Identities, folder: Path, aside: Path | None = None
    ) -> None:
        super().__init__(intake, identities, folder, aside)
        self._files: list[tuple[list[str], list[str]]] = []  # names of slices and mask, by record
        self._first_row: list[int] = []
        self._same_slice: list[tuple[int, int]] = []
        self._slice_of: dict[bytes, int] = {}

    def _look_px(self) -> int:
        """The side of a volume's look."""
        return LOOK_PX

    @property
    def _patches_per_patient(self) -> int:
        assert self.intake.volumes is not None
        return self.intake.volumes.patches_per_patient

    def collect(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        limits: Limits,
        progress: Progress,
    ) -> None:
        """Scan, link and cut. Progress counts every file twice: scanned, and read."""
        total = 2 * len(files)
        settings = self._settings(limits)
        key = self.identities.key
        entries = entries_of(files, names, key, self.marks)
        with (
            finished_work(self.aside, key, settings) as work,
            decode.decoders(settings, limits.workers) as pool,
        ):
            # (1) scan every file
            scans: dict[int, Scan] = {}
            scanned = go_on(work, entries, files, lambda paths: pool.each(_scan, paths))
            for position, seen in enumerate(scanned):
                if isinstance(seen, Unusable):
                    self.quarantine.append((names[position], seen.reason))
                else:
                    scans[position] = seen
                progress(position + 1, total)

            # (2) link slices and masks to series
            def fits(one: Series, mask: int) -> bool:
                slices = [files[position] for position in one.slices]
                asked = pool.each(lambda decoder, of: decoder.fits(of, files[mask]), [slices])
                return next(asked) is True

            series, outcomes = link(scans, names, self.identities.labels, fits)
            for position, reason in outcomes:
                self.quarantine.append((names[position], reason))

            # (3) cut each series into patches
            requests = [self._request(one, scans, files) for one in series]
            own = [_entry_of_series(one, entries, key) for one in series]
            cuts = go_on(work, own, requests, lambda these: pool.each(self._cut, these, ahead=1))
            done = total - sum(len(one.slices) + len(one.masks) for one in series)
            for one, cut in zip(series, cuts, strict=True):
                self._take(one, cut, names)
                done += len(one.slices) + len(one.masks)
                progress(done, total)

    def _request(self, one: Series, scans: dict[int, Scan], files: Sequence[Path]) -> VolumeFiles:
        slices = tuple(files[position] for position in one.slices)
        if not one.masks:
            return VolumeFiles(slices, None)
        mask = one.masks[0]
        return VolumeFiles(slices, (scans[mask].kind, files[mask]))

    def _cut(self, decoder: Decoder, request: VolumeFiles) -> Cut:
        """Cut one volume.

        A keyed hash of it chooses the patches, so nobody without the key can foresee them.
        """

        def seed_of(digest: bytes) -> bytes:
            return hmac.digest(self.identities.key, b"patches\0" + digest, "sha256")

        return decoder.cut(request, seed_of)

    def _take(self, one: Series, cut: Cut | Unusable, names: Sequence[str]) -> None:
        """Write a volume's patches to the spool and note whose they are, or why it is not used."""
        # a series that makes no volume, or that is nobody's
        slices = [names[position] for position in one.slices]
        masks = [names[position] for position in one.masks]
        if isinstance(cut, Unusable):
            return self._refuse_series(slices, masks, cut.reason, getattr(cut, "at", None))
        try:
            record = self.identities.make_record(
                len(self.records), one.owner, one.names, cut.digest, one.studies
            )
        except Unusable as nobody:
            return self._refuse_series(slices, masks, nobody.reason, None)

        # copies, and what the plan does not take of the series, are no part of the record
        for at, reason in cut.left_out.items():
            self.quarantine.append((slices[at], reason))
        slices = [name for at, name in enumerate(slices) if at not in cut.left_out]

        # without a usable mask it cannot enter; its slices still tell who is one person
        if cut.refusal and masks:
            self.quarantine.append((masks.pop(), cut.refusal))
            one.mask_refused = True
        if cut.refusal:
            reason = Reason.NO_MASK
            if one.mask_refused:
                reason = Reason.MASK_REFUSED
            record = replace(record, refusal=record.refusal or reason)

        # volumes that share a slice are of one person
        for digest in cut.slices:
            first = self._slice_of.setdefault(digest, record.position)
            self._same_slice.append((first, record.position))

        # the spool
        self._first_row.append(len(self.spool))
        if len(cut.patches):
            self.spool.append(cut.patches)
        self.fields.append(reduce_images(cut.look[None]))
        self.records.append(record)
        self._files.append((slices, masks))

    def _refuse_series(
        self, slices: Sequence[str], masks: Sequence[str], reason: Reason, at: int | None
    ) -> None:
        """Give the reason to slice `at`, and INCOMPLETE_SERIES to the others.

        Where no slice is at fault, all have the reason. Masks have SERIES_REFUSED.
        """
        blamed = at is not None and 0 <= at < len(slices)
        for index, name in enumerate(slices):
            outcome = reason
            if blamed and index != at:
                outcome = Reason.INCOMPLETE_SERIES
            self.quarantine.append((name, outcome))
        for name in masks:
            self.quarantine.append((name, Reason.SERIES_REFUSED))

    def alike(self, progress: Progress) -> Pairs:
        """Yield pairs of volumes whose looks correlate, or that share a slice."""
        yield from join_alike(self.fields, progress)
        for first, other in self._same_slice:
            if first != other:
                yield first, other

    def rows(self, entering: Sequence[ImageRecord]) -> list[tuple[ImageRecord, int]]:
        """Deal the person's patches to the volumes.

        What is left over on vessels goes to the first volumes, what is left over anywhere to the
        last.
        """
        shares = deal_patches(self._patches_per_patient, len(entering))
        half = (self._patches_per_patient + 1) // 2
        found: list[tuple[ImageRecord, int]] = []
        for record, (on_vessels, anywhere) in zip(entering, shares, strict=True):
            if not on_vessels + anywhere:
                self.refuse(record.position, Reason.SPARE_SERIES)
            # the spool holds a volume's patches on vessels first, then those anywhere
            for place in (*range(on_vessels), *range(half, half + anywhere)):
                digest = keyed_hash(self.identities.key, "patch", record.digest, str(place))
                row = self._first_row[record.position] + place
                found.append((replace(record, digest=digest), row))
        return found

    def refuse(self, position: int, reason: Reason) -> None:
        """Note the reason for the slices, and that the mask's series is refused."""
        self._refuse_series(*self._files[position], reason, None)

    def file_count(self, position: int) -> int:
        """Return the number of slices and masks."""
        return sum(map(len, self._files[position]))


def _scan(decoder: Decoder, path: Path) -> Scan:
    return decoder.scan(path)


def _entry_of_series(one: Series, entries: Sequence[str | None], key: bytes) -> str | None:
    """The entry of a series' finished work, of those of its files."""
    slices = [entries[position] for position in one.slices]
    masks = [entries[position] for position in one.masks]
    return entry_of_series(slices, masks, key)


def deal_patches(count: int, volumes: int) -> Iterator[tuple[int, int]]:
    """Yield (on vessels, anywhere) for each of a person's volumes.

    Together they are ceil(count / 2) and floor(count / 2).
    """
    on_vessels = (count + 1) // 2
    anywhere = count // 2
    for index in range(volumes):
        share_on_vessels = on_vessels // volumes + (index < on_vessels % volumes)
        share_anywhere = anywhere // volumes + (index >= volumes - anywhere % volumes)
        yield share_on_vessels, share_anywhere
