"""Trains the flow on one site for one round: the plan's private steps, Adam, and the change of the weights.

In: the cohort, the signed plan, the round's global weights, the ledger's reservation, the noise source.
Out: float32 deltas under the same names and shapes, `glow.*`, of L2 norm at most the plan's `max_update_norm`.
Guaranteed: only `PrivateStep` reads the cohort's images; everything else here is post-processing of what it returns. Weights
outside `trainable` have delta 0. Whatever a patient's loss draws (dequantisation, input noise, which items) comes in as that
patient's own tensors, never inside the per-patient gradient.
Not: sampling, clipping, noise and their accounting (private_step.py), aggregation, a moving average over rounds (server).

Maximum likelihood, loss in nats per dimension so that the clip norm does not depend on the resolution (dp-glow.md, section 4).
"""

from collections.abc import Callable, Mapping, Sequence

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
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.glow import Glow
from common.models.glow_checkpoint import PREFIX, load_weights
from common.models.glow_pixels import from_uint8
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.plan import Study
from common.study.training import GlowPlan

NORM_MARGIN = (
    1e-6  # below max_update_norm, so that a float32 norm computed elsewhere stays under it
)


def train(
    cohort: Cohort,
    study: Study,
    weights: Weights,
    reservation: Reservation | PracticeReservation,
    noise: Noise,
    progress: Callable[[int, int], None],
    canaries: Canaries | None = None,
) -> Deltas:
    """The deltas of one round, float32 `glow.*`.

    `weights` are the round's global weights; `reservation` covers the plan's `local_steps`; `progress(done, total)` is called
    after each step; `canaries` take part and are tallied. Raises ConfigurationError for a plan without a flow, RefusedError
    for weights that do not fit it, PolicyError when the reservation does not cover what the plan asks.
    """
    plan = plan_of(study)
    model = build(study)
    load_weights(model, weights)
    check_model(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = trainable(model, plan)

    # The private step, and Adam on what it returns.
    constants = StepConstants(
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=study.sampling_rate(plan),
        divisor=plan.patients_per_step,
        items_per_patient=plan.items_per_patient,
    )
    private = PrivateStep(
        trained, loss_of(model, trained), constants, reservation, noise, canaries=canaries
    )
    optimiser = Adam({"all": flattened(trained)}, plan.learning_rate)
    batches = Batches(
        cohort, plan, torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
    )

    for step in range(plan.local_steps):
        gradients = private.step(cohort.patient_count, batches)
        optimiser.step({"all": torch.cat([gradients[name].reshape(-1) for name in trained])})
        progress(step + 1, plan.local_steps)

    # What is sent: the change, within its public bound.
    deltas = {
        PREFIX + name: parameter.detach() - before[name]
        for name, parameter in model.named_parameters()
    }
    return within(deltas, plan.max_update_norm)


def plan_of(study: Study) -> GlowPlan:
    """The plan's flow. Raises ConfigurationError without one."""
    if study.models.glow is None:
        raise ConfigurationError(
            "train_glow: the plan has no models.glow", hint="add it, or do not train this model"
        )
    return study.models.glow


def build(study: Study) -> Glow:
    """The plan's flow with its public starting values."""
    plan = plan_of(study)
    intake = study.intake
    return Glow(intake.size_px, intake.channels, plan.levels, plan.steps_per_level, plan.width)


def trainable(model: Glow, plan: GlowPlan) -> Parameters:
    """The tensors that DP trains, by name inside the model: those whose global name starts with one of `plan.trainable`.

    Raises ConfigurationError for a prefix that fits nothing.
    """
    named = dict(model.named_parameters())
    idle = [
        prefix
        for prefix in plan.trainable
        if not any((PREFIX + name).startswith(prefix) for name in named)
    ]
    if idle:
        raise ConfigurationError(
            f"models.glow.trainable: {idle[0]!r} fits no weight",
            hint="prefixes are global names such as glow.levels.3.",
        )
    chosen = plan.trainable or (PREFIX,)
    return {
        name: parameter for name, parameter in named.items() if (PREFIX + name).startswith(chosen)
    }


def flattened(parameters: Parameters) -> Tensor:
    """One vector [d] that the parameters become views of: the optimiser then makes one step, not one for each of 222 tensors."""
    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    parts = torch.split(flat, [p.numel() for p in parameters.values()])
    for parameter, part in zip(parameters.values(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    return flat


def loss_of(model: Glow, trained: Parameters) -> PatientLoss:
    """The loss of one patient: mean over items [m, C, H, W] of -log p in nats per dimension, as a function of `trained`.

    Raises ConfigurationError for a flow that rebuilds its activations: its gradient is the inverse's, to rounding only.
    """
    if model.reversible:
        raise ConfigurationError(
            "train_glow: a reversible flow in the private step", hint="for public pretraining only"
        )
    frozen = {
        name: value.detach() for name, value in model.named_parameters() if name not in trained
    }

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        log_p: Tensor = functional_call(model, {**frozen, **parameters}, (patient[0],))
        return -log_p.mean() / model.dimension

    return loss


class Batches:
    """Draws each patient's items, dequantised and with input noise, from one stream that is no privacy noise."""

    def __init__(self, cohort: Cohort, plan: GlowPlan, generator: torch.Generator) -> None:
        self._cohort = cohort
        self._plan = plan
        self._generator = generator

    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """(items float32 [P, m, C, H, W],) for P patient indices."""
        return (torch.stack([self._items(patient) for patient in patients]),)

    def _items(self, patient: int) -> Tensor:
        """m items of one patient, without repetition as far as there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._generator).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        images = np.asarray(self._cohort.images[chosen])
        m, height, width, channels = images.shape
        dither = torch.rand(m, channels, height, width, generator=self._generator)
        x = from_uint8(images, dither)
        return x + self._plan.input_noise * torch.randn(x.shape, generator=self._generator)


def within(deltas: Mapping[str, Tensor], bound: float) -> Deltas:
    """The deltas as float32 arrays, scaled down together where their joint L2 norm exceeds the public `bound`."""
    norm = float(torch.cat([delta.double().flatten() for delta in deltas.values()]).norm())
    allowed = bound * (1 - NORM_MARGIN)
    factor = 1.0 if norm <= allowed else allowed / norm
    return {name: (delta.double() * factor).float().numpy() for name, delta in deltas.items()}
