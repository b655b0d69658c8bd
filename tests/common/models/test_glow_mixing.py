"""The mixing layer: its fixed rotation, and its inverse."""

import pytest
import torch

from common.models import glow_mixing
from common.models.glow_mixing import Mixing
from tests.flows import seeded


@pytest.mark.parametrize("channels", [4, 12, 96])
def test_the_rotation_is_orthogonal_and_the_same_everywhere(channels: int) -> None:
    q = glow_mixing.make_rotation(channels, 3)
    assert float((q @ q.T - torch.eye(channels, dtype=torch.float64)).abs().max()) < 1e-13
    torch.manual_seed(channels)
    assert torch.equal(q, glow_mixing.make_rotation(channels, 3))
    assert not torch.equal(q, glow_mixing.make_rotation(channels, 4))


def test_the_mixing_inverts_its_matrix() -> None:
    layer = Mixing(12, 0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3, generator=seeded(2))
    x = torch.randn(2, 12, 3, 3, generator=seeded(), dtype=torch.float64)
    assert float((layer.inverse(layer(x)[0]) - x).abs().max()) < 1e-12
