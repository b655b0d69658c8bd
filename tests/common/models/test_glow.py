"""The flow is exactly invertible, and its log-determinant is that of autograd."""

import math
from typing import cast

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError
from common.models import glow, glow_checkpoint, glow_pixels, glow_start
from common.models.glow import Glow
from tests.flows import pictures, seeded, shaken, small

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["float32 1e-5", "float64 1e-12"],
)
@pytest.mark.parametrize(
    "layout",
    [(1, 8, 2, 0), (3, 16, 3, 0), (1, 14, 2, 0), (3, 64, 4, 0), (1, 8, 2, 1), (3, 14, 1, 2)],
    ids=str,
)
def test_decoding_an_encoding_returns_the_image(
    dtype: torch.dtype, bound: float, layout: tuple[int, int, int, int]
) -> None:
    channels, size_px, levels, doublings = layout
    model = shaken(Glow(size_px, channels, levels, 2, 8, doublings), 0.05).to(dtype)
    x = pictures(3, channels, size_px).to(dtype)
    parts, _ = model.encode(x)
    assert [tuple(part.shape[1:]) for part in parts] == list(model.part_shapes)
    assert sum(part[0].numel() for part in parts) == model.dimension
    assert float((model.decode(parts) - x).abs().max()) <= bound


def test_encoding_a_decoding_returns_the_latent() -> None:
    model = small(3).double()
    parts = [part.double() for part in model.prior(2, 1.0, seeded())]
    again, _ = model.encode(model.decode(parts))
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(parts, again, strict=True)) < 1e-12
    )


@pytest.mark.parametrize(("channels", "levels", "doublings"), [(1, 2, 0), (3, 2, 0), (3, 1, 1)])
def test_log_p_is_the_normal_density_times_the_jacobian_of_autograd(
    channels: int, levels: int, doublings: int
) -> None:
    model = shaken(Glow(4, channels, levels, 2, 8, doublings)).double()
    x = pictures(1, channels, 4).double()

    def flat(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in model.encode(image.view_as(x))[0]])

    jacobian = torch.autograd.functional.jacobian(flat, x.flatten())
    z = flat(x.flatten())
    expected = (
        -0.5 * z.square().sum()
        - 0.5 * z.numel() * math.log(2 * math.pi)
        + torch.linalg.slogdet(jacobian)[1]
    )
    assert float((model(x)[0] - expected).detach().abs()) < 1e-9


def test_bits_per_dimension_of_gaussian_noise_is_its_entropy() -> None:
    model = Glow(16, 1, 2, 1, 8)  # the identity up to rotations: a standard normal density
    x = torch.randn(64, 1, 16, 16, generator=seeded())
    expected = 0.5 * math.log2(2 * math.pi * math.e) + 8
    assert float(model.bits_per_dimension(model(x).detach()).mean()) == pytest.approx(
        expected, abs=0.02
    )


def test_the_cached_inverse_is_never_stale() -> None:
    model, x = small(), pictures(2)

    def round_trip() -> float:
        return float((model.decode(model.encode(x)[0]) - x).abs().max())

    assert round_trip() < 1e-5
    model(x).mean().neg().div(model.dimension).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.05 * cast(torch.Tensor, parameter.grad))
    assert round_trip() < 1e-5, "after an optimiser step"
    model.load_state_dict(small(steps=2, width=8).state_dict())
    assert round_trip() < 1e-5, "after load_state_dict"
    glow_checkpoint.load_weights(
        model, {name: 0.5 * value for name, value in glow_checkpoint.weights_of(small()).items()}
    )
    assert round_trip() < 1e-5, "after loading a round's weights"
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # bumps no version counter
    assert round_trip() < 1e-5, "after a change behind autograd's back"


def test_construction_and_use_leave_every_parameter_as_it_was() -> None:
    one, two = Glow(16, 3, 2, 2, 8), Glow(16, 3, 2, 2, 8)
    one.train()
    one.decode(one.encode(pictures(4, 3, 16))[0])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("start", ["identity", "noise", "trained"])
def test_constant_and_half_black_images_stay_finite(start: str) -> None:
    model = shaken(Glow(32, 3, 3, 2, 8), 0.1) if start == "trained" else Glow(32, 3, 3, 2, 8)
    if start == "noise":
        glow_start.initialise_from_noise(model, 16)
    images = np.zeros((3, 32, 32, 3), np.uint8)
    images[1] = 255
    images[2, :, :16] = 200
    x = glow_pixels.from_uint8(images)
    parts, log_p = model.encode(x)
    (-log_p.mean() / model.dimension).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert bool(torch.isfinite(log_p).all())
    assert np.array_equal(glow_pixels.to_uint8(model.decode(parts)), images)


def test_latents_far_from_the_data_decode_to_finite_numbers() -> None:
    model = small(3, 32, 3)
    noise = [10 * part for part in model.prior(2, 1.0, seeded())]
    assert bool(torch.isfinite(model.decode(noise)).all())
    assert glow_pixels.to_uint8(
        torch.tensor([[[[math.nan, math.inf], [-math.inf, 0.2]]]])
    ).tolist() == [[[[128], [255]], [[0], [179]]]]


WRONG: dict[str, torch.Tensor] = {
    "another size": torch.zeros(1, 1, 16, 16),
    "another aspect": torch.zeros(1, 1, 8, 4),
    "three channels for one": torch.zeros(1, 3, 8, 8),
    "no batch": torch.zeros(1, 8, 8),
}


@pytest.mark.parametrize("case", WRONG)
def test_images_of_another_shape_are_refused_in_words(case: str) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        small().encode(WRONG[case])


def test_images_that_the_flow_knows_nothing_about_are_marked() -> None:
    model, x = small(), pictures(5)
    x[1], x[2], x[3, 0, 0, 0], x[4] = 1e9, math.nan, math.inf, -0.5
    parts, _ = model.encode(x)
    assert glow.find_unfamiliar(parts).tolist() == [False, True, True, True, False]
    assert glow.find_unfamiliar(parts, limit=0.0).all()


@pytest.mark.parametrize("layout", [(2, 8, 2), (1, 2, 2), (1, 8, 0)], ids=str)
def test_an_impossible_layout_is_refused(layout: tuple[int, int, int]) -> None:
    channels, size_px, levels = layout
    with pytest.raises(ValueError, match="no flow"):
        Glow(size_px, channels, levels, 1, 8)
    with pytest.raises(ValueError, match="latent parts"):
        small().decode([torch.zeros(1, 1, 2, 2)])
