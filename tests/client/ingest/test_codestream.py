"""client/ingest/codestream.py: the size that a compressed image states."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.ingest.codestream import JP2, Stated, count_segments, is_cut_off, stated_size


def jpeg(rows: int, columns: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (columns, rows), "red").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (3000, 2)])
def test_jpeg(size: tuple[int, int], progressive: bool) -> None:
    data = jpeg(*size, progressive=progressive, comment=b"\xff\xc0" * 100)
    assert stated_size(data) == Stated(*size, 3, 8)


def test_jpeg_with_fill_before_a_marker() -> None:
    data = jpeg(5, 7)
    assert stated_size(data[:2] + b"\xff" * 9 + data[2:]) == Stated(5, 7, 3, 8)


@pytest.mark.parametrize("size", [(20, 33), (64, 64)])
@pytest.mark.parametrize("bare", [True, False], ids=["codestream", "boxes"])
def test_jpeg_2000(size: tuple[int, int], bare: bool) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(size, np.uint8)).save(buffer, "JPEG2000", no_jp2=bare)
    assert stated_size(buffer.getvalue()) == Stated(*size, 1, 8)


def test_jpeg_2000_with_an_offset_in_its_grid() -> None:
    sizes = b"".join(number.to_bytes(4, "big") for number in (40, 30, 7, 10))
    tiles = bytes(16)
    head = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + sizes + tiles
    assert stated_size(head + b"\0\2" + b"\x8b\1\1" * 2) == Stated(20, 33, 2, 12)


@pytest.mark.parametrize("parts", [b"", b"\x07\1\1", b"\x07\1\1\x0f\1\1", b"\x07\2\2\x07\2\2"])
def test_a_jpeg_2000_of_unlike_components_has_no_size(parts: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 33), np.uint8)).save(buffer, "JPEG2000", no_jp2=True)
    head = buffer.getvalue()[:40]
    assert stated_size(head + b"\0\2" + parts) is None


def test_a_codestream_before_that_of_the_box_does_not_count() -> None:
    """A decoder reads the box; what looks like a codestream in another one is a trap."""
    real, trap = (io.BytesIO() for _ in range(2))
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(real, "JPEG2000")
    Image.fromarray(np.zeros((20, 33), np.uint8)).save(trap, "JPEG2000", no_jp2=True)
    data = real.getvalue()
    box = (8 + len(trap.getvalue())).to_bytes(4, "big") + b"free" + trap.getvalue()
    assert stated_size(data[:12] + box + data[12:]) == Stated(40, 50, 1, 8)


def test_jpeg_ls() -> None:
    head = b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x14\x00\x21\x01\x01\x11\x00"
    assert stated_size(head) == Stated(20, 33, 1, 8)


def test_a_jpeg_whose_rows_come_later_states_none_of_them() -> None:
    """Its decoder would take memory without end."""
    endless = jpeg(5, 7).replace(b"\x00\x05\x00\x07", b"\x00\x00\x00\x07", 1)
    assert stated_size(endless) == Stated(0, 7, 3, 8)


def test_a_jpeg_ls_that_states_its_rows_elsewhere_states_none_of_them() -> None:
    frame = b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x00\x00\x07\x01\x01\x11\x00"
    assert stated_size(frame) == Stated(0, 7, 1, 8)


def test_rle_states_its_segments() -> None:
    def header(*words: int) -> bytes:
        return b"".join(word.to_bytes(4, "little") for word in (*words, *[0] * 16)[:16])

    assert count_segments(header(2, 64, 66) + bytes(4)) == 2
    for wrong in (
        header(2, 64, 66) + bytes(2),  # the second segment has no byte
        header(2, 66, 64) + bytes(4),
        header(1, 60) + bytes(4),
        header(0) + bytes(4),
        header(16, *range(64, 79)) + bytes(99),
        header(1, 64)[:63],
        b"",
    ):
        assert count_segments(wrong) is None


def test_a_jpeg_without_its_end_marker_is_cut_off() -> None:
    data = jpeg(5, 7)
    for fill in (b"", bytes(3), b"\xff", b"\xff\0"):
        assert not is_cut_off(data + fill)
    assert is_cut_off(data[:-2]) and is_cut_off(data[:-1] + bytes(9)) and is_cut_off(b"")


HEADS = [b"", b"\xff\xd8", b"\xff\x4f\xff\x51", JP2, JP2 + b"\0\0\0\1jp2c"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(HEADS))
def test_any_bytes_have_a_size_or_none(data: bytes, head: bytes) -> None:
    found = stated_size(head + data)
    assert found is None or isinstance(found, Stated)
    assert count_segments(data) is None
    assert is_cut_off(head + data) in (True, False)
