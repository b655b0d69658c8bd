"""PNG files read without a library: their chunks, and the pixels of the common kinds.

In: bytes from anybody. Out: chunks, or RGB bytes.
Guarantees: no length in a file is believed before the bytes are there; damage is a RefusedError.
Not covered: interlaced pictures, 16 bits a sample and transparency. They are refused by name.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from kohort.errors import RefusedError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD_END = len(SIGNATURE) + 25  # where the first chunk after IHDR begins
FILE_CAP_BYTES = 1 << 26
CHUNKS_CAP = 1 << 14
SAMPLES_CAP = 1 << 22  # of one picture: pure Python takes up to 0.4 s a million
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}  # a pixel
DEPTHS = {GREY: (1, 2, 4, 8), PALETTE: (1, 2, 4, 8), RGB: (8,), GREY_ALPHA: (8,), RGBA: (8,)}


@dataclass(frozen=True)
class Chunk:
    """One chunk: its four letters, and what it holds."""

    kind: bytes
    body: bytes


@dataclass(frozen=True)
class Picture:
    """Pixels row by row: `rgb` holds 3 * width * height bytes."""

    width: int
    height: int
    rgb: bytes

    def digest(self) -> str:
        """Return the SHA-256 in hex of size and pixels; a grey picture counts as its RGB twin."""
        head = f"{self.width} {self.height}\n".encode()
        return hashlib.sha256(head + self.rgb).hexdigest()


def is_png(data: bytes) -> bool:
    """Return whether bytes begin as a PNG does."""
    return data.startswith(SIGNATURE)


def read_chunks(data: bytes, what: str) -> list[Chunk]:
    """Return the chunks of a PNG up to IEND, each with a right checksum.

    `what` names the file in messages. Raises RefusedError for anything else.
    """
    if not is_png(data) or len(data) > FILE_CAP_BYTES:
        raise RefusedError(f"{what}: not a PNG of at most {FILE_CAP_BYTES} bytes")
    found: list[Chunk] = []
    at = len(SIGNATURE)
    while len(found) < CHUNKS_CAP:
        size = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        check = data[at + 8 + size : at + 12 + size]
        if len(check) != 4 or zlib.crc32(kind + body) != int.from_bytes(check, "big"):
            raise RefusedError(f"{what}: damaged: the chunk at byte {at} is cut or altered")
        found.append(Chunk(kind, body))
        if kind == b"IEND":
            return found
        at += 12 + size
    raise RefusedError(f"{what}: more than {CHUNKS_CAP} chunks")


def add_chunks(data: bytes, chunks: Iterable[Chunk]) -> bytes:
    """Return a PNG with `chunks` right behind its header."""
    if not is_png(data) or data[12:16] != b"IHDR":
        raise RefusedError("not a PNG, so that nothing can be added to it")
    added = b""
    for chunk in chunks:
        check = zlib.crc32(chunk.kind + chunk.body).to_bytes(4, "big")
        added += len(chunk.body).to_bytes(4, "big") + chunk.kind + chunk.body + check
    return data[:HEAD_END] + added + data[HEAD_END:]


def inflate(data: bytes, cap_bytes: int, what: str) -> bytes:
    """Return zlib data unpacked; raises RefusedError for damage and beyond `cap_bytes`."""
    unpacker = zlib.decompressobj()
    try:
        out = unpacker.decompress(data, cap_bytes + 1)
    except zlib.error as error:
        raise RefusedError(f"{what}: damaged: its packed bytes are altered") from error
    if len(out) > cap_bytes or not unpacker.eof:
        raise RefusedError(f"{what}: cut, or unpacks to more than {cap_bytes} bytes")
    return out


def read_picture(data: bytes, what: str) -> Picture:
    """Return the pixels of a PNG; raises RefusedError for damage and for what is not covered."""
    chunks = read_chunks(data, what)
    if chunks[0].kind != b"IHDR" or len(chunks[0].body) != 13:
        raise RefusedError(f"{what}: damaged: does not begin with its header")
    if any(chunk.kind == b"tRNS" for chunk in chunks):
        raise RefusedError(f"{what}: transparent pictures are not compared")

    # the header: size and kind
    head = chunks[0].body
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    depth, kind, interlaced = head[8], head[9], head[12]
    if depth not in DEPTHS.get(kind, ()) or interlaced:
        raise RefusedError(
            f"{what}: colour type {kind} of {depth} bits{', interlaced' * bool(interlaced)}: "
            "only plain pictures of up to 8 bits are compared"
        )
    samples = SAMPLES[kind]
    if not 0 < width * height * samples <= SAMPLES_CAP:
        raise RefusedError(f"{what}: {width} x {height} px, too large to compare, or empty")

    # the rows
    row_bytes = (width * samples * depth + 7) // 8
    packed = b"".join(chunk.body for chunk in chunks if chunk.kind == b"IDAT")
    lines = inflate(packed, height * (row_bytes + 1), what)
    if len(lines) != height * (row_bytes + 1):
        raise RefusedError(f"{what}: damaged: rows are missing")
    rows = _unfilter(lines, row_bytes, max(1, samples * depth // 8), what)
    if depth < 8:
        rows = [_spread(row, depth, width) for row in rows]

    # all kinds as RGB
    values = b"".join(rows)
    if kind == PALETTE:
        return Picture(width, height, _from_palette(values, chunks, what))
    if kind == GREY and depth < 8:
        most = (1 << depth) - 1
        values = bytes(value * 255 // most for value in values)
    if kind in (GREY_ALPHA, RGBA) and values[samples - 1 :: samples].strip(b"\xff"):
        raise RefusedError(f"{what}: transparent pictures are not compared")
    return Picture(width, height, as_rgb(values, samples))


def _unfilter(lines: bytes, row_bytes: int, step: int, what: str) -> list[bytes]:
    """The rows of a picture without their filters; `step` is the bytes of a pixel."""
    rows = []
    above = bytearray(row_bytes)
    for at in range(0, len(lines), row_bytes + 1):
        row = bytearray(lines[at + 1 : at + 1 + row_bytes])
        _undo(lines[at], row, above, step, what)
        rows.append(bytes(row))
        above = row
    return rows


def _undo(kind: int, row: bytearray, above: bytearray, step: int, what: str) -> None:
    """Undo one row's filter in place (PNG, section 9)."""
    if kind == 1:
        for i in range(step, len(row)):
            row[i] = (row[i] + row[i - step]) & 255
    elif kind == 2:
        for i in range(len(row)):
            row[i] = (row[i] + above[i]) & 255
    elif kind == 3:
        for i in range(len(row)):
            left = row[i - step] if i >= step else 0
            row[i] = (row[i] + (left + above[i]) // 2) & 255
    elif kind == 4:
        for i in range(len(row)):
            left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
            up = above[i]
            by_left, by_up, by_corner = (
                abs(up - corner),
                abs(left - corner),
                abs(left + up - 2 * corner),
            )
            # whichever neighbour is nearest to left + up - corner
            nearest = corner
            if by_left <= by_up and by_left <= by_corner:
                nearest = left
            elif by_up <= by_corner:
                nearest = up
            row[i] = (row[i] + nearest) & 255
    elif kind:
        raise RefusedError(f"{what}: damaged: a row has the unknown filter {kind}")


def _spread(row: bytes, depth: int, width: int) -> bytes:
    """One byte a sample, of a row that packs several into a byte."""
    most = (1 << depth) - 1
    shifts = range(8 - depth, -1, -depth)
    return bytes(byte >> shift & most for byte in row for shift in shifts)[:width]


def _from_palette(values: bytes, chunks: list[Chunk], what: str) -> bytes:
    """RGB of palette indices."""
    palette = next((chunk.body for chunk in chunks if chunk.kind == b"PLTE"), b"")
    if len(palette) % 3 or not max(values) < len(palette) // 3 <= 256:
        raise RefusedError(f"{what}: damaged: names colours that its palette has not")
    return b"".join(palette[3 * value : 3 * value + 3] for value in values)


def as_rgb(values: bytes, samples: int) -> bytes:
    """Return RGB of interleaved samples: grey or RGB, an alpha behind it left out."""
    colours = samples
    if samples in (2, 4):
        colours = samples - 1
    out = bytearray(len(values) // samples * 3)
    for i in range(3):
        out[i::3] = values[min(i, colours - 1) :: samples]
    return bytes(out)
