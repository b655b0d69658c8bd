"""What a hostile server or file may not do to who reads it."""

from __future__ import annotations

import json

import httpx
import pytest

from kohort.detection import DEFLATED, _read_dicom, parse_pixels
from kohort.download import _expect_status
from kohort.errors import ConfigurationError, PeerError, RefusedError
from kohort.seen import spell_address


def test_an_answer_that_would_be_unpacked_is_refused() -> None:
    packed = httpx.Response(200, headers={"Content-Encoding": "gzip, gzip"}, stream=None)
    with pytest.raises(PeerError, match="packs what it sends"):
        _expect_status(packed, "catalogue.json", (200,))
    _expect_status(httpx.Response(200), "catalogue.json", (200,))


def test_a_deflated_dicom_file_is_not_unpacked() -> None:
    with pytest.raises(RefusedError, match="deflated"):
        _read_dicom(b"\0" * 128 + b"DICM" + DEFLATED, "a.dcm", pixels=False)


def test_a_list_of_pixels_names_files_of_a_release_alone() -> None:
    digest = "ab" * 32
    names = [f"data/train/none/{number:05d}.png" for number in range(50_000)]
    assert parse_pixels(json.dumps(dict.fromkeys(names, digest)).encode()) == {digest: tuple(names)}


OTHER_PIXELS = {
    "a name that moves the cursor": {"\x1b[2J": "ab" * 32},
    "a name outside the release": {"../a.png": "ab" * 32},
    "capital letters": {"data/train/none/00000.png": "AB" * 32},
    "a short digest": {"data/train/none/00000.png": "ab"},
    "a number": {"data/train/none/00000.png": 1},
    "a list": {"data/train/none/00000.png": ["ab" * 32]},
    "no object": ["data/train/none/00000.png"],
}


@pytest.mark.parametrize("case", OTHER_PIXELS)
def test_a_list_of_other_pixels_is_refused(case: str) -> None:
    with pytest.raises(RefusedError, match="not a list of file names"):
        parse_pixels(json.dumps(OTHER_PIXELS[case]).encode())


@pytest.mark.parametrize("url", ["https://[x", "https://a.example:ab/", "https://a\u2100b/"])
def test_an_address_that_is_none_is_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected https"):
        spell_address(url)
