"""The flow is exactly invertible, its log-determinant is autograd's, and nothing in it depends on data or goes stale."""

import math
from typing import cast

import numpy as np
import pytest
import torch

from common.errors import ConfigurationError, RefusedError
from common.models import glow, glow_checkpoint, glow_mixing, glow_pixels, glow_start
from common.models.glow import Glow
from common.models.glow_coupling import Coupling
from common.models.glow_mixing import Mixing

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: Glow, amount: float = 0.1) -> Glow:
    """Every parameter away from its start, so that no part is an identity."""
    generator = seeded(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def small(
    channels: int = 1, size_px: int = 8, levels: int = 2, steps: int = 2, width: int = 8
) -> Glow:
    return shaken(Glow(size_px, channels, levels, steps, width))


def pictures(n: int, channels: int = 1, size_px: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size_px, size_px, generator=seeded(1)) - 0.5


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12)],
    ids=["float32 1e-5", "float64 1e-12"],
)
@pytest.mark.parametrize("layout", [(1, 8, 2), (3, 16, 3), (1, 14, 2), (3, 64, 4)], ids=str)
def test_decoding_an_encoding_returns_the_image(
    dtype: torch.dtype, bound: float, layout: tuple[int, int, int]
) -> None:
    channels, size_px, levels = layout
    model = shaken(Glow(size_px, channels, levels, 2, 8), 0.05).to(dtype)
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


@pytest.mark.parametrize("channels", [1, 3])
def test_log_p_is_the_normal_density_times_the_jacobian_of_autograd(channels: int) -> None:
    model = small(channels, size_px=4).double()
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


def test_a_coupling_scales_by_at_most_e_to_the_half() -> None:
    layer = Coupling(4, 8, seeded())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=seeded(3))
    _, g = layer.moments(1e6 * torch.randn(2, 2, 4, 4, generator=seeded()))
    assert float(g.detach().abs().max()) <= 0.5


def test_latents_far_from_the_data_decode_to_finite_numbers() -> None:
    model = small(3, 32, 3)
    noise = [10 * part for part in model.prior(2, 1.0, seeded())]
    assert bool(torch.isfinite(model.decode(noise)).all())
    assert glow_pixels.to_uint8(
        torch.tensor([[[[math.nan, math.inf], [-math.inf, 0.2]]]])
    ).tolist() == [[[[128], [255]], [[0], [179]]]]


@pytest.mark.parametrize("channels", [4, 12, 96])
def test_the_rotation_is_orthogonal_and_the_same_everywhere(channels: int) -> None:
    q = glow_mixing.make_rotation(channels, 3)
    assert float((q @ q.T - torch.eye(channels, dtype=torch.float64)).abs().max()) < 1e-13
    torch.manual_seed(channels)
    assert torch.equal(q, glow_mixing.make_rotation(channels, 3))
    assert not torch.equal(q, glow_mixing.make_rotation(channels, 4))


def test_the_rotations_digest_is_pinned() -> None:
    assert glow_checkpoint.rotation_digest(Glow(8, 1, 2, 1, 8))[:16] == "fbeccc42fb1c388f"


def test_the_mixing_inverts_its_matrix() -> None:
    layer = Mixing(12, 0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3, generator=seeded(2))
    x = torch.randn(2, 12, 3, 3, generator=seeded(), dtype=torch.float64)
    assert float((layer.inverse(layer(x)[0]) - x).abs().max()) < 1e-12


def test_the_noise_start_standardises_every_mixing() -> None:
    model = Glow(32, 3, 3, 2, 8)
    glow_start.initialise_from_noise(model, 32)
    x = glow_start.procedural_images(32, 32, 3)
    parts, _ = model.encode(x)
    assert [float(part.detach().std()) for part in parts] == pytest.approx([1.0] * 3, abs=0.1)
    assert torch.equal(x, glow_start.procedural_images(32, 32, 3))


def test_eight_bit_images_survive_the_conversion() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(glow_pixels.to_uint8(glow_pixels.from_uint8(images)), images)
    dithered = glow_pixels.from_uint8(images, torch.rand(1, 1, 16, 16, generator=seeded()))
    assert np.array_equal(glow_pixels.to_uint8(dithered), images)


@pytest.mark.parametrize("depth", [1, 3, 5, 8])
def test_fewer_bits_keep_the_upper_ones_and_fill_the_range(depth: int) -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = glow_pixels.from_uint8(images, depth=depth)
    assert len(x.unique()) == 2**depth
    assert float(x.min()) == -float(x.max()) == 0.5 / 2**depth - 0.5
    assert np.array_equal(glow_pixels.to_uint8(x) >> (8 - depth), images >> (8 - depth))
    lowest, highest = (
        glow_pixels.from_uint8(images, torch.full(x.shape, u), depth) for u in (0.0, 1 - 2**-10)
    )
    assert float(lowest.min()) == -0.5
    assert 0.5 - 2.0**-9 < float(highest.max()) < 0.5
    uniform = Glow(16, 1, 2, 1, 8).bits_per_dimension(
        torch.zeros(1), depth
    )  # density 1 on the unit cube
    assert float(uniform) == depth


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


@pytest.mark.parametrize(
    ("images", "depth"),
    [
        (np.zeros((1, 8, 8, 1), np.uint16), 8),
        (np.zeros((1, 8, 8, 1), np.float32), 8),
        (np.zeros((8, 8, 1), np.uint8), 8),
        (np.zeros((1, 8, 8, 1), np.uint8), 0),
        (np.zeros((1, 8, 8, 1), np.uint8), 16),
    ],
    ids=["16 bit", "float", "no batch", "0 bits", "16 bits"],
)
def test_pixels_of_another_depth_are_refused_in_words(images: np.ndarray, depth: int) -> None:
    with pytest.raises(ConfigurationError, match="uint8"):
        glow_pixels.from_uint8(images, depth=depth)


def test_images_that_the_flow_knows_nothing_about_are_marked() -> None:
    model, x = small(), pictures(5)
    x[1], x[2], x[3, 0, 0, 0], x[4] = 1e9, math.nan, math.inf, -0.5
    parts, _ = model.encode(x)
    assert glow.find_unfamiliar(parts).tolist() == [False, True, True, True, False]
    assert glow.find_unfamiliar(parts, limit=0.0).all()


def test_weights_travel_under_their_global_names_and_nothing_odd_is_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, other = small(), Glow(8, 1, 2, 2, 8)
    path = tmp_path / "glow.safetensors"
    glow_checkpoint.save(model, path)
    glow_checkpoint.load(other, path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    weights = glow_checkpoint.weights_of(model)
    assert all(
        name.startswith("glow.") and value.dtype == np.float32 for name, value in weights.items()
    )
    name = next(iter(weights))
    bad = weights[name].copy()
    bad.flat[0] = np.nan
    for odd in (
        {k: v for k, v in weights.items() if k != name},
        {**weights, "glow.extra": bad},
        {**weights, name: bad},
        {**weights, name: weights[name].astype(np.float64)},
        {**weights, name: weights[name][..., None]},
    ):
        with pytest.raises(RefusedError):
            glow_checkpoint.load_weights(other, odd)
    with pytest.raises(RefusedError, match="rotations"):
        glow_checkpoint.load_weights(other, weights, digest="0" * 64)


@pytest.mark.parametrize("layout", [(2, 8, 2), (1, 2, 2), (1, 8, 0)], ids=str)
def test_an_impossible_layout_is_refused(layout: tuple[int, int, int]) -> None:
    channels, size_px, levels = layout
    with pytest.raises(ValueError, match="no flow"):
        Glow(size_px, channels, levels, 1, 8)
    with pytest.raises(ValueError, match="latent parts"):
        small().decode([torch.zeros(1, 1, 2, 2)])
