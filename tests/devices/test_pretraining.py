"""Pretraining of every family on a strict device, with what it writes and reads again."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.models import basis
from common.models.glow import Glow
from common.models.glow_start import initialise_from_noise
from common.models.latents import encode_images
from server.pretrain import flow, gan, gan_state, wgan, wgan_checkpoint
from server.pretrain.flow_options import Pretraining
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session
from server.public_data.images import Source
from server.public_data.pairs import PublicPairs
from tests.strict_device import GPU, strict_device

pytestmark = pytest.mark.slow

M_MMAP_THRESHOLD = -3  # of mallopt(3)


@pytest.fixture(autouse=True, scope="module")
def returned() -> None:
    """Let the C library give large tensors back when they end; else it keeps gigabytes of heap."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 4 << 20)


SIZES_PX = (64, 128, 256)
WGAN_SIZES_PX = (64, 128, 256)
ORIGIN = Provenance("invented pictures", "CC0-1.0", "nobody")


def _source(size_px: int) -> Source:
    """Random photographs of both eyes."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, size_px, size_px, 3), np.uint8)
    return Source(pixels, ("a", "b", "c", "d"), np.array([False, True, False, True]), "0" * 64)


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_generator_is_pretrained_in_all_its_phases(size_px: int, tmp_path: Path) -> None:
    plan = PretrainPlan(
        size_px,
        width=8,
        latent=16,
        encoder_width=8,
        reconstructed=2,
        averaged=1,
        flattened=1,
        again=0.5,
        prior_steps=1,
        coarse=0.3,
        alone=0.3,
        textured=0.6,
    )
    with strict_device():
        session = Session(steps=3, device="cuda")
        made = gan.pretrain(_source(size_px), plan, tmp_path, session)
        assert made.networks.generator.constant.device == GPU
        assert {"texture", "adversarial", "critic_real"} <= set(made.losses)
        begun = gan_state.begin(plan, GPU)
        gan_state.restore(begun, tmp_path / gan.STATE_FILE)
        assert begun.step == 3
    assert (tmp_path / "gan.safetensors").is_file()


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_flow_is_pretrained_and_goes_on(
    size_px: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(initialise_from_noise, pictures=8)
    monkeypatch.setattr(flow, "initialise_from_noise", few)
    options = Pretraining(levels=3, steps_per_level=1, width=8, batch=2, steps=1, minutes=1e9)
    source = _source(size_px)
    with strict_device():
        flow.run(source, tmp_path, options, ORIGIN, device="cuda")
        longer = replace(options, steps=2, reversible=True)
        made = flow.run(source, tmp_path, longer, ORIGIN, resume=True, device="cuda")
        assert made.step == 2
        assert next(made.average.parameters()).device == GPU


@pytest.mark.parametrize("size_px", WGAN_SIZES_PX)
def test_the_pairs_are_pretrained_and_go_on(size_px: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, size_px, size_px, 2), np.uint8)
    source = PublicPairs(pixels, np.arange(4), "0" * 64)
    plan = wgan_checkpoint.public_plan(width=8, generator_width=8, latent=16)
    recipe = wgan.Recipe(batch=2, warm_up=0)
    with strict_device():
        for steps in (1, 2):
            session = Session(steps=steps, resume=steps > 1, device="cuda")
            done = wgan_checkpoint.run(source, tmp_path, plan, ORIGIN, session, recipe)
            assert done == steps


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_a_basis_is_fitted_to_latents_of_the_device(size_px: int) -> None:
    with strict_device():
        model = Glow(size_px, 3, 4, 1, 8).to(GPU)
        rows = encode_images(_source(size_px).images, model)
    assert basis.fit(rows[:, -model.top_dimension :], 2).components == 2
