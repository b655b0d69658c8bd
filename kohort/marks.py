"""The marks that say of a picture that it is synthetic.

In: a PNG, or what a file holds. Out: the marked PNG, or the names of the marks.
Guarantees: a mark is constant: it says nothing of who, when or where; a picture marked twice is
the same picture marked once.
Not covered: whoever wants to can remove a mark. That a mark is missing proves nothing.
"""

from __future__ import annotations

import re

from kohort.errors import RefusedError
from kohort.png import Chunk, add_chunks, inflate, read_chunks

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPE = IPTC + "trainedAlgorithmicMedia"
# what of IPTC's list says that a machine made a picture, or a part of it
SYNTHETIC = {
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "algorithmicMedia",
}
XMP_KEY = b"XML:com.adobe.xmp"
XMP_PACKET = f"""\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
TEXT_KEY = b"Description"
TEXT = b"Synthetic image, made by a trained algorithm"
XMP, PLAIN, DICOM = "XMP", "PNG text", "DICOM SyntheticData"
XMP_CAP_BYTES = 1 << 20
TERM = re.compile(r"https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,64})")

CHUNKS = {
    # keyword, not compressed, no language, no translated keyword
    XMP: Chunk(b"iTXt", XMP_KEY + b"\0\0\0\0\0" + XMP_PACKET.encode()),
    PLAIN: Chunk(b"tEXt", TEXT_KEY + b"\0" + TEXT),
}


def mark_png(data: bytes) -> bytes:
    """Return a PNG with both marks behind its header, 501 bytes longer; the pixels stay."""
    there = png_marks(data, "picture")
    return add_chunks(data, [chunk for name, chunk in CHUNKS.items() if name not in there])


def png_marks(data: bytes, what: str) -> tuple[str, ...]:
    """Return which marks a PNG carries: of XMP and PNG text.

    `what` names the file in messages. Raises RefusedError for a file that is no whole PNG.
    """
    found = set()
    for chunk in read_chunks(data, what):
        if chunk.kind == b"iTXt" and chunk.body.startswith(XMP_KEY + b"\0"):
            if says_synthetic(_xmp_text(chunk.body, what)):
                found.add(XMP)
        elif chunk == CHUNKS[PLAIN]:
            found.add(PLAIN)
    return tuple(name for name in CHUNKS if name in found)


def says_synthetic(xmp: str) -> bool:
    """Return whether an XMP packet names one of IPTC's synthetic source types."""
    return not SYNTHETIC.isdisjoint(TERM.findall(xmp))


def _xmp_text(body: bytes, what: str) -> str:
    """The text of an iTXt chunk, unpacked where another program has packed it."""
    rest = body[len(XMP_KEY) + 1 :]
    packed, rest = rest[:1], rest[2:]
    parts = rest.split(b"\0", 2)  # language, translated keyword, text
    if len(parts) != 3:
        raise RefusedError(f"{what}: damaged: its XMP chunk is cut")
    text = parts[2]
    if packed == b"\1":
        text = inflate(text, XMP_CAP_BYTES, what)
    return text.decode("utf-8", "replace")
