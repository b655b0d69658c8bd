"""Links slices and masks to series: rules over values, without files.

In: a `Scan` for each file that can be part of a volume, the files' names, the labels file; a
function that says whether a segmentation lies on a series' grid.
Out: `Series`, each with its slices and at most one mask, and a reason for every file that fits
nowhere.
Guarantees: every scanned file is in one series or has a reason; the outcome does not depend on
names or order.
Not covered: whether slices make a volume and masks lie on it (volumes.py).

  1. of slices with equal bytes, and of segmentations with equal marks, one stays
  2. slices of one SeriesInstanceUID and FrameOfReferenceUID are a series; it has one patient
  3. a segmentation belongs to the one series that it references, of the same patient; where it
    references none or several, to the one series of its frame of reference on whose grid it lies
  4. a NIfTI mask belongs to the series of the slice or patient in its row of the labels file, if
    that is one series
  5. a series has one mask
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from client.ingest.identify import Owner
from client.ingest.labels import Labels
from client.ingest.match import file_key
from client.ingest.persons import normalise_id
from client.ingest.quarantine import Reason
from client.ingest.request import Scan

Outcomes = list[tuple[int, Reason]]


@dataclass
class Series:
    """One series, with its files by position.

    `names`: those of the slices and of their copies. A series with a `fault` cannot be used.
    `mask_refused`: one of its masks was refused. `studies`: the UIDs of the studies of its slices.
    """

    owner: Owner
    slices: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    patients: set[str] = field(default_factory=set)
    masks: list[int] = field(default_factory=list)
    fault: Reason | None = None
    mask_refused: bool = False
    studies: set[str] = field(default_factory=set)


# whether the segmentation at a position lies on the grid of a series
Fits = Callable[[Series, int], bool]


def link(
    scans: Mapping[int, Scan], names: Sequence[str], labels: Labels, fits: Fits
) -> tuple[list[Series], Outcomes]:
    """Return the series without a fault, and (position, reason) of every other scanned file.

    `fits` is asked about segmentations that reference no series, or several.
    """
    # (1) of files with equal content, keep one
    originals, also_named, outcomes = _find_originals(scans, names)

    # (2) collect the slices of each series
    series = _series(scans, originals, also_named)
    known = _index_series(series.values())

    for position in originals:
        scan = scans[position]
        if scan.kind == "segmentation":
            # (3) give a segmentation to the series that it references, or lies on
            named = scan.series.split("\\")
            if len(named) == 1 and named[0]:
                outcomes += _give(position, *_series_of_segmentation(scan, series))
            else:
                outcomes += _give(position, *_series_below(position, scan, series, fits))
        elif scan.kind == "nifti":
            # (4) give a NIfTI mask to the series that its row names
            outcomes += _give(position, *_series_of_nifti(names[position], known, labels))

    usable = []
    for one in series.values():
        if one.fault:
            outcomes += [(slice_, one.fault) for slice_ in one.slices]
            outcomes += [(mask, Reason.SERIES_REFUSED) for mask in one.masks]
            continue
        # (5) refuse all masks of a series that has several
        if len(one.masks) > 1:
            outcomes += [(mask, Reason.TWO_MASKS) for mask in one.masks]
            one.masks = []
            one.mask_refused = True
        usable.append(one)
    return usable, outcomes


def _find_originals(
    scans: Mapping[int, Scan], names: Sequence[str]
) -> tuple[list[int], dict[int, list[str]], Outcomes]:
    """One position for each content, all names of it, and the copies.

    NIfTI files are known by name, so none is a copy.
    """
    first: dict[str, int] = {}
    called: dict[int, list[str]] = {}
    outcomes: Outcomes = []
    for position, scan in scans.items():
        original = position
        if scan.kind != "nifti":
            original = first.setdefault(scan.content, position)
        called.setdefault(original, []).append(names[position])
        if original != position:
            outcomes.append((position, Reason.DUPLICATE))
    return list(called), called, outcomes


def _series(
    scans: Mapping[int, Scan], originals: Sequence[int], called: Mapping[int, list[str]]
) -> dict[tuple[str, str], Series]:
    """Slices by series and frame of reference."""
    found: dict[tuple[str, str], Series] = {}
    for position in originals:
        scan = scans[position]
        if scan.kind != "slice":
            continue
        # the first slice says whose the series is; the others must agree
        owner = _owner(scan)
        one = found.setdefault((scan.series, scan.frame), Series(owner))
        one.slices.append(position)
        one.names += called[position]
        one.patients.add(owner.patient_id)
        one.studies.add(scan.study)
        if owner != one.owner:
            one.fault = Reason.MIXED_PATIENTS
    return found


def _owner(scan: Scan) -> Owner:
    return Owner(normalise_id(scan.patient_id), normalise_id(scan.issuer))


def _series_of_segmentation(
    scan: Scan, series: Mapping[tuple[str, str], Series]
) -> tuple[Series | None, Reason | None]:
    """The series that a segmentation references, and why it cannot have this mask, if so."""
    one = series.get((scan.series, scan.frame))
    if one is None and any(uid == scan.series for uid, _ in series):
        return None, Reason.MASK_FRAME
    if one is None:
        return None, Reason.MASK_WITHOUT_SERIES
    if not one.fault and one.owner != _owner(scan):
        return one, Reason.MASK_OF_OTHER_PATIENT
    return one, None


def _series_below(
    position: int, scan: Scan, series: Mapping[tuple[str, str], Series], fits: Fits
) -> tuple[Series | None, Reason | None]:
    """The one series on whose grid a segmentation lies, or why there is none.

    It is of the same patient and frame of reference, and among those that are referenced, if any.
    """
    named = {uid for uid in scan.series.split("\\") if uid}
    found = []
    for (uid, frame), one in series.items():
        asked = frame == scan.frame and (not named or uid in named)
        own = one.owner == _owner(scan) and not one.fault
        if frame and asked and own and fits(one, position):
            found.append(one)
    if len(found) > 1:
        return None, Reason.MASK_FITS_SEVERAL
    if not found:
        return None, Reason.MASK_FITS_NONE
    return found[0], None


def _series_of_nifti(
    name: str, known: Mapping[str, list[Series]], labels: Labels
) -> tuple[Series | None, Reason | None]:
    """The series for which the labels file names a NIfTI mask, or why there is none.

    In a row with a file, the file decides.
    """
    rows = labels.masks.get(file_key(name), [])
    if not rows:
        return None, Reason.UNNAMED_MASK

    # all series that these rows can mean; there must be one
    meant: dict[int, Series] = {}
    for file, patient in rows:
        call = _patient(patient)
        if file:
            call = _file(file)
        for one in known.get(call, []):
            meant[id(one)] = one
    if not meant:
        return None, Reason.MASK_WITHOUT_SERIES
    if len(meant) > 1:
        return None, Reason.AMBIGUOUS_MASK
    return next(iter(meant.values())), None


def _index_series(series: Iterable[Series]) -> dict[str, list[Series]]:
    """Series by what a row of the labels file can call them: a slice's file, or the patient."""
    known: dict[str, list[Series]] = {}
    for one in series:
        calls = {_file(file_key(name)) for name in one.names}
        calls |= {_patient(identifier) for identifier in one.patients}
        for call in calls:
            known.setdefault(call, []).append(one)
    return known


def _file(key: str) -> str:
    return f"file {key}"


def _patient(identifier: str) -> str:
    return f"patient {identifier}"


def _give(position: int, one: Series | None, reason: Reason | None) -> Outcomes:
    """Give a mask to its series, or note why not."""
    if one is not None and reason is None:
        one.masks.append(position)
        return []
    if one is not None:
        one.mask_refused = True
    return [(position, reason or Reason.MASK_WITHOUT_SERIES)]
