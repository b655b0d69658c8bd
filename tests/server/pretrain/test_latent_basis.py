"""The public basis has the plan's level and components; the demo's basis fits the demo's flow."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError
from common.models import basis, latents
from common.study.plan import load_study
from server.demo import hospitals as demo_hospitals
from server.pretrain.latent_basis import fit_basis, main

PRESET = demo_hospitals.preset_of("chest")


def test_the_command_writes_the_basis_of_the_plans_level_and_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = demo_hospitals.radiograph_reference(tmp_path, 32).path
    monkeypatch.setattr(
        sys, "argv", ["latent_basis", str(PRESET), str(images), str(tmp_path / "basis.safetensors")]
    )
    main()
    found = basis.load(tmp_path / "basis.safetensors")
    assert (found.components, found.coordinates) == (16, 1024)
    with np.load(images) as file:
        from common.models.glow import Glow
        from common.models.glow_checkpoint import load

        flow = Glow(32, 1, 3, 6, 32)
        load(flow, PRESET.parent / "checkpoints" / "chest-32" / "glow.safetensors")
        reduced = found.reduce(latents.encode_images(file["images"], flow.eval()))
    np.testing.assert_allclose(reduced.std(axis=0), 1.0, atol=0.01)  # whitened on its own images
    shipped = basis.load(PRESET.parent / "checkpoints" / "chest-32" / "basis.safetensors").first(2)
    alike = np.linalg.norm(shipped.directions @ found.directions.T, axis=1)
    # The same flow finds its first directions again in other radiographs; by chance it is 0.13.
    assert (alike > 0.4).all()


def test_a_plan_that_asks_for_no_basis_gets_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="asks for none"):
        fit_basis(
            load_study(demo_hospitals.preset_of("fundus")), tmp_path / "glow.safetensors", tmp_path
        )
