"""Counts the stored values of an image, and looks each of them up in a table.

In: unsigned patterns, uint8 or uint16 [H, W].
Out: how often each occurs; or the table's entry for each.
Guarantees: memory beside the result holds one strip; one thread.
Not covered: what the patterns mean (dicom.py).

OpenCV does both in a third of numpy's time: it widens no pattern to 64 bits.
"""

from __future__ import annotations

from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from client.ingest.images import strips

T = TypeVar("T", np.uint8, np.float32)

cv2.setNumThreads(1)


def count_values(raw: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each unsigned pattern of [H, W] occurs, [256] or [65536]."""
    patterns = 1 << 8 * raw.dtype.itemsize
    counts = np.zeros(patterns, np.int64)
    for rows in strips(*raw.shape):
        # a strip has fewer pixels than float32, which OpenCV counts in, has whole numbers
        found = cv2.calcHist([raw[rows]], [0], None, [patterns], [0, patterns])
        counts += found.ravel().astype(np.int64)
    return counts


def map_values(raw: NDArray[Any], table: NDArray[T]) -> NDArray[T]:
    """Return the table's entry for each unsigned pattern of [H, W], of the table's type."""
    found = np.empty(raw.shape, table.dtype)
    for rows in strips(*raw.shape):
        found[rows] = cv2.LUT(raw[rows], table)
    return found
