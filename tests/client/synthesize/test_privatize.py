"""Each numbered step of privatization on a tiny flow.

The claims themselves are in tests/contracts/test_privatize.py.
"""

import numpy as np
import pytest
import torch

from client.synthesize import privatize as stage
from common.errors import ConfigurationError, PolicyError
from common.models import glow_pixels, glow_start
from common.models.glow import Glow
from common.privacy.events import latent_event
from common.privacy.latent_mechanisms import LatentLaplace
from common.privacy.noise import NoiseSource, SeededNoiseSource
from tests.studies import small_study

torch.set_num_threads(1)
K = 3


@pytest.fixture(scope="module")
def model() -> Glow:
    flow = Glow(16, 3, 2, 2, 8)
    glow_start.initialise_from_noise(flow, 16)
    return flow


def mechanism(
    model: Glow, clip: str = "l1_ball", levels: str = "top", **changes: object
) -> LatentLaplace:
    dimension = model.top_dimension if levels == "top" else model.dimension
    fields = {
        "clip": clip,
        "radius": 0.5,
        "dimension": dimension,
        "k": K,
        "grouping": "similar",
        "scale": 0.25,
    }
    return LatentLaplace(**{**fields, **changes})  # type: ignore[arg-type]


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def groups(count: int, members: int = K) -> list[list[np.ndarray]]:
    return [[images(1 + p % 2, 10 * g + p) for p in range(members)] for g in range(count)]


@pytest.mark.parametrize("clip", ["box", "l1_ball"])
@pytest.mark.parametrize("levels", ["top", "all"])
def test_every_group_gives_one_image_and_the_mechanism(model: Glow, clip: str, levels: str) -> None:
    m = mechanism(model, clip, levels)
    result = stage.privatize(groups(2, K + 1), model, m, 0.7, NoiseSource())
    assert result.images.shape == (2, 16, 16, 3)
    assert result.images.dtype == np.uint8
    assert result.mechanism == m
    assert stage.privatize([], model, m, 0.7, NoiseSource()).images.shape == (0, 16, 16, 3)


def test_without_noise_and_clip_all_levels_decode_to_the_image_itself(model: Glow) -> None:
    """Steps 1 to 10 lose only the lattice: one picture, alone, at its own norm, comes back."""
    picture = images(1)
    m = mechanism(model, "box", "all", radius=50.0, k=1, scale=2**-16)
    z = stage.encode_released(picture, model, model.dimension)
    temperature = float(np.linalg.norm(z)) / model.dimension**0.5
    back = stage.privatize(
        [[picture]], model, m, temperature, SeededNoiseSource(0), practice=True
    ).images
    assert int(np.abs(back.astype(int) - picture).max()) <= 1


def test_the_top_level_is_released_and_the_rest_is_fresh(model: Glow) -> None:
    m = mechanism(model, "box", radius=50.0, k=1, scale=2**-16)
    picture = images(1)
    z = stage.encode_released(picture, model, m.dimension)
    temperature = float(np.linalg.norm(z)) / m.dimension**0.5
    draws = [
        stage.privatize(
            [[picture]], model, m, temperature, SeededNoiseSource(seed), practice=True
        ).images
        for seed in (0, 1)
    ]
    assert not np.array_equal(*draws)
    tops = [stage.encode_released(draw, model, m.dimension) for draw in draws]
    assert np.corrcoef(tops[0][0], z[0])[0, 1] > 0.9
    assert np.corrcoef(tops[0][0], tops[1][0])[0, 1] > 0.9


def test_step_1_an_image_has_the_same_latent_in_any_company(model: Glow) -> None:
    many = images(stage.BATCH + 5)
    together = stage.encode_released(many, model, model.top_dimension)
    alone = np.concatenate(
        [
            stage.encode_released(many[i : i + 1], model, model.top_dimension)
            for i in range(len(many))
        ]
    )
    assert np.array_equal(together, alone)


def test_step_1_the_encoder_always_gets_the_same_number_of_images(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda x: seen.append(len(x)) or encode(x))  # type: ignore[func-returns-value]
    for count in (1, stage.BATCH, stage.BATCH + 1):
        stage.encode_released(images(count), model, model.top_dimension)
    assert seen == [stage.BATCH] * 4


def test_step_3_the_released_coordinates_are_the_top_levels(model: Glow) -> None:
    parts, _ = model.encode(glow_pixels.from_uint8(images(2)))
    top = parts[-1].detach().flatten(1).double().numpy()
    assert np.allclose(stage.encode_released(images(2), model, model.top_dimension), top, atol=1e-5)


def test_step_4_a_patients_images_count_as_one_latent(model: Glow) -> None:
    m = mechanism(model)
    picture = images(1)
    once, thrice = (stage.patient_latent(np.repeat(picture, n, axis=0), model, m) for n in (1, 3))
    assert int(np.abs(once - thrice).max()) <= 1


def test_step_9_the_mean_gets_the_temperatures_norm() -> None:
    y = np.random.default_rng(0).normal(size=64)
    assert float(np.linalg.norm(stage.match_norm(y, 0.6))) == pytest.approx(0.6 * 8)
    assert float(np.abs(stage.match_norm(np.zeros(64), 0.6)).max()) == 0.0


def test_the_rest_has_a_temperature_of_its_own(model: Glow) -> None:
    """At 0 the rest is the prior's middle, so two draws of one mean are one image."""
    m = mechanism(model, "box", radius=50.0, k=1, scale=2**-16)
    picture = images(1)

    def draws(rest: float | None) -> list[np.ndarray]:
        sources = (SeededNoiseSource(seed) for seed in (0, 1))
        return [
            stage.privatize(
                [[picture]], model, m, 0.9, s, prior_temperature=rest, practice=True
            ).images
            for s in sources
        ]

    still, moving = draws(0.0), draws(0.5)
    assert int(np.abs(still[0].astype(int) - still[1]).max()) <= 1
    assert int(np.abs(moving[0].astype(int) - moving[1]).max()) > 1
    assert np.array_equal(draws(None)[0], draws(0.9)[0])
    assert not np.array_equal(draws(None)[0], draws(0.5)[0])


def test_fresh_noise_is_drawn_by_every_call(model: Glow) -> None:
    m, members = mechanism(model), groups(1)
    one, two = (stage.privatize(members, model, m, 0.7, NoiseSource()).images for _ in range(2))
    assert not np.array_equal(one, two)


def test_the_decoded_image_survives_wild_noise(model: Glow) -> None:
    m = mechanism(model, scale=10.0)
    assert stage.privatize(groups(1), model, m, 1.5, NoiseSource()).images.dtype == np.uint8


def test_refusals(model: Glow) -> None:
    m = mechanism(model)
    with pytest.raises(PolicyError) as refused:
        stage.privatize(groups(1, K - 1), model, m, 0.7, NoiseSource())
    assert refused.value.code == "E-GROUP-SIZE"
    with pytest.raises(PolicyError) as refused:
        stage.privatize([[*groups(1)[0][:-1], images(0)]], model, m, 0.7, NoiseSource())
    assert refused.value.code == "E-GROUP-SIZE"
    with pytest.raises(PolicyError) as refused:
        stage.privatize(groups(1), model, m, 0.7, SeededNoiseSource(0))
    assert refused.value.code == "E-NOISE"
    with pytest.raises(ConfigurationError, match="coordinates"):
        stage.privatize(groups(1), model, mechanism(model, dimension=5), 0.7, NoiseSource())


@pytest.mark.parametrize(
    ("levels", "layout"), [("top", (64, 3, 4)), ("all", (64, 3, 4)), ("top", (32, 1, 2))], ids=str
)
def test_the_plans_mechanism_has_the_flows_dimension(
    levels: str, layout: tuple[int, int, int]
) -> None:
    size_px, channels, depth = layout
    flow = Glow(size_px, channels, depth, 1, 8)
    plan = small_study(
        intake__size_px=size_px,
        intake__channels=channels,
        models__glow__levels=depth,
        synthesis__privatize={"share": 0.5, "radius": 0.4, "scale": 0.25, "levels": levels},
    )
    m = latent_event(plan)
    assert m.dimension == (flow.top_dimension if levels == "top" else flow.dimension)
    assert (m.k, m.scale, m.radius, m.clip, m.grouping) == (5, 0.25, 0.4, "l1_ball", "similar")


def test_a_plan_without_privatization_has_no_mechanism() -> None:
    with pytest.raises(ConfigurationError, match="privatize"):
        latent_event(small_study(synthesis__privatize=None))
