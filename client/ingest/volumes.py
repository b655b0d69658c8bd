"""Reads MR slices and masks as volumes, and cuts volumes into patches, in the decoding child.

In: all files of one series and its mask (`read_volume`), and a seed (`patches`).
Out: a `Volume` of 8-bit intensities with its mask; image + mask patches.
Guarantees:
  - one volume at a time, its size checked before it is allocated
  - of a series that holds several things, one enters (parts.py); copies are compared by pixels
  - slices lie as geometry says (series.py); one scaling for the whole volume (intensity.py)
  - each patch lies inside the volume; nothing is padded or resampled
  - the choice of patches follows from the seed alone
Not covered: bias fields, skull and air (nothing removes them); a series in another plane.

  1. read the headers of a series: its frames (frames.py)
  2. choose the part that the plan takes (parts.py), and order its slices (series.py)
  3. read the values: modality LUT or rescale; padding has none
  4. compare copies of slices
  5. scale the values to 8 bits: the study's window, else the volume's own range
  6. put the mask on the grid (masks.py)
  7. cut patches: half centred on the mask, half anywhere that is not air
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest import dicom, dicom_header
from client.ingest.files import open_regular
from client.ingest.frames import ATTRIBUTES, frames_of
from client.ingest.intensity import count_levels, scale_intensity
from client.ingest.masks import Mask, lies_on, read_nifti, read_segmentation
from client.ingest.parts import Chosen, Frame, choose_part
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import LOOK_PX, SLICE_DIGEST_BYTES, Caps, Kind
from client.ingest.series import Grid, arrange_slices

# Air stays below a tenth of the volume's 98th percentile. Kossen et al. 2022 draw the patches
# without a vessel in the brain; without a brain mask, everything but air stands for it.
AIR_SHARE = 0.1
AIR_PERCENTILE = 0.98


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and its mask.

    `shown`: uint8 [D, H, W]. `refusal`: why there is no `mask`. `digest`: SHA-256 of the values.
    `slices`: digests of the slices that show anything. `look`: uint8 [64, 64, 1], to find
    near-duplicates. `left_out`: the files, by position, that are no part of it.
    """

    shown: NDArray[np.uint8]
    mask: Mask | None
    refusal: Reason | None
    digest: bytes
    slices: tuple[bytes, ...]
    look: NDArray[np.uint8]
    left_out: Mapping[int, Reason] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stack:
    """A series before its pixels are read: its frames, those that make the volume, its grid.

    `depths`: the slice of each kept frame and of each copy, by the frame's position.
    """

    frames: Sequence[Frame]
    chosen: Chosen
    depths: Mapping[int, int]
    grid: Grid


class BadSlice(Unusable):
    """One file, number `at`, makes its series unusable."""

    def __init__(self, reason: Reason, at: int) -> None:
        super().__init__(reason)
        self.at = at


def read_volume(paths: Sequence[str], mask: tuple[Kind, str] | None, caps: Caps) -> Volume:
    """Return the volume of the files at `paths`, in any order, with the mask at (kind, path).

    A mask that cannot be used is a `refusal`, not an exception. Raises Unusable when the files
    make no volume, BadSlice when one of them is at fault.
    """
    # (1, 2) read the headers: the slices must make a volume, small enough for memory
    stack = read_stack(paths, caps)
    grid = stack.grid

    # (3) read the values, file by file
    values = np.empty(grid.shape, np.float32)
    for file, own in _by_file(stack.frames, stack.chosen.kept):
        with _blame_file(file):
            for position, plane in _values(paths[file], stack, own, caps):
                values[stack.depths[position]] = plane

    # (4) compare copies of slices
    _check_copies(paths, stack, values, caps)

    # digests of the values, before they are scaled
    digest = _sha(values)
    slices = []
    for plane in values:
        if _shows_anything(plane):
            slices.append(_sha(plane)[:SLICE_DIGEST_BYTES])

    # (5) scale to 8 bits; the float copy goes before the mask comes, to keep within memory
    inverted, *_ = stack.frames[stack.chosen.kept[0]].plane.kind
    shown = scale_intensity(values, caps.window, inverted=inverted)
    del values, plane

    # (6) put the mask on the grid
    marks, refusal = _mask(mask, grid, caps)
    left_out = _files_left_out(stack)
    return Volume(shown, marks, refusal, digest, tuple(slices), look(shown), left_out)


def read_stack(paths: Sequence[str], caps: Caps) -> Stack:
    """Return the stack of the files at `paths`, by their headers alone (steps 1 and 2).

    Raises what `read_volume` raises.
    """
    # (1) read the headers
    frames: list[Frame] = []
    for at, path in enumerate(paths):
        with _blame_file(at):
            frames += _read_frames(path, caps, at)

    # (2) choose a part and order its slices
    chosen = choose_part(frames, caps.take)
    order, grid = arrange_slices([frames[position].plane for position in chosen.kept])
    if 4 * int(np.prod(grid.shape)) > caps.max_volume_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)
    if min(grid.shape[1:]) < caps.size_px:
        raise Unusable(Reason.VOLUME_TOO_SMALL)
    depths = {chosen.kept[at]: depth for depth, at in enumerate(order)}
    for copy, original in chosen.copies.items():
        depths[copy] = depths[original]
    return Stack(frames, chosen, depths, grid)


def fits(paths: Sequence[str], mask: str, caps: Caps) -> bool:
    """Return whether the segmentation at `mask` lies on the grid of the series at `paths`.

    Raises what `read_volume` raises where the series makes no volume.
    """
    grid = read_stack(paths, caps).grid
    with open_regular(mask, caps.max_file_bytes) as file:
        return lies_on(file, grid, caps.max_pixel_bytes)


def _by_file(frames: Sequence[Frame], wanted: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
    """Each file with the wanted frames that lie in it, by position."""
    found: dict[int, list[int]] = {}
    for position in wanted:
        found.setdefault(frames[position].file, []).append(position)
    yield from found.items()


def _check_copies(
    paths: Sequence[str], stack: Stack, values: NDArray[np.float32], caps: Caps
) -> None:
    """Refuse frames at one place that differ in pixels."""
    for file, own in _by_file(stack.frames, stack.chosen.copies):
        altered: list[int] = []
        with _blame_file(file):
            for position, plane in _values(paths[file], stack, own, caps):
                original = values[stack.depths[position]]
                if not np.array_equal(original, plane, equal_nan=True):
                    altered.append(position)
        # whichever of the two is right, the series is refused as a whole
        for position in altered:
            raise Unusable(_why_altered(stack, position))


def _why_altered(stack: Stack, copy: int) -> Reason:
    """The reason for a frame that differs from the one at its place."""
    instance = stack.frames[copy].instance
    if instance and instance == stack.frames[stack.chosen.copies[copy]].instance:
        return Reason.ALTERED_COPY
    return Reason.DUPLICATE_SLICE


def _files_left_out(stack: Stack) -> dict[int, Reason]:
    """The reason of each file of which no frame is in the volume."""
    # a copy, or the commonest reason of its frames
    kept = {stack.frames[position].file for position in stack.chosen.kept}
    reasons: dict[int, list[Reason]] = {}
    for position, frame in enumerate(stack.frames):
        if frame.file not in kept:
            reason = stack.chosen.left_out.get(position, Reason.DUPLICATE)
            reasons.setdefault(frame.file, []).append(reason)
    return {file: max(found, key=found.count) for file, found in reasons.items()}


@contextmanager
def _blame_file(at: int) -> Iterator[None]:
    """Turn what fails inside into a refusal that names file `at`."""
    try:
        yield
    except MemoryError:
        raise
    except Unusable as refusal:
        raise BadSlice(refusal.reason, at) from refusal
    except Exception as error:
        raise BadSlice(Reason.UNDECODABLE, at) from error


def _read_frames(path: str, caps: Caps, at: int) -> list[Frame]:
    """The frames of the file at `path`, number `at` of its series."""
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        header = dicom_header.read_header(file, pixels=False, more=ATTRIBUTES)
        return frames_of(header, caps, at)


def _values(
    path: str, stack: Stack, own: Sequence[int], caps: Caps
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position of each own frame of a file, and its values, float32 [H, W]."""
    # the file as it is now, which must still be within the caps
    with open_regular(path, caps.max_file_bytes) as file:
        dicom_header.bound_inflation(file, caps.max_pixel_bytes)
        header = dicom_header.read_header(file, pixels=False)
        dicom_header.check_size(header, caps.max_pixel_bytes)
        full = dicom_header.read_header(file, pixels=True)
    count = dicom_header.count_frames(header)
    full.NumberOfFrames = count

    for position in own:
        frame = stack.frames[position]
        if frame.index >= count:
            raise Unusable(Reason.TRUNCATED)
        stored = dicom.read_frame(full, frame.index, count)
        if stored.shape != stack.grid.shape[1:]:
            raise Unusable(Reason.UNDECODABLE)
        if frame.rescale is not None:
            full.RescaleSlope, full.RescaleIntercept = frame.rescale
        yield position, _values_meant(full, stored)


def _values_meant(full: Dataset, stored: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """The values that stored ones mean, float32 [H, W]; padding is NaN."""
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
    """Return patches, uint8 [2 x half, S, S, 2] with half = ceil(count / 2) (step 7).

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
    share = np.cumsum(count_levels(shown)) / shown.size
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
