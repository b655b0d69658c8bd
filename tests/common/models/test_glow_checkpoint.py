"""Weights travel under their global names; nothing odd is loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import RefusedError
from common.models import glow_checkpoint
from common.models.glow import Glow
from tests.flows import small


def test_the_rotations_digest_is_pinned() -> None:
    assert glow_checkpoint.rotation_digest(Glow(8, 1, 2, 1, 8))[:16] == "fbeccc42fb1c388f"


def test_weights_travel_under_their_global_names_and_nothing_odd_is_loaded(tmp_path: Path) -> None:
    model, other = small(), Glow(8, 1, 2, 2, 8)
    path = tmp_path / "glow.safetensors"
    glow_checkpoint.save(model, path)
    glow_checkpoint.load(other, path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    weights = glow_checkpoint.weights_of(model)
    assert all(
        name.startswith("glow.") and value.dtype == np.float32 for name, value in weights.items()
    )
    name = next(iter(weights))
    bad = weights[name].copy()
    bad.flat[0] = np.nan
    for odd in (
        {k: v for k, v in weights.items() if k != name},
        {**weights, "glow.extra": bad},
        {**weights, name: bad},
        {**weights, name: weights[name].astype(np.float64)},
        {**weights, name: weights[name][..., None]},
    ):
        with pytest.raises(RefusedError):
            glow_checkpoint.load_weights(other, odd)
    with pytest.raises(RefusedError, match="rotations"):
        glow_checkpoint.load_weights(other, weights, digest="0" * 64)
