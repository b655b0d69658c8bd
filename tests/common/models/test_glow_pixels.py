"""Stored images survive the flow's numbers, and others are refused in words."""

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.models import glow_pixels
from common.models.glow import Glow
from tests.flows import seeded


def test_eight_bit_images_survive_the_conversion() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(glow_pixels.to_uint8(glow_pixels.from_uint8(images)), images)
    dithered = glow_pixels.from_uint8(images, torch.rand(1, 1, 16, 16, generator=seeded()))
    assert np.array_equal(glow_pixels.to_uint8(dithered), images)


@pytest.mark.parametrize("depth", [1, 3, 5, 8])
def test_fewer_bits_keep_the_upper_ones_and_fill_the_range(depth: int) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = glow_pixels.from_uint8(images, depth=depth)
    assert len(x.unique()) == 2**depth
    assert float(x.min()) == -float(x.max()) == 0.5 / 2**depth - 0.5
    assert np.array_equal(glow_pixels.to_uint8(x) >> (8 - depth), images >> (8 - depth))
    lowest, highest = (
        glow_pixels.from_uint8(images, torch.full(x.shape, u), depth) for u in (0.0, 1 - 2**-10)
    )
    assert float(lowest.min()) == -0.5
    assert 0.5 - 2.0**-9 < float(highest.max()) < 0.5
    # density 1 on the unit cube
    uniform = Glow(16, 1, 2, 1, 8).bits_per_dimension(torch.zeros(1), depth)
    assert float(uniform) == depth


@pytest.mark.parametrize(
    ("images", "depth"),
    [
        (np.zeros((1, 8, 8, 1), np.uint16), 8),
        (np.zeros((1, 8, 8, 1), np.float32), 8),
        (np.zeros((8, 8, 1), np.uint8), 8),
        (np.zeros((1, 8, 8, 1), np.uint8), 0),
        (np.zeros((1, 8, 8, 1), np.uint8), 16),
    ],
    ids=["16 bit", "float", "no batch", "0 bits", "16 bits"],
)
def test_pixels_of_another_depth_are_refused_in_words(images: np.ndarray, depth: int) -> None:
    with pytest.raises(ConfigurationError, match="uint8"):
        glow_pixels.from_uint8(images, depth=depth)
