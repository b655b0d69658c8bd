"""Looks for identifying strings in bytes, in the spellings in which they might hide."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 8
KEY_BITS = 20


def spellings(text: str) -> Iterator[bytes]:
    """Yield a string as it might hide in bytes.

    The spellings are plain, UTF-16, hexadecimal, and base64 at each of three offsets.
    """
    plain = text.encode()
    yield from (plain, text.encode("utf-16-le"), plain.hex().encode())
    for lead, first in enumerate((0, 2, 3)):
        # what does not depend on the neighbours
        yield base64.b64encode(b"\0" * lead + plain)[first:-4]


def leaked(secrets: Iterable[str], data: bytes) -> list[str]:
    """Return those of `secrets` that stand in `data`.

    Secrets of fewer than 8 characters and spellings of fewer than 8 bytes are left out.
    """
    wanted = [
        (text, spelling)
        for text in secrets
        for spelling in spellings(text)
        if len(spelling) >= KEY_BYTES
    ]
    keys = np.frombuffer(b"".join(spelling[-KEY_BYTES:] for _, spelling in wanted), "<u8")
    there = np.zeros(len(keys), bool)
    # most places are told apart by a few bits, the others are compared
    may_be_key = np.zeros(1 << KEY_BITS, bool)
    may_be_key[_few_bits(keys)] = True
    for offset in range(KEY_BYTES):
        count = max(0, len(data) - offset) // KEY_BYTES
        if count:
            windows = np.frombuffer(data, "<u8", count, offset)
            there |= np.isin(keys, windows[may_be_key[_few_bits(windows)]])
    found = (
        text
        for (text, spelling), maybe in zip(wanted, there, strict=True)
        if maybe and spelling in data
    )
    return list(dict.fromkeys(found))


def _few_bits(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A few bits that depend on all eight bytes."""
    return (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - KEY_BITS)


def all_bytes(paths: Iterable[Path]) -> bytes:
    """Every byte and every name of these files."""
    return b"\n".join(path.read_bytes() + path.name.encode() for path in paths if path.is_file())
