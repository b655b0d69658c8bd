"""client/ingest/codestream.py: the size that a compressed image states."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.ingest.codestream import stated_size


def jpeg(rows: int, columns: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (columns, rows), "red").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (3000, 2)])
def test_jpeg(size: tuple[int, int], progressive: bool) -> None:
    data = jpeg(*size, progressive=progressive, comment=b"\xff\xc0" * 100)
    assert stated_size(data) == size


def test_jpeg_with_fill_before_a_marker() -> None:
    data = jpeg(5, 7)
    assert stated_size(data[:2] + b"\xff" * 9 + data[2:]) == (5, 7)


@pytest.mark.parametrize("size", [(20, 33), (64, 64)])
@pytest.mark.parametrize("bare", [True, False], ids=["codestream", "boxes"])
def test_jpeg_2000(size: tuple[int, int], bare: bool) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(size, np.uint8)).save(buffer, "JPEG2000", no_jp2=bare)
    assert stated_size(buffer.getvalue()) == size


def test_jpeg_2000_with_an_offset_in_its_grid() -> None:
    sizes = b"".join(number.to_bytes(4, "big") for number in (40, 30, 7, 10))
    assert stated_size(b"\xff\x4f\xff\x51\x00\x29\x00\x00" + sizes) == (20, 33)


def test_jpeg_ls() -> None:
    head = b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x14\x00\x21\x01\x01\x11\x00"
    assert stated_size(head) == (20, 33)


def test_a_jpeg_whose_rows_come_later_states_none_of_them() -> None:
    """Its decoder would take memory without end."""
    endless = jpeg(5, 7).replace(b"\x00\x05\x00\x07", b"\x00\x00\x00\x07", 1)
    assert stated_size(endless) == (0, 7)


def test_a_jpeg_ls_that_states_its_size_elsewhere_has_none() -> None:
    frame = b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x00\x00\x07\x01\x01\x11\x00"
    assert stated_size(frame) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\xff\xd8", b"\xff\x4f\xff\x51"]))
def test_any_bytes_have_a_size_or_none(data: bytes, head: bytes) -> None:
    found = stated_size(head + data)
    assert found is None or len(found) == 2
