"""Reads MR slices and masks as volumes, and cuts volumes into patches, in the decoding child.

In: all files of one series and its mask (`read_volume`), and a seed (`patches`).
Out: a `Volume` of 8-bit intensities with its mask; image + mask patches.
Guarantees:
  - one volume at a time, its size checked before it is allocated (stack.py)
  - one scaling for the whole volume (intensity.py)
  - each patch lies inside the volume; nothing is padded or resampled
  - the choice of patches follows from the seed alone
Not covered: bias fields, skull and air (nothing removes them); a series in another plane.

  1. read the headers of a series: its frames (frames.py)
  2. choose the part that the plan takes (parts.py), and order its slices (series.py)
  3. read the values: modality LUT or rescale; padding has none
  4. compare copies of slices; one that cannot be read may have a copy that can
  5. scale the values to 8 bits: the study's window, else the volume's own range
  6. put the mask on the grid (masks.py)
  7. cut patches: half centred on the mask, half anywhere that is not air
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.ingest.files import open_regular
from client.ingest.intensity import count_levels, scale_intensity
from client.ingest.masks import Mask, lies_on, read_nifti, read_segmentation
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import LOOK_PX, SLICE_DIGEST_BYTES, Caps, Kind
from client.ingest.series import Grid
from client.ingest.stack import read_stack, read_values

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


def read_volume(paths: Sequence[str], mask: tuple[Kind, str] | None, caps: Caps) -> Volume:
    """Return the volume of the files at `paths`, in any order, with the mask at (kind, path).

    A mask that cannot be used is a `refusal`, not an exception. Raises Unusable when the files
    make no volume, BadSlice when one of them is at fault.
    """
    # (1, 2) read the headers: the slices must make a volume, small enough for memory
    stack = read_stack(paths, caps)
    grid = stack.grid

    # (3, 4) read the values, and compare copies of slices
    values, left_out = read_values(paths, stack, caps)

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
    return Volume(shown, marks, refusal, digest, tuple(slices), look(shown), left_out)


def fits(paths: Sequence[str], mask: str, caps: Caps) -> bool:
    """Return whether the segmentation at `mask` lies on the grid of the series at `paths`.

    Raises what `read_volume` raises where the series makes no volume.
    """
    grid = read_stack(paths, caps).grid
    with open_regular(mask, caps.max_file_bytes) as file:
        return lies_on(file, grid, caps.max_pixel_bytes)


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
