"""Theorems about privatized averages: what one image, one patient and one group can do to the released numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import privatize as stage
from common.errors import Bug
from common.models import glow
from common.models.glow import Glow
from common.privacy.mechanisms import LatentLaplace
from common.privacy.noise import SeededNoiseSource

torch.set_num_threads(1)
CLIPS = ["box", "l1_ball"]


def mechanism(clip: str, dimension: int, radius: float = 0.7, k: int = 3, scale: float = 0.25) -> LatentLaplace:
    return LatentLaplace(clip, radius, dimension, k, "random", scale)  # type: ignore[arg-type]


def size(integers: np.ndarray, m: LatentLaplace) -> int:
    magnitude = np.abs(integers)
    return int(magnitude.max() if m.clip == "box" else magnitude.sum())


@pytest.fixture(scope="module")
def model() -> Glow:
    flow = Glow(8, 3, 2, 2, 8)
    glow.initialise_from_noise(flow, 16)
    return flow


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
        latents = (np.random.default_rng(seed).normal(size=(rows, dimension)) * spread).astype(dtype)
    together = stage.clip(latents, m)
    for i, row in enumerate(together):
        assert size(stage.quantise(row, m), m) <= m.radius_in_steps
        assert np.array_equal(row, stage.clip(latents[i : i + 1], m)[0]), "the others decide nothing"


@pytest.mark.parametrize("clip", CLIPS)
def test_a_sample_inside_the_clip_set_is_left_alone_and_one_outside_reaches_its_edge(clip: str) -> None:
    m = mechanism(clip, 16)
    inside = np.full((1, 16), 0.5)
    assert np.array_equal(stage.clip(inside, m), inside)
    edge = stage.quantise(stage.clip(np.full((1, 16), 100.0), m)[0], m)
    assert size(edge, m) > 0.97 * m.radius_in_steps


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e308, 0.0], ids=str)
def test_non_finite_giant_and_zero_latents_are_bounded(clip: str, value: float) -> None:
    m = mechanism(clip, 8)
    for row in (np.full(8, value), np.array([value, *np.ones(7)])):
        assert size(stage.quantise(stage.clip(row[None], m)[0], m), m) <= m.radius_in_steps


@pytest.mark.parametrize("clip", CLIPS)
def test_a_latent_outside_the_clip_set_is_never_summed(clip: str) -> None:
    m = mechanism(clip, 4)
    with pytest.raises(Bug, match="lattice steps"):
        stage.quantise(np.full(4, 0.7 + 2**-9), m)


def test_quantising_never_lifts_a_coordinate() -> None:
    m = mechanism("box", 3, radius=1.0)
    values = np.array([0.9999, -0.9999, 2**-11])
    assert stage.quantise(values, m).tolist() == [1023, -1023, 0]


@pytest.mark.parametrize("clip", CLIPS)
def test_the_mean_of_a_patients_images_stays_inside_the_clip_set(clip: str, model: Glow) -> None:
    m = mechanism(clip, model.dimension, 0.3)
    for count in (1, 2, 7):
        assert size(stage.patient_latent(pictures(count), model, m), m) <= m.radius_in_steps


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("wild", [False, True], ids=["images", "broken flow"])
def test_one_patient_moves_the_sum_by_at_most_the_sensitivity(
    clip: str, wild: bool, model: Glow, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wild:  # a flow that encodes to anything at all
        values = np.array([1e30, -np.inf, np.nan, 3.0])
        monkeypatch.setattr(
            stage,
            "encode_released",
            lambda images, _, d: np.resize(np.roll(values, int(images.sum()) % 4), (len(images), d)),
        )
    m = mechanism(clip, model.top_dimension, 0.3)
    group = [pictures(1, seed) for seed in range(3)]
    base = np.sum([stage.patient_latent(p, model, m) for p in group], axis=0)
    for other in (pictures(5, 99), np.zeros((1, 8, 8, 3), np.uint8), np.full((2, 8, 8, 3), 255, np.uint8)):
        moved = np.sum([stage.patient_latent(p, model, m) for p in [*group[:2], other]], axis=0) - base
        assert int(np.abs(moved).sum()) <= m.sum_sensitivity_in_steps
        if clip == "box":
            assert int(np.abs(moved).max()) <= 2 * m.radius_in_steps


@pytest.mark.parametrize("members", [3, 5])
def test_the_group_mean_moves_by_at_most_delta_over_k_when_one_patient_changes(members: int, model: Glow) -> None:
    m = mechanism("l1_ball", model.top_dimension, 0.3)
    group = [pictures(1, seed) for seed in range(members)]

    def mean(patients: list[np.ndarray]) -> np.ndarray:
        latents = [stage.patient_latent(p, model, m) for p in patients]
        return stage._noised_mean(latents, m, SeededNoiseSource(0))  # the same noise cancels

    moved = mean([*group[:-1], pictures(4, 99)]) - mean(group)
    assert float(np.abs(moved).sum()) <= m.sum_sensitivity_in_steps * m.lattice_step / m.k * (1 + 1e-12)


def test_one_patient_changes_no_other_group(model: Glow) -> None:
    m = mechanism("l1_ball", model.top_dimension)
    groups = [[pictures(1, 10 * g + p) for p in range(3)] for g in range(3)]
    changed = [groups[0], [*groups[1][:2], pictures(2, 99)], groups[2]]
    one, two = (
        stage.privatize(g, model, m, 0.7, SeededNoiseSource(0), practice=True).images for g in (groups, changed)
    )
    assert [np.array_equal(a, b) for a, b in zip(one, two, strict=True)] == [True, False, True]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scale", [0.05, 0.5, 4.0])
def test_the_noise_on_the_sum_has_the_scale_that_the_epsilon_states(clip: str, scale: float) -> None:
    m = mechanism(clip, 4000, scale=scale)
    noise = [np.zeros(4000, np.int64)] * m.k
    drawn = stage._noised_mean(noise, m, SeededNoiseSource(3)) * m.k / m.lattice_step
    stated = m.sum_sensitivity_in_steps / m.epsilon_per_image
    assert float(np.abs(drawn).mean()) == pytest.approx(stated, rel=0.08)


def test_a_larger_group_gets_no_less_noise_on_its_sum() -> None:
    m = mechanism("l1_ball", 4000)
    noise = [np.zeros(4000, np.int64)] * (2 * m.k - 1)
    drawn = stage._noised_mean(noise, m, SeededNoiseSource(3)) * len(noise) / m.lattice_step
    assert float(np.abs(drawn).mean()) == pytest.approx(m.sum_scale_in_steps, rel=0.08)
