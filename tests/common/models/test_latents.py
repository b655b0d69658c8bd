"""Latent rows and a public basis: whitened on the way in, the same coordinates on the way out, and nothing odd from disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import privatize as stage
from common.errors import ConfigurationError, RefusedError
from common.models import glow_start, latents
from common.models.glow import Glow
from common.models.latents import Basis, decoded, encoded, fit, load
from common.privacy.latent_mechanisms import LatentGaussian, PrivUnit
from common.privacy.noise import NoiseSource
from common.wire import tensors

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Glow:
    flow = Glow(8, 1, 2, 2, 8)
    glow_start.initialise_from_noise(flow, 16)
    return flow


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


def public(n: int = 200, coordinates: int = 12) -> np.ndarray:
    chance = np.random.default_rng(3)
    mixing = chance.normal(size=(coordinates, coordinates)) * np.linspace(3, 0.1, coordinates)
    return np.asarray(chance.normal(size=(n, coordinates)) @ mixing.T + 1.5)


def test_decoded_is_the_inverse_of_encoded_and_company_changes_nothing(model: Glow) -> None:
    images = pictures(latents.BATCH + 3)
    rows = encoded(images, model)
    assert rows.shape == (latents.BATCH + 3, model.dimension)
    assert np.abs(decoded(rows, model).astype(int) - images).max() <= 1
    assert np.array_equal(rows[5:6], encoded(images[5:6], model))


def test_an_image_with_one_latent_that_is_not_finite_is_a_zero_row(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = model.encode

    def broken(x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        parts, log_p = encode(x)
        parts[0][1][0, 0, 0] = float("nan")
        return parts, log_p

    monkeypatch.setattr(model, "encode", broken)
    rows = encoded(pictures(3), model)
    assert [bool(row.any()) for row in rows] == [True, False, True]


def test_the_public_images_are_white_in_their_own_basis() -> None:
    rows = public()
    reduced = fit(rows, 5).reduced(rows)
    assert np.allclose(reduced.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(np.cov(reduced.T), np.eye(5), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(components=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_what_is_restored_has_the_reduced_coordinates_and_the_rest_of_the_prior(
    components: int, seed: int
) -> None:
    basis, chance = fit(public(), components), np.random.default_rng(seed)
    reduced, fresh = chance.normal(size=(3, components)), chance.normal(size=(3, 12))
    whole = basis.restored(reduced, fresh)
    assert np.allclose(basis.reduced(whole), reduced, atol=1e-8)
    outside = np.eye(12) - basis.directions.T @ basis.directions
    assert np.allclose((whole - basis.mean) @ outside, fresh @ outside, atol=1e-8)


def test_a_basis_comes_back_from_disk_and_gives_its_first_directions(tmp_path: Path) -> None:
    basis = fit(public(), 6)
    latents.save(basis, tmp_path / "basis.safetensors")
    back = load(tmp_path / "basis.safetensors")
    assert np.allclose(back.reduced(public()), basis.reduced(public()), atol=1e-4)
    assert np.array_equal(back.first(2).directions, back.directions[:2])
    with pytest.raises(ConfigurationError, match="7 components asked for, the file has 6"):
        back.first(7)


ODD = {
    "directions that are not orthonormal": {"directions": np.ones((2, 4), np.float32)},
    "a spread of zero": {"spread": np.zeros(2, np.float32)},
    "a mean of another length": {"mean": np.zeros(3, np.float32)},
    "a number that is none": {"mean": np.full(4, np.nan, np.float32)},
    "more directions than coordinates": {
        "directions": np.eye(5, 4, dtype=np.float32),
        "spread": np.ones(5, np.float32),
    },
    "a tensor too many": {"pixels": np.zeros(1, np.float32)},
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_basis_is_refused(case: str, tmp_path: Path) -> None:
    plain = {
        "mean": np.zeros(4, np.float32), "directions": np.eye(2, 4, dtype=np.float32), "spread": np.ones(2, np.float32)
    }  # fmt: skip
    tensors.write(tmp_path / "basis.safetensors", plain)
    assert load(tmp_path / "basis.safetensors").components == 2
    tensors.write(tmp_path / "basis.safetensors", plain | ODD[case])
    with pytest.raises(RefusedError, match="basis"):
        load(tmp_path / "basis.safetensors")


def test_a_basis_needs_more_images_than_components() -> None:
    with pytest.raises(ConfigurationError, match="need more than 9 public images, got 9"):
        fit(public(9), 9)


def test_a_released_image_carries_its_reduced_coordinates_through_the_flow(model: Glow) -> None:
    """Nearly no noise: the directions that were put in are, on average, those that the decoded images show; by chance: 0."""
    basis = fit(encoded(pictures(80, 4), model)[:, -model.top_dimension :], 5)
    m = LatentGaussian(5, 1, "random", 100.0, 1e-2)
    given = decoded(
        encoded(pictures(64), model) * 0.3, model
    )  # well inside the range, so that the clamp changes little
    back = stage.privatize(
        [[picture[None]] for picture in given], model, m, 0.3, NoiseSource(), basis=basis
    ).images
    before, after = (
        basis.reduced(encoded(x, model)[:, -model.top_dimension :]) for x in (given, back)
    )
    assert back.shape == given.shape
    cosines = (
        (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    )
    assert (
        cosines.mean() > 0.35
    )  # 0.57 with a standard error of 0.04: what is not released is drawn anew


def test_mechanism_basis_and_flow_must_fit(model: Glow) -> None:
    basis = fit(encoded(pictures(80, 4), model)[:, -model.top_dimension :], 5)
    strange = Basis(np.zeros(7), np.eye(5, 7), np.ones(5))
    for m, public_basis, words in (
        (PrivUnit(6, 2.0), basis, "the basis' 5"),
        (PrivUnit(5, 2.0), None, "top"),
        (PrivUnit(5, 2.0), strange, "a basis of 7 coordinates"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            stage.privatize([[pictures(1)]], model, m, 0.7, NoiseSource(), basis=public_basis)


def test_privunit_takes_one_patient(model: Glow) -> None:
    from common.errors import PolicyError

    basis = fit(encoded(pictures(80, 4), model)[:, -model.top_dimension :], 5)
    with pytest.raises(PolicyError, match="takes one patient, got 2"):
        stage.privatize(
            [[pictures(1), pictures(1)]], model, PrivUnit(5, 2.0), 0.7, NoiseSource(), basis=basis
        )
