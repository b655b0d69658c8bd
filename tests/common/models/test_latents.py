"""Latent rows: finite, independent of the batch, and the same coordinates after the flow."""

import numpy as np
import pytest
import torch

from client.synthesize import privatize as stage
from common.errors import ConfigurationError
from common.models import glow_start, latents
from common.models.basis import Basis, fit
from common.models.glow import Glow
from common.models.latents import decode_latents, encode_images
from common.privacy.latent_mechanisms import LatentGaussian, PrivUnit
from common.privacy.noise import NoiseSource

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Glow:
    flow = Glow(8, 1, 2, 2, 8)
    glow_start.initialise_from_noise(flow, 16)
    return flow


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


def test_decoded_is_the_inverse_of_encoded_and_company_changes_nothing(model: Glow) -> None:
    images = pictures(latents.BATCH + 3)
    rows = encode_images(images, model)
    assert rows.shape == (latents.BATCH + 3, model.dimension)
    assert np.abs(decode_latents(rows, model).astype(int) - images).max() <= 1
    assert np.array_equal(rows[5:6], encode_images(images[5:6], model))


def test_an_image_with_one_latent_that_is_not_finite_is_a_zero_row(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = model.encode

    def broken(x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        parts, log_p = encode(x)
        parts[0][1][0, 0, 0] = float("nan")
        return parts, log_p

    monkeypatch.setattr(model, "encode", broken)
    rows = encode_images(pictures(3), model)
    assert [bool(row.any()) for row in rows] == [True, False, True]


def test_a_released_image_carries_its_reduced_coordinates_through_the_flow(model: Glow) -> None:
    """Nearly no noise: on average the decoded images show the directions that were put in."""
    basis = fit(encode_images(pictures(80, 4), model)[:, -model.top_dimension :], 5)
    m = LatentGaussian(5, 1, "random", 100.0, 1e-2)
    # well inside the range, so that the clamp changes little
    given = decode_latents(encode_images(pictures(64), model) * 0.3, model)
    back = stage.privatize(
        [[picture[None]] for picture in given], model, m, 0.3, NoiseSource(), basis=basis
    ).images
    before, after = (
        basis.reduce(encode_images(x, model)[:, -model.top_dimension :]) for x in (given, back)
    )
    assert back.shape == given.shape
    cosines = (
        (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    )
    assert (
        cosines.mean() > 0.35
    )  # 0.57 with a standard error of 0.04: what is not released is drawn anew


def test_mechanism_basis_and_flow_must_fit(model: Glow) -> None:
    basis = fit(encode_images(pictures(80, 4), model)[:, -model.top_dimension :], 5)
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

    basis = fit(encode_images(pictures(80, 4), model)[:, -model.top_dimension :], 5)
    with pytest.raises(PolicyError, match="takes one patient, got 2"):
        stage.privatize(
            [[pictures(1), pictures(1)]], model, PrivUnit(5, 2.0), 0.7, NoiseSource(), basis=basis
        )
