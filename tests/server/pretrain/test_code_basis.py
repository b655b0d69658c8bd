"""The public basis of codes: of the plan's own checkpoints, and of these images alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigurationError
from common.models import basis
from common.models.sizes import style_count
from common.study.plan import load_study
from server.demo import hospitals as demo_hospitals
from server.pretrain.code_basis import encode, fit_code_basis, main

PRESET = demo_hospitals.preset_of("fundus")
SHIPPED = PRESET.parent / "checkpoints" / "fundus-64" / "codes.safetensors"
DEMO = Path(__file__).parents[3] / "deploy" / "demo" / "fundus"


def test_the_shipped_basis_of_codes_fits_the_shipped_checkpoint() -> None:
    found = basis.load(SHIPPED)
    gan = load_study(PRESET).models.gan
    assert gan is not None
    assert (found.components, found.coordinates) == (32, style_count(64) * gan.latent)


def test_the_command_writes_the_principal_directions_of_the_images_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(60, 200, (12, 64, 64, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images[:7])
    np.savez(tmp_path / "b.npz", images=images[7:])
    out = tmp_path / "codes.safetensors"
    sources = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    monkeypatch.setattr(
        sys, "argv", ["code_basis", str(PRESET), *sources, str(out), "--components", "5"]
    )
    main()
    found = basis.load(out)
    assert found.components == 5
    study = load_study(PRESET)
    again = fit_code_basis(study, PRESET.parent, [tmp_path / "a.npz", tmp_path / "b.npz"], 5)
    np.testing.assert_allclose(found.mean, again.mean, atol=1e-5)
    others = fit_code_basis(study, PRESET.parent, [tmp_path / "a.npz"], 5)
    assert np.abs(others.mean - found.mean).max() > 1e-3


def test_codes_are_whitened_on_their_own_images(tmp_path: Path) -> None:
    """Mean 0 and deviation 1 along each direction, both eyes of every photograph counted."""
    from common.models.encoder import load_encoder
    from common.models.stylegan import load_generator
    from common.wire import tensors

    study = load_study(PRESET)
    gan, coder = study.models.gan, study.models.encoder
    assert gan is not None and coder is not None
    folder = PRESET.parent / "checkpoints" / "fundus-64"
    images = np.random.default_rng(1).integers(60, 200, (10, 64, 64, 3)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    found = fit_code_basis(study, PRESET.parent, [tmp_path / "a.npz"], 4)
    generator = load_generator(
        tensors.read(folder / "gan.safetensors", max_bytes=1 << 28), gan, 64, 3
    )
    encoder = load_encoder(
        tensors.read(folder / "encoder.safetensors", max_bytes=1 << 28),
        coder.width,
        gan.latent,
        64,
        3,
    )
    both = np.concatenate([images, np.ascontiguousarray(images[:, :, ::-1])])
    reduced = found.reduce(encode(both, generator, encoder, coder.iterations))
    np.testing.assert_allclose(reduced.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(reduced.std(0, ddof=1), 1, atol=1e-6)


def test_a_plan_without_starting_checkpoints_gets_none(tmp_path: Path) -> None:
    study = load_study(PRESET)
    bare = study.model_copy(update={"models": study.models.model_copy(update={"encoder": None})})
    with pytest.raises(ConfigurationError, match="no starting checkpoints"):
        fit_code_basis(bare, PRESET.parent, [DEMO], 4)
