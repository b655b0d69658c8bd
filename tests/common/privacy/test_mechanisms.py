"""Mechanisms: their numbers follow from their fields, and the unknown is refused."""

import json

import pytest

from common.errors import ConfigurationError, RefusedError
from common.privacy.mechanisms import LatentLaplace, SubsampledGaussian, mechanism_from

GAUSSIAN = SubsampledGaussian(0.064, 1.87, 2000, 250_000, "gan")
BOX = LatentLaplace("box", 3.0, 1024, 1, "random", 0.5)
BALL = LatentLaplace("l1_ball", 0.8, 1024, 10, "random", 0.5)


@pytest.mark.parametrize("mechanism", [GAUSSIAN, BOX, BALL])
def test_an_event_comes_back_as_the_same_mechanism(mechanism: SubsampledGaussian | LatentLaplace) -> None:
    assert mechanism_from(mechanism.event()) == mechanism
    assert json.loads(mechanism.event()).items() <= mechanism.describe().items()


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


@pytest.mark.parametrize("clip", ["box", "l1_ball"])
def test_epsilon_answers_to_the_scale(clip: str) -> None:
    """CADP's third bug: a scale of 0.5 whatever epsilon was asked for."""
    products = {
        round(m.epsilon_per_image * m.scale, 6)
        for m in (LatentLaplace(clip, 3.0, 8, 5, "random", b) for b in (0.1, 1.0, 7.5))  # type: ignore[arg-type]
    }
    assert len(products) == 1


def test_groups_by_similarity_claim_no_epsilon_per_patient() -> None:
    similar = LatentLaplace("l1_ball", 0.8, 1024, 10, "similar", 0.5)
    assert not similar.covers_patient
    assert "no ε per patient" in similar.statement()
    assert similar.describe()["unit"] == "average"
    assert BALL.covers_patient
    assert "per patient" in BALL.statement()


BAD_EVENTS = {
    "not JSON": "{",
    "not an object": "[1]",
    "unknown mechanism": '{"mechanism":"gaussian"}',
    "no mechanism": "{}",
    "a field too many": GAUSSIAN.event().replace('"q"', '"extra":1,"q"'),
    "a field too few": GAUSSIAN.event().replace('"q":0.064,', ""),
    "a field left to its default": GAUSSIAN.event().replace('"dimension":250000,', ""),
    "a value out of range": GAUSSIAN.event().replace("0.064", "1.5"),
    "a value of another type": GAUSSIAN.event().replace("0.064", '"x"'),
    "not a number": GAUSSIAN.event().replace("0.064", "NaN"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_an_unknown_event_is_refused(case: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        mechanism_from(BAD_EVENTS[case])
    assert refusal.value.code == "E-MECHANISM"


@pytest.mark.parametrize(
    "change",
    [
        {"clip": "l2"}, {"grouping": "nearest"}, {"radius": 0.0}, {"scale": -1.0}, {"dimension": 0}, {"k": 0},
        {"scale": float("inf")}, {"radius": 1e-4, "dimension": 1}, {"k": 2.5},
    ],
)  # fmt: skip
def test_a_laplace_mechanism_without_meaning_is_refused(change: dict[str, object]) -> None:
    fields = {"clip": "box", "radius": 3.0, "dimension": 4, "k": 5, "grouping": "random", "scale": 1.0, **change}
    with pytest.raises(ConfigurationError):
        LatentLaplace(**fields)  # type: ignore[arg-type]
