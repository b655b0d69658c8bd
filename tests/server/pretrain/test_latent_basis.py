"""The public basis has the plan's level and components; the demo's basis fits the demo's flow."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
    # all directions have one deviation, and nine in ten of its own images reach the clip
    spreads = reduced.std(axis=0)
    np.testing.assert_allclose(spreads / spreads.mean(), 1.0, atol=0.01)
    assert (np.linalg.norm(reduced, axis=1) >= 3.999).mean() == pytest.approx(0.9, abs=0.01)
    shipped = basis.load(PRESET.parent / "checkpoints" / "chest-32" / "basis.safetensors").first(2)
    alike = np.linalg.norm(shipped.directions @ found.directions.T, axis=1)
    # The same flow finds its first directions again in other radiographs; by chance it is 0.13.
    assert (alike > 0.4).all()


def test_a_plan_that_asks_for_no_basis_gets_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="asks for none"):
        fit_basis(
            load_study(demo_hospitals.preset_of("fundus")), tmp_path / "glow.safetensors", tmp_path
        )


def test_the_shipped_flow_of_films_knows_them_in_every_frame(tmp_path: Path) -> None:
    from common.models.glow import Glow
    from common.models.glow_checkpoint import load
    from common.models.glow_pixels import from_uint8
    from server.public_data.film import Changes, film_boxes, film_views

    folder = PRESET.parent / "checkpoints" / "chest-films-32"
    flow = Glow(32, 1, 3, 6, 32)
    load(flow, folder / "glow.safetensors")
    directions = basis.load(folder / "basis.safetensors")
    with np.load(demo_hospitals.radiograph_reference(tmp_path, 32).path) as file:
        films = file["images"][:24]
    frames = Changes(plain=0, turn=0, gamma=0, contrast=0, brightness=0, softened=0)
    random = np.random.default_rng(0)
    framed = film_views(torch.from_numpy(films), film_boxes(films), random, frames).numpy()
    bits = []
    for images in (films, framed):
        with torch.no_grad():
            log_p = flow.eval().encode(from_uint8(images))[1]
        bits.append(float(flow.bits_per_dimension(log_p).median()))
        reduced = directions.reduce(latents.encode_images(images, flow))
        # the clip's radius is of the size of films: none is much longer, and many reach it
        shares = np.linalg.norm(reduced, axis=1) / directions.components**0.5
        assert 0.5 < np.median(shares) < 2
    assert bits[1] < bits[0] + 0.3
