"""Reads the lookup tables of a DICOM header: modality, VOI, and the colours of a palette.

In: a table's descriptor and its data.
Out: a `Table` of whole numbers, which any value can be looked up in.
Guarantees:
  - 8-bit entries may stand one a byte or one a word
  - an entry that the header declares and does not hold is never invented: an image that needs it
    is refused (bad-lookup-table)
  - a segmented table never grows beyond the entries that it declares
Not covered: what a table means (window.py, palettes.py).

DICOM PS3.3 C.11.1.1.1, C.11.2.1.1, C.7.6.3.1.5, C.7.6.3.1.6, C.7.9.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian

from client.ingest.quarantine import Reason, Unusable

MOST_ENTRIES = 1 << 16  # a declared length of 0 stands for it
MOST_BYTES = 8 * MOST_ENTRIES  # of segments, which may be longer than what they stand for
SPARE_BITS = 4  # a table that leaves as many of its stated bits unused states too many
DISCRETE, LINEAR, INDIRECT = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Table:
    """A lookup table.

    `entries`: int64 [N], those that the file holds. `declared`: how many there should be. `first`:
    the value that the first entry is for, 0..65535. `bits`: of the largest entry that may occur.
    """

    entries: NDArray[np.int64]
    declared: int
    first: int
    bits: int


def is_swapped(header: Dataset) -> bool:
    """Return whether the words of the header's raw data have their high byte first."""
    return bool(header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian)


def read_table(descriptor: Any, data: Any, *, swapped: bool) -> Table:
    """Return the table of a LUTDescriptor and its data.

    `data`: bytes, a number or a list of numbers. `swapped`: bytes have the high byte of a word
    first. Raises Unusable (bad-lookup-table) for anything else.
    """
    with _refusing():
        length, first, depth = (int(number) for number in descriptor)
        declared = length & 0xFFFF or MOST_ENTRIES
        entries = _entries(_little_endian(data, swapped), declared, depth)
    return Table(entries, declared, first & 0xFFFF, _bits(entries, depth))


def read_segmented(descriptor: Any, data: bytes, *, swapped: bool) -> Table:
    """Return the table of a descriptor and the segments that it is made of.

    Raises Unusable (bad-lookup-table) for what are no segments.
    """
    with _refusing():
        length, first, depth = (int(number) for number in descriptor)
        declared = length & 0xFFFF or MOST_ENTRIES
        width = 2
        if depth <= 8:
            width = 1
        raw = _little_endian(data, swapped)
        words = np.frombuffer(raw[: len(raw) // width * width], f"<u{width}")
        entries = np.array(_expand(words.tolist(), width, declared), np.int64)
    return Table(entries, declared, first & 0xFFFF, _bits(entries, depth))


def look_up(
    table: Table, values: NDArray[Any], counts: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the table's entry for each value; values beyond its ends have those of its ends.

    The first entry's value is signed where values can be negative. `counts`: how often each value
    occurs; without it, each does. Raises Unusable (bad-lookup-table) for a value that occurs and of
    which the entry is missing.
    """
    first = table.first
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, table.declared - 1)
    missing = places >= len(table.entries)
    if counts is not None:
        missing &= counts > 0
    if not len(table.entries) or missing.any():
        raise Unusable(Reason.LOOKUP_TABLE)
    found: NDArray[np.int64] = table.entries[np.minimum(places, len(table.entries) - 1)]
    return found


@contextmanager
def _refusing() -> Iterator[None]:
    """What is no table, however it is none, is refused."""
    try:
        yield
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise Unusable(Reason.LOOKUP_TABLE) from error


def _little_endian(data: Any, swapped: bool) -> bytes:
    """A table's data as bytes, the low byte of each word first; at most MOST_BYTES of them."""
    if data is None:
        return b""
    if not isinstance(data, bytes):
        numbers = np.atleast_1d(np.asarray(data, dtype=np.int64))
        return numbers.astype("<u2").tobytes()[:MOST_BYTES]
    raw = bytes(data[:MOST_BYTES])
    if swapped:
        return np.frombuffer(raw[: len(raw) // 2 * 2], ">u2").astype("<u2").tobytes()
    return raw


def _entries(raw: bytes, declared: int, depth: int) -> NDArray[np.int64]:
    """The entries in raw data: one a byte, or one a word where there are bytes enough."""
    # an odd number of bytes is made even
    packed = len(raw) in (declared, declared + declared % 2)
    if packed or (depth <= 8 and len(raw) < declared):
        found = np.frombuffer(raw, np.uint8)
    else:
        found = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2")
    return found[:declared].astype(np.int64)


def _bits(entries: NDArray[np.int64], depth: int) -> int:
    """The bits of an entry: those stated, unless entries exceed them or leave many unused."""
    if not len(entries):
        return depth
    needed = max(8, int(entries.max()).bit_length())
    if needed <= depth <= 16 and depth - needed < SPARE_BITS:
        return depth
    return needed


def _expand(data: Sequence[int], width: int, most: int) -> list[int]:
    """The entries that segments stand for, at most `most`; `width`: bytes of one entry."""
    found: list[int] = []
    at = 0
    # what fills up the data's length is no segment
    while at + 1 < len(data) and data[at + 1] and len(found) < most:
        kind = data[at]
        if kind == INDIRECT:
            number = data[at + 1]
            start = _offset(data, at + 2, width)
            _expand_again(data, start, number, found, most)
            at += 2 + 4 // width
        else:
            at = _expand_one(data, at, found)
    return found[:most]


def _expand_one(data: Sequence[int], at: int, found: list[int]) -> int:
    """Append what the segment at a place stands for; return where the next one begins."""
    kind, length = data[at], data[at + 1]
    if kind == DISCRETE:
        found += data[at + 2 : at + 2 + length]
        return at + 2 + length
    if kind == LINEAR and found:
        steps = np.linspace(found[-1], data[at + 2], length + 1)[1:]
        found += np.rint(steps).astype(int).tolist()
        return at + 3
    raise ValueError("not a segment of a lookup table")


def _expand_again(
    data: Sequence[int], start: int, number: int, found: list[int], most: int
) -> None:
    """Append `number` segments from a place that was read before; none of them points further."""
    for _ in range(number):
        if len(found) >= most or not data[start + 1]:
            return
        start = _expand_one(data, start, found)


def _offset(data: Sequence[int], at: int, width: int) -> int:
    """The place that an indirect segment names in bytes, its low half first."""
    parts = data[at : at + 4 // width]
    return sum(part << (8 * width * place) for place, part in enumerate(parts)) // width
