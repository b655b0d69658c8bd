"""Privacy claims of the WGAN's training as theorems (docs/methods/dp-wgan.md)."""

import dataclasses
import inspect
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.learn import train_wgan
from client.learn.private_step import Execution, PrivateStep, StepConstants
from client.learn.round_parts import Streams
from client.state.ledger import PracticeReservation
from common.models.sizes import LOOK_NUMBERS
from common.models.wgan import Critic, Generator, build
from common.privacy.events import round_event
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, SeededNoiseSource
from common.study.training import WganPlan
from tests.wgan_rounds import PATIENTS, Arrays, cohort, moved, one_round, plan_of, start, study

torch.set_num_threads(1)
EVERYONE = 100  # of 100 planned patients: q = 1


@dataclasses.dataclass
class Asked:
    """What the noise source was asked for, and what it gave."""

    rates: list[float] = dataclasses.field(default_factory=list)
    coins: list[list[int]] = dataclasses.field(default_factory=list)
    gaussians: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    noise: list[NDArray[np.int64]] = dataclasses.field(default_factory=list)


def recorded(drawn: Sequence[int] | None = None, scale: int = 1) -> tuple[SeededNoiseSource, Asked]:
    """Repeatable noise that remembers; `drawn` fixes who is drawn, `scale` multiplies the noise."""
    source, asked = SeededNoiseSource(0), Asked()
    coins, gaussian = source.bernoulli, source.gaussian_lattice

    def bernoulli(q: float, n: int) -> NDArray[np.bool_]:
        found = coins(q, n) if drawn is None else np.isin(np.arange(n), drawn)
        asked.rates.append(q)
        asked.coins.append(np.flatnonzero(found).tolist())
        return found

    def lattice(n: int, sigma: float) -> NDArray[np.int64]:
        asked.gaussians.append((n, sigma))
        asked.noise.append(scale * gaussian(n, sigma))
        return asked.noise[-1]

    source.bernoulli = bernoulli  # type: ignore[method-assign]
    source.gaussian_lattice = lattice  # type: ignore[method-assign]
    return source, asked


@dataclasses.dataclass
class Watched:
    """What each private step asked of `Batches`."""

    patients: list[list[int]]
    items: list[bytes]
    fakes: list[bytes]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """One entry per private step of the rounds that follow."""
    steps: list[Watched] = []
    whole, batch = PrivateStep.step, train_wgan.Batches.__call__

    def step(self: PrivateStep, patient_count: int, batch_for: object) -> dict[str, Tensor]:
        steps.append(Watched([], [], []))
        return whole(self, patient_count, batch_for)  # type: ignore[arg-type]

    def call(self: train_wgan.Batches, patients: Sequence[int]) -> tuple[Tensor, ...]:
        found = batch(self, patients)
        steps[-1].patients.append(list(patients))
        steps[-1].items += [t.numpy().tobytes() for t in found[0]]
        steps[-1].fakes += [t.numpy().tobytes() for t in found[1]]
        return found

    monkeypatch.setattr(PrivateStep, "step", step)
    monkeypatch.setattr(train_wgan.Batches, "__call__", call)
    return steps


# --- 1: the critic's batches ----------------------------------------------------------------------


def test_each_critic_step_draws_its_own_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 5 critic steps: a coin for each patient, and whoever was drawn is asked for once."""
    steps, (noise, asked) = watch(monkeypatch), recorded()
    one_round(study(local_steps=5, critic_steps=5), noise=noise)
    assert len(steps) == len(asked.coins) == 5
    assert [sorted(p for chunk in step.patients for p in chunk) for step in steps] == asked.coins
    assert len({tuple(drawn) for drawn in asked.coins}) > 1
    assert asked.rates == [0.5] * 5


def test_no_items_and_no_fakes_serve_two_critic_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every patient is drawn in every step."""
    steps = watch(monkeypatch)
    one_round(study(local_steps=4, critic_steps=4, patients_per_step=EVERYONE))
    for kind in ("items", "fakes"):
        shown = [one for step in steps for one in getattr(step, kind)]
        assert len(shown) == len(set(shown)) == 4 * PATIENTS, kind


def test_every_step_of_the_round_takes_one_from_the_reservation() -> None:
    plan = study(local_steps=3)
    reservation = PracticeReservation(round_event(plan, "wgan", 10**6))
    train_wgan.train(
        cohort(), plan, start(plan), reservation, SeededNoiseSource(0), lambda done, total: None
    )
    with pytest.raises(Exception, match="reserv"):
        reservation.take()


def test_a_patient_with_one_pair_and_one_with_many_bring_one_unit_each() -> None:
    plan, counts = plan_of(items_per_patient=2), (1, 500)
    generator, _ = build(plan, 32)
    items, fakes, _, _ = train_wgan.Batches(cohort(counts=counts), generator, plan, Streams(0))(
        [0, 1]
    )
    assert items.shape[:2] == fakes.shape[:2] == (2, 2)
    for patient in (0, 1):
        assert 0 < lattice_norm([patient], counts, loud=True) <= LATTICE


LOOK_ALONE: dict[str, object] = {
    "architecture": "mask-first",
    "start": {"file": "start.safetensors", "sha256": "0" * 64},
    "trainable": ["critic.look"],
}


def critic_sum(
    drawn: Sequence[int], counts: Sequence[int], loud: bool, **changes: object
) -> NDArray[np.int64]:
    """The exact lattice sum of one critic step over the drawn patients, without noise.

    `loud`: with gradients far above the clip. `changes` are keys of the WGAN.
    """
    plan = plan_of(items_per_patient=2, loss="logistic", **changes)
    torch.manual_seed(0)
    generator, critic = build(plan, 32)
    if loud:
        for value in critic.parameters():
            value.data.mul_(4)
            if value.shape == (LOOK_NUMBERS,):
                value.data.fill_(100)  # no pair looks so
    trained = train_wgan.trainable(critic, "critic.", plan.trainable, "wgan", "")
    private = PrivateStep(
        trained,
        train_wgan.loss_of(critic, trained, plan),
        StepConstants(
            clip=1.0, noise_multiplier=1.0, sampling_rate=0.5, divisor=1, items_per_patient=2
        ),
        PracticeReservation(SubsampledGaussian(q=0.5, noise_multiplier=1.0, steps=1)),
        recorded(drawn, scale=0)[0],
        execution=Execution("backward"),
    )
    batches = train_wgan.Batches(cohort(counts=counts), generator, plan, Streams(0))
    update = private.step(len(counts), batches)
    flat = torch.cat([value.flatten() for value in update.values()]).double().numpy()
    return np.rint(flat * LATTICE).astype(np.int64)


def lattice_norm(drawn: Sequence[int], counts: Sequence[int], loud: bool) -> float:
    return float(np.linalg.norm(critic_sum(drawn, counts, loud).astype(np.float64)))


def test_one_patient_moves_a_critic_step_by_at_most_the_clip() -> None:
    """Zero-out of the last patient, who has 40 pairs."""
    counts = (3, 3, 40)
    change = critic_sum([0, 1, 2], counts, loud=True) - critic_sum([0, 1], counts, loud=True)
    moved_by = float(np.linalg.norm(change.astype(np.float64)))
    assert (
        0.99 * LATTICE < moved_by <= LATTICE + 2.0
    )  # the fp32 update of sums above 2^24 rounds by at most one


def test_one_patient_moves_the_look_by_at_most_the_clip() -> None:
    counts = (3, 3, 40)
    for loud in (False, True):
        both = critic_sum([0, 1, 2], counts, loud, **LOOK_ALONE)
        change = both - critic_sum([0, 1], counts, loud, **LOOK_ALONE)
        moved_by = float(np.linalg.norm(change.astype(np.float64)))
        assert len(change) == LOOK_NUMBERS and 0.5 * LATTICE < moved_by <= LATTICE + 2.0


def test_a_patients_tensors_depend_on_no_other_patient() -> None:
    plan = plan_of(items_per_patient=2)
    torch.manual_seed(0)
    generator, _ = build(plan, 32)
    changed = cohort()
    changed.images[6:9] = 255  # patient 2

    def batch(images: object) -> tuple[Tensor, ...]:
        return train_wgan.Batches(images, generator, plan, Streams(0))([1, 2, 3])  # type: ignore[arg-type]

    for before, after in zip(batch(cohort()), batch(changed), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
    for place in (0, 3):  # its items and their look
        assert not torch.equal(batch(cohort())[place][1], batch(changed)[place][1])
    assert not torch.equal(batch(cohort())[0][1], batch(changed)[0][1])
    assert torch.equal(batch(cohort())[1], batch(changed)[1])  # fakes know no patient at all


# --- 2: constants, not counts ---------------------------------------------------------------------


def test_adding_patients_changes_neither_rate_nor_divisor_nor_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[object, ...]] = []
    original = PrivateStep.__init__

    def noted(
        self: PrivateStep,
        parameters: dict[str, Tensor],
        loss: object,
        constants: StepConstants,
        *rest: object,
        **more: object,
    ) -> None:
        seen.append((constants,))
        original(self, parameters, loss, constants, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(PrivateStep, "__init__", noted)
    told: list[list[tuple[int, int]]] = [[], []]
    for i, counts in enumerate([(2,), (3,) * 9]):
        noise, asked = recorded()
        deltas = one_round(
            study(),
            of=cohort(counts=counts),
            noise=noise,
            progress=lambda *at, into=told[i]: into.append(at),
        )
        seen[-1] += (asked.rates, asked.gaussians, sorted((n, d.shape) for n, d in deltas.items()))
    assert seen[0] == seen[1] and told[0] == told[1] == [(1, 2), (2, 2)]


def test_an_empty_draw_is_a_critic_step_of_pure_noise() -> None:
    """The critic's change by RMSprop after one step is what the released noise alone makes it."""
    noise, asked = recorded(drawn=())
    plan = study(local_steps=1, optimizer="rmsprop", critic_steps=1)
    deltas = one_round(plan, noise=noise)
    wgan = train_wgan.plan_of(plan)
    flat = np.concatenate([deltas[n].ravel() for n in start(plan) if n.startswith("critic.")])
    gradient = (asked.noise[0] * (wgan.clip / (LATTICE * wgan.patients_per_step)))[: len(flat)]
    expected = -wgan.learning_rate * gradient / (np.sqrt(0.01 * gradient**2) + 1e-8)
    assert np.allclose(flat, expected, rtol=1e-2, atol=1e-7)


def test_under_overwhelming_noise_the_critic_does_not_tell_who_was_drawn() -> None:
    """The same noise, a million times larger.

    One patient or six, whatever their pixels, within the noise's rounding.
    """
    rounds = [
        one_round(study(), of=cohort(seed=images), noise=recorded(drawn, scale=10**6)[0])
        for drawn, images in (((0,), 0), (range(PATIENTS), 1))
    ]
    for name in (n for n in rounds[0] if n.startswith("critic.")):
        assert np.allclose(rounds[0][name], rounds[1][name], atol=1e-5), name


# --- 3: the generator is post-processing ----------------------------------------------------------


def fixed_gradient(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """Private steps that read `many` patients and always release the same gradient."""

    def step(self: PrivateStep, patient_count: int, batch_for: object) -> dict[str, Tensor]:
        for patient in range(many):
            batch_for([patient])  # type: ignore[operator]
        return {name: torch.full_like(p, 0.01) for name, p in self._parameters.items()}

    monkeypatch.setattr(PrivateStep, "step", step)


def test_the_generator_and_the_ladder_depend_on_the_cohort_only_through_the_private_critic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same private gradients give bitwise the same of both, whoever was drawn."""
    heard: list[float] = []
    monkeypatch.setattr(train_wgan.Ladder, "observe", lambda self, accuracy: heard.append(accuracy))
    rounds: list[Arrays] = []
    for many, images in ((0, 0), (1, 0), (6, 1)):
        fixed_gradient(monkeypatch, many)
        rounds.append(one_round(study(local_steps=4), of=cohort(images)))
    assert {"generator.start.weight", "average.start.weight"} <= moved(rounds[0])
    assert all(
        np.array_equal(rounds[0][name], other[name]) for other in rounds[1:] for name in rounds[0]
    )
    assert len(heard) == 6 and heard[:2] == heard[2:4] == heard[4:]


def test_the_generator_step_has_no_argument_that_knows_a_patient() -> None:
    signature = inspect.signature(train_wgan.generator_step)
    assert [(name, p.annotation) for name, p in signature.parameters.items()] == [
        ("generator", Generator),
        ("critic", Critic),
        ("plan", WganPlan),
        ("latents", torch.Generator),
    ]
    assert not (
        signature.parameters.keys() | set(inspect.signature(train_wgan.Ladder.observe).parameters)
    ) & {
        "cohort",
        "items",
    }


def test_the_generator_step_leaves_the_critic_without_a_gradient() -> None:
    plan = plan_of()
    torch.manual_seed(0)
    generator, critic = build(plan, 32)
    before = {name: value.detach().clone() for name, value in critic.named_parameters()}
    gradients, accuracy = train_wgan.generator_step(
        generator, critic, plan, torch.Generator().manual_seed(0)
    )
    assert (
        set(gradients) == {name for name, _ in generator.named_parameters()} and 0 <= accuracy <= 1
    )
    assert all(
        value.grad is None and torch.equal(value, before[name])
        for name, value in critic.named_parameters()
    )


def test_the_ladder_hears_the_share_of_fakes_that_the_critic_scores_below_zero() -> None:
    plan = plan_of()
    generator, critic = build(plan, 32)
    for shift, expected in ((-100.0, 1.0), (100.0, 0.0)):
        critic.layers[-1].bias.data.fill_(shift)
        assert (
            train_wgan.generator_step(generator, critic, plan, torch.Generator().manual_seed(0))[1]
            == expected
        )
