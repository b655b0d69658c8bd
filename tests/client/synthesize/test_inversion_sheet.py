"""The sheet of inversions: worst first, all that was left out, originals beside inversions."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from client.synthesize.inversion_sheet import COLUMNS, MOST, draw_sheet, worst_first
from client.synthesize.invert import Inversion
from common.models.look import Look

COMMON = Look(torch.zeros(1, 1), torch.ones(1, 1))


def inversion(errors: list[float], accepted: list[bool]) -> Inversion:
    """An inversion of codes that mean nothing."""
    points = np.zeros((len(errors), 3))
    codes = np.zeros((len(errors), 2, 3), np.float32)
    looks = np.ones((len(errors), 2, 1), np.float32)
    coarse = np.zeros((len(errors), 4, 1, 1), np.float32)
    return Inversion(points, points, codes, np.array(errors), np.array(accepted), looks, coarse)


def white(size_px: int) -> Any:
    """A generator whose images are all white."""
    return SimpleNamespace(
        synthesis=lambda codes: torch.ones(len(codes), 3, size_px, size_px),
        parameters=lambda: iter([torch.zeros(1)]),
    )


def test_what_was_left_out_comes_first_then_by_falling_error() -> None:
    found = inversion([0.01, 0.2, float("nan"), 0.03, 0.001], [True, False, False, True, False])
    assert worst_first(found).tolist() == [2, 1, 4, 3, 0]


def test_a_pair_is_the_original_at_the_left_and_the_inversion_at_the_right() -> None:
    images = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (10, 60)])
    data = draw_sheet(images, inversion([0.1, 0.3], [True, True]), white(64), COMMON)
    with Image.open(io.BytesIO(data)) as file:
        sheet = np.asarray(file)
    assert (sheet[:64, :64] == 60).all()  # the worse one first
    assert (sheet[:64, 64:128] == 255).all()
    assert (sheet[:64, 136:200] == 10).all()


def test_grids_that_are_read_from_a_file_are_drawn() -> None:
    """They are mapped from the disk, so nothing may be written to them."""
    found = inversion([0.1], [True])
    found.coarse.flags.writeable = False
    assert draw_sheet(np.zeros((1, 64, 64, 3), np.uint8), found, white(64), COMMON)


def test_every_left_out_image_goes_before_a_long_list_of_accepted_ones() -> None:
    count = MOST + 20
    found = inversion([0.5] * count, [i != count - 1 for i in range(count)])
    data = draw_sheet(np.zeros((count, 16, 16, 1), np.uint8), found, white(16), COMMON)
    with Image.open(io.BytesIO(data)) as file:
        sheet = np.asarray(file)
    assert worst_first(found)[0] == count - 1
    assert sheet.shape[0] == MOST // COLUMNS * (64 + 16)
    red = sheet[64:80, :, 0].astype(int) - sheet[64:80, :, 1]
    assert red[:, :136].max() > 100  # its caption, alone, is red
    assert red[:, 136:].max() < 100
