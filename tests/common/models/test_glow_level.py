"""A doubling of the flow: the image inside is that of 2 × 2 means."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.models.glow import Glow
from common.models.glow_level import beside_identity, haar_matrix
from tests.flows import pictures, seeded, shaken

torch.set_num_threads(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_image_inside_is_the_mean_of_each_square(channels: int) -> None:
    model = shaken(Glow(16, channels, 2, 2, 8, 1))
    x = pictures(2, channels, 16)
    means, part, _ = model.doublings[0](x)
    assert torch.allclose(means, F.avg_pool2d(x, 2), atol=1e-6)
    assert tuple(part.shape[1:]) == model.part_shapes[0] == (3 * channels, 8, 8)


def test_the_latents_inside_are_those_of_the_flow_of_half_the_size() -> None:
    inside = shaken(Glow(8, 3, 2, 2, 8))
    model = Glow(16, 3, 2, 2, 8, 1)
    model.load_state_dict(inside.state_dict(), strict=False)
    x = pictures(2, 3, 16)
    grown, alone = model.encode(x)[0][1:], inside.encode(F.avg_pool2d(x, 2))[0]
    assert model.top_dimension == inside.top_dimension
    for a, b in zip(grown, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_leaves_at_a_doubling_changes_no_mean() -> None:
    model = shaken(Glow(16, 1, 2, 2, 8, 1))
    finest, *inside = model.prior(2, 1.0, seeded())
    one = model.decode([finest, *inside])
    two = model.decode([finest + 1, *inside])
    assert float((one - two).abs().max()) > 0.01
    assert torch.allclose(F.avg_pool2d(one, 2), F.avg_pool2d(two, 2), atol=1e-5)


def test_differences_are_orthonormal_and_know_no_mean() -> None:
    matrix = haar_matrix(3)
    assert np.allclose(matrix[3:] @ matrix[3:].T, np.eye(9))
    assert np.allclose(matrix[3:] @ matrix[:3].T, 0)


def test_kept_channels_are_mixed_with_nothing() -> None:
    kernels = torch.rand(2, 3, 3, 1, 1, generator=seeded())
    wide = beside_identity(kernels, 2)[..., 0, 0]
    assert torch.equal(wide[:, 2:, 2:], kernels[..., 0, 0])
    assert torch.equal(wide[:, :2], torch.eye(2, 5).expand(2, 2, 5))
    assert not wide[:, 2:, :2].any()
