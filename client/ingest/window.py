"""Maps the values of a grey image to brightness, as the header or the study says.

In: a header and the modality values that can occur.
Out: shares of full brightness, 0..1.
Guarantees: a window that the standard does not allow is not used; what comes next in the order
below is.
Not covered: the modality step and polarity (dicom.py); per-frame windows of enhanced objects.

  1. the study's window
  2. the file's first VOI LUT that has entries
  3. the file's first valid window: width at least 1 for LINEAR, above 0 for LINEAR_EXACT and
     SIGMOID, all numbers finite
  4. the full range of 8-bit data, or the 0.5 to 99.5 percentiles of deeper data

DICOM PS3.3 C.11.2.
"""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest.dicom_header import numbers_of, text_of
from client.ingest.lookup import Table, is_swapped, look_up, read_table

Window = tuple[float, float]


def apply_window(
    header: Dataset,
    values: NDArray[np.float64],
    counts: NDArray[np.int64],
    bits: int,
    window: Window | None,
) -> NDArray[np.float64]:
    """Return shares of full brightness, 0..1, of modality values.

    `counts`: how often each value occurs. `window`: the study's, as (low, high). Raises Unusable
    (bad-lookup-table).
    """
    if window is None:
        table = _voi_table(header)
        if table is not None:
            return np.clip(look_up(table, values, counts) / ((1 << table.bits) - 1), 0, 1)
        center_width = header_window(header)
        if center_width is not None:
            return _apply_function(_function(header), values, *center_width)
    low, high = window or _plain_range(values, counts, bits)
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _voi_table(header: Dataset) -> Table | None:
    """The first VOI LUT with entries; None without one."""
    swapped = is_swapped(header)
    for item in header.get("VOILUTSequence") or ():
        if item.get("LUTDescriptor") is None:
            continue
        table = read_table(item.LUTDescriptor, item.get("LUTData"), swapped=swapped)
        if len(table.entries):
            return table
    return None


def _function(header: Dataset) -> str:
    """The VOI LUT function; one that is missing or unknown is LINEAR, as viewers have it."""
    function = text_of(header, "VOILUTFunction")
    if function in ("SIGMOID", "LINEAR_EXACT"):
        return function
    return "LINEAR"


def header_window(header: Dataset) -> tuple[float, float] | None:
    """Return centre and width of the first valid window; None without one."""
    linear = _function(header) == "LINEAR"
    centers = numbers_of(header, "WindowCenter")
    widths = numbers_of(header, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        wide_enough = width >= 1 if linear else width > 0
        if wide_enough and isfinite(center) and isfinite(width):
            return center, width
    return None


def _apply_function(
    function: str, values: NDArray[np.float64], center: float, width: float
) -> NDArray[np.float64]:
    """Values through a VOI LUT function (C.11.2.1.2 and .3)."""
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -50, 50)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float64)
    if function == "LINEAR":
        center = center - 0.5
        width = width - 1
    return np.clip((values - center) / max(width, 1e-12) + 0.5, 0, 1)


def _plain_range(values: NDArray[np.float64], counts: NDArray[np.int64], bits: int) -> Window:
    """The range where there is no window.

    All of 8-bit data, or the 0.5 to 99.5 percentiles of deeper data.
    """
    if bits <= 8:
        return float(values.min()), float(values.max())
    # values that occur, in their order
    found = np.flatnonzero(counts)
    found = found[np.argsort(values[found], kind="stable")]
    share = np.cumsum(counts[found]) / max(counts.sum(), 1)

    def percentile(p: float) -> float:
        place = min(int(np.searchsorted(share, p)), len(found) - 1)
        return float(values[found[place]])

    return percentile(0.005), percentile(0.995)
