"""The field of view of a fundus photograph: whatever camera took it, one circle is left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.field_of_view import find_field, frame_field, side_of
from tests import phantoms

HEIGHT, WIDTH, RADIUS = 300, 420, 120
SIZE_PX = 64
Photograph = NDArray[np.uint8]
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISTANCE = np.hypot(ROWS - 150, COLUMNS - 200)


def photograph() -> Photograph:
    """An eye in a raw frame: a circle of radius 120 about row 150 and column 200."""
    eye = phantoms.fundus(3, 256)
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    enlarged = Image.fromarray(eye).resize((272, 272))
    frame[14:286, 64:336] = np.asarray(enlarged)
    frame[DISTANCE > RADIUS] = 0
    return frame


def notch(frame: Photograph) -> Photograph:
    frame[60:80, 290:306] = 180
    return frame


def label(frame: Photograph) -> Photograph:
    frame[8:14, 300:400:3] = 255
    frame[20:26, 300:400:4] = 255
    return frame


def surround_of_noise(frame: Photograph) -> Photograph:
    noise = np.random.default_rng(0).integers(0, 14, frame.shape).astype(np.uint8)
    return np.maximum(frame, noise)


def grey_surround(frame: Photograph) -> Photograph:
    frame[DISTANCE > RADIUS] = 45
    return frame


def dark(frame: Photograph) -> Photograph:
    return (frame * 0.2).astype(np.uint8)


def haze(frame: Photograph) -> Photograph:
    return np.where(frame.max(axis=2, keepdims=True) > 0, 150 + frame // 4, 0).astype(np.uint8)


def dark_on_one_side(frame: Photograph) -> Photograph:
    share = np.clip((COLUMNS - 60) / 120, 0, 1)
    return (frame * share[..., None]).astype(np.uint8)


CAMERAS = {
    "wide black margins": lambda frame: frame,
    "a tab at the edge": notch,
    "letters beside the field": label,
    "a surround of noise": surround_of_noise,
    "a grey surround": grey_surround,
    "a dark photograph": dark,
    "haze": haze,
    "one side in the dark": dark_on_one_side,
}


def resize(pixels: Photograph, height: int, width: int) -> Photograph:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def framed(pixels: Photograph) -> Photograph:
    field = find_field(pixels)
    assert field is not None
    return frame_field(pixels, field, SIZE_PX, resize)


def outside(share: float) -> NDArray[np.bool_]:
    """Places of the framed square beyond a share of its half side from the middle."""
    places = np.arange(SIZE_PX) + 0.5 - SIZE_PX / 2
    return np.asarray(np.hypot(places[:, None], places[None, :]) > share * SIZE_PX / 2)


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_circle_is_found_to_a_hundredth_and_all_outside_is_black(camera: str) -> None:
    change: Callable[[Photograph], Photograph] = CAMERAS[camera]
    pixels = change(photograph())
    field = find_field(pixels)
    assert field is not None
    assert abs(field.circle.row - 150) < 2.5
    assert abs(field.circle.column - 200) < 2.5
    assert 0.95 * RADIUS < field.circle.radius < RADIUS
    square = frame_field(pixels, field, SIZE_PX, resize)
    assert not square[outside(1 + 1 / SIZE_PX)].any()


def test_letters_and_tabs_change_nothing() -> None:
    plain = framed(photograph())
    for change in (notch, label):
        changed = framed(change(photograph())).astype(int)
        assert np.abs(changed - plain).mean() < 1


@pytest.mark.parametrize("size", [16, 24, 32, 64, 128, 1500])
def test_any_size_will_do(size: int) -> None:
    pixels = np.asarray(Image.fromarray(phantoms.fundus(7, 256)).resize((size, size)))
    field = find_field(pixels)
    assert field is not None
    assert side_of(field) == pytest.approx(0.96 * size * 0.98, rel=0.08)


def test_a_field_that_is_cut_above_and_below_keeps_its_scale_and_is_black_there() -> None:
    cut = photograph()[60:240]
    whole = framed(photograph()).astype(int)
    square = framed(cut).astype(int)
    middle = slice(12, 52)
    assert np.abs(square[middle] - whole[middle]).mean() < 6
    assert not square[:6].any() and not square[-6:].any()


def test_bands_above_and_below_are_black_whatever_stands_in_them() -> None:
    banded = photograph()
    banded[:60] = banded[240:] = 0
    plain = framed(banded)
    for left in range(180, 240, 16):
        banded[20:30, left : left + 8] = 255
    assert np.array_equal(framed(banded), plain)


def test_a_square_with_cut_corners_becomes_a_circle() -> None:
    side = 100  # the circle's corners are cut at 1.2 of the half side
    cut = photograph()[150 - side : 150 + side, 200 - side : 200 + side]
    square = framed(cut)
    assert not square[outside(1 + 1 / SIZE_PX)].any()
    assert (square[~outside(0.95)].max(axis=1) > 8).mean() > 0.99


def test_of_an_octagon_no_straight_side_is_left() -> None:
    angle = np.arctan2(ROWS - 150, COLUMNS - 200)
    nearest = (angle + np.pi / 8) % (np.pi / 4) - np.pi / 8
    frame = photograph()
    frame[DISTANCE * np.cos(nearest) > 0.92 * RADIUS] = 0
    square = framed(frame)
    assert not square[outside(1 + 1 / SIZE_PX)].any()
    assert (square[~outside(0.96)].max(axis=1) > 8).all()


def test_a_notch_that_cuts_into_the_field_is_left_out() -> None:
    angle = np.arctan2(ROWS - 150, COLUMNS - 200)
    frame = photograph()
    frame[(DISTANCE > 0.94 * RADIUS) & (np.abs(angle - 0.7) < 0.2)] = 0
    square = framed(frame)
    assert (square[~outside(0.96)].max(axis=1) > 8).all()


def test_a_field_that_fades_has_no_border_where_it_fades() -> None:
    share = np.clip((COLUMNS + ROWS - 210) / 160, 0, 1)
    field = find_field((surround_of_noise(photograph()) * share[..., None]).astype(np.uint8))
    assert field is not None
    assert field.box.left == 0


def page() -> Photograph:
    """A lit page on black."""
    return np.pad(np.full((90, 70, 3), 80, np.uint8), ((9, 9), (19, 19), (0, 0)))


def page_with_a_disc() -> Photograph:
    """A lit page with a brighter disc, as the optic disc is in the retina."""
    pixels = page()
    rows, columns = np.mgrid[:108, :108]
    pixels[np.hypot(rows - 50, columns - 54) < 11] = 250
    return pixels


def page_with_a_dark_ring() -> Photograph:
    """A disc in a dark ring in the middle of what is lit."""
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    pixels[DISTANCE < RADIUS] = 0
    pixels[DISTANCE < 0.7 * RADIUS] = 120
    pixels[:10] = pixels[-10:] = 0
    return pixels


def ring() -> Photograph:
    """A ring of light."""
    pixels = photograph()
    pixels[DISTANCE < 0.85 * RADIUS] = 0
    return pixels


def wavy(waves: int, height: float) -> Photograph:
    """A lit disc whose edge goes in and out."""
    angles = np.arctan2(ROWS - 150, COLUMNS - 200)
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[105 * (1 + height * np.cos(waves * angles)) > DISTANCE] = 150
    return frame


def triangle() -> Photograph:
    """A lit triangle."""
    lit = (ROWS > 60) & (ROWS < 240) & (np.abs(COLUMNS - 200) < (ROWS - 60) * 0.58)
    return np.where(lit[..., None], np.full(3, 150), 0).astype(np.uint8)


NO_FIELDS = {
    "nothing dark around it": lambda: photograph()[90:210, 140:260],
    "noise": lambda: np.random.default_rng(1).integers(0, 255, (128, 128, 3), dtype=np.uint8),
    "a lit page": page,
    "a lit page with a bright disc": page_with_a_disc,
    "a disc in a dark ring": page_with_a_dark_ring,
    "a ring of light": ring,
    "a lit triangle": triangle,
    "a gear of light": lambda: wavy(12, 0.2),
    "a clover of light": lambda: wavy(3, 0.4),
    "nothing": lambda: np.zeros((128, 128, 3), np.uint8),
    "one place": lambda: np.full((1, 1, 3), 255, np.uint8),
    "one line": lambda: np.full((1, 900, 3), 255, np.uint8),
}


@pytest.mark.parametrize("kind", NO_FIELDS)
def test_no_field_is_found_in(kind: str) -> None:
    assert find_field(NO_FIELDS[kind]()) is None


def test_the_same_pixels_give_the_same_field() -> None:
    for change in CAMERAS.values():
        assert find_field(change(photograph())) == find_field(change(photograph()))
    # where many circles fit as well, the draws decide
    assert len({find_field(wavy(12, 0.04)) for _ in range(5)}) == 1
    assert find_field(wavy(12, 0.04)) is not None
