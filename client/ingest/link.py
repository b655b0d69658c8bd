"""Which slices are one series, and which mask is whose: rules over what the files say of themselves, without files.

In: a `Scan` for each file that can be part of a volume, the files' names, the labels file. Out: `Series`, each with its
slices and at most one mask, and a reason for every file that fits nowhere. Guaranteed: every scanned file is in one series or
has a reason here; the outcome does not depend on names or order. Not covered: whether slices make a volume and masks lie on it
(volumes.py).

1. Of files with equal bytes one stays. 2. Slices of one SeriesInstanceUID and FrameOfReferenceUID are a series; it has one
patient. 3. A segmentation belongs to the one series that it references, of the same patient. 4. A NIfTI mask belongs to the
series of the slice or the patient in its row of the labels file, if that is one series. 5. A series has one mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from client.ingest.identify import Owner
from client.ingest.labels import Labels, file_key
from client.ingest.persons import normalised_id
from client.ingest.quarantine import Reason
from client.ingest.request import Scan

Fates = list[tuple[int, Reason]]


@dataclass
class Series:
    """Files by position: the slices, the masks that may be used; `names` of the slices and their copies. With a `fault` the
    series cannot be used; `mask_refused` if some mask of it was refused.
    """

    owner: Owner
    slices: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    masks: list[int] = field(default_factory=list)
    fault: Reason | None = None
    mask_refused: bool = False


def link(
    scans: Mapping[int, Scan], names: Sequence[str], labels: Labels
) -> tuple[list[Series], Fates]:
    """Return the series that can be used so far, and (position, reason) of every other scanned file."""
    originals, also_named, fates = _originals(scans, names)  # 1
    series = _series(scans, originals, also_named)  # 2
    known = _known(series.values())
    for position in originals:
        scan = scans[position]
        if scan.kind == "segmentation":
            fates += _give(position, *_drawn_on(scan, series))  # 3
        elif scan.kind == "nifti":
            fates += _give(position, *_named_for(names[position], known, labels))  # 4
    for one in series.values():
        if one.fault:
            fates += [(slice_, one.fault) for slice_ in one.slices] + [
                (mask, Reason.SERIES_REFUSED) for mask in one.masks
            ]
        elif len(one.masks) > 1:  # 5
            fates += [(mask, Reason.TWO_MASKS) for mask in one.masks]
            one.masks = []
            one.mask_refused = True
    return [one for one in series.values() if not one.fault], fates


def _originals(
    scans: Mapping[int, Scan], names: Sequence[str]
) -> tuple[list[int], dict[int, list[str]], Fates]:
    """One position for each content, all names of it, and the copies. NIfTI files are known by name, so none is a copy."""
    first: dict[str, int] = {}
    called: dict[int, list[str]] = {}
    fates: Fates = []
    for position, scan in scans.items():
        original = position if scan.kind == "nifti" else first.setdefault(scan.content, position)
        called.setdefault(original, []).append(names[position])
        if original != position:
            fates.append((position, Reason.DUPLICATE))
    return list(called), called, fates


def _series(
    scans: Mapping[int, Scan], originals: Sequence[int], called: Mapping[int, list[str]]
) -> dict[tuple[str, str], Series]:
    """Slices by series and frame of reference."""
    found: dict[tuple[str, str], Series] = {}
    for position in originals:
        scan = scans[position]
        if scan.kind != "slice":
            continue
        owner = _owner(scan)
        one = found.setdefault((scan.series, scan.frame), Series(owner))
        one.slices.append(position)
        one.names += called[position]
        one.patients.add(owner.patient_id)
        if owner != one.owner:
            one.fault = Reason.MIXED_PATIENTS
    return found


def _owner(scan: Scan) -> Owner:
    return Owner(normalised_id(scan.patient_id), normalised_id(scan.issuer))


def _drawn_on(
    scan: Scan, series: Mapping[tuple[str, str], Series]
) -> tuple[Series | None, Reason | None]:
    """The series of a segmentation; a reason if it cannot be its."""
    one = series.get((scan.series, scan.frame)) if scan.series else None
    if one is None:
        return None, Reason.MASK_WITHOUT_SERIES
    return one, Reason.MASK_OF_OTHER_PATIENT if not one.fault and one.owner != _owner(
        scan
    ) else None


def _named_for(
    name: str, known: Mapping[str, list[Series]], labels: Labels
) -> tuple[Series | None, Reason | None]:
    """The series that the labels file names a NIfTI mask for; in a row with a file, the file decides."""
    rows = labels.masks.get(file_key(name), [])
    if not rows:
        return None, Reason.UNNAMED_MASK
    meant = {
        id(one): one
        for file, patient in rows
        for one in known.get(_file(file) if file else _patient(patient), [])
    }
    if len(meant) != 1:
        return None, Reason.AMBIGUOUS_MASK if meant else Reason.MASK_WITHOUT_SERIES
    return next(iter(meant.values())), None


def _known(series: Iterable[Series]) -> dict[str, list[Series]]:
    """Series by what a row of the labels file can call them."""
    known: dict[str, list[Series]] = {}
    for one in series:
        for call in {*(_file(file_key(name)) for name in one.names), *map(_patient, one.patients)}:
            known.setdefault(call, []).append(one)
    return known


def _file(key: str) -> str:
    return f"file {key}"


def _patient(identifier: str) -> str:
    return f"patient {identifier}"


def _give(position: int, one: Series | None, reason: Reason | None) -> Fates:
    """Put a mask to its series, or note why not."""
    if one is not None and reason is None:
        one.masks.append(position)
        return []
    if one is not None:
        one.mask_refused = True
    return [(position, reason or Reason.MASK_WITHOUT_SERIES)]
