"""CBOR (RFC 8949) and JUMBF boxes (ISO 19566-5), as much as a C2PA manifest needs.

Guarantees: one value has one spelling; a mapping keeps the order in which it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAPPING, TAG = range(7)
NULL = b"\xf6"
# the last twelve bytes of every type that C2PA and JUMBF define
TYPE_TAIL = bytes.fromhex("00110010800000aa00389b71")
REQUESTABLE = b"\x03"  # toggles: it can be named in a link, and has a label


@dataclass(frozen=True)
class Tagged:
    """A value with a CBOR tag."""

    tag: int
    value: object


def cbor(value: object) -> bytes:
    """Return a value in CBOR: None, whole numbers, bytes, text, sequences, mappings, `Tagged`."""
    match value:
        case None:
            return NULL
        case int() if not isinstance(value, bool):
            return _head(UNSIGNED, value) if value >= 0 else _head(NEGATIVE, -1 - value)
        case bytes():
            return _head(BYTES, len(value)) + value
        case str():
            data = value.encode()
            return _head(TEXT, len(data)) + data
        case Tagged():
            return _head(TAG, value.tag) + cbor(value.value)
        case Mapping():
            pairs = [cbor(key) + cbor(inner) for key, inner in value.items()]
            return _head(MAPPING, len(value)) + b"".join(pairs)
        case Sequence():
            return _head(ARRAY, len(value)) + b"".join(map(cbor, value))
    raise TypeError(f"no CBOR for {type(value).__name__}")


def _head(kind: int, number: int) -> bytes:
    """The first bytes of an item: its kind, and a number in its shortest form."""
    if number < 24:
        return bytes([kind << 5 | number])
    for extra, size in enumerate((1, 2, 4, 8)):
        if number < 1 << 8 * size:
            return bytes([kind << 5 | 24 + extra]) + number.to_bytes(size, "big")
    raise ValueError("a number of more than 64 bits")


def box(kind: bytes, content: bytes) -> bytes:
    """Return one box: its length, its four letters, its content."""
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def superbox(kind: bytes, label: str, *boxes: bytes) -> bytes:
    """Return a labelled box of other boxes; `kind` are the four letters of its type."""
    description = kind + TYPE_TAIL + REQUESTABLE + label.encode() + b"\0"
    return box(b"jumb", box(b"jumd", description) + b"".join(boxes))


def link_hash_input(whole: bytes) -> bytes:
    """Return what a link to a superbox hashes: all but its own length and letters."""
    return whole[8:]
