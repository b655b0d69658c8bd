"""Tiny models and a hospital that is shared by the tests of the child."""

from __future__ import annotations

import pytest
import torch

from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.wire import tensors
from tests.sites import Hospital, make_hospital


@pytest.fixture(scope="module")
def weights() -> dict[str, tensors.Arrays]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gan = numpy_weights(Generator(32, 3, 16, 16), "generator.") | numpy_weights(
        Critic(32, 3, 16), "critic."
    )
    return {"gan": dict(gan), "glow": dict(weights_of(Glow(32, 3, 3, 2, 16)))}


@pytest.fixture(scope="module")
def hospital(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, tensors.Arrays]
) -> Hospital:
    return make_hospital(tmp_path_factory.mktemp("hospital"), weights=weights)
