"""The layouts against the networks: names, shapes, multiplications, what backward keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.models import layouts, stylegan, wgan
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.layouts import Layer
from common.models.sizes import IMAGE_SIZES_PX, PAIR_SIZES_PX

torch.set_num_threads(1)
SIZES = [size for size in IMAGE_SIZES_PX if size >= 32]
PAIRS = [(size, kind) for kind, sizes in PAIR_SIZES_PX.items() for size in sizes]
FLOWS = [
    (32, 3, 3, 2, 16),
    (64, 1, 4, 1, 8),
    (96, 3, 5, 1, 8),
    (512, 1, 2, 1, 8),
    (64, 1, 3, 2, 8, 1),
    (128, 3, 3, 1, 8, 2),
]
Network = tuple[nn.Module, tuple[Layer, ...], Callable[[], Tensor]]


def assert_same_tensors(network: nn.Module, layers: tuple[Layer, ...]) -> None:
    built = {name: tuple(value.shape) for name, value in network.named_parameters()}
    assert layouts.shapes_of(layers) == built
    assert layouts.weight_count(layers) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size_px", SIZES)
def test_layouts_have_the_tensors_of_the_image_networks(size_px: int, channels: int) -> None:
    networks = (
        stylegan.Generator(size_px, channels, 16, 24),
        stylegan.Critic(size_px, channels, 16),
        Encoder(size_px, channels, 8, 24),
    )
    expected = (
        layouts.generator(size_px, channels, 16, 24),
        layouts.critic(size_px, channels, 16),
        layouts.encoder(size_px, channels, 8, 24),
    )
    for network, layers in zip(networks, expected, strict=True):
        assert_same_tensors(network, layers)


@pytest.mark.parametrize(("size_px", "kind"), PAIRS)
def test_layouts_have_the_tensors_of_the_pair_networks(size_px: int, kind: str) -> None:
    generator = wgan.build_generator(size_px, 16, 24, kind)
    critic = wgan.Critic(size_px, 16, kind)
    assert_same_tensors(generator, layouts.pair_generator(size_px, 16, 24, kind))
    assert_same_tensors(critic, layouts.pair_critic(size_px, 16, kind))


@pytest.mark.parametrize("sizes", FLOWS, ids=str)
def test_layouts_have_the_tensors_of_the_flow(sizes: tuple[int, ...]) -> None:
    assert_same_tensors(Glow(*sizes), layouts.flow(*sizes))


def networks() -> dict[str, Network]:
    """Small networks with their layouts and a forward pass of two items."""
    torch.manual_seed(0)
    generator = stylegan.Generator(64, 3, 16, 32)
    critic = stylegan.Critic(96, 3, 16)
    encoder = Encoder(64, 3, 16, 32)
    flow = Glow(32, 3, 3, 2, 32)
    found: dict[str, Network] = {}
    x = torch.rand(2, 3, 64, 64)
    found["generator"] = (
        generator,
        layouts.generator(64, 3, 16, 32),
        lambda: generator(torch.randn(2, 32), torch.Generator().manual_seed(0)),
    )
    found["critic"] = (
        critic,
        layouts.critic(96, 3, 16),
        lambda: critic(torch.rand(2, 3, 96, 96)),
    )
    found["encoder"] = (encoder, layouts.encoder(64, 3, 16, 32), lambda: encoder(x, x))
    found["flow"] = (flow, layouts.flow(32, 3, 3, 2, 32), lambda: flow(torch.rand(2, 3, 32, 32)))
    grown = Glow(64, 3, 3, 2, 32, 1)
    layers = layouts.flow(64, 3, 3, 2, 32, 1)
    found["grown flow"] = (grown, layers, lambda: grown(torch.rand(2, 3, 64, 64)))
    for kind in PAIR_SIZES_PX:
        one = wgan.build_generator(64, 16, 24, kind)
        two = wgan.Critic(64, 16, kind)
        found[f"pair generator {kind}"] = (
            one,
            layouts.pair_generator(64, 16, 24, kind),
            lambda one=one: one(torch.randn(2, one.latent)),  # type: ignore[misc]
        )
        found[f"pair critic {kind}"] = (
            two,
            layouts.pair_critic(64, 16, kind),
            lambda two=two: two(torch.rand(2, 2, 64, 64)),  # type: ignore[misc]
        )
    return found


@pytest.mark.parametrize("name", list(networks()))
def test_layouts_count_the_multiplications_of_a_forward_pass(name: str) -> None:
    _, layers, forward = networks()[name]
    with FlopCounterMode(display=False) as counter:
        forward()
    per_item = counter.get_total_flops() / 2 / 2  # two items, two operations a product
    # the flow composes its mixings' matrices once a batch, which is counted here with the items
    assert layouts.products_of(layers) == pytest.approx(per_item, rel=0.05)


@pytest.mark.parametrize("name", list(networks()))
def test_layouts_count_what_a_backward_pass_keeps(name: str) -> None:
    module, layers, forward = networks()[name]
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    numbers = sum(place.nbytes() for place in kept.values()) / 4 / 2
    assert 0.8 < layouts.kept_by(layers) / numbers < 1.35, (name, layouts.kept_by(layers), numbers)
