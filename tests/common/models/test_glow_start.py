"""The start from procedural images standardises every mixing."""

import pytest
import torch

from common.models import glow_start
from common.models.glow import Glow


@pytest.mark.parametrize(("levels", "doublings"), [(3, 0), (2, 1)])
def test_the_noise_start_standardises_every_mixing(levels: int, doublings: int) -> None:
    model = Glow(32, 3, levels, 2, 8, doublings)
    glow_start.initialise_from_noise(model, 32)
    x = glow_start.procedural_images(32, 32, 3)
    parts, _ = model.encode(x)
    assert [float(part.detach().std()) for part in parts] == pytest.approx([1.0] * 3, abs=0.1)
    assert torch.equal(x, glow_start.procedural_images(32, 32, 3))
