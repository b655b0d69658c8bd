"""A checkpoint of half the size begins a pretraining at the full size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import RefusedError
from common.models.stylegan import upsample
from common.models.weights import numpy_weights
from common.wire.tensors import read, write
from server.pretrain import gan, gan_state
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.session import Session
from server.public_data.images import Source

HALF = PretrainPlan(size_px=64, width=8, latent=16, encoder_width=8)
FULL = dataclasses.replace(HALF, size_px=128, width=4)


@pytest.fixture
def half(tmp_path: Path) -> tuple[gan_state.Training, Path]:
    """Networks of 64 px and the folder of their checkpoint."""
    made = gan_state.begin(HALF)
    # weights that differ from a beginning's, also where that is 0
    random = torch.Generator().manual_seed(1)
    for network in made.networks:
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    generator, critic, encoder = made.networks
    gan = numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")
    write(tmp_path / "gan.safetensors", gan)
    write(tmp_path / "encoder.safetensors", numpy_weights(encoder, "encoder."))
    return made, tmp_path


@torch.no_grad()
def test_a_grown_generator_makes_the_same_images_doubled(
    half: tuple[gan_state.Training, Path],
) -> None:
    before, folder = half
    grown = gan_state.begin(FULL)
    gan_state.load_start(grown, folder)
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    for networks in (grown.networks, grown.averages):
        wanted = upsample(before.networks.generator(z))
        torch.testing.assert_close(networks.generator(z), wanted, atol=1e-5, rtol=1e-5)
    # also where each layer has a code of its own
    codes = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        grown.networks.generator.synthesis(codes),
        upsample(before.networks.generator.synthesis(codes[:, :10])),
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_a_grown_encoder_gives_the_codes_that_it_gave_and_leaves_the_new_layers_alone(
    half: tuple[gan_state.Training, Path],
) -> None:
    before, folder = half
    grown = gan_state.begin(FULL)
    gan_state.load_start(grown, folder)
    seen = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    small = before.networks.encoder
    large = grown.networks.encoder
    # every pixel four times: read at 64 px it is the same picture
    twice = seen.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = small.start_codes(2) + small(seen, seen.flip(0))
    found = large.start_codes(2) + large(twice, twice.flip(0))
    torch.testing.assert_close(found[:, :10], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(large.start[10:], small.start[-1:].expand(2, -1))
    assert torch.equal(large(twice, twice)[:, 10], large(twice, twice)[:, 11])


def test_the_new_part_learns(half: tuple[gan_state.Training, Path]) -> None:
    _, folder = half
    grown = gan_state.begin(FULL)
    gan_state.load_start(grown, folder)
    generator = grown.networks.generator
    generator(torch.ones(1, 16)).square().sum().backward()
    slope = generator.to_image[-1].weight.grad
    assert slope is not None and bool((slope != 0).any())


def test_only_the_new_map_and_the_critic_learn_also_after_a_stop(
    half: tuple[gan_state.Training, Path], tmp_path: Path
) -> None:
    before, folder = half
    photographs = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)
    source = Source(photographs, tuple("abcdef"), None, "")
    plan = dataclasses.replace(FULL, alone=0.0, textured=0.0, coarse=0.0, prior_steps=1)
    gan.pretrain(source, plan, tmp_path / "out", Session(steps=2), start=folder)
    more = Session(steps=4, resume=True)
    made = gan.pretrain(source, plan, tmp_path / "out", more).networks
    old = dict(before.networks.generator.named_parameters())
    for name, now in made.generator.named_parameters():
        # the mapping is taught the codes at the end, and layers' codes are centred by their biases
        if name in old and not name.startswith("mapping.") and not name.endswith("style.bias"):
            assert torch.equal(now, old[name]), name
    seen = dict(before.networks.encoder.named_parameters())
    assert torch.equal(made.encoder.shared.weight, seen["shared.weight"])
    assert bool((made.generator.to_image[-1].weight != 0).any())  # type: ignore[operator]
    fresh = gan_state.begin(plan).networks.critic
    pairs = zip(made.critic.parameters(), fresh.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    "changes",
    [{"width": 8}, {"latent": 32}, {"encoder_width": 16}, {"size_px": 256, "width": 2}],
    ids=["another width", "another latent", "another encoder", "a quarter of the size"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    half: tuple[gan_state.Training, Path], changes: dict[str, int]
) -> None:
    _, folder = half
    grown = gan_state.begin(dataclasses.replace(FULL, **changes))  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="does not fit"):
        gan_state.load_start(grown, folder)


@pytest.mark.parametrize("name", ["encoder.start", "encoder.detail.bias", "generator.constant"])
def test_a_checkpoint_without_one_of_its_arrays_is_refused(
    half: tuple[gan_state.Training, Path], name: str
) -> None:
    _, folder = half
    file = folder / f"{'gan' if name.startswith('gen') else 'encoder'}.safetensors"
    arrays = read(file, max_bytes=1 << 26)
    del arrays[name]
    write(file, arrays)
    with pytest.raises(RefusedError, match=f"{name}: missing"):
        gan_state.load_start(gan_state.begin(FULL), folder)
