"""The coupling's bounded scale."""

import torch

from common.models.glow_coupling import Coupling
from tests.flows import seeded


def test_a_coupling_scales_by_at_most_e_to_the_half() -> None:
    layer = Coupling(4, 8, seeded())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=seeded(3))
    _, g = layer.moments(1e6 * torch.randn(2, 2, 4, 4, generator=seeded()))
    assert float(g.detach().abs().max()) <= 0.5
