"""Every network on a device: forward passes by torch's own rules, and a strict training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.measure.unet import UNet
from common.models import glow_pixels, images, wgan, wgan_pairs
from common.models.adam import Adam
from common.models.draws import device_of, draw_normal
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.glow_start import initialise_from_noise
from common.models.latents import decode_latents, encode_images
from common.models.pair_look import look_of, pulls
from common.models.stylegan import Critic, Generator
from tests.strict_device import GPU, fake_device, strict_device

SIZES_PX = (64, 128, 256)
WGAN_SIZES_PX = (64, 128, 256)
CHANNELS = (1, 3)


@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("channels", CHANNELS)
def test_the_generator_and_its_critic_stay_on_their_device(size_px: int, channels: int) -> None:
    generator = Generator(size_px, channels, 8, 16)
    critic = Critic(size_px, channels, 8)
    encoder = Encoder(size_px, channels, 8, 16)
    with fake_device() as device, torch.no_grad():
        for network in (generator, critic, encoder):
            network.to(device)
        z = draw_normal((2, 16), None, device)
        made = [generator(z), generator(z, "random")]
        made += [generator(z, torch.Generator()), generator(z, torch.Generator(device))]
        for image in made:
            assert image.shape == (2, channels, size_px, size_px)
            assert image.device == GPU
            assert critic(image).device == GPU
        found = encoder.invert(made[0], generator, 2, keep_best=True)
        assert found.codes.device == found.reconstructions.device == GPU


@pytest.mark.parametrize("size_px", SIZES_PX)
@pytest.mark.parametrize("channels", CHANNELS)
def test_the_flow_stays_on_its_device(size_px: int, channels: int) -> None:
    flow = Glow(size_px, channels, 4, 2, 8)
    with fake_device() as device, torch.no_grad():
        flow.to(device)
        parts, log_p = flow.encode(torch.zeros(2, channels, size_px, size_px, device=device))
        assert log_p.device == GPU
        assert all(part.device == GPU for part in parts)
        drawn = flow.prior(2, 0.7, torch.Generator(device))
        assert all(part.device == GPU for part in drawn)


@pytest.mark.parametrize("architecture", ["small", wgan.KOSSEN, wgan.MASK_FIRST])
@pytest.mark.parametrize("size_px", WGAN_SIZES_PX)
def test_the_networks_of_pairs_stay_on_their_device(size_px: int, architecture: str) -> None:
    generator = wgan.build_generator(size_px, 8, 16, architecture)
    critic = wgan.Critic(size_px, 8, architecture)
    unet = UNet(4)
    with fake_device() as device, torch.no_grad():
        for network in (generator, critic, unet):
            network.to(device)
        pairs = generator(draw_normal((2, generator.latent), torch.Generator(device), device))
        assert pairs.device == critic(pairs).device == unet(pairs[:, :1]).device == GPU


def _step(network: nn.Module, loss: Tensor) -> None:
    """One step of Adam on the network."""
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    Adam(parameters, 1e-3).step(dict(zip(parameters, gradients, strict=True)))


@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_style_networks_train_on_a_strict_device(size_px: int) -> None:
    with strict_device():
        generator = Generator(size_px, 3, 8, 16).to(GPU)
        critic = Critic(size_px, 3, 8).to(GPU)
        encoder = Encoder(size_px, 3, 8, 16).to(GPU)
        draw = torch.Generator(GPU).manual_seed(0)
        made = generator(draw_normal((2, 16), draw, GPU), draw)
        _step(generator, critic(made).mean())
        _step(critic, critic(made.detach()).square().mean())
        _step(encoder, encoder.invert(made.detach(), generator, 1).codes.square().mean())
        shown = images.to_uint8(made)
        assert shown.shape == (2, size_px, size_px, 3)
        assert images.to_unit(shown, device_of(critic)).device == GPU


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("size_px", SIZES_PX)
def test_the_flow_trains_and_inverts_on_a_strict_device(size_px: int, reversible: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size_px, size_px, 1), dtype=np.uint8)
    with strict_device():
        flow = Glow(size_px, 1, 3, 1, 8).to(GPU)
        initialise_from_noise(flow, 2)
        flow.reversible = reversible
        _step(flow, -flow(glow_pixels.from_uint8(pixels, device=GPU)).mean())
        latents = encode_images(pixels, flow)
        assert np.abs(decode_latents(latents, flow).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("architecture", ["small", wgan.MASK_FIRST])
@pytest.mark.parametrize("size_px", WGAN_SIZES_PX)
def test_the_networks_of_pairs_train_on_a_strict_device(size_px: int, architecture: str) -> None:
    with strict_device():
        generator = wgan.build_generator(size_px, 8, 16, architecture).to(GPU)
        critic = wgan.Critic(size_px, 8).to(GPU)
        pairs = wgan_pairs.sample(generator, 3, torch.Generator(GPU))
        assert pairs.shape == (3, size_px, size_px, 2)
        _step(critic, critic(wgan_pairs.to_unit(pairs, GPU)).mean())
        z = draw_normal((2, generator.latent), torch.Generator(GPU), GPU)
        _step(generator, critic(generator(z)).mean())
        wanted = look_of(wgan_pairs.to_unit(pairs, GPU)).mean(0)
        pulled = pulls(generator(z), wanted)
        assert pulled.device == GPU
        _step(generator, pulled.sum())
