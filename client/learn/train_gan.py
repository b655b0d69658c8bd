"""Trains generator and critic on one site for one round: private steps for the critic, post-processing for the generator.

In: the cohort, the signed plan, the round's global weights, the ledger's reservation, the noise source.
Out: float32 deltas under the same names and shapes, `generator.*` and `critic.*`, of joint L2 norm at most the plan's
`max_update_norm`.
Guaranteed
1. Only `PrivateStep` reads the cohort's images, through `Batches`; each drawn patient brings as many fakes as the plan
   says, inside its own clipped unit, so neither their number nor a second noisy step tells anything.
2. Only critic weights under the plan's `trainable` prefixes take private gradients; the others have delta 0.
3. The generator learns from the private critic alone: `generator_step` has no argument that knows a patient, and its
   latents come from a stream of their own, which does not advance with the number of patients drawn.
Not: sampling, clipping, noise and their accounting (private_step.py), aggregation and the average over rounds (server).
Optimiser state stays here and ends with the round.

Losses for a pair of photograph x and fake f (methods/dp-training.md, section 2): `hinge` relu(1 − D(x)) + relu(1 + D(f)),
generator −D(f); `logistic` softplus(−D(x)) + softplus(D(f)), generator softplus(−D(f)).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from client.ingest.cohort import Cohort
from client.learn.private_step import (
    Parameters,
    PatientLoss,
    PrivateStep,
    StepConstants,
    check_model,
)
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.errors import Bug, ConfigurationError
from common.models.adam import Adam
from common.models.images import to_unit
from common.models.stylegan import Critic, Generator, load_critic, load_generator
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.plan import Study
from common.study.training import GanPlan, TrainedModel

NORM_MARGIN = (
    1e-6  # below max_update_norm, so that a float32 norm computed elsewhere stays under it
)
GENERATOR_BATCH = 16
BETAS = (0.0, 0.99)


def train(
    cohort: Cohort,
    study: Study,
    weights: Weights,
    reservation: Reservation | PracticeReservation,
    noise: Noise,
    progress: Callable[[int, int], None],
    canaries: Canaries | None = None,
) -> Deltas:
    """The deltas of one round, float32 `generator.*` and `critic.*`.

    `weights` are the round's global weights; `reservation` covers the plan's `local_steps`; `progress(done, total)` is called
    after each step; `canaries` take part and are tallied. Raises ConfigurationError for a plan without a GAN or with a prefix
    that fits no critic weight, RefusedError for weights that do not fit the plan, PolicyError when the reservation does not
    cover it.
    """
    plan = plan_of(study)
    intake = study.intake

    # The models, as they came.
    generator = load_generator(weights, plan, intake.size_px, intake.channels)
    critic = load_critic(weights, plan, intake.size_px, intake.channels)
    check_model(critic, (intake.channels, intake.size_px, intake.size_px))
    before = named(generator, critic)
    before = {name: value.detach().clone() for name, value in before.items()}
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

    # Adam on what the private step returns, and on the generator's own gradients.
    critic_adam = Adam(trained, plan.learning_rate, BETAS)
    generator_adam = Adam(dict(generator.named_parameters()), plan.generator_learning_rate, BETAS)

    # Critic steps, and after every `critic_steps` of them one step of the generator against the critic as it is now.
    for step in range(plan.local_steps):
        critic_adam.step(private.step(cohort.patient_count, batches))
        if (step + 1) % plan.critic_steps == 0:
            generator_adam.step(generator_step(generator, critic, plan.loss, latents))
        progress(step + 1, plan.local_steps)

    # What is sent: the change, within its public bound.
    return within(
        {name: value.detach() - before[name] for name, value in named(generator, critic).items()},
        plan,
    )


def plan_of(study: Study) -> GanPlan:
    """The plan's GAN. Raises ConfigurationError without one."""
    if study.models.gan is None:
        raise ConfigurationError(
            "train_gan: the plan has no models.gan", hint="add it, or do not train this model"
        )
    return study.models.gan


def build(study: Study) -> tuple[Generator, Critic]:
    """The plan's generator and critic with torch's random starting values."""
    plan = plan_of(study)
    intake = study.intake
    return (
        Generator(intake.size_px, intake.channels, plan.width, plan.latent),
        Critic(intake.size_px, intake.channels, plan.width),
    )


def named(generator: Generator, critic: Critic) -> Parameters:
    """All tensors of both by global name."""
    parts = {"generator.": generator, "critic.": critic}
    return {
        prefix + name: p
        for prefix, module in parts.items()
        for name, p in module.named_parameters()
    }


def trainable(critic: Critic, plan: GanPlan) -> Parameters:
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
            f"models.gan.trainable: {idle[0]!r} fits no critic weight",
            hint="prefixes are global names such as critic.blocks.3. or critic.score",
        )
    chosen = plan.trainable or ("critic.",)
    return {name: p for name, p in parameters.items() if f"critic.{name}".startswith(chosen)}


def loss_of(critic: Critic, trained: Parameters, kind: str) -> PatientLoss:
    """The critic's loss of one patient, (items [m, C, H, W], fakes [m·K, C, H, W]) → scalar, a function of `trained`."""
    frozen = {
        name: value.detach() for name, value in critic.named_parameters() if name not in trained
    }

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        items, fakes = patient
        scores: Tensor = functional_call(
            critic, {**frozen, **parameters}, (torch.cat([items, fakes]),)
        )
        return pair_loss(scores[: len(items)], scores[len(items) :], kind)

    return loss


def pair_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Mean over the pairs of scores real [m] and fake [m·K]; raises Bug unless every item has as many fakes."""
    if len(real) == 0 or len(fake) == 0 or len(fake) % len(real):
        raise Bug(f"train_gan: {len(real)} items and {len(fake)} fakes cannot be paired")
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_step(
    generator: Generator, critic: Critic, kind: str, latents: torch.Generator
) -> Parameters:
    """The generator's gradient by name against the critic as it is, on fresh samples. Sees no patient's data."""
    z = torch.randn(GENERATOR_BATCH, generator.latent, generator=latents)
    scores = critic(generator(z, latents))
    loss = -scores.mean() if kind == "hinge" else F.softplus(-scores).mean()
    parameters = dict(generator.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def stream(noise: Noise) -> torch.Generator:
    """A torch generator with a fresh seed: for latents and the choice of items, never for privacy noise."""
    return torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))


class Batches:
    """Each drawn patient's items and the fakes that go with them."""

    def __init__(
        self, cohort: Cohort, generator: Generator, plan: GanPlan, draw: torch.Generator
    ) -> None:
        self._cohort = cohort
        self._generator = generator
        self._plan = plan
        self._draw = draw

    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """(items [P, m, C, H, W], fakes [P, m·K, C, H, W]), float32 in about [−1, 1], for P patient indices."""
        items = torch.stack([self._items(patient) for patient in patients])
        return items, torch.stack([self._fakes() for _ in patients])

    def _items(self, patient: int) -> Tensor:
        """m items of one patient, without repetition as far as there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._draw).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        return to_unit(np.asarray(self._cohort.images[chosen]))

    @torch.no_grad()
    def _fakes(self) -> Tensor:
        """m·K samples of the generator as it is now."""
        count = self._plan.items_per_patient * self._plan.fakes_per_item
        z = torch.randn(count, self._generator.latent, generator=self._draw)
        fakes: Tensor = self._generator(z, self._draw)
        return fakes


def within(deltas: Mapping[str, Tensor], plan: TrainedModel) -> Deltas:
    """The deltas as float32 arrays, scaled down together where their joint L2 norm exceeds the plan's public bound."""
    norm = float(torch.cat([delta.double().flatten() for delta in deltas.values()]).norm())
    allowed = plan.max_update_norm * (1 - NORM_MARGIN)
    factor = 1.0 if norm <= allowed else allowed / norm
    return {name: (delta.double() * factor).float().numpy() for name, delta in deltas.items()}
