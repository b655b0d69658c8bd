"""Mechanisms on latents: their numbers follow from their fields; what they may claim."""

import pytest

from common.errors import ConfigurationError
from common.privacy.calibration import gaussian_delta
from common.privacy.events import latent_mechanism
from common.privacy.latent_mechanisms import (
    Grouping,
    Latent,
    LatentGaussian,
    LatentLaplace,
    PrivUnit,
)
from common.study.synthesis import PrivatizePlan

BOX = LatentLaplace("box", 3.0, 1024, 1, "random", 0.5)
BALL = LatentLaplace("l1_ball", 0.8, 1024, 10, "random", 0.5)


NORMAL = LatentGaussian(32, 10, "random", 8.0, 1e-5)
UNIT = PrivUnit(32, 8.0)


def test_box_epsilon_is_per_coordinate_times_dimension() -> None:
    assert BOX.epsilon_per_coordinate == pytest.approx(12.0)
    assert BOX.epsilon_per_image == pytest.approx(12_288.0)
    assert BOX.statement().startswith(
        "laplace box: ε=12 per coordinate = ε=12,288 per image, replace-one, d=1,024, k=1"
    )


def test_the_l1_ball_needs_3_75_times_less_noise_than_the_box_at_equal_epsilon() -> None:
    ball = LatentLaplace("l1_ball", 0.8, 1024, 1, "random", 0.5)
    assert BOX.epsilon_per_image / ball.epsilon_per_image == pytest.approx(3.75, rel=1e-3)
    assert ball.epsilon_per_coordinate == ball.epsilon_per_image  # one coordinate can carry it all


def test_scale_belongs_to_the_mean_and_noise_to_the_sum() -> None:
    single, ten = (LatentLaplace("box", 3.0, 16, k, "random", 0.5) for k in (1, 10))
    assert ten.sum_scale_in_steps == 10 * single.sum_scale_in_steps == 10 * 512
    assert ten.sum_sensitivity_in_steps == single.sum_sensitivity_in_steps == 2 * 3072 * 16
    assert single.epsilon_per_image == pytest.approx(10 * ten.epsilon_per_image)
    assert ten.describe()["sensitivity"] == pytest.approx(2 * 3.0 * 16 / 10)


@pytest.mark.parametrize("mechanism", [NORMAL, UNIT])
def test_the_radius_on_the_lattice_is_the_radius(mechanism: LatentGaussian | PrivUnit) -> None:
    assert mechanism.squared_radius_in_steps == 32 * 1024**2
    assert mechanism.radius**2 / mechanism.lattice_step**2 == pytest.approx(
        mechanism.squared_radius_in_steps
    )


@pytest.mark.parametrize("clip", ["box", "l1_ball"])
def test_epsilon_answers_to_the_scale(clip: str) -> None:
    """A known bug elsewhere: a scale of 0.5 whatever epsilon was asked for."""
    products = set()
    for scale in (0.1, 1.0, 7.5):
        mechanism = LatentLaplace(clip, 3.0, 8, 5, "random", scale)  # type: ignore[arg-type]
        products.add(round(mechanism.epsilon_per_image * scale, 6))
    assert len(products) == 1


def test_groups_by_similarity_claim_no_epsilon_per_patient() -> None:
    similar = LatentLaplace("l1_ball", 0.8, 1024, 10, "similar", 0.5)
    assert not similar.covers_patient
    assert "no ε per patient" in similar.statement()
    assert similar.describe()["unit"] == "average"
    assert BALL.covers_patient
    assert "per patient" in BALL.statement()


def test_accountants_compose_what_a_mechanism_states() -> None:
    """No statement exceeds what is charged.

    Pure epsilons are charged in full, the Gaussian by its noise over the sensitivity.
    """
    assert UNIT.losses == (("pure", 8.0),)
    assert UNIT.epsilon_per_image == UNIT.epsilon_per_coordinate == 8.0
    assert BOX.losses == (("laplace", BOX.epsilon_per_image),)
    assert BALL.losses == (("laplace", BALL.epsilon_per_image),)
    (kind, noise) = NORMAL.losses[0]
    assert (kind, len(NORMAL.losses)) == ("gaussian", 1)
    assert gaussian_delta(NORMAL.epsilon, noise) <= NORMAL.delta
    assert NORMAL.sum_deviation_in_steps == pytest.approx(noise * 2 * NORMAL.radius * 1024)


def test_one_coordinate_of_a_ball_can_carry_all_of_an_images_epsilon() -> None:
    assert NORMAL.epsilon_per_coordinate == NORMAL.epsilon_per_image == 8.0


def test_an_average_of_one_is_of_one_patient_whatever_the_grouping() -> None:
    groupings: tuple[Grouping, ...] = ("similar", "cells", "random")
    for grouping in groupings:
        gaussian = LatentGaussian(32, 1, grouping, 8.0, 1e-5)
        assert gaussian.covers_patient
        assert LatentLaplace("box", 3.0, 32, 1, grouping, 0.5).covers_patient
        claimed = gaussian.describe()["claim"]
        assert "no k-anonymity" in claimed
        assert "per patient where each patient has one image" in claimed


@pytest.mark.parametrize(
    "change",
    [
        {"clip": "l2"},
        {"grouping": "nearest"},
        {"radius": 0.0},
        {"scale": -1.0},
        {"dimension": 0},
        {"k": 0},
        {"scale": float("inf")},
        {"radius": 1e-4, "dimension": 1},
        {"k": 2.5},
    ],
)
def test_a_laplace_mechanism_without_meaning_is_refused(change: dict[str, object]) -> None:
    fields = {
        "clip": "box",
        "radius": 3.0,
        "dimension": 4,
        "k": 5,
        "grouping": "random",
        "scale": 1.0,
        **change,
    }
    with pytest.raises(ConfigurationError):
        LatentLaplace(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": float("inf")},
        {"epsilon": float("nan")},
        {"delta": 0.0},
        {"delta": 1.0},
        {"k": 0},
        {"dimension": 0},
        {"grouping": "nearest"},
        {"lattice_step": 0.5},
    ],
    ids=str,
)
def test_a_gaussian_without_meaning_is_refused(change: dict[str, object]) -> None:
    fields = {
        "dimension": 32,
        "k": 10,
        "grouping": "random",
        "epsilon": 8.0,
        "delta": 1e-5,
        **change,
    }
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        LatentGaussian(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": 0.009},
        {"epsilon": 17.0},
        {"epsilon": float("inf")},
        {"dimension": 65},
        {"dimension": 1},
    ],
    ids=str,
)
def test_a_privunit_without_meaning_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        PrivUnit(**{"dimension": 32, "epsilon": 8.0, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [lambda e: LatentGaussian(32, 10, "random", e, 1e-5), lambda e: PrivUnit(32, e)]
)
def test_what_is_released_answers_to_epsilon(make: object) -> None:
    cosines = [make(e).expected_cosine for e in (0.5, 1.0, 4.0, 16.0)]  # type: ignore[operator]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.5 * cosines[2]


EXPECTED_COSINES = {  # simulated; the closed form is up to 8 % high
    LatentGaussian(32, 1, "random", 8.0, 1e-5): 0.15,
    LatentGaussian(32, 20, "random", 8.0, 1e-5): 0.55,
    LatentGaussian(32, 50, "random", 8.0, 1e-5): 0.72,
    LatentGaussian(16, 10, "random", 8.0, 1e-5): 0.51,
    LatentLaplace("box", 3.0, 16, 10, "random", 6.0 * 16 / 80): 0.20,
    LatentLaplace("box", 3.0, 16, 50, "random", 6.0 * 16 / 400): 0.39,
}


@pytest.mark.parametrize("mechanism", EXPECTED_COSINES)
def test_the_expected_cosine_is_the_simulated_one(mechanism: Latent) -> None:
    assert mechanism.expected_cosine == pytest.approx(EXPECTED_COSINES[mechanism], rel=0.09)


def test_every_statement_says_all_that_a_release_needs() -> None:
    for m in (BOX, BALL, NORMAL, UNIT):
        text, facts = m.statement(1024), m.describe()
        for words in (
            "ε=",
            "replace-one",
            f"d={m.dimension:,} of 1,024",
            f"k={m.k}",
            "expected cosine",
        ):
            assert words in text
        for name in (
            "clip",
            "radius",
            "lattice_step",
            "sensitivity",
            "norm",
            "epsilon_per_coordinate",
            "epsilon_per_image",
            "delta",
            "adjacency",
            "k",
            "grouping",
            "dimension",
            "expected_cosine",
            "claim",
        ):
            assert name in facts
    assert UNIT.statement(1024).startswith(
        "privunit: ε=8 (pure) per image, replace-one, d=32 of 1,024, k=1"
    )
    assert "δ=1e-05 per patient for all averages together" in NORMAL.statement()


def test_a_statement_in_an_l1_ball_names_no_smaller_number_beside_its_epsilon() -> None:
    """A box of 3 has less epsilon per coordinate, and more over all of them: no comparison."""
    similar = LatentLaplace("l1_ball", 0.4, 1536, 5, "similar", 0.25)
    assert similar.statement(12288) == (
        "laplace l1_ball: ε=984 per average, replace-one, d=1,536 of 12,288, k=5, similar groups, "
        "expected cosine 0.54; no ε per patient"
    )
    assert similar.statement().count("ε=") == 1


@pytest.mark.parametrize("grouping", ["similar", "similar-swap", "cells"])
def test_groups_that_the_images_choose_claim_nothing_per_patient(grouping: str) -> None:
    for m in (
        LatentGaussian(32, 10, grouping, 8.0, 1e-5),  # type: ignore[arg-type]
        LatentLaplace("box", 3.0, 32, 10, grouping, 0.5),  # type: ignore[arg-type]
    ):
        assert not m.covers_patient
        assert "no ε per patient" in m.describe()["claim"]
        assert "per patient for all averages" not in m.describe()["claim"]


def test_privunit_is_for_one_image() -> None:
    plan = PrivatizePlan(mechanism="privunit", share=1.0, epsilon=8.0, egress="single")
    assert latent_mechanism(plan, 32, 1, "random") == UNIT
    with pytest.raises(ConfigurationError, match="one image"):
        latent_mechanism(plan, 32, 2, "random")
