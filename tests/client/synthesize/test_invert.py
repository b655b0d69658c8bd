"""Inversion: the reference from generator samples alone, rejection by rule and threshold, refinement, whitening."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from client.synthesize import invert as inv
from common.errors import ConfigurationError
from common.models.encoder import Encoder
from common.models.stylegan import Generator, to_uint8

torch.set_num_threads(1)
PLAN = inv.InversionPlan(steps=4, iterations=2, batch=4, samples=24, components=6)


@pytest.fixture(scope="module")
def nets() -> tuple[Generator, Encoder]:
    torch.manual_seed(3)
    return Generator(16, 3, 4, 8), Encoder(16, 3, 4, 8)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(generator: Generator, count: int) -> np.ndarray:
    """Images that the generator itself makes, near its average so that a few steps reach them."""
    with torch.no_grad():
        return to_uint8(generator(0.05 * torch.randn(count, 8, generator=seeded(2))).div(4))


@pytest.fixture(scope="module")
def known(nets: tuple[Generator, Encoder]) -> inv.Reference:
    return inv.reference(*nets, PLAN, seeded())


def test_the_reference_has_no_parameter_that_could_hold_the_cohort(nets: tuple[Generator, Encoder]) -> None:
    assert list(inspect.signature(inv.reference).parameters) == ["generator", "encoder", "plan", "random"]
    one, two = (inv.reference(*nets, PLAN, seeded()) for _ in range(2))
    assert one.threshold == two.threshold > 0
    assert one.spread == two.spread > 0


def test_black_constant_and_noise_images_are_rejected(nets: tuple[Generator, Encoder], known: inv.Reference) -> None:
    rng = np.random.default_rng(0)
    images = np.zeros((4, 16, 16, 3), np.uint8)
    images[1] = 90
    images[2] = 90 + rng.integers(0, 3, (16, 16, 1))
    images[3] = rng.integers(0, 2, (16, 16, 3)) * 255
    strict = dataclasses.replace(known, threshold=0.3)
    assert not inv.invert(images, *nets, PLAN, strict).accepted.any()
    lax = dataclasses.replace(known, threshold=10.0)
    assert inv.invert(images, *nets, PLAN, lax).accepted.tolist() == [False, False, False, True]


def test_a_code_that_is_not_finite_is_rejected(nets: tuple[Generator, Encoder], known: inv.Reference) -> None:
    class Broken(Encoder):
        def forward(self, x: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
            residual = super().forward(x, reconstruction)
            residual[0] = float("nan")
            return residual

    torch.manual_seed(3)
    lax = dataclasses.replace(known, threshold=10.0)
    found = inv.invert(samples(nets[0], 3), nets[0], Broken(16, 3, 4, 8), PLAN, lax)
    assert found.accepted.tolist() == [False, True, True]


def test_refinement_lowers_the_error_and_changes_no_weight(
    nets: tuple[Generator, Encoder], known: inv.Reference
) -> None:
    before = [p.detach().clone() for net in nets for p in net.parameters()]
    images = samples(nets[0], 5)
    plain = inv.invert(images, *nets, dataclasses.replace(PLAN, steps=0), known)
    refined = inv.invert(images, *nets, dataclasses.replace(PLAN, steps=12), known)
    assert torch.equal(plain.codes, plain.encoded)
    assert torch.equal(plain.encoded, refined.encoded)
    assert (refined.errors < plain.errors).all()
    assert all(torch.equal(a, p) for a, p in zip(before, (p for n in nets for p in n.parameters()), strict=True))
    assert all(p.requires_grad for net in nets for p in net.parameters())


def test_an_image_is_inverted_alike_whatever_its_batch(nets: tuple[Generator, Encoder], known: inv.Reference) -> None:
    images = samples(nets[0], 6)
    together = inv.invert(images, *nets, PLAN, known)
    alone = inv.invert(images[4:5], *nets, PLAN, known)
    np.testing.assert_allclose(together.codes[4:5], alone.codes, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(together.errors[4:5], alone.errors, rtol=0, atol=1e-4)


def test_our_adam_is_adam() -> None:
    ours, theirs = torch.ones(3), torch.ones(3)
    mine, reference = inv.Adam(ours), [torch.zeros(3), torch.zeros(3)]
    for t in range(1, 5):
        gradient = torch.tensor([1.0, -2.0, 0.5]) * t
        mine.step(gradient, 0.1)
        reference = [0.9 * reference[0] + 0.1 * gradient, 0.999 * reference[1] + 0.001 * gradient**2]
        m, v = reference[0] / (1 - 0.9**t), reference[1] / (1 - 0.999**t)
        theirs = theirs - 0.1 * m / (v.sqrt() + 1e-8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_shapes_and_progress(nets: tuple[Generator, Encoder], known: inv.Reference) -> None:
    seen: list[tuple[int, int]] = []
    found = inv.invert(samples(nets[0], 6), *nets, PLAN, known, lambda done, total: seen.append((done, total)))
    assert found.codes.shape == found.encoded.shape == (6, 6, 8)
    assert found.reconstructions.shape == (6, 3, 16, 16)
    assert seen == [(4, 6), (6, 6)]


@pytest.mark.parametrize(
    "images",
    [np.zeros((0, 16, 16, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 16, 16, 3), np.float32)],
    ids=["none", "another size", "not uint8"],
)
def test_images_that_do_not_fit_are_refused(
    nets: tuple[Generator, Encoder], known: inv.Reference, images: np.ndarray
) -> None:
    with pytest.raises(ConfigurationError, match="expected uint8 images"):
        inv.invert(images, *nets, PLAN, known)


def test_held_out_samples_are_white_and_empty_directions_do_not_blow_up() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 20)) * np.linspace(3, 0.3, 6)[:, None]  # rank 6 of 20
    whitening = inv.Whitening.fit(inv.GeneratorCodes(rng.normal(size=(400, 6)) @ mix), 64)
    held_out = whitening(rng.normal(size=(400, 6)) @ mix)
    variance = held_out.var(axis=0)[:6]
    assert (variance > 0.2).all()
    assert (variance < 5).all()
    assert held_out[:, 6:].var(axis=0).max(initial=0.0) < 1e-3
