"""Pairs of image and mask: stored, sampled and back."""

import numpy as np
import torch

from common.models.wgan import Generator
from common.models.wgan_pairs import SAMPLE_BATCH, sample, to_pairs, to_unit

torch.set_num_threads(1)


def test_every_grey_value_and_both_mask_values_survive_the_way_there_and_back() -> None:
    pairs = np.zeros((2, 16, 16, 2), np.uint8)
    pairs[..., 0] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pairs[1, ..., 1] = 255
    unit = to_unit(pairs)
    assert unit.shape == (2, 2, 16, 16) and unit.dtype == torch.float32
    assert float(unit.min()) == -1.0 and float(unit.max()) == 1.0
    assert bool((unit[0, 1] == -1).all()) and bool((unit[1, 1] == 1).all())
    assert np.array_equal(to_pairs(unit), pairs)


def test_the_mask_is_cut_at_zero_and_the_image_held_in_range() -> None:
    x = torch.zeros(1, 2, 1, 4)
    x[0, 0, 0] = torch.tensor([-7.0, 7.0, 0.0, 1.0])
    x[0, 1, 0] = torch.tensor([-1e-6, 0.0, 1e-6, 0.79])
    assert to_pairs(x)[0, 0].tolist() == [[0, 0], [255, 0], [128, 255], [255, 255]]


def test_a_sampled_mask_never_leaves_its_two_values() -> None:
    torch.manual_seed(0)
    pairs = sample(Generator(32, 8, 16), 3, torch.Generator().manual_seed(0))
    assert pairs.shape == (3, 32, 32, 2) and pairs.dtype == np.uint8
    assert set(np.unique(pairs[..., 1])) <= {0, 255} and len(np.unique(pairs[..., 0])) > 2


def test_sampling_is_a_function_of_the_generators_state_alone() -> None:
    torch.manual_seed(0)
    generator, many = Generator(32, 8, 16), SAMPLE_BATCH + 2
    first = sample(generator, many, torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    assert np.array_equal(first, sample(generator, many, torch.Generator().manual_seed(1)))
    assert len({pair.tobytes() for pair in first}) == many
    random = torch.Generator().manual_seed(1)
    assert not np.array_equal(sample(generator, 2, random), sample(generator, 2, random))
