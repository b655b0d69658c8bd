"""Reads one picture of a release (extra [images]).

Guarantees: the bytes have the signed SHA-256 before a decoder sees them; PNG alone, of a size that
a release may have.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from kohort.errors import RefusedError, damage_named
from kohort.extras import extra
from kohort.files import read_capped

if TYPE_CHECKING:
    from PIL.Image import Image

FILE_CAP_BYTES = 1 << 26
SIDE_CAP_PX = 4096
MODES = ("L", "RGB")


def read_picture(folder: Path, name: str, digest: str) -> Image:
    """Return a picture of mode L or RGB.

    Raises RefusedError for other bytes than those that were signed, and for anything but a PNG of
    8 bits a channel with at most 4096 pixels a side; ConfigurationError without Pillow.
    """
    data = read_capped(folder / name, FILE_CAP_BYTES)
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        raise RefusedError(
            f"{name}: altered: SHA-256 is {got[:16]}..., signed was {digest[:16]}...",
            hint="pull the release again",
        )
    return decode(data, name)


def decode(data: bytes, name: str) -> Image:
    """Return the picture in a PNG file; raises as `read_picture` does."""
    with extra("images"):
        from PIL import Image
    with damage_named(RefusedError(f"{name}: not a PNG that can be read")):
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
        if max(picture.size) > SIDE_CAP_PX or picture.mode not in MODES:
            raise RefusedError(
                f"{name}: {picture.size[0]} x {picture.size[1]} pixels of mode {picture.mode}; "
                f"expected at most {SIDE_CAP_PX} a side, of mode {' or '.join(MODES)}"
            )
        picture.load()
    return picture
