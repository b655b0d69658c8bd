"""The start from procedural images standardises every mixing."""

import pytest
import torch

from common.models import glow_start
from common.models.glow import Glow


def test_the_noise_start_standardises_every_mixing() -> None:
    model = Glow(32, 3, 3, 2, 8)
    glow_start.initialise_from_noise(model, 32)
    x = glow_start.procedural_images(32, 32, 3)
    parts, _ = model.encode(x)
    assert [float(part.detach().std()) for part in parts] == pytest.approx([1.0] * 3, abs=0.1)
    assert torch.equal(x, glow_start.procedural_images(32, 32, 3))
