"""Trains the image + mask WGAN on one site for one round: private steps for the critic, post-processing for the generator.

In: the cohort of pairs, the signed plan, the round's global weights, the ledger's reservation, the noise source.
Out: float32 deltas under the same names and shapes, `generator.*`, `average.*` and `critic.*`, of joint L2 norm at most the
plan's `max_update_norm`.
Guaranteed
1. Only `PrivateStep` reads the cohort's pairs, through `Batches`: the drawn patients are fresh at each critic step, and each
   brings as many fakes as the plan says, inside its own clipped unit (the seed used one batch for five steps).
2. Only critic weights under the plan's `trainable` prefixes take private gradients; the others have delta 0. Weight clipping
   comes after the step: post-processing.
3. Generator and average learn from the private critic alone: `generator_step` has no argument that knows a patient, and its
   latents come from a stream of their own, which does not advance with the number of patients drawn.
4. How many critic steps a generator step takes is decided by the critic's accuracy on fakes alone.
Not: sampling, clipping, noise and their accounting (private_step.py), aggregation and the average over sites (server).
Optimiser state and the ladder's place stay here and end with the round.

Losses: common/models/wgan.py; Kossen et al. 2022; the ladder: Bie, Kamath and Zhang 2023 (adaptive critic steps).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from client.ingest.cohort import Cohort
from client.learn.private_step import (
    Parameters,
    PatientLoss,
    PrivateStep,
    StepConstants,
    check_model,
)
from client.learn.train_gan import stream, within
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.moving_average import update_average
from common.models.rmsprop import RMSprop
from common.models.wgan import PLANES, Critic, Generator, load, parameters_by_name
from common.models.wgan_losses import critic_loss, generator_loss, gradient_penalty
from common.models.wgan_pairs import to_unit
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.plan import Study
from common.study.training import WganPlan

GENERATOR_BATCH = 32
BETAS = (0.0, 0.999)
LADDER = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# accuracy on fakes, in generator steps
LADDER_DECAY = 0.99
LADDER_BELOW = 0.65
LADDER_PATIENCE = 200


def train(
    cohort: Cohort,
    study: Study,
    weights: Weights,
    reservation: Reservation | PracticeReservation,
    noise: Noise,
    progress: Callable[[int, int], None],
    canaries: Canaries | None = None,
) -> Deltas:
    """The deltas of one round, float32 `generator.*`, `average.*` and `critic.*`.

    `weights` are the round's global weights; `reservation` covers the plan's `local_steps`; `progress(done, total)` is called
    after each step; `canaries` take part and are tallied. Raises ConfigurationError for a plan without a WGAN or with a
    prefix that fits no critic weight, RefusedError for weights that do not fit the plan, PolicyError when the reservation
    does not cover it.
    """
    plan = plan_of(study)
    size_px = study.intake.size_px

    # The networks, as they came.
    generator, average, critic = load(weights, plan, size_px)
    check_model(critic, (PLANES, size_px, size_px))
    before = {
        name: value.detach().clone() for name, value in parameters_by_name(generator, average, critic).items()
    }
    trained = trainable(critic, plan)

    # The private step for the critic; two streams of latents that are no privacy noise.
    constants = StepConstants(
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=study.sampling_rate(plan),
        divisor=plan.patients_per_step,
        items_per_patient=plan.items_per_patient,
    )
    private = PrivateStep(
        trained,
        loss_of(critic, trained, plan.loss),
        constants,
        reservation,
        noise,
        canaries=canaries,
    )
    batches = Batches(cohort, generator, plan, stream(noise))
    latents = stream(noise)

    # The plan's optimiser on what the private step returns, and on the generator's own gradients.
    critic_optimizer = optimizer(trained, plan.learning_rate, plan)
    generator_optimizer = optimizer(
        dict(generator.named_parameters()), plan.generator_learning_rate, plan
    )
    ladder = Ladder(plan)

    # Critic steps; after as many as the ladder says, one step of the generator against the critic as it is now.
    since = 0
    for step in range(plan.local_steps):
        critic_optimizer.step(private.step(cohort.patient_count, batches))
        clip_weights(trained, plan)
        since += 1
        if since >= ladder.critic_steps:
            gradients, accuracy = generator_step(generator, critic, plan, latents)
            generator_optimizer.step(gradients)
            update_average(average, generator, plan.average_decay)
            ladder.saw(accuracy)
            since = 0
        progress(step + 1, plan.local_steps)

    # What is sent: the change, within its public bound.
    after = parameters_by_name(generator, average, critic)
    return within({name: value.detach() - before[name] for name, value in after.items()}, plan)


def plan_of(study: Study) -> WganPlan:
    """The plan's WGAN. Raises ConfigurationError without one."""
    if study.models.wgan is None:
        raise ConfigurationError(
            "train_wgan: the plan has no models.wgan", hint="add it, or do not train this model"
        )
    return study.models.wgan


def trainable(critic: Critic, plan: WganPlan) -> Parameters:
    """The critic's tensors that DP trains, by name inside the critic: those under one of `plan.trainable`, () = all.

    Raises ConfigurationError for a prefix that fits no critic weight: the generator is never trained privately.
    """
    parameters = dict(critic.named_parameters())
    idle = [
        prefix
        for prefix in plan.trainable
        if not any(f"critic.{name}".startswith(prefix) for name in parameters)
    ]
    if idle:
        raise ConfigurationError(
            f"models.wgan.trainable: {idle[0]!r} fits no critic weight",
            hint="prefixes are global names such as critic.layers.9. or critic.layers.",
        )
    chosen = plan.trainable or ("critic.",)
    return {name: p for name, p in parameters.items() if f"critic.{name}".startswith(chosen)}


def loss_of(critic: Critic, trained: Parameters, kind: str) -> PatientLoss:
    """The critic's loss of one patient, (items [m, 2, S, S], fakes [m·K, 2, S, S], mix [m·K]) → scalar, of `trained`."""
    frozen = {
        name: value.detach() for name, value in critic.named_parameters() if name not in trained
    }

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        items, fakes, mix = patient

        def score(pairs: Tensor) -> Tensor:
            scores: Tensor = functional_call(critic, {**frozen, **parameters}, (pairs,))
            return scores

        scores = score(torch.cat([items, fakes]))
        found = critic_loss(scores[: len(items)], scores[len(items) :], kind)
        if kind == "wgan-gp":
            found = found + gradient_penalty(
                score, items.repeat(len(fakes) // len(items), 1, 1, 1), fakes, mix
            )
        return found

    return loss


def generator_step(
    generator: Generator, critic: Critic, plan: WganPlan, latents: torch.Generator
) -> tuple[Parameters, float]:
    """The generator's gradient by name against the critic as it is, on fresh samples, and the share of these that the critic
    scores below 0. Sees no patient's data."""
    fakes = generator(torch.randn(GENERATOR_BATCH, generator.latent, generator=latents))
    scores = critic(fakes + plan.input_noise * torch.randn(fakes.shape, generator=latents))
    parameters = dict(generator.named_parameters())
    gradients = torch.autograd.grad(generator_loss(scores, plan.loss), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True)), float((scores < 0).float().mean())


@torch.no_grad()
def clip_weights(trained: Parameters, plan: WganPlan) -> None:
    """Clamp the trained critic weights to the plan's bound, if it has one (Arjovsky et al. 2017)."""
    if plan.weight_clip is not None:
        for value in trained.values():
            value.clamp_(-plan.weight_clip, plan.weight_clip)


def optimizer(parameters: Parameters, rate: float, plan: WganPlan) -> Adam | RMSprop:
    """The plan's optimiser on these tensors."""
    return (
        RMSprop(parameters, rate) if plan.optimizer == "rmsprop" else Adam(parameters, rate, BETAS)
    )


class Ladder:
    """Critic steps a generator step. Starts at the plan's; where `adaptive` and the loss has a threshold (hinge, logistic), goes
    one rung up when the critic's mean accuracy on fakes stays below 0.65, at most once in 200 generator steps.
    """

    def __init__(self, plan: WganPlan) -> None:
        self.critic_steps = plan.critic_steps
        self._climbs = plan.adaptive and plan.loss in ("hinge", "logistic")
        self._accuracy = 1.0
        self._since = 0

    def saw(self, accuracy: float) -> None:
        """Take note of one generator step's accuracy on fakes (0 to 1)."""
        self._accuracy = LADDER_DECAY * self._accuracy + (1 - LADDER_DECAY) * accuracy
        self._since += 1
        if self._climbs and self._since >= LADDER_PATIENCE and self._accuracy < LADDER_BELOW:
            self.critic_steps = next(
                (rung for rung in LADDER if rung > self.critic_steps), self.critic_steps
            )
            self._since = 0


class Batches:
    """Each drawn patient's items and the fakes that go with them."""

    def __init__(
        self, cohort: Cohort, generator: Generator, plan: WganPlan, draw: torch.Generator
    ) -> None:
        self._cohort = cohort
        self._generator = generator
        self._plan = plan
        self._draw = draw

    @torch.no_grad()
    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """(items [P, m, 2, S, S], fakes [P, m·K, 2, S, S], mix [P, m·K] in [0, 1)) for P patient indices."""
        each = self._plan.items_per_patient * self._plan.fakes_per_item
        items = torch.stack([self._items(patient) for patient in patients])
        fakes = torch.stack([self._fakes(each) for _ in patients])
        return (
            self._noised(items),
            self._noised(fakes),
            torch.rand(len(patients), each, generator=self._draw),
        )

    def _fakes(self, count: int) -> Tensor:
        """Samples for one patient, in a batch of their own: a neighbour must not move them even by rounding."""
        return self._generator(torch.randn(count, self._generator.latent, generator=self._draw))  # type: ignore[no-any-return]

    def _noised(self, pairs: Tensor) -> Tensor:
        """The pairs with the plan's noise on them."""
        return pairs + self._plan.input_noise * torch.randn(pairs.shape, generator=self._draw)

    def _items(self, patient: int) -> Tensor:
        """m pairs of one patient, without repetition as far as there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._draw).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        return to_unit(np.asarray(self._cohort.images[chosen]))
