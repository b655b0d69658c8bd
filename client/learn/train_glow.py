"""Trains the flow on one site for one round.

In: the cohort, the signed plan, the round's global weights, the ledger's reservation, the noise
source.
Out: float32 deltas `glow.*`, of L2 norm at most the plan's `max_update_norm`.
Guarantees:
  1. only `PrivateStep` reads the cohort's images; everything else is post-processing of what it
     returns
  2. weights outside the plan's `trainable` prefixes have delta 0
  3. whatever a patient's loss draws (dequantisation, input noise, choice of items) comes in as that
     patient's own tensors, never inside the per-patient gradient
Not covered: sampling, clipping, noise and accounting (private_step.py); aggregation (server).

Loss: maximum likelihood, in nats per dimension, so the clip norm does not depend on the resolution.
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
from client.learn.round_parts import Streams, trainable, within
from client.state.ledger import PracticeReservation, Reservation
from common.arrays import Deltas, Weights
from common.devices import exact
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.glow import Glow
from common.models.glow_checkpoint import PREFIX, load_weights
from common.models.glow_pixels import from_uint8
from common.privacy.canaries import Canaries
from common.privacy.noise import Noise
from common.study.architectures import build_flow
from common.study.plan import Study
from common.study.training import GlowPlan


@exact()
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
    """Return the deltas of one round, float32 `glow.*`.

    `weights`: the round's global weights. `reservation` covers the plan's `local_steps`.
    `progress(done, total)` is called after each step. `canaries` take part and are tallied.
    `machine`: where it computes; by default one process on the CPU. Every pass is in float32.
    Raises ConfigurationError for a plan without a flow, RefusedError for weights that do not fit
    it, PolicyError when the reservation does not cover what the plan asks.
    """
    # load the model of the round
    plan = plan_of(study)
    machine = (machine or Machine()).exact
    model = build(study)
    load_weights(model, weights)
    model.to(machine.device)
    check_model(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = trainable(model, PREFIX, plan.trainable, "glow", "glow.levels.3.")

    # the private step, and Adam on what it returns
    constants = StepConstants(
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=study.sampling_rate(plan),
        divisor=plan.patients_per_step,
        items_per_patient=plan.items_per_patient,
    )
    private = PrivateStep(
        trained,
        loss_of(model, trained),
        constants,
        reservation,
        noise,
        canaries=canaries,
        execution=machine.execution,
        workers=machine.workers,
    )
    optimiser = Adam({"all": flatten(trained)}, plan.learning_rate, plan.betas)
    streams = Streams.fresh(noise, machine)
    batches = Batches(cohort, plan, streams)

    # private steps
    for step in range(plan.local_steps):
        streams.step = step
        gradients = private.step(cohort.patient_count, batches)
        optimiser.step({"all": torch.cat([gradients[name].reshape(-1) for name in trained])})
        progress(step + 1, plan.local_steps)

    # what is sent: the change, within its public bound
    deltas = {}
    for name, parameter in model.named_parameters():
        deltas[PREFIX + name] = parameter.detach() - before[name]
    return within(deltas, plan.max_update_norm)


def plan_of(study: Study) -> GlowPlan:
    """Return the plan's flow; raises ConfigurationError without one."""
    if study.models.glow is None:
        raise ConfigurationError(
            "train_glow: the plan has no models.glow", hint="add it, or do not train this model"
        )
    return study.models.glow


def build(study: Study) -> Glow:
    """Return the plan's flow with its public starting values."""
    plan_of(study)
    return build_flow(study)


def flatten(parameters: Parameters) -> Tensor:
    """Return one vector [d] of which the parameters become views.

    The optimiser then makes one step, instead of one for each of hundreds of tensors.
    """
    flat = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    parts = torch.split(flat, [p.numel() for p in parameters.values()])
    for parameter, part in zip(parameters.values(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    return flat


def loss_of(model: Glow, trained: Parameters) -> PatientLoss:
    """Return the loss of one patient: mean over items [m, C, H, W] of -log p in nats per dimension.

    It is a function of the `trained` tensors. Raises ConfigurationError for a reversible flow: it
    recomputes its activations by the inverse, so its gradient is exact only up to rounding.
    """
    if model.reversible:
        raise ConfigurationError(
            "train_glow: a reversible flow in the private step", hint="for public pretraining only"
        )
    # weights outside `trained` are constants
    everything = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: Parameters, patient: tuple[Tensor, ...]) -> Tensor:
        log_p: Tensor = functional_call(model, {**everything, **parameters}, (patient[0],))
        return -log_p.mean() / model.dimension

    return loss


class Batches:
    """Each drawn patient's items, dequantised and with input noise.

    What they draw is not the privacy noise.
    """

    def __init__(self, cohort: Cohort, plan: GlowPlan, streams: Streams) -> None:
        self._cohort = cohort
        self._images = DeviceImages(cohort.images, streams.machine)
        self._plan = plan
        self._streams = streams

    def __call__(self, patients: Sequence[int]) -> tuple[Tensor, ...]:
        """Return (items float32 [P, m, C, H, W],) for P patients."""
        return (torch.stack([self._items(patient) for patient in patients]),)

    def _items(self, patient: int) -> Tensor:
        """m items of one patient; none is repeated where there are enough."""
        available = self._cohort.images_of(patient)
        order = torch.randperm(len(available), generator=self._streams.items(patient)).numpy()
        chosen = available[np.resize(order, self._plan.items_per_patient)]
        images = self._images.rows(chosen)

        # dequantise, then add the plan's input noise
        m, height, width, channels = images.shape
        draw = self._streams.numbers([patient])
        dither = torch.rand(m, channels, height, width, generator=draw, device=draw.device)
        x = from_uint8(images, dither)
        noise = torch.randn(x.shape, generator=draw, device=draw.device)
        return x + self._plan.input_noise * noise
