"""client/ingest/text_detector.py: names, dates and numbers are found, markers and pictures pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from client.ingest import text_detector
from client.ingest.decode import Decoder
from client.ingest.decode_child import read_file
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Choices, Settings, child_bytes
from client.ingest.text_detector import (
    connected_places,
    count_letters,
    load_detector,
    parts_with_strokes,
    text_sides,
)
from tests import phantoms

SIDE = 480
SETTINGS = Settings(64, 1, ("DX",), None, 1 << 24, 1 << 24, 1 << 30, 30.0)
SOUGHT = replace(
    SETTINGS, choices=Choices(find_text=True), memory_bytes=child_bytes(Choices(find_text=True))
)


def film(text: str, height_px: int = 16, level: int = 255) -> NDArray[np.uint8]:
    """A film [480, 480] with a text of this letter height."""
    values = phantoms.grey(3, SIDE, bits=8)
    picture = Image.fromarray((20 + values * 0.6).astype(np.uint8))
    font = ImageFont.load_default(size=1.4 * height_px)
    ImageDraw.Draw(picture).text((30, 40), text, fill=level, font=font)
    return np.asarray(picture)


def is_refused(picture: NDArray[np.uint8]) -> bool:
    """Whether text is found in a picture."""
    try:
        load_detector().check(picture[..., None])
    except Unusable as refusal:
        return refusal.reason is Reason.TEXT_IN_PIXELS
    return False


@pytest.mark.parametrize(
    ("text", "height_px", "level"),
    [("MUELLER, ANNA", 16, 255), ("12.03.1967", 10, 200), ("ID 0048213", 24, 0)],
)
def test_names_dates_and_numbers_are_found(text: str, height_px: int, level: int) -> None:
    assert is_refused(film(text, height_px, level))


def smooth(text: str) -> NDArray[np.uint8]:
    """A film [480, 480] without grain: a slope, a border, ribs, and a text at (30, 40)."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    ribs = np.cos(np.hypot(rows - 900, columns - 240) / 10)
    values = 90 + columns * 0.1 + 30 * ribs * np.clip((400 - columns) / 80, 0, 1)
    picture = Image.fromarray(np.where(columns > 440, 250, values).astype(np.uint8))
    ImageDraw.Draw(picture).text((30, 40), text, fill=240, font=ImageFont.load_default(size=22))
    return np.asarray(picture)


def parts_of(picture: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """The parts of a grey picture that can hold letters."""
    return parts_with_strokes(np.repeat(picture[..., None], 3, axis=2))


def test_letters_are_sought_where_strokes_are_and_nowhere_else() -> None:
    (part,) = parts_of(smooth("MUELLER, ANNA"))
    top, left, bottom, right = part
    assert top == left == 0
    assert 60 < bottom < 160
    assert 200 < right < 320
    assert bottom % 32 == right % 32 == 0


def test_slopes_ribs_and_borders_are_no_strokes() -> None:
    assert parts_of(smooth("")) == []


def test_a_faint_line_in_a_smooth_film_is_read() -> None:
    mask = Image.new("L", (SIDE, SIDE), 0)
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(mask).text((30, 40), "MUELLER, ANNA", fill=255, font=font)
    faint = smooth("") + np.asarray(mask) / 255 * 20
    assert is_refused(faint.clip(0, 255).astype(np.uint8))


def test_a_picture_full_of_strokes_is_searched_whole() -> None:
    grain = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    assert parts_of(grain) == [(0, 0, SIDE, SIDE)]


def test_no_network_is_asked_about_a_picture_without_strokes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = load_detector()
    monkeypatch.setattr(detector, "_detector", None)
    detector.check(smooth("")[..., None])


@pytest.mark.parametrize("text", ["", "R", "L  PA", "PORTABLE"])
def test_pictures_and_markers_pass(text: str) -> None:
    assert not is_refused(film(text, 24))


def test_markers_and_short_signs_are_no_text() -> None:
    assert count_letters(["L", "AP", "PORTABLE SUPINE", "Right", "R2", ""]) == 2
    assert count_letters(["R MEIER"]) == 5
    assert count_letters(["1/2/19"]) == 4
    assert count_letters(["王小明"]) == 6


def test_parts_touch_by_their_sides() -> None:
    marked = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1]], bool)
    parts = sorted(sorted(part) for part in connected_places(marked))
    assert parts == [[(0, 0), (0, 1)], [(1, 2), (2, 2)], [(2, 0)]]


def test_the_side_is_bounded_and_fits_the_network() -> None:
    assert list(text_sides(64)) == [480, 256, 128, 64, 32]
    assert next(text_sides(512)) == 768
    assert all(side % 32 == 0 for size in (32, 64, 96, 128, 256, 512) for side in text_sides(size))


def write(path: Path, picture: NDArray[np.uint8]) -> Path:
    """A radiograph without a word in its header."""
    dataset = phantoms.with_pixels(phantoms.header("DX"), picture, "MONOCHROME2")
    return phantoms.save(dataset, path)


def test_the_confined_child_refuses_a_name_in_the_pixels(tmp_path: Path) -> None:
    named = write(tmp_path / "named.dcm", film("MUELLER, ANNA"))
    plain = write(tmp_path / "plain.dcm", film("R"))
    decoder = Decoder(SOUGHT)
    try:
        with pytest.raises(Unusable) as refusal:
            decoder.decode(named)
        assert refusal.value.reason is Reason.TEXT_IN_PIXELS
        assert decoder.decode(plain).pixels.shape == (64, 64, 1)
    finally:
        decoder.close()


def test_a_small_picture_is_searched_at_a_size_that_it_fills(tmp_path: Path) -> None:
    small = Image.fromarray(film("MUELLER, ANNA", 24)).resize((160, 160))
    path = write(tmp_path / "small.dcm", np.asarray(small))
    with pytest.raises(Unusable) as refusal:
        read_file(str(path), SOUGHT)
    assert refusal.value.reason is Reason.TEXT_IN_PIXELS
    colour = replace(SOUGHT, channels=3, modalities=("OP",))
    Image.fromarray(phantoms.fundus(1, 64)).save(tmp_path / "tiny.png")
    assert read_file(str(tmp_path / "tiny.png"), colour).pixels.shape == (64, 64, 3)


def test_only_where_the_site_wants_it(tmp_path: Path) -> None:
    named = write(tmp_path / "named.dcm", film("MUELLER, ANNA"))
    assert read_file(str(named), SETTINGS).pixels.shape == (64, 64, 1)


def test_a_network_that_fails_refuses_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load_detector()
    monkeypatch.setattr(detector, "_detector", None)
    with pytest.raises(MemoryError):
        detector.check(film("R")[..., None])
    monkeypatch.setattr(text_detector, "PACKAGE", "no_such_package")
    assert not text_detector.is_installed()
