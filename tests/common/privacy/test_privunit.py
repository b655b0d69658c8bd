"""PrivUnit: the cap's constants, the exact comparison, and the distribution of draws."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad

from common.errors import Bug
from common.privacy import privunit
from common.privacy.noise import SeededNoiseSource

PUBLISHED = {  # (d, epsilon): expected cosine, simulated
    (16, 8.0): 0.62,
    (16, 16.0): 0.86,
    (32, 8.0): 0.46,
    (64, 8.0): 0.33,
    (64, 16.0): 0.53,
}


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_the_expected_cosine_is_the_published_one(case: tuple[int, float]) -> None:
    assert privunit.cap(*case).expected_cosine == pytest.approx(PUBLISHED[case], abs=0.011)


@pytest.mark.parametrize("dimension", [2, 3, 16, 64])
@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2.0, 8.0, 16.0])
def test_no_two_directions_differ_by_more_than_epsilon(dimension: int, epsilon: float) -> None:
    """The largest ratio of densities: in one cap and not in the other.

    Each cap's mass is off by the lattice's rounding.
    """
    cap = privunit.cap(dimension, epsilon)
    gamma = cap.gamma_steps / privunit.GAMMA_STEPS
    turned = math.sqrt(dimension) / 2 / privunit.DEVIATION  # how far rounding turns a direction
    masses = [
        _mass(dimension, gamma + sign * turned) * (1 + sign * 64 * turned) for sign in (1, -1)
    ]
    inside = cap.p / min(masses)
    outside = (1 - cap.p) / (1 - min(masses))
    assert math.log(inside / outside) <= epsilon
    assert math.log(inside / outside) > epsilon - 0.01, "and no epsilon is given away"
    zero = (cap.p / min(masses), 1 / outside)  # against the zero direction, which draws uniformly
    assert max(map(math.log, zero)) <= epsilon


def _mass(dimension: int, gamma: float) -> float:
    """Share of directions with a cosine of at least gamma, by quadrature over the angle."""
    inside, whole = (
        quad(lambda angle: math.sin(angle) ** (dimension - 2), 0.0, end, epsabs=0, epsrel=1e-11)[0]
        for end in (math.acos(gamma), math.pi)
    )
    return float(inside / whole)


def test_the_cap_is_decided_in_integers_however_near_the_edge() -> None:
    generator = np.random.default_rng(0)
    direction = np.rint(generator.normal(size=8) * 1000).astype(np.int64)
    candidates = np.rint(generator.normal(size=(300, 8)) * 2**24).astype(np.int64)
    cosines = (
        candidates @ direction / np.linalg.norm(candidates, axis=1) / np.linalg.norm(direction)
    )
    for i in range(0, 300, 10):  # an edge right at one candidate's own cosine
        steps = round(float(cosines[i]) * privunit.GAMMA_STEPS)
        if steps <= 0:
            continue
        exact = [_exactly(candidate, direction, steps) for candidate in candidates]
        assert privunit.in_cap(candidates, direction, steps).tolist() == exact


def _exactly(candidate: np.ndarray, direction: np.ndarray, steps: int) -> bool:
    inner = sum(int(a) * int(b) for a, b in zip(candidate, direction, strict=True))
    own, theirs = (sum(int(x) ** 2 for x in v) for v in (direction, candidate))
    return (
        inner >= 0
        and Fraction(inner**2) >= Fraction(steps, privunit.GAMMA_STEPS) ** 2 * own * theirs
    )


def test_a_tie_on_the_edge_is_inside() -> None:
    """gamma = 3/4: (3, sqrt 7) is exactly at the edge; integers say so where a float may not."""
    steps = privunit.GAMMA_STEPS * 3 // 4
    candidates = (
        np.array([[3, 0, 0, 0], [9, 7, 3, 2], [9, 7, 3, 3]], np.int64) * 2**20
    )  # 9/sqrt(81+63) is 3/4; 144 = 81+49+9+5
    candidates[1] = np.array([9, 7, 3, 0]) * 2**20
    direction = np.array([1, 0, 0, 0], np.int64)
    assert privunit.in_cap(candidates, direction, steps).tolist() == [
        _exactly(candidate, direction, steps) for candidate in candidates
    ]
    edge = np.array([[3, 2, 1, 1, 1]], np.int64)  # 3 / sqrt(16)
    for moved, inside in ((0, True), (1, False)):
        nudged = edge * 2**20 + np.array([[0, moved, 0, 0, 0]])
        assert privunit.in_cap(nudged, np.array([1, 0, 0, 0, 0], np.int64), steps).tolist() == [
            inside
        ]


def test_an_edge_that_float64_cannot_see_is_decided_in_integers() -> None:
    """gamma = 3/4 and a candidate whose square is two more, of 2^54, than at the edge.

    Its float is the edge's.
    """
    m, steps = 2**25 + 1, privunit.GAMMA_STEPS * 3 // 4
    direction = np.array([1, 0, 0, 0, 0], np.int64)
    edge = np.array([3, 2, 1, 1, 1], np.int64) * m
    beyond = edge + np.array([0, -1, 0, 1, 1])  # the same to first order
    as_floats = [
        float(x) for x in np.einsum("nd,nd->n", *[np.stack([edge, beyond]).astype(np.float64)] * 2)
    ]
    assert _exactly(edge, direction, steps) and not _exactly(beyond, direction, steps)
    assert 9 * as_floats[1] <= 16 * float(3 * m) ** 2, "floats alone would call it inside"
    assert privunit.in_cap(np.stack([edge, beyond]), direction, steps).tolist() == [True, False]


def test_no_candidate_is_shorter_than_what_rounding_allows_for() -> None:
    """Rounding would turn short ones further than `SLACK` allows; in a plane 39 % are short."""
    for dimension in (2, 5):
        drawn = privunit._directions(4000, dimension, SeededNoiseSource(1)).astype(np.float64)
        assert float(np.linalg.norm(drawn, axis=1).min()) >= privunit.DEVIATION
        assert 2000 < len(drawn) < 4000


def test_candidates_point_everywhere_alike() -> None:
    """In a plane no angle is preferred: neither axes nor diagonals nor a side."""
    drawn = privunit._directions(20_000, 2, SeededNoiseSource(2)).astype(np.float64)
    angle = np.arctan2(drawn[:, 1], drawn[:, 0])
    for times in (1, 2, 4, 8):
        assert abs(np.exp(1j * times * angle).mean()) < 5 / math.sqrt(len(angle))


def test_the_mean_cosine_is_the_expected_one_and_a_zero_direction_has_none() -> None:
    noise, dimension, epsilon = SeededNoiseSource(5), 16, 4.0
    direction = np.rint(np.random.default_rng(1).normal(size=dimension) * 900).astype(np.int64)

    def cosines(given: np.ndarray) -> np.ndarray:
        drawn = np.stack(
            [privunit.draw(given, dimension, epsilon, noise) for _ in range(600)]
        ).astype(float)
        return drawn @ direction / np.linalg.norm(drawn, axis=1) / np.linalg.norm(direction)

    seen, blind = cosines(direction), cosines(np.zeros(dimension, np.int64))
    assert float(seen.mean()) == pytest.approx(
        privunit.cap(dimension, epsilon).expected_cosine, abs=0.04
    )
    assert abs(float(blind.mean())) < 0.05
    assert float((blind**2).mean()) == pytest.approx(1 / dimension, abs=0.015)


def test_length_of_the_latent_is_not_released() -> None:
    direction = np.arange(1, 9, dtype=np.int64)
    one, two = (
        privunit.draw(direction * times, 8, 2.0, SeededNoiseSource(2)) for times in (1, 1000)
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "bad", [np.ones(7, np.int64), np.full(8, 2**18 + 1, np.int64)], ids=["shape", "size"]
)
def test_what_is_no_direction_is_a_bug(bad: np.ndarray) -> None:
    with pytest.raises(Bug):
        privunit.draw(bad, 8, 2.0, SeededNoiseSource(0))
