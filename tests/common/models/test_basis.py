"""A public basis of latent codes: whitening, restoring, and odd ones refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigurationError, RefusedError
from common.models.basis import fit, load, save
from common.wire import tensors

torch.set_num_threads(1)


def public(n: int = 200, coordinates: int = 12) -> np.ndarray:
    chance = np.random.default_rng(3)
    mixing = chance.normal(size=(coordinates, coordinates)) * np.linspace(3, 0.1, coordinates)
    return np.asarray(chance.normal(size=(n, coordinates)) @ mixing.T + 1.5)


def test_the_public_images_are_white_in_their_own_basis() -> None:
    rows = public()
    reduced = fit(rows, 5).reduce(rows)
    assert np.allclose(reduced.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(np.cov(reduced.T), np.eye(5), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(components=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_what_is_restored_has_the_reduced_coordinates_and_the_rest_of_the_prior(
    components: int, seed: int
) -> None:
    basis, chance = fit(public(), components), np.random.default_rng(seed)
    reduced, fresh = chance.normal(size=(3, components)), chance.normal(size=(3, 12))
    whole = basis.restore(reduced, fresh)
    assert np.allclose(basis.reduce(whole), reduced, atol=1e-8)
    outside = np.eye(12) - basis.directions.T @ basis.directions
    assert np.allclose((whole - basis.mean) @ outside, fresh @ outside, atol=1e-8)


def test_a_basis_comes_back_from_disk_and_gives_its_first_directions(tmp_path: Path) -> None:
    basis = fit(public(), 6)
    save(basis, tmp_path / "basis.safetensors")
    back = load(tmp_path / "basis.safetensors")
    assert np.allclose(back.reduce(public()), basis.reduce(public()), atol=1e-4)
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
        "mean": np.zeros(4, np.float32),
        "directions": np.eye(2, 4, dtype=np.float32),
        "spread": np.ones(2, np.float32),
    }
    tensors.write(tmp_path / "basis.safetensors", plain)
    assert load(tmp_path / "basis.safetensors").components == 2
    tensors.write(tmp_path / "basis.safetensors", plain | ODD[case])
    with pytest.raises(RefusedError, match="basis"):
        load(tmp_path / "basis.safetensors")


def test_a_basis_needs_more_images_than_components() -> None:
    with pytest.raises(ConfigurationError, match="need more than 9 public images, got 9"):
        fit(public(9), 9)
