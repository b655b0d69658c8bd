"""client/ingest/images.py.

Images are framed alike, and lose marks beside the field of view.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from client.ingest import images, resize
from client.ingest.images import Framer, frame_image
from client.ingest.quarantine import Reason, Unusable
from tests import phantoms


@pytest.mark.parametrize("shape", [(128, 128), (90, 128), (128, 90), (65, 64), (2000, 33)])
def test_framing_keeps_the_aspect_and_fills_the_square(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(40, 255, (*shape, 3), dtype=np.uint8)
    square = frame_image(pixels, 64, 3, field_of_view=False)
    lit = square.max(axis=2) > 0
    assert square.shape == (64, 64, 3)
    assert lit.any(axis=1).sum() == max(1, round(64 * shape[0] / max(shape)))
    assert lit.any(axis=0).sum() == max(1, round(64 * shape[1] / max(shape)))


def test_the_black_surround_is_cut_away() -> None:
    photograph = phantoms.fundus(3, 128)
    wide = np.zeros((300, 400, 3), np.uint8)
    wide[60:188, 150:278] = photograph
    a, b = (frame_image(p, 64, 3, field_of_view=True).astype(int) for p in (photograph, wide))
    assert np.abs(a - b).mean() < 4


def test_text_beside_the_field_of_view_is_gone() -> None:
    photograph = phantoms.fundus(4, 128)
    marked = photograph.copy()
    marked[2:7, 2:30:3] = 255
    a, b = (frame_image(p, 128, 3, field_of_view=True) for p in (photograph, marked))
    assert np.array_equal(a, b)


def test_a_photograph_without_a_field_of_view_is_refused() -> None:
    full = np.random.default_rng(1).integers(60, 255, (128, 128, 3), dtype=np.uint8)
    with pytest.raises(Unusable) as refusal:
        frame_image(full, 128, 3, field_of_view=True)
    assert refusal.value.reason is Reason.NO_FIELD
    assert frame_image(full, 128, 3, field_of_view=False).any()


def test_a_field_of_less_than_half_the_size_is_too_small() -> None:
    wide = np.zeros((200, 200, 3), np.uint8)
    wide[70:126, 70:126] = phantoms.fundus(3, 56)
    with pytest.raises(Unusable) as refusal:
        frame_image(wide, 128, 3, field_of_view=True)
    assert refusal.value.reason is Reason.TOO_SMALL


def test_colour_becomes_grey_and_grey_is_not_colour() -> None:
    assert frame_image(phantoms.fundus(5), 64, 1, field_of_view=False).shape == (64, 64, 1)
    with pytest.raises(Unusable) as refusal:
        frame_image(phantoms.grey(5, bits=8)[..., None], 64, 3, field_of_view=False)
    assert refusal.value.reason is Reason.WRONG_CHANNELS


@pytest.mark.parametrize("crop", [True, False])
def test_blank_and_tiny_images_are_refused(crop: bool) -> None:
    for pixels, reason in (
        (np.zeros((128, 128, 3), np.uint8), Reason.BLANK),
        (np.full((128, 128, 3), 90, np.uint8), Reason.BLANK),
        (phantoms.fundus(6, 24), Reason.TOO_SMALL),
    ):
        with pytest.raises(Unusable) as refusal:
            frame_image(pixels, 64, 3, field_of_view=crop)
        assert refusal.value.reason is reason


STRIPS = pytest.mark.parametrize("strip_pixels", [1, 1000, 1 << 20])


@STRIPS
@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_of_strips_is_that_of_the_whole_picture(
    strip_pixels: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (images, resize):
        monkeypatch.setattr(module, "STRIP_PIXELS", strip_pixels)
    rng = np.random.default_rng(strip_pixels)
    for height, width in ((128, 128), (90, 131), (257, 64), (64, 65), (40, 300)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        if channels == 1:
            picture = picture.convert("L")
        scale = 64 / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).reshape(
            size[1], size[0], channels
        )
        square = frame_image(pixels, 64, channels, field_of_view=False)
        top, left = (64 - size[1]) // 2, (64 - size[0]) // 2
        assert np.array_equal(square[top : top + size[1], left : left + size[0]], expected)


@pytest.mark.parametrize("field_of_view", [True, False])
def test_a_look_shows_what_the_frame_shows(field_of_view: bool) -> None:
    photograph = phantoms.fundus(5, 304)
    framer = Framer(photograph, 3, field_of_view=field_of_view)
    frame, look = framer.frame(64), framer.look(64)
    assert look is not None
    assert np.abs(frame.astype(int) - look).mean() < 3
    assert framer.look(1024) is None


def test_the_field_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    find = images.find_field
    monkeypatch.setattr(images, "find_field", lambda pixels: calls.append(1) or find(pixels))
    framer = Framer(phantoms.fundus(5, 304), 3, field_of_view=True)
    framer.frame(64)
    framer.look(128)
    assert len(calls) == 1
