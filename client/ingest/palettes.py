"""Maps the stored values of a PALETTE COLOR image to RGB.

In: a header with three lookup tables, plain or segmented; the stored values that can occur.
Out: uint8 colours.
Guarantees: how deep a palette is follows from its three tables, never from the image.
Not covered: alpha; the supplemental palettes of grey images.

DICOM PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest.lookup import Table, is_swapped, look_up, read_segmented, read_table
from client.ingest.quarantine import Reason, Unusable

COLOURS = ("Red", "Green", "Blue")


def palette_colours(
    header: Dataset, values: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return the colour of each stored value, uint8 [3, N].

    `counts`: how often each value occurs. Raises Unusable (bad-lookup-table).
    """
    try:
        tables = [_table(header, colour) for colour in COLOURS]
    except AttributeError as error:
        raise Unusable(Reason.LOOKUP_TABLE) from error
    # 16-bit entries that hold 8-bit values are 8-bit colours
    surplus = max(max(table.bits for table in tables) - 8, 0)
    colours = [look_up(table, values, counts) >> surplus for table in tables]
    return np.clip(np.stack(colours), 0, 255).astype(np.uint8)


def _table(header: Dataset, colour: str) -> Table:
    """The table of one colour, plain or else segmented."""
    descriptor = getattr(header, f"{colour}PaletteColorLookupTableDescriptor")
    swapped = is_swapped(header)
    plain = f"{colour}PaletteColorLookupTableData"
    if plain in header:
        return read_table(descriptor, header[plain].value, swapped=swapped)
    segments = getattr(header, f"Segmented{plain}")
    return read_segmented(descriptor, segments, swapped=swapped)
