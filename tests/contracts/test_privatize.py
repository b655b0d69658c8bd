"""Theorems about privatized averages.

What one image, one patient and one group can do to the released numbers.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.state.group_store import Stratum
from client.synthesize import privatize as stage
from client.synthesize.group import Roster, form_groups
from common.errors import Bug, ConfigurationError, PolicyError, RefusedError
from common.models import glow_start
from common.models.basis import Basis, fit
from common.models.glow import Glow
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import NoiseSource, SeededNoiseSource

torch.set_num_threads(1)
LAPLACE = ["box", "l1_ball"]
CLIPS = [*LAPLACE, "l2_ball", "sphere"]


def mechanism(
    clip: str, dimension: int, radius: float = 0.7, k: int = 3, scale: float = 0.25
) -> Any:
    if clip == "l2_ball":
        return LatentGaussian(dimension, k, "random", 2.0, 1e-5)
    if clip == "sphere":
        return PrivUnit(max(dimension, 2), 4.0)
    return LatentLaplace(clip, radius, dimension, k, "random", scale)  # type: ignore[arg-type]


def size(integers: np.ndarray, m: Latent) -> int:
    magnitude = np.abs(integers)
    if not isinstance(m, LatentLaplace):
        return int(np.square(magnitude).sum())
    return int(magnitude.max() if m.clip == "box" else magnitude.sum())


def limit(m: Latent) -> int:
    return m.radius_in_steps if isinstance(m, LatentLaplace) else m.squared_radius_in_steps


def distance(moved: np.ndarray, m: Latent) -> float:
    """How far a sum moved, in the mechanism's own norm and as a share of its sensitivity."""
    if isinstance(m, LatentLaplace):
        return float(np.abs(moved).sum()) / m.sum_sensitivity_in_steps
    return math.sqrt(float(np.square(moved).sum()) / (4 * m.squared_radius_in_steps))


@pytest.fixture(scope="module")
def model() -> Glow:
    flow = Glow(8, 3, 2, 2, 8)
    glow_start.initialise_from_noise(flow, 16)
    return flow


@pytest.fixture(scope="module")
def basis(model: Glow) -> Basis:
    """Public directions: of noise pictures that belong to nobody."""
    return fit(stage.encode_released(pictures(60, 77), model, model.top_dimension), 6)


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("clip", CLIPS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    dimension=st.integers(1, 40),
    spread=st.sampled_from([1e-3, 0.5, 1.0, 50.0, 1e30]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    radius=st.sampled_from([0.0123, 0.7, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_is_inside_the_clip_set_whatever_the_batch(
    clip: str, rows: int, dimension: int, spread: float, dtype: type, radius: float, seed: int
) -> None:
    m = mechanism(clip, dimension, radius)
    with np.errstate(over="ignore"):
        latents = (np.random.default_rng(seed).normal(size=(rows, m.dimension)) * spread).astype(
            dtype
        )
    together = stage.clip(latents, m)
    for i, row in enumerate(together):
        assert size(stage.quantise(row, m), m) <= limit(m)
        assert np.array_equal(row, stage.clip(latents[i : i + 1], m)[0]), (
            "the others decide nothing"
        )


@pytest.mark.parametrize("clip", CLIPS)
def test_a_sample_inside_the_clip_set_is_left_alone_and_one_outside_reaches_its_edge(
    clip: str,
) -> None:
    m = mechanism(clip, 16)
    inside = np.full((1, 16), 0.5)
    left_alone = np.array_equal(stage.clip(inside, m), inside)
    assert left_alone == (clip != "sphere"), "on the sphere every length is one length"
    edge = stage.quantise(stage.clip(np.full((1, 16), 100.0), m)[0], m)
    assert size(edge, m) > 0.97 * limit(m)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e308, 0.0], ids=str)
def test_non_finite_giant_and_zero_latents_are_bounded(clip: str, value: float) -> None:
    m = mechanism(clip, 8)
    for row in (np.full(8, value), np.array([value, *np.ones(7)])):
        assert size(stage.quantise(stage.clip(row[None], m)[0], m), m) <= limit(m)


@pytest.mark.parametrize("clip", CLIPS)
def test_what_is_not_finite_counts_as_zero_and_leaves_the_rest_alone(clip: str) -> None:
    m = mechanism(clip, 8)
    for value in (np.nan, np.inf, -np.inf):
        rows = np.array([[value, *np.full(7, 0.5)], np.full(8, value)])
        zeroed = np.array([[0.0, *np.full(7, 0.5)], np.zeros(8)])
        assert np.array_equal(stage.clip(rows, m), stage.clip(zeroed, m))
        assert not stage.clip(rows, m)[1].any()


@pytest.mark.parametrize("size_of_it", [1e-320, 1e-200, 1e-5, 1.0, 1e99])
def test_a_direction_reaches_the_sphere_from_whatever_length(size_of_it: float) -> None:
    """Squares of small and large numbers vanish or overflow; the direction must not."""
    m = PrivUnit(4, 2.0)
    found = stage.clip(np.array([[3.0, 0.0, -4.0, 0.0]]) * size_of_it, m)[0]
    assert found == pytest.approx(np.array([0.6, 0.0, -0.8, 0.0]) * 2.0, rel=1e-3)


def test_the_radius_of_many_coordinates_is_checked_beyond_32_bits() -> None:
    """4,096 coordinates a little outside.

    The sum of squares is 2^32 and a bit, which 32 bits would call small.
    """
    m = LatentGaussian(4096, 3, "random", 2.0, 1e-5)
    stage.quantise(np.ones(4096), m)
    with pytest.raises(Bug, match="lattice steps"):
        stage.quantise(np.full(4096, 1 + 2**-9), m)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e308, 1e-300, 5e-324, 0.0], ids=str)
def test_privunit_gives_a_direction_whatever_the_latent(value: float) -> None:
    m = PrivUnit(8, 2.0)
    row = stage.quantise(stage.clip(np.array([[value, *np.zeros(7)]]), m)[0], m)
    released = stage._draw_mean([row], m, SeededNoiseSource(0))
    assert float(np.linalg.norm(released)) == pytest.approx(math.sqrt(8))


@pytest.mark.parametrize("clip", CLIPS)
def test_a_latent_outside_the_clip_set_is_never_summed(clip: str) -> None:
    m = mechanism(clip, 4)
    outside = 0.7 + 2**-9 if clip in LAPLACE else 1 + 2**-9
    with pytest.raises(Bug, match="lattice steps"):
        stage.quantise(np.full(4, outside), m)


def test_quantising_never_lifts_a_coordinate() -> None:
    m = mechanism("box", 3, radius=1.0)
    values = np.array([0.9999, -0.9999, 2**-11])
    assert stage.quantise(values, m).tolist() == [1023, -1023, 0]


@pytest.mark.parametrize("clip", CLIPS)
def test_the_mean_of_a_patients_images_stays_inside_the_clip_set(
    clip: str, model: Glow, basis: Basis
) -> None:
    m = mechanism(clip, basis.components if clip == "sphere" else model.dimension, 0.3)
    for count in (1, 2, 7):
        latent = stage.patient_latent(
            pictures(count), model, m, basis if clip == "sphere" else None
        )
        assert size(latent, m) <= limit(m)


OTHERS = (pictures(5, 99), np.zeros((1, 8, 8, 3), np.uint8), np.full((2, 8, 8, 3), 255, np.uint8))


@pytest.mark.parametrize("clip", CLIPS[:3])
@pytest.mark.parametrize("reduced", [False, True], ids=["levels", "basis"])
@pytest.mark.parametrize("wild", [False, True], ids=["images", "broken flow"])
def test_one_patient_moves_the_sum_by_at_most_the_sensitivity(
    clip: str, reduced: bool, wild: bool, model: Glow, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wild:  # a flow that encodes to anything at all
        values = np.array([1e4, -1e4, 0.0, 3.0] if reduced else [1e30, -np.inf, np.nan, 3.0])
        monkeypatch.setattr(
            stage,
            "encode_released",
            lambda images, _, d: np.resize(
                np.roll(values, int(images.sum()) % 4), (len(images), d)
            ),
        )
    public = basis if reduced else None
    m = mechanism(clip, basis.components if reduced else model.top_dimension, 0.3)
    group = [pictures(1, seed) for seed in range(3)]
    base = np.sum([stage.patient_latent(p, model, m, public) for p in group], axis=0)
    for other in OTHERS:
        moved = (
            np.sum([stage.patient_latent(p, model, m, public) for p in [*group[:2], other]], axis=0)
            - base
        )
        assert distance(moved, m) <= 1
        if clip == "box":
            assert int(np.abs(moved).max()) <= 2 * m.radius_in_steps


@pytest.mark.parametrize("clip", CLIPS[:3])
@pytest.mark.parametrize("members", [3, 5])
def test_the_group_mean_moves_by_at_most_delta_over_k_when_one_patient_changes(
    clip: str, members: int, model: Glow
) -> None:
    m = mechanism(clip, model.top_dimension, 0.3)
    group = [pictures(1, seed) for seed in range(members)]

    def mean(patients: list[np.ndarray]) -> np.ndarray:
        latents = [stage.patient_latent(p, model, m) for p in patients]
        return stage._draw_mean(latents, m, SeededNoiseSource(0))  # the same noise cancels

    moved = mean([*group[:-1], pictures(4, 99)]) - mean(group)
    length = float(np.abs(moved).sum() if m.describe()["norm"] == "l1" else np.linalg.norm(moved))
    assert length <= m.describe()["sensitivity"] * (1 + 1e-12)
    assert m.describe()["sensitivity"] * m.k == pytest.approx(
        mechanism(clip, model.top_dimension, 0.3, k=1).describe()["sensitivity"]
    )


@pytest.mark.parametrize("clip", CLIPS[:3])
def test_one_patient_changes_no_other_group(clip: str, model: Glow) -> None:
    m = mechanism(clip, model.top_dimension)
    groups = [[pictures(1, 10 * g + p) for p in range(3)] for g in range(3)]
    changed = [groups[0], [*groups[1][:2], pictures(2, 99)], groups[2]]
    one, two = (
        stage.privatize(g, model, m, 0.7, SeededNoiseSource(0), practice=True).images
        for g in (groups, changed)
    )
    assert [np.array_equal(a, b) for a, b in zip(one, two, strict=True)] == [True, False, True]


@pytest.mark.parametrize("clip", LAPLACE)
@pytest.mark.parametrize("scale", [0.05, 0.5, 4.0])
def test_the_noise_on_the_sum_has_the_scale_that_the_epsilon_states(
    clip: str, scale: float
) -> None:
    m = mechanism(clip, 4000, scale=scale)
    noise = [np.zeros(4000, np.int64)] * m.k
    drawn = stage._draw_mean(noise, m, SeededNoiseSource(3)) * m.k / m.lattice_step
    stated = m.sum_sensitivity_in_steps / m.epsilon_per_image
    assert float(np.abs(drawn).mean()) == pytest.approx(stated, rel=0.08)


def test_a_sum_beyond_24_bits_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an l1 ball one coordinate can hold a patient's whole norm.

    Rounding a sum would make its sensitivity a guess.
    """
    m, seen = mechanism("l1_ball", 1024, radius=0.8, k=30), list[np.ndarray]()
    monkeypatch.setattr(stage, "add_noise", lambda sums, *_: seen.append(sums) or sums)
    patients = [np.array([m.radius_in_steps - p, *np.zeros(1023, np.int64)]) for p in range(30)]
    stage._draw_mean(patients, m, SeededNoiseSource(0))
    assert seen[0].dtype == np.int64
    assert int(seen[0][0, 0]) == 30 * m.radius_in_steps - sum(range(30)) > 2**24


@pytest.mark.parametrize("clip", CLIPS)
def test_every_sum_gets_noise_of_its_own(clip: str) -> None:
    m = mechanism(clip, 12)
    drawn = stage.add_noise(np.zeros((40, 12), np.int64), m, NoiseSource())
    assert len({row.tobytes() for row in drawn}) == 40
    assert len(np.unique(drawn)) > 300, "and every coordinate"


@pytest.mark.parametrize("clip", CLIPS[:3])
def test_the_groups_of_one_release_share_no_noise(clip: str, model: Glow) -> None:
    """The same patients four times, all coordinates noised: four different images.

    With shared noise the difference of two images would be that of their patients.
    """
    m = mechanism(clip, model.dimension)
    group = [pictures(1, seed) for seed in range(3)]
    found = stage.privatize([group] * 4, model, m, 0.7, NoiseSource()).images
    assert len({image.tobytes() for image in found}) == 4


def test_a_larger_group_gets_no_less_noise_on_its_sum() -> None:
    m = mechanism("l1_ball", 4000)
    noise = [np.zeros(4000, np.int64)] * (2 * m.k - 1)
    drawn = stage._draw_mean(noise, m, SeededNoiseSource(3)) * len(noise) / m.lattice_step
    assert float(np.abs(drawn).mean()) == pytest.approx(m.sum_scale_in_steps, rel=0.08)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("k", [1, 10])
def test_gaussian_noise_on_the_sum_has_the_deviation_that_epsilon_and_delta_state(
    epsilon: float, k: int
) -> None:
    m = LatentGaussian(20_000, k, "random", epsilon, 1e-5)
    drawn = stage._draw_mean([np.zeros(20_000, np.int64)] * k, m, SeededNoiseSource(3)) * k
    assert float(drawn.std()) == pytest.approx(m.noise_multiplier * 2 * math.sqrt(20_000), rel=0.03)


def random_groups(
    model: Glow, names: list[str], pictures_of: dict[str, np.ndarray]
) -> list[list[np.ndarray]]:
    """Images of every group that a keyed permutation of the roster gives."""
    who = Roster(tuple(names), (Stratum(0),) * len(names), tuple((i,) for i in range(len(names))))
    formed = form_groups(who, 3, "random", key=b"0" * 32)
    return [[pictures_of[name] for name in group.members] for group in formed.groups]


def test_with_random_groups_exactly_one_sum_moves_when_one_patients_images_change(
    model: Glow,
) -> None:
    """The roster is rebuilt from scratch.

    No pixel decides who is in a group, so parallel composition holds.
    """
    m = mechanism("l2_ball", model.top_dimension)
    names = [f"{n:064x}" for n in range(14)]
    images = {name: pictures(1 + i % 2, i) for i, name in enumerate(names)}
    changed = images | {names[5]: np.zeros((1, 8, 8, 3), np.uint8)}
    sums = [
        [
            np.sum([stage.patient_latent(p, model, m) for p in group], axis=0)
            for group in random_groups(model, names, what)
        ]
        for what in (images, changed)
    ]
    moved = [b - a for a, b in zip(*sums, strict=True)]
    assert sum(bool(step.any()) for step in moved) == 1
    assert max(distance(step, m) for step in moved) <= 1


def test_an_image_that_the_flow_never_saw_the_like_of_counts_as_the_zero_latent(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = mechanism("l1_ball", model.top_dimension)
    real, row = stage.encode_images, np.ones((1, model.dimension))
    for wild in (1.01e4, np.nan, -np.inf):
        row[0, 3] = wild  # not even among the released coordinates
        monkeypatch.setattr(
            stage,
            "encode_images",
            lambda images, _, row=row: np.where(np.isfinite(row).all(), row, 0.0),
        )
        assert not stage.patient_latent(pictures(1), model, m).any()
    monkeypatch.setattr(stage, "encode_images", real)
    assert stage.patient_latent(pictures(1), model, m).any()


def test_an_image_that_counts_as_the_zero_latent_stays_zero_in_every_basis(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = Basis(
        np.full(model.top_dimension, 0.5), np.eye(6, model.top_dimension), np.full(6, 0.25)
    )
    m = mechanism("l2_ball", 6)
    monkeypatch.setattr(stage, "encode_released", lambda images, _, d: np.zeros((len(images), d)))
    assert not stage.patient_latent(pictures(2), model, m, public).any()
    monkeypatch.setattr(
        stage, "encode_released", lambda images, _, d: np.full((len(images), d), 0.25)
    )
    assert stage.patient_latent(pictures(2), model, m, public).tolist() == [-1024] * 6


def test_each_image_of_a_patient_is_clipped_before_their_mean(
    model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wild image weighs no more than another: (clip(100) + 0.25) / 2, not clip(mean)."""
    m = mechanism("box", model.top_dimension, radius=1.0)
    rows = np.stack([np.full(model.top_dimension, 100.0), np.full(model.top_dimension, 0.25)])
    monkeypatch.setattr(stage, "encode_released", lambda images, _, d: rows)
    assert set(stage.patient_latent(pictures(2), model, m).tolist()) == {640}


def test_a_flow_with_weights_that_are_not_finite_is_refused(model: Glow) -> None:
    broken = Glow(8, 3, 2, 2, 8)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = float("nan")
    m = mechanism("l1_ball", broken.top_dimension)
    with pytest.raises(RefusedError, match="not finite"):
        stage.privatize([[pictures(1)] * 3], broken, m, 0.7, NoiseSource())


def test_privunit_takes_one_patient_and_no_group(model: Glow, basis: Basis) -> None:
    m = PrivUnit(basis.components, 4.0)
    assert (
        len(stage.privatize([[pictures(1)]], model, m, 0.7, NoiseSource(), basis=basis).images) == 1
    )
    with pytest.raises(PolicyError, match="privunit takes one patient, got 2") as refused:
        stage.privatize([[pictures(1), pictures(1, 2)]], model, m, 0.7, NoiseSource(), basis=basis)
    assert refused.value.code == "E-GROUP-SIZE"


def test_a_basis_of_another_space_is_refused(model: Glow) -> None:
    for coordinates in (model.top_dimension - 1, model.top_dimension + 1, model.dimension + 1):
        other = Basis(np.zeros(coordinates), np.eye(6, coordinates), np.ones(6))
        with pytest.raises(ConfigurationError, match=f"a basis of {coordinates} coordinates"):
            stage.privatize(
                [[pictures(1)] * 3], model, mechanism("l2_ball", 6), 0.7, NoiseSource(), basis=other
            )
