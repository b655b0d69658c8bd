"""Reads MR slices and masks as volumes, and cuts volumes into patches, in the decoding child.

In: one file (`scan`), or all slices of one series and its mask (`read_volume`), and a seed
(`patches`).
Out: what a file states of itself; a `Volume` of 8-bit intensities with its mask; image + mask
patches.
Guarantees:
  - one volume at a time, its size checked before it is allocated
  - slices lie as geometry says (series.py); one scaling for the whole volume
  - each patch lies inside the volume; nothing is padded or resampled
  - the choice of patches follows from the seed alone
Not covered: bias fields, skull and air (nothing removes them); a series in another plane.

  1. scan each file: a slice, a segmentation or a NIfTI mask
  2. read the headers of a series, and order its slices (series.py)
  3. read the values: modality LUT or rescale; padding has none
  4. scale them to 8 bits: the study's window, else the volume's own range
  5. put the mask on the grid (masks.py)
  6. cut patches: half centred on the mask, half anywhere that is not air
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest import dicom, dicom_header
from client.ingest.content import check_content
from client.ingest.files import open_regular
from client.ingest.images import BLANK_SPREAD
from client.ingest.masks import SEGMENTATION, Mask, is_nifti, read_nifti, read_segmentation
from client.ingest.origin import check_origin
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import LOOK_PX, SLICE_DIGEST_BYTES, Caps, Kind, Scan
from client.ingest.series import Grid, Plane, arrange_slices, plane_of

# these tell series apart and are dropped
UIDS = ("SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID")
GEOMETRY = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
MULTI_FRAME = (
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.3",
    "1.2.840.10008.5.1.4.1.1.4.4",
)
# Air stays below a tenth of the volume's 98th percentile. Kossen et al. 2022 draw the patches
# without a vessel in the brain; without a brain mask, everything but air stands for it.
AIR_SHARE = 0.1
AIR_PERCENTILE = 0.98


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and its mask.

    `shown`: uint8 [D, H, W]. `refusal`: why there is no `mask`. `digest`: SHA-256 of the values.
    `slices`: digests of the slices that show anything. `look`: uint8 [64, 64, 1], to find
    near-duplicates.
    """

    shown: NDArray[np.uint8]
    mask: Mask | None
    refusal: Reason | None
    digest: bytes
    slices: tuple[bytes, ...]
    look: NDArray[np.uint8]


class BadSlice(Unusable):
    """One slice, number `at`, makes its series unusable."""

    def __init__(self, reason: Reason, at: int) -> None:
        super().__init__(reason)
        self.at = at


def scan(path: str, caps: Caps) -> Scan:
    """Return what the file at `path` states of itself (step 1).

    Raises Unusable when it is no part of a volume.
    """
    with open_regular(path, caps.max_file_bytes) as file:
        head = file.read(132)
        if head[128:] == b"DICM":
            return _scan_dicom(file, caps)
        if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            raise Unusable(Reason.NOT_A_VOLUME)
        if is_nifti(file):
            return Scan("nifti", _content(file))
    raise Unusable(Reason.UNKNOWN_FORMAT)


def _content(file: BinaryIO) -> str:
    """SHA-256 of a whole file, in hex."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _scan_dicom(file: BinaryIO, caps: Caps) -> Scan:
    """A slice or a segmentation, by its header alone. Raises Unusable."""
    try:
        # the allow-listed attributes, and those that place a slice or a segmentation
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        more = (*UIDS, *GEOMETRY, "ReferencedSeriesSequence")
        header = dicom_header.read_header(file, pixels=False, more=more)

        # the series: for a segmentation the one that it was drawn on
        kind: Kind
        if header.get("SOPClassUID") in SEGMENTATION:
            kind = "segmentation"
            series = _series_drawn_on(header)
        else:
            kind = "slice"
            _check_slice(header, caps)
            series = dicom_header.text_of(header, "SeriesInstanceUID")
            if not series:
                raise Unusable(Reason.NO_SERIES)

        # whose it is
        patient_id = dicom_header.text_of(header, "PatientID")
        issuer = dicom_header.text_of(header, "IssuerOfPatientID")
        frame = dicom_header.text_of(header, "FrameOfReferenceUID")
        return Scan(kind, _content(file), patient_id, issuer, series, frame)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED_HEADER) from error


def _series_drawn_on(header: Dataset) -> str:
    """The UID of the one series that a segmentation references; empty for none or several."""
    references: Any = header.get("ReferencedSeriesSequence") or ()
    if len(references) != 1:
        return ""
    return dicom_header.text_of(references[0], "SeriesInstanceUID")


def _check_slice(header: Dataset, caps: Caps) -> Plane:
    """The plane of a grey, single-frame slice within the caps."""
    # the rules of one image: a single grey frame within the cap
    dicom_header.check_rules(header, caps.modalities)
    check_origin(header, accept_derived=caps.choices.accept_derived)
    check_content(header, caps.wanted, refuse_silent=caps.choices.refuse_silent)
    multi_frame = header.get("SOPClassUID") in MULTI_FRAME
    if multi_frame or dicom_header.count_frames(header) != 1:
        raise Unusable(Reason.MULTI_FRAME)
    shown_as = header.PhotometricInterpretation
    if shown_as not in dicom_header.GREY:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    dicom_header.check_size(header, caps.max_pixel_bytes)

    # its place, and what must be the same in all slices of a series
    kind = (shown_as, header.BitsAllocated, header.PixelRepresentation)
    shape = (int(header.Rows), int(header.Columns))
    position, orientation, spacing = (header.get(name) for name in GEOMETRY)
    return plane_of(position, orientation, spacing, shape, kind)


def read_volume(paths: Sequence[str], mask: tuple[Kind, str] | None, caps: Caps) -> Volume:
    """Return the volume of the slices at `paths`, in any order, with the mask at (kind, path).

    A mask that cannot be used is a `refusal`, not an exception. Raises Unusable when the slices
    make no volume, BadSlice when one of them is at fault.
    """
    # (2) read the headers: the slices must make a volume, small enough for memory
    planes = [
        _blame_slice(at, lambda path=path: _plane(path, caps)) for at, path in enumerate(paths)
    ]
    if 4 * len(planes) * planes[0].shape[0] * planes[0].shape[1] > caps.max_volume_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
    order, grid = arrange_slices(planes)
    if min(grid.shape[1:]) < caps.size_px:
        raise Unusable(Reason.VOLUME_TOO_SMALL)

    # (3) read the values, slice by slice in the order of the geometry
    values = np.empty(grid.shape, np.float32)
    for depth, at in enumerate(order):
        values[depth] = _blame_slice(at, lambda path=paths[at]: _values(path, grid.shape[1:], caps))

    # digests of the values, before they are scaled
    digest = _sha(values)
    slices = []
    for plane in values:
        if _shows_anything(plane):
            slices.append(_sha(plane)[:SLICE_DIGEST_BYTES])

    # (4) scale to 8 bits; the float copy goes before the mask comes, to keep within memory
    shown = scale_intensity(values, caps.window, inverted=planes[0].kind[0] == "MONOCHROME1")
    del values, plane

    # (5) put the mask on the grid
    marks, refusal = _mask(mask, grid, caps)
    return Volume(shown, marks, refusal, digest, tuple(slices), look(shown))


def _blame_slice(at: int, read: Any) -> Any:
    """Return what `read` returns; a refusal names slice `at`."""
    try:
        return read()
    except MemoryError:
        raise
    except Unusable as refusal:
        raise BadSlice(refusal.reason, at) from refusal
    except Exception as error:
        raise BadSlice(Reason.UNDECODABLE, at) from error


def _plane(path: str, caps: Caps) -> Plane:
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        return _check_slice(
            dicom_header.read_header(file, pixels=False, more=(*UIDS, *GEOMETRY)), caps
        )


def _values(path: str, shape: tuple[int, int], caps: Caps) -> NDArray[np.float32]:
    """The values that one slice means, float32 [H, W]; padding is NaN."""
    # decode
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        header = dicom_header.read_header(file, pixels=False)
        dicom_header.check_size(header, caps.max_pixel_bytes)
        full, stored = dicom.decode_frame(file, header)
    if stored.shape != shape:
        raise Unusable(Reason.UNDECODABLE)

    # one table over all stored patterns: modality values, NaN for padding
    raw = stored.view(f"u{stored.dtype.itemsize}")
    counts = dicom.count_values(raw)
    bits = min(int(full.BitsStored), 8 * stored.dtype.itemsize)
    patterns = dicom.stored_values(len(counts), bits, stored.dtype.kind == "i")
    with np.errstate(over="ignore", invalid="ignore"):
        table = dicom.modality_values(full, patterns, counts).astype(np.float32)
    table[dicom.padding_of(full, patterns, counts)] = np.nan
    if np.isinf(table).any():
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    return dicom.map_values(raw, table)


def _sha(values: NDArray[np.float32]) -> bytes:
    """SHA-256 over shape and values."""
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def _shows_anything(values: NDArray[np.float32]) -> bool:
    """Whether a slice has two different values.

    Slices of one value (air, padding) are alike in all patients, so they join nobody.
    """
    return bool((values != values.flat[0]).any() and not np.isnan(values).all())


def scale_intensity(
    values: NDArray[np.float32], window: tuple[float, float] | None, *, inverted: bool
) -> NDArray[np.uint8]:
    """Return `values` [D, H, W] as uint8: the window, or the volume's own range, becomes 0 to 255.

    NaN becomes 0. Raises Unusable (blank-image) when the volume shows one shade, or nearly so.
    """
    # the range
    if window is None and np.isnan(values).all():
        raise Unusable(Reason.BLANK)
    low, high = window or (float(np.nanmin(values)), float(np.nanmax(values)))
    if not high > low:
        raise Unusable(Reason.BLANK)

    # slice by slice, so that only one is held in float64
    shown = np.empty(values.shape, np.uint8)
    for depth, plane in enumerate(values):
        share = np.clip((plane.astype(np.float64) - low) / (high - low), 0, 1)
        if inverted:
            share = 1 - share
        share = np.where(np.isnan(plane), 0, share)
        shown[depth] = np.rint(255 * share)
    if _spread(shown) < BLANK_SPREAD:
        raise Unusable(Reason.BLANK)
    return shown


def _counts(shown: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each grey level occurs, int64 [256]."""
    # slice by slice, because bincount widens its input
    found = np.zeros(256, np.int64)
    for plane in shown:
        found += np.bincount(plane.ravel(), minlength=256)
    return found


def _spread(shown: NDArray[np.uint8]) -> float:
    """The standard deviation of the grey levels."""
    counts = _counts(shown)
    levels = np.arange(256)
    mean = (counts * levels).sum() / shown.size
    return float(np.sqrt((counts * (levels - mean) ** 2).sum() / shown.size))


def _mask(
    mask: tuple[Kind, str] | None, grid: Grid, caps: Caps
) -> tuple[Mask | None, Reason | None]:
    """The mask, or why there is none."""
    if mask is None:
        return None, Reason.NO_MASK
    kind, path = mask
    try:
        with open_regular(path, caps.max_file_bytes) as file:
            if kind == "nifti":
                return read_nifti(file, grid, caps.max_pixel_bytes), None
            return read_segmentation(file, grid, caps.max_pixel_bytes), None
    except Unusable as refusal:
        return None, refusal.reason


def look(shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a volume's look, uint8 [64, 64, 1].

    It shows the means of four slabs of slices, 32 px each, two by two.
    """
    # four slabs, each at least one slice thick
    depth = len(shown)
    small = []
    for quarter in range(4):
        first = quarter * depth // 4
        last = max(first + 1, (quarter + 1) * depth // 4)
        small.append(_reduce(shown[first:last].mean(axis=0, dtype=np.float32), LOOK_PX // 2))

    # two by two, spread over all grey levels
    tiles = np.block([[small[0], small[1]], [small[2], small[3]]])
    low = float(tiles.min())
    high = float(tiles.max())
    levels = np.rint(255 * (tiles - low) / max(high - low, 1e-6))
    return np.asarray(levels, dtype=np.uint8)[..., None]


def _reduce(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Block means, [size, size], of a plane at least that large."""
    rows, columns = (np.arange(size) * n // size for n in plane.shape)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
    areas = np.outer(np.diff([*rows, plane.shape[0]]), np.diff([*columns, plane.shape[1]]))
    return np.asarray(sums / areas, dtype=np.float32)


def patches(volume: Volume, seed: bytes, count: int, size_px: int) -> NDArray[np.uint8]:
    """Return patches, uint8 [2 x half, S, S, 2] with half = ceil(count / 2) (step 6).

    First those centred on a voxel of the mask, then those centred anywhere that is not air. Voxels
    are drawn with replacement. A centre near a border moves the patch inwards. Plane 0 is the
    image, plane 1 the mask (0 or 255). `volume` must have a mask.
    """
    if volume.mask is None:
        raise Unusable(volume.refusal or Reason.NO_MASK)

    # the centres, all from the seed
    half = (count + 1) // 2
    draws = np.frombuffer(hashlib.shake_256(seed).digest(16 * half), "<u8").reshape(2, half)
    inside = volume.shown > _air_level(volume.shown)
    centres = (*_pick_voxels(volume.mask, draws[0]), *_pick_voxels(inside, draws[1]))

    # the patches around them
    height, width = volume.shown.shape[1:]
    found = np.empty((2 * half, size_px, size_px, 2), np.uint8)
    for row, (depth, y, x) in enumerate(centres):
        top = min(max(y - size_px // 2, 0), height - size_px)
        left = min(max(x - size_px // 2, 0), width - size_px)
        window = (depth, slice(top, top + size_px), slice(left, left + size_px))
        found[row, ..., 0] = volume.shown[window]
        found[row, ..., 1] = volume.mask[window].view(np.uint8) * 255
    return found


def _air_level(shown: NDArray[np.uint8]) -> float:
    """The grey level at and below which a voxel counts as air."""
    share = np.cumsum(_counts(shown)) / shown.size
    return AIR_SHARE * int(np.searchsorted(share, AIR_PERCENTILE))


def _pick_voxels(marked: Mask, draws: NDArray[np.uint64]) -> Iterable[tuple[int, int, int]]:
    """A marked voxel (d, y, x) for each draw, uniformly (to 2^-64 times their number)."""
    # the draw's rank among all marked voxels gives its slice; no list of all voxels is made
    counts = np.array([np.count_nonzero(plane) for plane in marked])
    ends = np.cumsum(counts)
    ranks = (draws % np.uint64(ends[-1])).astype(np.int64)
    depths = np.searchsorted(ends, ranks, side="right")

    # the place inside the slice, once a slice
    places = np.empty(len(draws), np.int64)
    for depth in np.unique(depths):
        own = depths == depth
        places[own] = np.flatnonzero(marked[depth])[ranks[own] - (ends[depth] - counts[depth])]
    rows, columns = np.divmod(places, marked.shape[2])
    return list(zip(depths.tolist(), rows.tolist(), columns.tolist(), strict=True))
