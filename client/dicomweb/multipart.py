"""The one image in a multipart answer, as it comes.

In: the Content-Type and the blocks of an answer of a DICOMweb server.
Out: the bytes of its one part, in blocks.
Guarantees: no more is held than a head of 16 KiB, or one block and a boundary; an answer without
its boundary, without an end, of several parts or of another type is refused.
Not covered: the number of bytes (connection.py); what they are, which the intake looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

DICOM = "application/dicom"
MULTIPART = "multipart/related"
HEAD_CAP_BYTES = 16_384
# RFC 2046, 5.1.1
BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;",]{1,70}))', re.IGNORECASE)
PART_TYPE = re.compile(rb"^content-type:[ \t]*([^\s;]+)", re.IGNORECASE | re.MULTILINE)


class LeftOut(Exception):
    """One image cannot be fetched; the text says why, in constant words."""


def read_part(content_type: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of the one part; raises LeftOut for any other answer."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == DICOM:
        # some servers send one image without a frame around it
        yield from blocks
        return
    if kind != MULTIPART:
        raise LeftOut("the answer is not DICOM")
    found = BOUNDARY.search(content_type)
    if found is None:
        raise LeftOut("the answer names no boundary")
    dashes = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    stream = iter(blocks)
    held = _skip_head(stream, dashes)
    yield from _body(stream, held, b"\r\n" + dashes)


def _skip_head(stream: Iterator[bytes], dashes: bytes) -> bytes:
    """Return what came of the body, behind the boundary and the part's own head."""
    held = b""
    for block in stream:
        # a block may be as large as it likes: what is looked through is bounded
        held += block
        start = held.find(dashes, 0, HEAD_CAP_BYTES)
        end = -1 if start < 0 else held.find(b"\r\n\r\n", start, HEAD_CAP_BYTES)
        if end >= 0:
            kind = PART_TYPE.search(held[start:end])
            if kind is not None and kind[1].lower() != DICOM.encode():
                raise LeftOut("the answer is not DICOM")
            return held[end + 4 :]
        if len(held) >= HEAD_CAP_BYTES:
            raise LeftOut("the answer has no part at its start")
    raise LeftOut("the answer has no part at its start")


def _body(stream: Iterator[bytes], held: bytes, ending: bytes) -> Iterator[bytes]:
    """Yield what stands before the ending, which two dashes follow."""
    while (end := held.find(ending)) < 0:
        # the ending may begin in one block and end in the next
        kept = len(held) - len(ending) + 1
        if kept > 0:
            yield held[:kept]
            held = held[kept:]
        held += _next(stream)
    yield held[:end]
    held = held[end + len(ending) :]
    while len(held) < 2:
        held += _next(stream)
    if not held.startswith(b"--"):
        raise LeftOut("the answer has several parts")


def _next(stream: Iterator[bytes]) -> bytes:
    block = next(stream, None)
    if block is None:
        raise LeftOut("the answer ends before its last boundary")
    return block
