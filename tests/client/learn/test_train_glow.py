"""One round of the flow's training: what is learned, what is left alone, what is sent."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.ingest.cohort import Cohort
from client.learn import train_glow
from client.learn.round_parts import Streams
from client.state.ledger import PracticeReservation
from common.errors import ConfigurationError, PolicyError, RefusedError
from common.models.adam import Adam
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.privacy.events import round_event
from common.privacy.noise import NoiseSource, SeededNoiseSource
from common.study.plan import Study
from tests.studies import small_study

torch.set_num_threads(1)
PATIENTS = 12


def study(**changes: object) -> Study:
    return small_study(**{"models__glow__width": 8, "models__glow__steps_per_level": 1, **changes})


def cohort(pixels: np.ndarray | None = None, images_each: int = 2) -> Cohort:
    n = PATIENTS * images_each
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    names = tuple(f"{p:064x}" for p in range(PATIENTS))
    return Cohort(
        folder=Path("unused"),
        images=pixels,
        patient_of=np.repeat(np.arange(PATIENTS), images_each),
        labels=np.zeros(n, np.int64),
        laterality=np.zeros(n, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("none",),
        digest="0" * 64,
    )


def start(plan: Study) -> dict[str, np.ndarray]:
    return weights_of(train_glow.build(plan))


def one_round(plan: Study, seed: int = 0, **changes: object) -> dict[str, np.ndarray]:
    reservation = PracticeReservation(round_event(plan, "glow", 10**6))
    given = {
        "cohort": cohort(),
        "weights": start(plan),
        "noise": SeededNoiseSource(seed),
        **changes,
    }
    return train_glow.train(
        given["cohort"],
        plan,
        given["weights"],
        reservation,
        given["noise"],
        lambda done, total: None,  # type: ignore[arg-type]
    )


def norm(deltas: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in deltas.values())))


def test_a_round_returns_float32_deltas_for_every_weight() -> None:
    plan = study()
    deltas, weights = one_round(plan), start(plan)
    assert {n: (d.dtype, d.shape) for n, d in deltas.items()} == {
        n: (np.dtype("f4"), w.shape) for n, w in weights.items()
    }
    assert all(np.isfinite(d).all() for d in deltas.values())
    assert all(float(np.abs(d).max()) > 0 for d in deltas.values())


def test_the_same_seed_gives_the_same_deltas_and_another_seed_others() -> None:
    plan = study()
    one, two, three = one_round(plan), one_round(plan), one_round(plan, seed=1)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], three[name]) for name in one)


def test_only_trainable_prefixes_move() -> None:
    deltas = one_round(study(models__glow__trainable=["glow.levels.2.", "glow.top."]))
    moved = {name for name, delta in deltas.items() if np.abs(delta).max() > 0}
    assert moved == {name for name in deltas if name.startswith(("glow.levels.2.", "glow.top."))}


def test_a_grown_flow_learns_in_the_part_of_half_its_size_alone() -> None:
    changes = {"models__glow__levels": 2, "models__glow__doublings": 1}
    inner = ["glow.levels.", "glow.splits.", "glow.top."]
    deltas = one_round(study(**changes, models__glow__trainable=inner))
    moved = {name for name, delta in deltas.items() if np.abs(delta).max() > 0}
    assert moved and not any(name.startswith("glow.doublings.") for name in moved)
    whole = one_round(study(**changes))
    assert any(np.abs(whole[name]).max() > 0 for name in whole if "doublings.0.level" in name)


def test_the_update_stays_within_its_public_norm() -> None:
    assert 0 < norm(one_round(study(models__glow__max_update_norm=0.001))) <= 0.001
    assert norm(one_round(study(models__glow__max_update_norm=1000.0))) > 0.001


def test_training_without_noise_to_speak_of_learns_the_images() -> None:
    """On grey pictures, bits per dimension fall.

    At the smallest noise that a plan allows, with every patient in every step.
    """
    flat = np.full((PATIENTS * 2, 32, 32, 3), 128, np.uint8)
    flat += np.random.default_rng(0).integers(0, 30, flat.shape, dtype=np.uint8)
    plan = study(
        models__glow__local_steps=10,
        models__glow__learning_rate=0.1,
        models__glow__noise_multiplier=0.3,
        models__glow__patients_per_step=PATIENTS,
        models__gan__patients_per_step=PATIENTS,
        privacy__planned_patients=PATIENTS,
        models__glow__max_update_norm=1e6,
        models__glow__trainable=[
            "glow.levels.0.mixings.0.log_scale",
            "glow.levels.0.mixings.0.bias",
        ],
        models__glow__clip=1.0,
    )
    weights = start(plan)
    after = {n: weights[n] + d for n, d in one_round(plan, cohort=cohort(flat)).items()}
    assert _bits(plan, after, flat) < _bits(plan, weights, flat) - 0.5


def _bits(plan: Study, weights: dict[str, np.ndarray], images: np.ndarray) -> float:
    model = train_glow.build(plan)
    train_glow.load_weights(model, weights)
    with torch.no_grad():
        return float(model.bits_per_dimension(model(train_glow.from_uint8(images))).mean())


def test_the_patients_loss_is_nats_per_dimension() -> None:
    model = Glow(32, 3, 2, 1, 8)
    loss = train_glow.loss_of(model, dict(model.named_parameters()))
    value = loss(dict(model.named_parameters()), (torch.zeros(3, 3, 32, 32),))
    assert float(value.detach()) == pytest.approx(0.5 * np.log(2 * np.pi))


def test_a_step_samples_patients_and_never_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One coin for each patient, who holds nine images; whoever is drawn is asked for once."""
    noise, coins, asked = SeededNoiseSource(0), list[list[int]](), list[int]()
    toss, batch = noise.bernoulli, train_glow.Batches.__call__

    def bernoulli(q: float, n: int) -> NDArray[np.bool_]:
        drawn = toss(q, n)
        coins.append(np.flatnonzero(drawn).tolist())
        assert n == PATIENTS
        return drawn

    def call(self: train_glow.Batches, patients: Sequence[int]) -> tuple[Tensor, ...]:
        asked.extend(patients)
        return batch(self, patients)

    monkeypatch.setattr(noise, "bernoulli", bernoulli)
    monkeypatch.setattr(train_glow.Batches, "__call__", call)
    plan = study(models__glow__local_steps=3, models__glow__patients_per_step=50)
    one_round(plan, cohort=cohort(images_each=9), noise=noise)
    assert len(coins) == 3
    assert asked == [patient for drawn in coins for patient in drawn]
    assert 0 < len(asked) < 3 * PATIENTS


def test_items_are_the_patients_own_dequantised_and_noised() -> None:
    plan = study(models__glow__items_per_patient=3, models__glow__input_noise=0.0)
    pixels = np.repeat(np.arange(PATIENTS, dtype=np.uint8) * 20, 2)[:, None, None, None] + np.zeros(
        (1, 32, 32, 3), np.uint8
    )
    batches = train_glow.Batches(cohort(pixels), train_glow.plan_of(plan), Streams(0))
    (items,) = batches([4, 7])
    assert items.shape == (2, 3, 3, 32, 32)
    levels = torch.floor((items + 0.5) * 256)
    assert set(levels[0].unique().tolist()) == {80.0}
    assert set(levels[1].unique().tolist()) == {140.0}
    noisy = study(models__glow__input_noise=0.1)
    (items,) = train_glow.Batches(cohort(pixels), train_glow.plan_of(noisy), Streams(0))([0])
    assert float(items.std()) == pytest.approx(0.1, rel=0.1)


def test_zeroing_one_patient_changes_no_other_patients_tensors() -> None:
    plan = train_glow.plan_of(study())
    changed = cohort()
    changed.images[6:8] = 0

    def batch(of: Cohort) -> Tensor:
        return train_glow.Batches(of, plan, Streams(0))([2, 3, 4])[0]

    before, after = batch(cohort()), batch(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_progress_counts_the_steps() -> None:
    plan, seen = study(), []
    train_glow.train(
        cohort(),
        plan,
        start(plan),
        PracticeReservation(round_event(plan, "glow", 10**6)),
        SeededNoiseSource(0),
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_refusals() -> None:
    plan = study()
    with pytest.raises(ConfigurationError, match="fits no weight that trains privately"):
        one_round(study(models__glow__trainable=["glow.nothing"]))
    with pytest.raises(RefusedError):
        one_round(plan, weights={})
    with pytest.raises(PolicyError):
        one_round(plan, noise=NoiseSource())
    with pytest.raises(ConfigurationError, match=r"models\.glow"):
        train_glow.plan_of(small_study(models__glow=None, synthesis__privatize=None))


def test_a_reversible_flow_is_refused_for_its_gradient_is_rounded() -> None:
    plan = study()
    model = train_glow.build(plan)
    model.reversible = True
    with pytest.raises(ConfigurationError, match="reversible"):
        train_glow.loss_of(
            model, train_glow.trainable(model, "glow.", plan.models.glow.trainable, "glow", "")
        )


def test_adam_is_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(5), torch.zeros(5)
    first, second = torch.zeros(5), torch.zeros(5)
    adam = Adam({"w": ours}, 0.1)
    for step in range(1, 6):
        gradient = torch.randn(5, generator=generator)
        adam.step({"w": gradient})
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        theirs = theirs - 0.1 * (first / (1 - 0.9**step)) / (
            (second / (1 - 0.99**step)).sqrt() + 1e-8
        )
    assert torch.allclose(ours, theirs, atol=1e-6)
