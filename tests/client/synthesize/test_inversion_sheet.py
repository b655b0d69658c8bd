"""The sheet of inversions: worst first, all that was left out, originals beside inversions."""

import io

import numpy as np
import torch
from PIL import Image

from client.synthesize.inversion_sheet import COLUMNS, MOST, draw_sheet, worst_first
from client.synthesize.invert import Inversion


def inversion(errors: list[float], accepted: list[bool], size_px: int = 64) -> Inversion:
    """An inversion whose reconstructions are all white."""
    codes = torch.zeros(len(errors), 2, 3)
    white = torch.ones(len(errors), 3, size_px, size_px)
    return Inversion(codes, codes, white, np.array(errors), np.array(accepted))


def test_what_was_left_out_comes_first_then_by_falling_error() -> None:
    found = inversion([0.01, 0.2, float("nan"), 0.03, 0.001], [True, False, False, True, False])
    assert worst_first(found).tolist() == [2, 1, 4, 3, 0]


def test_a_pair_is_the_original_at_the_left_and_the_inversion_at_the_right() -> None:
    images = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (10, 60)])
    with Image.open(io.BytesIO(draw_sheet(images, inversion([0.1, 0.3], [True, True])))) as file:
        sheet = np.asarray(file)
    assert (sheet[:64, :64] == 60).all()  # the worse one first
    assert (sheet[:64, 64:128] == 255).all()
    assert (sheet[:64, 136:200] == 10).all()


def test_every_left_out_image_goes_before_a_long_list_of_accepted_ones() -> None:
    count = MOST + 20
    found = inversion([0.5] * count, [i != count - 1 for i in range(count)], 16)
    with Image.open(io.BytesIO(draw_sheet(np.zeros((count, 16, 16, 1), np.uint8), found))) as file:
        sheet = np.asarray(file)
    assert worst_first(found)[0] == count - 1
    assert sheet.shape[0] == MOST // COLUMNS * (64 + 16)
    red = sheet[64:80, :, 0].astype(int) - sheet[64:80, :, 1]
    assert red[:, :136].max() > 100  # its caption, alone, is red
    assert red[:, 136:].max() < 100
