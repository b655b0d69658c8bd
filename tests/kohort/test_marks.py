"""A marked picture says that it is synthetic, and stays the picture that it was."""

import io
import re
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from common.errors import RefusedError
from kohort.marks import CHUNKS, PLAIN, SOURCE_TYPE, XMP, XMP_KEY, mark_png, png_marks
from kohort.png import Chunk, add_chunks, read_picture
from server.public_data.pictures import marked_png_bytes, png_bytes

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
EXIFTOOL = f"""<x:xmpmeta xmlns:x='adobe:ns:meta/'><Iptc4xmpExt:DigitalSourceType>
{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType></x:xmpmeta>"""


def xmp(text: str, packed: bool = False) -> bytes:
    """A picture with XMP of another program."""
    body = zlib.compress(text.encode()) if packed else text.encode()
    return add_chunks(
        png_bytes(PIXELS), [Chunk(b"iTXt", XMP_KEY + bytes([0, packed, 0, 0, 0]) + body)]
    )


def test_both_marks_are_there_and_the_pixels_stay() -> None:
    plain, marked = png_bytes(PIXELS), marked_png_bytes(PIXELS)
    assert png_marks(plain, "a.png") == ()
    assert png_marks(marked, "a.png") == (XMP, PLAIN)
    assert read_picture(marked, "a.png") == read_picture(plain, "a.png")
    assert 0 < len(marked) - len(plain) < 700


def test_a_mark_is_the_same_in_every_picture_and_enters_once() -> None:
    added = len(marked_png_bytes(PIXELS)) - len(png_bytes(PIXELS))
    for other in (PIXELS[:4], PIXELS[..., 0], PIXELS ^ 255):
        assert len(marked_png_bytes(other)) - len(png_bytes(other)) == added
        for chunk in CHUNKS.values():
            assert chunk.body in marked_png_bytes(other)
    assert mark_png(marked_png_bytes(PIXELS)) == marked_png_bytes(PIXELS)
    half = add_chunks(png_bytes(PIXELS), [CHUNKS[PLAIN]])
    assert len(mark_png(half)) == len(marked_png_bytes(PIXELS))


def test_a_mark_says_nothing_else() -> None:
    said = b"".join(chunk.body for chunk in CHUNKS.values()).decode()
    assert not re.findall(r"(?i)kohort|hospital|date|20[2-9][0-9]-", said)


def test_the_xmp_is_well_formed_and_names_the_term_of_iptc() -> None:
    packet = CHUNKS[XMP].body.split(b"\0", 5)[-1].decode()
    root = ElementTree.fromstring(packet.split("?>", 1)[1])
    (description,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert description.attrib[name] == SOURCE_TYPE


def test_common_readers_take_a_marked_picture_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "x" / "0.png"
    path.parent.mkdir()
    path.write_bytes(marked_png_bytes(PIXELS))
    with Image.open(path) as picture:
        assert SOURCE_TYPE in picture.info["xmp"].decode()
        assert np.array_equal(np.asarray(picture), PIXELS)
    (image, _), *_ = ImageFolder(str(tmp_path))
    assert np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("packed", [False, True])
def test_the_xmp_of_other_programs_is_read_too(packed: bool) -> None:
    assert png_marks(xmp(EXIFTOOL, packed), "a.png") == (XMP,)
    camera = EXIFTOOL.replace("trainedAlgorithmicMedia", "digitalCapture")
    assert png_marks(xmp(camera, packed), "a.png") == ()
    assert png_marks(xmp("", packed), "a.png") == ()


def test_packed_xmp_that_swells_or_is_cut_is_refused() -> None:
    with pytest.raises(RefusedError, match="unpacks to more"):
        png_marks(xmp(" " * (1 << 21), packed=True), "a.png")
    cut = add_chunks(png_bytes(PIXELS), [Chunk(b"iTXt", XMP_KEY + b"\0\0\0")])
    with pytest.raises(RefusedError, match="XMP chunk is cut"):
        png_marks(cut, "a.png")


def test_a_picture_that_is_saved_anew_has_lost_its_marks() -> None:
    out = io.BytesIO()
    with Image.open(io.BytesIO(marked_png_bytes(PIXELS))) as picture:
        Image.fromarray(np.asarray(picture)).save(out, "PNG")
    assert png_marks(out.getvalue(), "a.png") == ()
