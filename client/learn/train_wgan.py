"""Trains the image + mask WGAN on one site for one round.

In: the cohort of pairs, the signed plan, the round's global weights, the ledger's reservation, the
noise source.
Out: float32 deltas `generator.*`, `average.*` and `critic.*`, of joint L2 norm at most the plan's
`max_update_norm`.
Guarantees:
  1. only `PrivateStep` reads the cohort's pairs, through `Batches`; patients are drawn anew at each
     critic step, and each brings as many fakes as the plan says, inside its own clipped unit
  2. only critic weights under the plan's `trainable` prefixes take private gradients; the other
     critic weights have delta 0; weight clipping comes after the step, as post-processing
  3. generator and average learn from the private critic alone: `generator_step` has no argument
     that knows a patient, and its latents come from a stream of their own, which does not advance
     with the patients drawn. What it learns from are the critic's scores where private gradients
     change its layers, and of `mask-first` the look of real pairs where they change that
  4. the critic's accuracy on fakes alone decides how many critic steps a generator step takes
Not covered: sampling, clipping, noise and accounting (private_step.py); aggregation (server).
Optimiser state and the ladder's place stay here and end with the round.

Losses: common/models/wgan_losses.py, Kossen et al. 2022. Adaptive critic steps: Bie, Kamath and
Zhang 2023.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from client.ingest.cohort import Cohort
from client.learn.machine import DeviceImages, Machine
from client.learn.model_check import check_model
from client.learn.patient_gradients import Parameters, PatientLoss
from client.learn.private_step import PrivateStep, StepConstants
from client.learn.round_parts import Streams, stream, trainable, within
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.moving_average import update_average
from common.models.pair_look import look_of, pulls
from common.models.rmsprop import RMSprop
from common.models.sizes import LOOK
from common.models.wgan import PLANES, Critic, Generator, load, parameters_by_name
from common.models.wgan_losses import critic_loss, generator_loss, gradient_penalty
from common.models.wgan_pairs import to_unit
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.plan import Study
from common.study.training import RMSPROP_DECAY, WganPlan

GENERATOR_BATCH = 32
LADDER = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # critic steps a generator step
LADDER_DECAY = 0.99  # of the running mean of the accuracy on fakes
LADDER_BELOW = 0.65  # of that mean
LADDER_PATIENCE = 200  # generator steps


def train(
    cohort: Cohort,
    study: Study,
    weights: Weights,
    reservation: Reservation | PracticeReservation,
    noise: Noise,
    progress: Callable[[int, int], None],
    canaries: Canaries | None = None,
    machine: Machine | None = None,
) -> Deltas:
    """Return the deltas of one round, float32 `generator.*`, `average.*` and `critic.*`.

    `weights`: the round's global weights. `reservation` covers the plan's `local_steps`.
    `progress(done, total)` is called after each step. `canaries` take part and are tallied.
    `machine`: where it computes; by default one process on the CPU.
    Raises ConfigurationError for a plan without a WGAN or with a prefix that fits no critic weight,
    RefusedError for weights that do not fit the plan, PolicyError when the reservation does not
    cover it.
    """
    plan = plan_of(study)
    size_px = study.intake.size_px
    machine = machine or Machine()

    # load the networks of the round
    generator, average, critic = load(weights, plan, size_px)
    for network in (generator, average, critic):
        network.to(machine.device)
    generator.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    check_model(critic, (PLANES, size_px, size_px))
    start = parameters_by_name(generator, average, critic)
    before = {name: value.detach().clone() for name, value in start.items()}
    trained = trainable(
        critic, "critic.", plan.trainable, "wgan", "critic.layers.9. or critic.layers."
    )

    # the private step for the critic, and two streams of latents that are no privacy noise
    constants = StepConstants(
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=study.sampling_rate(plan),
        divisor=plan.patients_per_step,
        items_per_patient=plan.items_per_patient,
    )
    private = PrivateStep(
        trained,
        loss_of(critic, trained, plan),
        constants,
        reservation,
        noise,
        canaries=canaries,
        execution=machine.execution,
        workers=machine.workers,
    )
    streams = Streams.fresh(noise, machine)
    batches = Batches(cohort, generator, plan, streams)
    latents = stream(noise, machine)

    # the plan's optimiser on what the private step returns, and on the generator's own gradients
    critic_optimizer = optimizer(trained, plan.learning_rate, plan)
    generator_optimizer = optimizer(moved_of(generator, plan), plan.generator_learning_rate, plan)
    ladder = Ladder(plan)

    # critic steps; after each `ladder.critic_steps` of them, one step of the generator
    since = 0
    for step in range(plan.local_steps):
        streams.step = step
        critic_optimizer.step(private.step(cohort.patient_count, batches))
        clip_weights(trained, plan)
        since += 1
        if since >= ladder.critic_steps:
            gradients, accuracy = generator_step(generator, critic, plan, latents)
            generator_optimizer.step(machine.workers.all_from_first(gradients))
            update_average(average, generator, plan.average_decay)
            ladder.observe(machine.workers.number_from_first(accuracy))
            since = 0
        progress(step + 1, plan.local_steps)

    # what is sent: the change, within its public bound
    after = parameters_by_name(generator, average, critic)
    deltas = {name: value.detach() - before[name] for name, value in after.items()}
    return within(deltas, plan.max_update_norm)


def plan_of(study: Study) -> WganPlan:
    """Return the plan's WGAN; raises ConfigurationError without one."""
    if study.models.wgan is None:
        raise ConfigurationError(
            "train_wgan: the plan has no models.wgan", hint="add it, or do not train this model"
        )
    return study.models.wgan


def loss_of(critic: Critic, trained: Parameters, plan: WganPlan) -> PatientLoss:
    """Return the critic's loss of one patient as a function of the `trained` tensors.

    It maps (items [m, 2, S, S], fakes [m·K, 2, S, S], mix [m·K], look [6]) to a scalar. Where the
    look alone is trained, it is (critic's look - patient's look)^2/2, whose minimum is the mean.
    """
    # weights outside `trained` are constants
    everything = {name: value.detach() for name, value in critic.named_parameters()}

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        items, fakes, mix, look = patient

        def score(pairs: Tensor) -> Tensor:
            scores: Tensor = functional_call(critic, {**everything, **parameters}, (pairs,))
            return scores

        found = look.new_zeros(())
        if plan.learns_look:
            found = (parameters[LOOK] - look).square().sum() / 2
        if not plan.learns_scores:
            return found

        # items and fakes in one pass, as one batch of this patient
        scores = score(torch.cat([items, fakes]))
        found = found + critic_loss(scores[: len(items)], scores[len(items) :], plan.loss)
        # each fake meets one item in the gradient penalty
        if plan.loss == "wgan-gp":
            repeated = items.repeat(len(fakes) // len(items), 1, 1, 1)
            found = found + gradient_penalty(score, repeated, fakes, mix)
        return found

    return loss


def moved_of(generator: Generator, plan: WganPlan) -> Parameters:
    """Return by name the generator's parameters that a plan's `generator_step` moves."""
    found: Parameters = {}
    if plan.learns_scores:
        found |= generator.scored()
    if plan.learns_look:
        by_share, by_rest = generator.looking()
        found |= by_share | by_rest
    return found


def generator_step(
    generator: Generator, critic: Critic, plan: WganPlan, latents: torch.Generator
) -> tuple[Parameters, float]:
    """Return the gradients by name of what it moves, and the critic's accuracy on its samples.

    The accuracy is the share of samples scored below 0; 1 where scores are not asked for. No
    argument holds a patient's data.
    """
    device = latents.device
    z = torch.randn(GENERATOR_BATCH, generator.latent, generator=latents, device=device)
    fakes = generator(z)
    gradients = {name: torch.zeros_like(p) for name, p in moved_of(generator, plan).items()}
    accuracy = 1.0
    if plan.learns_scores:
        noise = torch.randn(fakes.shape, generator=latents, device=device)
        scores = critic(fakes + plan.input_noise * noise)
        _add_gradients(generator_loss(scores, plan.loss), generator.scored(), gradients)
        accuracy = float((scores < 0).float().mean())
    if plan.learns_look:
        by_share, by_rest = generator.looking()
        share, *rest = pulls(fakes, critic.look)
        _add_gradients(share, by_share, gradients)
        _add_gradients(torch.stack(rest).sum(), by_rest, gradients)
    return gradients, accuracy


def _add_gradients(loss: Tensor, parameters: Parameters, gradients: Parameters) -> None:
    """Add the gradients of a loss to those of the same names."""
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
    for name, gradient in zip(parameters, found, strict=True):
        gradients[name] += gradient


@torch.no_grad()
def clip_weights(trained: Parameters, plan: WganPlan) -> None:
    """Clamp the trained weights of the critic's layers to the plan's bound, if it has one.

    (Arjovsky, Chintala and Bottou 2017)
    """
    if plan.weight_clip is not None:
        for name, value in trained.items():
            if name != LOOK:
                value.clamp_(-plan.weight_clip, plan.weight_clip)


def optimizer(parameters: Parameters, rate: float, plan: WganPlan) -> Adam | RMSprop:
    """Return the plan's optimiser on these tensors."""
    if plan.optimizer == "rmsprop":
        return RMSprop(parameters, rate, RMSPROP_DECAY)
    return Adam(parameters, rate, plan.betas)


class Ladder:
    """How many critic steps a generator step takes.

    It starts at the plan's number. With an `adaptive` plan and a loss with a threshold (hinge,
    logistic), it goes up to the next number of LADDER while the critic's mean accuracy on fakes is
    below 0.65, at most once in 200 generator steps.
    """

    def __init__(self, plan: WganPlan) -> None:
        self.critic_steps = plan.critic_steps
        self._climbs = plan.adaptive and plan.loss in ("hinge", "logistic")
        self._accuracy = 1.0
        self._since = 0

    def observe(self, accuracy: float) -> None:
        """Take one generator step's accuracy on fakes (0 to 1) into the running mean."""
        self._accuracy = LADDER_DECAY * self._accuracy + (1 - LADDER_DECAY) * accuracy
        self._since += 1
        if self._climbs and self._since >= LADDER_PATIENCE and self._accuracy < LADDER_BELOW:
            self._climb()
            self._since = 0

    def _climb(self) -> None:
        """Go to the next larger number of LADDER, if there is one."""
        for critic_steps in LADDER:
            if critic_steps > self.critic_steps:
                self.critic_steps = critic_steps
                return


class Batches:
    """Each drawn patient's items and the fakes that go with them."""

    def __init__(
        self, cohort: Cohort, generator: Generator, plan: WganPlan, streams: Streams
    ) -> None:
        self._cohort = cohort
        self._images = DeviceImages(cohort.images, streams.machine)
        self._generator = generator
        self._plan = plan
        self._streams = streams

    @torch.no_grad()
    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """Return (items [P, m, 2, S, S], fakes [P, m·K, 2, S, S], mix [P, m·K], look [P, 6]).

        P are the patients. `mix`, in [0, 1), places the gradient penalty between items and fakes.
        `look` is the mean of a patient's items, before noise is added to them.
        """
        groups = [self._group(group) for group in self._streams.groups(patients)]
        items, fakes, mix, look = (torch.cat(parts) for parts in zip(*groups, strict=True))
        return items, fakes, mix, look

    def _group(self, patients: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Items, fakes, mix and look of the patients that share a pass of the generator."""
        draw = self._streams.numbers(patients)
        each = self._plan.items_per_patient * self._plan.fakes_per_item
        items = torch.stack([self._items(patient) for patient in patients])
        z = torch.randn(
            len(patients) * each, self._generator.latent, generator=draw, device=draw.device
        )
        fakes = self._generator(z).contiguous()
        fakes = fakes.view(len(patients), each, *fakes.shape[1:])
        look = look_of(items).mean(1)
        items = self._add_noise(items, draw)
        fakes = self._add_noise(fakes, draw)
        mix = torch.rand(len(patients), each, generator=draw, device=draw.device)
        return items, fakes, mix, look

    def _add_noise(self, pairs: Tensor, draw: torch.Generator) -> Tensor:
        """Add the plan's input noise to the pairs."""
        noise = torch.randn(pairs.shape, generator=draw, device=draw.device)
        return pairs + self._plan.input_noise * noise

    def _items(self, patient: int) -> Tensor:
        """m pairs of one patient; none is repeated where there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._streams.items(patient)).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        return to_unit(self._images.rows(chosen))
