"""One round of the GAN's training.

What is learned, what is left alone, what the generator may see, what is sent.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.ingest.cohort import Cohort
from client.learn import train_gan
from client.learn.private_step import PrivateStep
from client.learn.round_parts import Streams
from client.state.ledger import PracticeReservation
from common.errors import Bug, ConfigurationError, PolicyError, RefusedError
from common.models.weights import numpy_weights
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.plan import Study
from tests.studies import small_study

torch.set_num_threads(1)
PATIENTS = 12


def study(**changes: object) -> Study:
    """The small plan with the smallest networks."""
    return small_study(**{"models__gan__width": 8, "models__gan__max_update_norm": 1e4, **changes})


def cohort(seed: int = 0, images_each: int = 2) -> Cohort:
    """Random pixels of twelve patients."""
    n = PATIENTS * images_each
    names = tuple(f"{p:064x}" for p in range(PATIENTS))
    return Cohort(
        folder=Path("unused"),
        images=np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
        patient_of=np.repeat(np.arange(PATIENTS), images_each),
        labels=np.zeros(n, np.int64),
        laterality=np.zeros(n, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("none",),
        digest="0" * 64,
    )


def start(plan: Study) -> dict[str, np.ndarray]:
    """Starting weights, the same at every call."""
    torch.manual_seed(0)
    generator, critic = train_gan.build(plan)
    return numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")


def one_round(
    plan: Study, seed: int = 0, images: int = 0, weights: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The deltas of one round with repeatable noise."""
    reservation = PracticeReservation(round_event(plan, "gan", 10**6))
    given = start(plan) if weights is None else weights
    noise = SeededNoiseSource(seed)
    return train_gan.train(
        cohort(images), plan, given, reservation, noise, lambda done, total: None
    )


def moved(deltas: dict[str, np.ndarray]) -> set[str]:
    """The names whose delta is not zero."""
    return {name for name, delta in deltas.items() if np.abs(delta).max() > 0}


def norm(deltas: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in deltas.values())))


def test_a_round_returns_float32_deltas_for_every_weight() -> None:
    plan = study()
    deltas, weights = one_round(plan), start(plan)
    assert {n: (d.dtype, d.shape) for n, d in deltas.items()} == {
        n: (np.dtype("f4"), w.shape) for n, w in weights.items()
    }
    assert all(np.isfinite(d).all() for d in deltas.values())
    assert {name for name in deltas if name.startswith("critic.")} <= moved(deltas)
    assert any(name.startswith("generator.mapping.") for name in moved(deltas))


def test_the_same_seed_gives_the_same_deltas_and_another_seed_others() -> None:
    plan = study()
    one, two, three = one_round(plan), one_round(plan), one_round(plan, seed=1)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], three[name]) for name in one)


def test_only_trainable_critic_weights_take_private_gradients() -> None:
    deltas = one_round(study(models__gan__trainable=["critic.score", "critic.blocks.2."]))
    critics = {name for name in moved(deltas) if name.startswith("critic.")}
    assert critics == {
        name for name in deltas if name.startswith(("critic.score", "critic.blocks.2."))
    }


@pytest.mark.parametrize("prefix", ["generator.", "critic.nothing"])
def test_a_prefix_that_fits_no_critic_weight_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="fits no weight that trains privately"):
        one_round(study(models__gan__trainable=[prefix]))


def test_the_update_stays_within_its_public_norm() -> None:
    assert 0 < norm(one_round(study(models__gan__max_update_norm=0.001))) <= 0.001
    assert norm(one_round(study())) > 0.001


def test_the_generator_depends_on_the_cohort_only_through_the_private_critic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same private gradients give bitwise the same generator, whoever was drawn."""

    def fixed(many: int) -> object:
        def step(self: PrivateStep, patient_count: int, batch_for: object) -> dict[str, Tensor]:
            for patient in range(many):
                batch_for([patient])  # type: ignore[operator]
            return {name: torch.full_like(p, 0.01) for name, p in self._parameters.items()}

        return step

    plan, generators = study(), []
    for many, images in ((1, 0), (7, 1)):
        monkeypatch.setattr(PrivateStep, "step", fixed(many))
        deltas = one_round(plan, images=images)
        generators.append({name: d for name, d in deltas.items() if name.startswith("generator.")})
    assert moved(generators[0])
    assert all(np.array_equal(generators[0][name], generators[1][name]) for name in generators[0])


def test_the_generator_step_takes_no_argument_that_knows_a_patient() -> None:
    parameters = inspect.signature(train_gan.generator_step).parameters
    assert list(parameters) == ["generator", "critic", "kind", "latents"]


def test_the_generator_steps_once_after_every_critic_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = train_gan.generator_step
    monkeypatch.setattr(
        train_gan, "generator_step", lambda *given: seen.append(1) or original(*given)
    )
    one_round(study(models__gan__local_steps=5, models__gan__critic_steps=2))
    assert len(seen) == 2


def test_a_step_samples_patients_and_never_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """One coin for each patient, who holds nine images; whoever is drawn is asked for once."""
    noise, coins, asked = SeededNoiseSource(0), list[list[int]](), list[int]()
    toss, batch = noise.bernoulli, train_gan.Batches.__call__

    def bernoulli(q: float, n: int) -> NDArray[np.bool_]:
        drawn = toss(q, n)
        coins.append(np.flatnonzero(drawn).tolist())
        assert n == PATIENTS
        return drawn

    def call(self: train_gan.Batches, patients: Sequence[int]) -> tuple[Tensor, ...]:
        asked.extend(patients)
        return batch(self, patients)

    monkeypatch.setattr(noise, "bernoulli", bernoulli)
    monkeypatch.setattr(train_gan.Batches, "__call__", call)
    plan = study(models__gan__local_steps=3, models__gan__patients_per_step=50)
    train_gan.train(
        cohort(images_each=9),
        plan,
        start(plan),
        PracticeReservation(round_event(plan, "gan", 10**6)),
        noise,
        lambda done, total: None,
    )
    assert len(coins) == 3
    assert asked == [patient for drawn in coins for patient in drawn]
    assert 0 < len(asked) < 3 * PATIENTS


def test_each_drawn_patient_brings_its_items_and_as_many_fakes_as_the_plan_says() -> None:
    plan = study(models__gan__items_per_patient=2, models__gan__fakes_per_item=3).models.gan
    assert plan is not None
    generator, _ = train_gan.build(study())
    items, fakes = train_gan.Batches(cohort(), generator, plan, Streams(0))([3, 5])
    assert items.shape == (2, 2, 3, 32, 32)
    assert fakes.shape == (2, 6, 3, 32, 32)
    own = {x.tobytes() for x in cohort().images[6:8]}
    shown = {
        np.asarray((i + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0).tobytes()
        for i in items[0]
    }
    assert shown == own


def test_zeroing_one_patient_changes_no_other_patients_tensors() -> None:
    plan = study().models.gan
    assert plan is not None
    generator, _ = train_gan.build(study())
    changed = cohort()
    changed.images[6:8] = 0

    def batch(of: Cohort, patients: Sequence[int]) -> Tensor:
        return train_gan.Batches(of, generator, plan, Streams(0))(patients)[0]

    before, after = batch(cohort(), [2, 3, 4]), batch(changed, [2, 3, 4])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_the_critics_loss_falls_when_photographs_score_higher_and_fakes_lower(kind: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(8, requires_grad=True)
    up, down = torch.autograd.grad(train_gan.pair_loss(real, fake, kind), (real, fake))
    assert bool((up < 0).all()) and bool((down > 0).all())


@pytest.mark.parametrize(("real", "fake"), [(3, 4), (2, 1), (0, 2), (2, 0)])
def test_pair_loss_refuses_unequal_counts(real: int, fake: int) -> None:
    with pytest.raises(Bug, match="cannot be paired"):
        train_gan.pair_loss(torch.zeros(real), torch.zeros(fake), "hinge")


def test_a_plan_without_a_gan_or_with_other_weights_is_refused() -> None:
    models = study().models.model_copy(update={"gan": None})
    without = study().model_copy(update={"models": models})
    with pytest.raises(ConfigurationError, match=r"no models\.gan"):
        train_gan.plan_of(without)
    with pytest.raises(RefusedError, match="does not fit"):
        one_round(study(), weights=start(study(models__gan__width=16)))


def test_a_reservation_that_is_too_short_stops_the_round() -> None:
    plan = study()
    reservation = PracticeReservation(round_event(plan, "gan", 10**6))
    reservation.take()
    with pytest.raises(PolicyError):
        train_gan.train(
            cohort(), plan, start(plan), reservation, SeededNoiseSource(0), lambda done, total: None
        )
