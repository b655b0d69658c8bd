"""Named arrays as canonical safetensors bytes, in numpy alone.

In: a mapping of names to arrays, or bytes from outside. Out: bytes, or arrays.
Guarantees:
  - the same arrays give the same bytes on every machine (names sorted, little endian, no clock);
  - a reader allocates nothing beyond `max_bytes`;
  - an unknown dtype, an overlapping or short buffer and a header that is not plain JSON are
    refused.
Not covered: what the numbers mean.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import RefusedError, disk_faults_named
from common.storage import files

Arrays = dict[str, NDArray[np.generic]]
DTYPES: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
SOURCE = "source"  # `source 1` and on: the public sources of a checkpoint, in its metadata
HEADER_CAP_BYTES = 1 << 20
NUMBER_CAP = 1 << 40  # of a shape or an offset
DIMENSIONS_CAP = 16
# numpy's file format 1.0 with one axis of uint8: the length of the header, then the header
ROW = re.compile(
    rb"\x93NUMPY\x01\x00(..)"
    rb"\{'descr': '\|u1', 'fortran_order': (?:False|True), 'shape': \((\d{1,15}),\), \} *\n",
    re.DOTALL,
)
ROW_HEADER_AT = 10
NO_ROW = "array: expected one row of bytes as numpy writes it"


def dumps(
    arrays: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return canonical safetensors bytes of `arrays` (dtypes F64 to F16, I64, I32, U8)."""
    header: dict[str, object] = {}
    if metadata:
        header[METADATA] = dict(sorted(metadata.items()))
    blocks = []
    offset = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        dtype = _dtype_to_store(name, array)
        block = array.astype(dtype, copy=False).tobytes()
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [offset, offset + len(block)],
        }
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(blocks)


def _dtype_to_store(name: str, array: NDArray[np.generic]) -> np.dtype[np.generic]:
    """The little-endian type that an array is stored in."""
    dtype = array.dtype
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder("<")
    if dtype not in NAMES:
        raise RefusedError(
            f"tensor {name}: dtype {array.dtype} cannot be stored; expected one of {sorted(DTYPES)}"
        )
    return dtype


def _parse_header(data: bytes, where: str) -> tuple[dict[str, dict[str, object]], int]:
    """The header and the offset at which the numbers start."""
    size = HEADER_CAP_BYTES + 1
    if len(data) >= 8:
        size = int.from_bytes(data[:8], "little")
    if size > HEADER_CAP_BYTES or 8 + size > len(data):
        raise RefusedError(
            f"{where}: not a safetensors file (header of {size} bytes in a file of {len(data)})"
        )
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{where}: the safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise RefusedError(f"{where}: the safetensors header is not a mapping")
    return header, 8 + size


def _parse_entry(
    entry: object, where: str, name: str, room: int
) -> tuple[np.dtype[np.generic], tuple[int, ...], int, int]:
    """One tensor's dtype, shape and byte range, checked against the room that the file has."""
    try:
        assert isinstance(entry, dict)
        dtype = DTYPES[str(entry["dtype"])]
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        for n in (*shape, start, end):
            assert type(n) is int and 0 <= n < NUMBER_CAP
        assert start <= end <= room
        # numpy refuses more dimensions, or larger ones beside a zero, with an error of its own
        assert len(shape) <= DIMENSIONS_CAP
        count = 1
        extent = 1
        for n in shape:
            count *= n
            extent *= max(n, 1)
        assert extent < NUMBER_CAP
        assert end - start == count * dtype.itemsize
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"{where}: tensor {name[:80]!r} has a damaged description") from error
    return dtype, shape, start, end


def loads(data: bytes, *, max_bytes: int, where: str = "payload") -> Arrays:
    """Return the arrays (copies, writable) in safetensors bytes of at most `max_bytes`.

    Raises RefusedError for a size, header, dtype, shape or offset that does not fit, and for gaps
    and overlaps.
    """
    if len(data) > max_bytes:
        raise RefusedError(f"{where}: {len(data)} bytes, at most {max_bytes} expected")
    header, base = _parse_header(data, where)
    room = len(data) - base
    arrays: Arrays = {}
    ranges = []
    for name, entry in header.items():
        if name == METADATA:
            continue
        dtype, shape, start, end = _parse_entry(entry, where, name, room)
        ranges.append((start, end))
        numbers = np.frombuffer(data[base + start : base + end], dtype=dtype)
        arrays[name] = numbers.reshape(shape).copy()
    _check_cover(ranges, room, where)
    return arrays


def _check_cover(ranges: list[tuple[int, int]], room: int, where: str) -> None:
    """The tensors cover every byte once."""
    position = 0
    for start, end in sorted(ranges):
        if start != position:
            raise RefusedError(f"{where}: tensors overlap or leave a gap at byte {position}")
        position = end
    if position != room:
        raise RefusedError(f"{where}: {room - position} bytes belong to no tensor")


def npy_bytes(data: bytes) -> bytes:
    """Return the content of one row of bytes in numpy's own file format, as Flower sends arrays.

    Raises RefusedError for anything else. numpy itself would allocate what the header says, and
    reads the header as a Python expression: where threads do so at once, CPython before 3.11.8
    may raise SystemError for an honest one.
    """
    row = ROW.match(data)
    if row is None or int.from_bytes(row[1], "little") != row.end() - ROW_HEADER_AT:
        raise RefusedError(NO_ROW)
    if int(row[2]) != len(data) - row.end():
        raise RefusedError(NO_ROW)
    return data[row.end() :]


def read(path: Path, *, max_bytes: int) -> Arrays:
    """Return the arrays in a safetensors file of at most `max_bytes`."""
    return loads(files.read_capped(path, max_bytes), max_bytes=max_bytes, where=str(path))


def shapes(path: Path, *, max_bytes: int = 1 << 31) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return {name: (dtype name, shape)} of a safetensors file, reading its header alone."""
    head, total = _read_head(path, max_bytes)
    header, base = _parse_header(head, str(path))
    found = {}
    for name, entry in header.items():
        if name != METADATA:
            dtype, shape, _, _ = _parse_entry(entry, str(path), name, total - base)
            found[name] = (NAMES[dtype], shape)
    return found


def metadata(path: Path, *, max_bytes: int = 1 << 31) -> dict[str, str]:
    """Return the texts that a safetensors file carries beside its tensors, from its header alone.

    Raises RefusedError for a damaged header or for anything but texts.
    """
    header, _ = _parse_header(_read_head(path, max_bytes)[0], str(path))
    found = header.get(METADATA, {})
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise RefusedError(f"{path}: the metadata of the safetensors header is not texts")
    return {name: str(text) for name, text in found.items()}


def _read_head(path: Path, max_bytes: int) -> tuple[bytes, int]:
    """The first bytes of a file, which hold a header within its cap, and the size of the file."""
    with disk_faults_named("cannot read", path), open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        head = file.read(min(8 + HEADER_CAP_BYTES, total))
    if total > max_bytes:
        raise RefusedError(f"{path}: {total} bytes, at most {max_bytes} expected")
    return head, total


def write(
    path: Path,
    arrays: Mapping[str, NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
    *,
    mode: int = 0o644,
) -> None:
    """Write a safetensors file atomically."""
    files.atomic_write(path, dumps(arrays, metadata), mode=mode)
