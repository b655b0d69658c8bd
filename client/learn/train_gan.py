"""Trains generator and critic on one site for one round.

In: the cohort, the signed plan, the round's global weights, the ledger's reservation, the noise
source.
Out: float32 deltas `generator.*` and `critic.*`, of joint L2 norm at most the plan's
`max_update_norm`.
Guarantees:
  1. only `PrivateStep` reads the cohort's images, through `Batches`; each drawn patient brings as
     many fakes as the plan says, inside its own clipped unit
  2. only critic weights under the plan's `trainable` prefixes take private gradients; the other
     critic weights have delta 0
  3. the generator learns from the private critic alone, which is post-processing: `generator_step`
     has no argument that knows a patient, and its latents come from a stream of their own, which
     does not advance with the patients drawn
Not covered: sampling, clipping, noise and accounting (private_step.py); aggregation (server).
Optimiser state stays here and ends with the round.

Losses of a photograph x and a fake f:
  hinge     relu(1 − D(x)) + relu(1 + D(f)), generator −D(f)
  logistic  softplus(−D(x)) + softplus(D(f)), generator softplus(−D(f))
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from client.ingest.cohort import Cohort
from client.learn.machine import DeviceImages, Machine
from client.learn.model_check import check_model
from client.learn.patient_gradients import Parameters, PatientLoss
from client.learn.private_step import PrivateStep, StepConstants
from client.learn.round_parts import Streams, stream, trainable, within
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.errors import Bug, ConfigurationError
from common.models.adam import Adam
from common.models.images import to_unit
from common.models.stylegan import Critic, Generator, load_critic, load_generator
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.plan import Study
from common.study.training import GanPlan

GENERATOR_BATCH = 16


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
    """Return the deltas of one round, float32 `generator.*` and `critic.*`.

    `weights`: the round's global weights. `reservation` covers the plan's `local_steps`.
    `progress(done, total)` is called after each step. `canaries` take part and are tallied.
    `machine`: where it computes; by default one process on the CPU.
    Raises ConfigurationError for a plan without a GAN or with a prefix that fits no critic weight,
    RefusedError for weights that do not fit the plan, PolicyError when the reservation does not
    cover it.
    """
    plan = plan_of(study)
    intake = study.intake
    machine = machine or Machine()

    # load the models of the round
    generator = load_generator(weights, plan, intake.size_px, intake.channels).to(machine.device)
    critic = load_critic(weights, plan, intake.size_px, intake.channels).to(machine.device)
    check_model(critic, (intake.channels, intake.size_px, intake.size_px))
    start = parameters_by_name(generator, critic)
    before = {name: value.detach().clone() for name, value in start.items()}
    trained = trainable(
        critic, "critic.", plan.trainable, "gan", "critic.blocks.3. or critic.score"
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
        loss_of(critic, trained, plan.loss),
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

    # Adam on what the private step returns, and on the generator's own gradients
    critic_adam = Adam(trained, plan.learning_rate, plan.betas)
    generator_adam = Adam(
        dict(generator.named_parameters()), plan.generator_learning_rate, plan.betas
    )

    # critic steps, and after every `critic_steps` of them one step of the generator
    for step in range(plan.local_steps):
        streams.step = step
        critic_adam.step(private.step(cohort.patient_count, batches))
        if (step + 1) % plan.critic_steps == 0:
            gradients = generator_step(generator, critic, plan.loss, latents)
            generator_adam.step(machine.workers.all_from_first(gradients))
        progress(step + 1, plan.local_steps)

    # what is sent: the change, within its public bound
    after = parameters_by_name(generator, critic)
    deltas = {name: value.detach() - before[name] for name, value in after.items()}
    return within(deltas, plan.max_update_norm)


def plan_of(study: Study) -> GanPlan:
    """Return the plan's GAN; raises ConfigurationError without one."""
    if study.models.gan is None:
        raise ConfigurationError(
            "train_gan: the plan has no models.gan", hint="add it, or do not train this model"
        )
    return study.models.gan


def build(study: Study) -> tuple[Generator, Critic]:
    """Return the plan's generator and critic with torch's random starting values."""
    plan = plan_of(study)
    intake = study.intake
    return (
        Generator(intake.size_px, intake.channels, plan.width, plan.latent),
        Critic(intake.size_px, intake.channels, plan.width),
    )


def parameters_by_name(generator: Generator, critic: Critic) -> Parameters:
    """Return all tensors of both by global name."""
    found: Parameters = {"generator." + name: p for name, p in generator.named_parameters()}
    return found | {"critic." + name: p for name, p in critic.named_parameters()}


def loss_of(critic: Critic, trained: Parameters, kind: str) -> PatientLoss:
    """Return the critic's loss of one patient as a function of the `trained` tensors.

    It maps (items [m, C, H, W], fakes [m·K, C, H, W]) to a scalar.
    """
    # weights outside `trained` are constants
    everything = {name: value.detach() for name, value in critic.named_parameters()}

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        # items and fakes in one pass, as one batch of this patient
        items, fakes = patient
        both = torch.cat([items, fakes])
        scores: Tensor = functional_call(critic, {**everything, **parameters}, (both,))
        return pair_loss(scores[: len(items)], scores[len(items) :], kind)

    return loss


def pair_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Return the mean loss over pairs of the scores real [m] and fake [m·K].

    Raises Bug unless every item has as many fakes.
    """
    if len(real) == 0 or len(fake) == 0 or len(fake) % len(real):
        raise Bug(f"train_gan: {len(real)} items and {len(fake)} fakes cannot be paired")
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_step(
    generator: Generator, critic: Critic, kind: str, latents: torch.Generator
) -> Parameters:
    """Return the generator's gradient by name, against the critic, on fresh samples.

    No argument holds a patient's data.
    """
    z = torch.randn(GENERATOR_BATCH, generator.latent, generator=latents, device=latents.device)
    scores = critic(generator(z, latents))
    loss = F.softplus(-scores).mean()
    if kind == "hinge":
        loss = -scores.mean()
    parameters = dict(generator.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


class Batches:
    """Each drawn patient's items and the fakes that go with them."""

    def __init__(
        self, cohort: Cohort, generator: Generator, plan: GanPlan, streams: Streams
    ) -> None:
        self._cohort = cohort
        self._images = DeviceImages(cohort.images, streams.machine)
        self._generator = generator
        self._plan = plan
        self._streams = streams

    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """Return (items [P, m, C, H, W], fakes [P, m·K, C, H, W]) for P patients.

        Both are float32, in about [−1, 1].
        """
        items = torch.stack([self._items(patient) for patient in patients])
        fakes = [self._fakes(group) for group in self._streams.groups(patients)]
        return items, torch.cat(fakes)

    def _items(self, patient: int) -> Tensor:
        """m items of one patient; none is repeated where there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._streams.items(patient)).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        return to_unit(self._images.rows(chosen))

    @torch.no_grad()
    def _fakes(self, patients: Sequence[int]) -> Tensor:
        """m·K samples for each patient [P, m·K, C, H, W], of the generator as it is now."""
        count = self._plan.items_per_patient * self._plan.fakes_per_item
        draw = self._streams.numbers(patients)
        z = torch.randn(
            len(patients) * count, self._generator.latent, generator=draw, device=draw.device
        )
        fakes: Tensor = self._generator(z, draw)
        return fakes.view(len(patients), count, *fakes.shape[1:])
