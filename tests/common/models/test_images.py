"""Stored images survive the way to [-1, 1] and back."""

import numpy as np
import torch

from common.models.images import to_uint8, to_unit

torch.set_num_threads(1)


def test_pixels_survive_the_round_trip_and_bad_values_are_clamped() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(to_uint8(to_unit(pixels)), pixels)
    assert float(to_unit(pixels).min()) == -1.0
    assert float(to_unit(pixels).max()) == 1.0
    odd = torch.tensor([-7.0, 7.0, float("nan"), float("inf")]).reshape(1, 1, 2, 2)
    assert to_uint8(odd).flatten().tolist() == [0, 255, 0, 255]
