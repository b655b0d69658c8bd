"""Generator and critic: shapes, modulation against its definition, no hidden state."""

import copy

import pytest
import torch
from torch.nn import functional as F

from client.learn.private_step import check_model
from common.errors import ConfigurationError
from common.models.sizes import style_count
from common.models.stylegan import (
    Critic,
    Generator,
    ModulatedConv,
)

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("size_px", "layers", "channels"),
    [(32, 8, 3), (64, 10, 1), (96, 10, 3), (128, 12, 3), (256, 14, 1)],
)
def test_one_dial_gives_every_size(size_px: int, layers: int, channels: int) -> None:
    generator = Generator(size_px, channels, 8, 16)
    with torch.no_grad():
        images = generator(torch.randn(2, 16))
        assert images.shape == (2, channels, size_px, size_px)
        assert Critic(size_px, channels, 8)(images).shape == (2,)
    assert generator.layer_count == style_count(size_px) == layers


@pytest.mark.parametrize("size_px", [64, 96, 128, 256, 512])
def test_a_gradient_reaches_the_code_at_every_size_and_noise_is_fresh_for_each_image(
    size_px: int,
) -> None:
    generator = Generator(size_px, 3, 2, 4)
    for name, parameter in generator.named_parameters():
        parameter.requires_grad_(False)
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    codes = torch.randn(1, style_count(size_px), 4).expand(2, -1, -1).clone().requires_grad_()
    images = generator.synthesis(codes, noise=torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, size_px, size_px)
    assert not torch.equal(images[0], images[1])
    (gradient,) = torch.autograd.grad(images.square().mean(), codes)
    assert bool((gradient.abs().sum(2) > 0).all())
    scores = Critic(size_px, 3, 2)(images.detach())
    assert bool(torch.isfinite(scores).all())


def test_frozen_wide_layers_give_the_same_images_as_trained_ones() -> None:
    """Frozen, they take Winograd's convolution; needing a gradient, the direct one."""
    generator = Generator(64, 3, 32, 16)  # 128 channels up to 16 px
    codes = torch.randn(4, 10, 16)
    expected = generator.synthesis(codes).detach()
    images = generator.requires_grad_(False).synthesis(codes)
    assert not torch.equal(images, expected)
    assert torch.allclose(images, expected, atol=1e-4)


def test_an_unknown_size_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="48"):
        Generator(48, 3, 8, 16)


@pytest.mark.parametrize("demodulate", [True, False])
def test_scaling_activations_equals_scaling_each_samples_weights(demodulate: bool) -> None:
    """StyleGAN2's definition: w' = s·w, divided by its norm, one kernel per sample."""
    conv = ModulatedConv(6, 5, 4, demodulate=demodulate).double()
    x, w = torch.randn(3, 6, 8, 8, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    for i in range(3):
        kernel = conv.weight * conv.style(w[i])[None, :, None, None]
        if demodulate:
            kernel = kernel * torch.rsqrt(kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        expected = F.conv2d(x[i : i + 1], kernel, padding=1)
        assert torch.allclose(conv(x, w)[i : i + 1], expected, atol=1e-10)


def test_each_layers_code_reaches_the_image() -> None:
    generator = Generator(32, 3, 8, 16)
    codes = torch.randn(1, 8, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator.synthesis(codes).square().sum(), codes)
    assert bool((gradient.abs().sum(2) > 0).all())


def test_noise_comes_only_from_what_is_passed_in() -> None:
    generator = Generator(32, 3, 8, 16)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(1.0)
    codes = generator.broadcast(torch.randn(2, 16))
    with torch.no_grad():
        plain = generator.synthesis(codes)
        assert torch.equal(plain, generator.synthesis(codes))
        one = generator.synthesis(codes, torch.Generator().manual_seed(1))
        assert torch.equal(one, generator.synthesis(codes, torch.Generator().manual_seed(1)))
        assert not torch.equal(one, generator.synthesis(codes, torch.Generator().manual_seed(2)))
        assert not torch.equal(
            generator.synthesis(codes, "random"), generator.synthesis(codes, "random")
        )
        assert not torch.equal(one, plain)


def test_a_forward_pass_changes_nothing_and_nothing_is_a_buffer() -> None:
    for module, given in (
        (Generator(32, 3, 8, 16), torch.randn(2, 16)),
        (Critic(32, 3, 8), torch.randn(2, 3, 32, 32)),
    ):
        before = copy.deepcopy(module.state_dict())
        module(given)
        assert list(module.buffers()) == []
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_private_step_accepts_the_critic() -> None:
    for size_px, channels, width in ((32, 3, 16), (64, 3, 24), (128, 1, 32)):
        check_model(Critic(size_px, channels, width), (channels, size_px, size_px))


def test_the_critics_features_end_in_its_score() -> None:
    critic, x = Critic(32, 3, 16), torch.randn(2, 3, 32, 32)
    taps = critic.features(x)
    assert [t.shape[2] for t in taps] == [16, 8, 4]
    assert torch.equal(critic.score(taps[-1]).flatten(), critic(x))


def test_a_code_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\[N, 8, 16\].*\[2, 10, 16\]"):
        Generator(32, 3, 8, 16).synthesis(torch.zeros(2, 10, 16))
