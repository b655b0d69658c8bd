"""PNG files are read by our own reader as Pillow reads them, and what it does not read is named."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from common.errors import RefusedError
from kohort.png import (
    CHUNKS_CAP,
    HEAD_END,
    SAMPLES_CAP,
    Chunk,
    add_chunks,
    read_chunks,
    read_picture,
)

PIXELS = np.cumsum(np.random.default_rng(0).integers(-3, 4, (31, 27, 3)), 0).astype(np.uint8)


def png(mode: str = "RGB", **options: int) -> bytes:
    """The same picture in a kind of PNG."""
    picture = Image.fromarray(PIXELS)
    picture = picture.quantize(17) if mode == "P" else picture.convert(mode)
    out = io.BytesIO()
    picture.save(out, "PNG", **options)
    return out.getvalue()


def written(
    width: int, height: int, depth: int, kind: int, lines: bytes, interlaced: int = 0
) -> bytes:
    """A PNG of any header around packed rows."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head += bytes([depth, kind, 0, 0, interlaced])
    start = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + head
    start += zlib.crc32(b"IHDR" + head).to_bytes(4, "big")
    return add_chunks(start, [Chunk(b"IDAT", zlib.compress(lines)), Chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *(("L", {}), ("RGB", {}), ("1", {}), ("P", {}), ("LA", {}), ("RGBA", {})),
        *(("P", {"bits": 8}), ("RGB", {"compress_type": 3}), ("L", {"compress_level": 0})),
    ],
)
def test_a_picture_is_read_as_pillow_reads_it(mode: str, options: dict[str, int]) -> None:
    data = png(mode, **options)
    found = read_picture(data, "a.png")
    with Image.open(io.BytesIO(data)) as picture:
        assert (found.width, found.height) == picture.size
        assert found.rgb == picture.convert("RGB").tobytes()


def test_every_filter_is_undone() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (5, 1 + 3 * 4), dtype=np.uint8)
    rows[:, 0] = range(5)
    data = written(4, 5, 8, 2, rows.tobytes())
    with Image.open(io.BytesIO(data)) as picture:
        assert read_picture(data, "a.png").rgb == picture.tobytes()


def test_the_digest_is_of_the_pixels_and_not_of_how_they_are_stored() -> None:
    grey = np.repeat(PIXELS[..., :1], 3, axis=2)
    kinds = []
    for array in (grey, grey[..., 0]):
        out = io.BytesIO()
        Image.fromarray(array).save(out, "PNG")
        kinds.append(read_picture(out.getvalue(), "a.png").digest())
    assert kinds[0] == kinds[1] != read_picture(png(), "a.png").digest()
    turned = read_picture(written(2, 8, 8, 0, bytes(8 * 3)), "a.png")
    assert turned.digest() != read_picture(written(8, 2, 8, 0, bytes(2 * 9)), "a.png").digest()


WHOLE = png()
REFUSED = {
    "no PNG": (b"GIF89a", "not a PNG"),
    "cut in a chunk": (WHOLE[:-20], "cut or altered"),
    "without its end": (WHOLE[:HEAD_END], "cut or altered"),
    "a changed byte": (WHOLE[:60] + bytes([WHOLE[60] ^ 1]) + WHOLE[61:], "cut or altered"),
    "a length that is not there": (WHOLE[:8] + b"\xff" * 4 + WHOLE[12:], "cut or altered"),
    "rows that are missing": (written(4, 5, 8, 0, bytes(5)), "rows are missing"),
    "rows that swell": (written(4, 5, 8, 0, bytes(1 << 20)), "unpacks to more than 25 bytes"),
    "a picture that is too large": (written(SAMPLES_CAP, 2, 8, 0, b""), "too large"),
    "no pixels": (written(0, 5, 8, 0, b""), "or empty"),
    "16 bits": (written(4, 5, 16, 0, bytes(45)), "of 16 bits"),
    "interlaced": (written(4, 5, 8, 0, bytes(25), 1), "interlaced"),
    "an unknown filter": (written(1, 1, 8, 0, b"\x09\0"), "unknown filter 9"),
    "no palette": (written(1, 1, 8, 3, b"\0\x02"), "its palette has not"),
    "half transparent": (written(1, 1, 8, 4, b"\0\x02\x02"), "transparent"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(RefusedError, match=words) as caught:
        read_picture(data, "there/a.png")
    assert str(caught.value).startswith("there/a.png: ")


def test_chunks_without_end_are_refused() -> None:
    many = add_chunks(png(), [Chunk(b"teSt", b"")] * CHUNKS_CAP)
    with pytest.raises(RefusedError, match="more than"):
        read_chunks(many, "a.png")
