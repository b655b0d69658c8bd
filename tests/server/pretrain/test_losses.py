"""The texture terms of pretraining.

They ignore where in its window a spot lies. They notice whether it is there, and in which window.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from common.models.stylegan import Generator
from common.wire.tensors import read
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan import pretrain
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_schedule import TEXTURES
from server.pretrain.gan_step import keep_noise
from server.pretrain.losses import (
    TEXTURE_CHANNELS,
    WINDOWS,
    reconstruction_loss,
    spots,
    texture_distance,
    textures,
)
from server.pretrain.session import Session
from server.public_data.images import Source

torch.set_num_threads(1)
S = 64
CELL = S // WINDOWS
PLAN = PretrainPlan(
    size_px=32,
    width=8,
    latent=16,
    encoder_width=8,
    reconstructed=3,
    averaged=2,
    flattened=2,
    alone=0.0,
    prior_steps=2,
)


def spotted(y: int, x: int, colour: tuple[float, float, float] = (0.9, 0.8, -0.2)) -> Tensor:
    """One brownish picture [1, 3, 64, 64] with a spot of 2×2 px at (y, x)."""
    image = torch.tensor([0.2, -0.3, -0.7])[None, :, None, None].repeat(1, 1, S, S)
    image[0, :, y : y + 2, x : x + 2] = torch.tensor(colour)[:, None, None]
    return image


PLACES = st.integers(4, CELL - 6)  # the filters reach 4 px at half the size
# at the picture's own edge the local mean is one of fewer pixels
CELLS = st.integers(1, WINDOWS - 2)


@settings(max_examples=10, deadline=None)
@given(row=CELLS, column=CELLS, y=PLACES, x=PLACES, dy=PLACES, dx=PLACES)
def test_a_spot_may_lie_anywhere_in_its_window(
    row: int, column: int, y: int, x: int, dy: int, dx: int
) -> None:
    # at half the size a spot between two pixels is another spot
    even = [v // 2 * 2 for v in (y, x, dy, dx)]
    here = textures(spotted(row * CELL + even[0], column * CELL + even[1]))
    there = textures(spotted(row * CELL + even[2], column * CELL + even[3]))
    assert float(texture_distance(there, here)) < 1e-4
    here, there = (
        spots(spotted(row * CELL + a, column * CELL + b)) for a, b in (even[:2], even[2:])
    )
    assert torch.allclose(here, there, atol=1e-6)
    assert not torch.allclose(
        here, spots(spotted(row * CELL + even[0], (3 - column) * CELL + even[1])), atol=1e-2
    )


def test_spots_tell_a_few_strong_ones_from_weak_grain_of_the_same_energy() -> None:
    """A Gram matrix alone hardly tells them apart: exudates became grain."""
    flat = spotted(22, 22, (0.2, -0.3, -0.7))
    few = spotted(22, 22)
    grain = (
        flat
        + torch.randn(1, 1, S, S, generator=torch.Generator().manual_seed(0)) * (few - flat).std()
    )
    grain = grain.where(torch.zeros(1, 1, S, S).index_fill(2, torch.arange(20, 28), 1.0) > 0, flat)
    wanted = spots(few)
    distance = {
        name: float((spots(x) - wanted).abs().mean())
        for name, x in (("grain", grain), ("moved", spotted(26, 26)))
    }
    assert distance["moved"] < 1e-6 < 1e-3 < distance["grain"]
    # full size, second row and column, blue
    brightest = wanted.unflatten(1, (2, WINDOWS**2, 5, -1))[0, 0, 5, 2]
    assert brightest.argmax() == len(brightest) - 1
    assert brightest[-1] > 4 * brightest[:-1].abs().max()


def test_pixel_differences_prefer_no_spot_to_a_misplaced_one_and_textures_do_not() -> None:
    """This is why the texture term exists."""
    photograph, misplaced, none = (
        spotted(22, 22),
        spotted(26, 26),
        spotted(22, 22, (0.2, -0.3, -0.7)),
    )
    assert reconstruction_loss(photograph, misplaced) > 1.5 * reconstruction_loss(photograph, none)
    wanted = textures(photograph)
    assert texture_distance(textures(misplaced), wanted) < 0.01 * texture_distance(
        textures(none), wanted
    )


def test_a_spot_in_another_window_of_another_colour_or_of_half_the_strength_counts() -> None:
    wanted = textures(spotted(22, 22))
    assert float(texture_distance(textures(spotted(22, 38)), wanted)) > 0.02
    # a haemorrhage
    assert float(texture_distance(textures(spotted(22, 22, (-0.5, -0.7, -0.8))), wanted)) > 0.02
    half, none = spotted(22, 22, (0.55, 0.25, -0.45)), spotted(22, 22, (0.2, -0.3, -0.7))
    distances = [float(texture_distance(textures(x), wanted)) for x in (half, none)]
    assert distances[0] == pytest.approx(distances[1] / 2, rel=0.1)  # amplitude, not energy


def test_textures_have_a_slope_where_there_is_no_texture_yet() -> None:
    none = spotted(22, 22, (0.2, -0.3, -0.7)) + 1e-4 * torch.randn(
        1, 3, S, S, generator=torch.Generator().manual_seed(0)
    )
    texture_distance(textures(none.requires_grad_(True)), textures(spotted(22, 22))).backward()  # type: ignore[no-untyped-call]
    assert none.grad is not None
    assert torch.isfinite(none.grad).all()
    assert float(none.grad[0, :, 16:32, 16:32].abs().max()) > 1e-3


def test_flat_and_equal_pictures_have_a_finite_distance_and_slope() -> None:
    for wanted in (spotted(22, 22), flat := torch.zeros(1, 3, S, S)):
        made = flat.clone().requires_grad_(True)
        distance = texture_distance(textures(made), textures(wanted))
        distance.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(distance)
        assert made.grad is not None
        assert torch.isfinite(made.grad).all()


def test_a_shift_moves_the_windows_and_not_the_verdict_on_equal_pictures() -> None:
    x = spotted(15, 15)  # across a corner of four windows
    assert float(texture_distance(textures(x, (5, 9)), textures(x, (5, 9)))) < 1e-6
    assert not torch.allclose(textures(x), textures(x, (5, 9)), atol=1e-6)


def test_the_edge_of_a_black_surround_is_no_texture() -> None:
    x = spotted(22, 22, (0.2, -0.3, -0.7))
    x[..., :8, :] = -1.0
    assert float(textures(x).abs().max()) < 1e-8
    assert float(spots(x).abs().max()) < 1e-6


def test_a_black_picture_does_not_escape() -> None:
    """The photographs say where it is black: else a black average would have nothing to match."""
    x = spotted(22, 22)
    black = torch.full_like(x, -1.0) + 0.01 * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(0)
    )
    bank = CodeBank(4)
    bank.add(torch.zeros(1, 10, 8), torch.zeros(1, dtype=torch.long), x)
    black.requires_grad_(True)
    bank.texture_distance(black, [np.array([0, 0])]).backward()  # type: ignore[no-untyped-call]
    assert black.grad is not None
    assert float(black.grad.abs().max()) > 0


def test_the_texture_of_an_average_is_the_mean_of_its_own_members() -> None:
    first, second, third = spotted(6, 6), spotted(22, 22), spotted(54, 54)
    bank = CodeBank(3)
    bank.add(
        torch.zeros(3, 10, 8), torch.zeros(3, dtype=torch.long), torch.cat([first, second, third])
    )
    wanted = (textures(first) + textures(second)) / 2
    found = bank.texture_distance(third, [np.array([0, 1])])
    assert float(found) == pytest.approx(float(texture_distance(textures(third), wanted)), rel=1e-5)
    assert bank.texture_distance(third, [np.array([2])]) < 1e-4
    spot = (spots(first) + spots(second)) / 2
    assert torch.allclose(
        bank.spot_distance(third, [np.array([0, 1])]), (spots(third) - spot).abs().mean()
    )
    assert bank.spot_distance(third, [np.array([2])]) == 0


@pytest.mark.parametrize(("size_px", "channels"), [(32, 1), (64, 3), (128, 1)])
def test_one_dial_changes_size_and_channels(size_px: int, channels: int) -> None:
    x = torch.rand(2, channels, size_px, size_px, generator=torch.Generator().manual_seed(0))
    f = TEXTURE_CHANNELS + 2 * channels
    assert textures(x).shape == (2, 2 * WINDOWS**2, f, f)
    assert spots(x).shape[0] == 2


@pytest.mark.parametrize("term", [textures, spots])
def test_the_gradient_reaches_the_noise_strengths_and_the_styles(
    term: Callable[..., Tensor],
) -> None:
    torch.manual_seed(0)
    generator = Generator(S, 3, 8, 16)
    made = generator.synthesis(torch.randn(2, 10, 16), torch.Generator().manual_seed(1))
    photographs = torch.cat([spotted(22, 22), spotted(38, 22)])
    distance = texture_distance if term is textures else F.l1_loss
    distance(term(made, surround=photographs), term(photographs)).backward()  # type: ignore[no-untyped-call]
    slopes = {
        name: float(p.grad.abs().sum())
        for name, p in generator.named_parameters()
        if p.grad is not None
    }
    assert all(
        slope > 0
        for name, slope in slopes.items()
        if "noise_strength" in name or "style.weight" in name
    )
    assert sum("noise_strength" in name for name in slopes) == 9


def test_a_quarter_of_the_size_forgives_what_one_pixel_shows() -> None:
    x, moved = spotted(20, 20), spotted(20, 21)
    assert float(reconstruction_loss(x, moved, sharp=0.0)) < 1e-6
    assert float(reconstruction_loss(x, moved, 0.5)) == pytest.approx(
        float(reconstruction_loss(x, moved)) / 2, rel=1e-4
    )
    wide = x + 0.1  # the same everywhere: no detail to forgive
    assert float(reconstruction_loss(x, wide, 0.3)) == pytest.approx(
        float(reconstruction_loss(x, wide)), rel=1e-4
    )


def test_noise_keeps_its_sign_and_its_least_strength_in_the_last_four_layers() -> None:
    generator = Generator(S, 3, 8, 16)
    with torch.no_grad():
        for name, strength in generator.named_parameters():
            if name in (one := {"up.3.noise_strength": -0.01, "same.2.noise_strength": 0.4}):
                strength.fill_(one[name])
    keep_noise(generator, 0.15)
    strengths = {
        name: p.item() for name, p in generator.named_parameters() if "noise_strength" in name
    }
    found = {name: round(value, 3) for name, value in strengths.items() if value}
    names = ("up.2", "up.3", "same.2", "same.3")
    assert found == dict(
        zip([f"{name}.noise_strength" for name in names], (0.15, -0.15, 0.4, 0.15), strict=True)
    )


def painted(count: int = 6) -> Source:
    """Brown pictures of 32 px with speckles at random places."""
    random = np.random.default_rng(0)
    images = np.tile(np.array([150, 90, 40], np.uint8), (count, 32, 32, 1))
    images[random.random((count, 32, 32)) < 0.05] = (240, 220, 100)
    return Source(images, tuple(map(str, range(count))), None, "")


def test_textures_set_in_during_a_run_and_let_noise_through(tmp_path: Path) -> None:
    """Codes from before have no textures, so groups must not read them.

    What cannot be placed is left to noise maps.
    """
    plan = dataclasses.replace(PLAN, textured=0.5)
    losses = pretrain(painted(), plan, tmp_path, Session(steps=20)).losses
    assert losses.keys() >= set(TEXTURES)
    assert all(np.isfinite(value) for value in losses.values())
    weights = read(tmp_path / "gan.safetensors", max_bytes=1 << 24)
    assert sum(float(abs(w)) for key, w in weights.items() if "noise_strength" in key) > 0.3
