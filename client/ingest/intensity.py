"""Scales a volume's values to 8 bits.

In: the values of a volume, float32 [D, H, W], NaN for padding; the study's window, if it has one.
Out: uint8 [D, H, W].
Guarantees: one scaling for the whole volume; a few voxels of any value do not move it. Only copies
the size of a slice are made.
Not covered: bias fields.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.ingest.images import BLANK_SPREAD
from client.ingest.quarantine import Reason, Unusable

# Without a window, this share of the voxels becomes black, and as large a share white. A spike or a
# wrong pixel is a smaller share, and vessels are a much larger one.
TAIL = 0.001


def scale_intensity(
    values: NDArray[np.float32], window: tuple[float, float] | None, *, inverted: bool
) -> NDArray[np.uint8]:
    """Return `values` [D, H, W] as uint8: the window, or the volume's own range, becomes 0 to 255.

    NaN becomes 0. Raises Unusable (blank-image) when the volume shows one shade, or nearly so.
    """
    low, high = window or robust_range(values)
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


def robust_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return the volume's own range without its tails: TAIL of the voxels lie below, TAIL above.

    Of fewer than 1 / TAIL voxels these are the smallest and the largest. NaN does not count. Raises
    Unusable (blank-image) where all is NaN.
    """
    count = sum(int(np.count_nonzero(~np.isnan(plane))) for plane in values)
    if not count:
        raise Unusable(Reason.BLANK)

    # the smallest and the largest values, as many as lie in a tail and one more
    kept = 1 + int(TAIL * count)
    lowest = highest = np.empty(0, np.float32)
    for plane in values:
        real = plane[~np.isnan(plane)]
        lowest = _smallest(np.concatenate([lowest, real]), kept)
        highest = -_smallest(-np.concatenate([highest, real]), kept)
    return float(lowest.max()), float(highest.min())


def _smallest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The `count` smallest values, or all where there are fewer."""
    if len(values) <= count:
        return values
    return np.partition(values, count - 1)[:count]


def count_levels(shown: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each grey level occurs, int64 [256]."""
    # slice by slice, because bincount widens its input
    found = np.zeros(256, np.int64)
    for plane in shown:
        found += np.bincount(plane.ravel(), minlength=256)
    return found


def _spread(shown: NDArray[np.uint8]) -> float:
    """The standard deviation of the grey levels."""
    counts = count_levels(shown)
    levels = np.arange(256)
    mean = (counts * levels).sum() / shown.size
    return float(np.sqrt((counts * (levels - mean) ** 2).sum() / shown.size))
