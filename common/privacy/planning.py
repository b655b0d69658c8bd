"""The numbers of a study plan's verdict: noise against signal, and which noise its epsilon allows.

In: a plan and how many numbers each of its models trains. Out: ratios, calibrated noise, needs.
Guarantees: everything follows from the plan's public constants. No need is guessed: each is the
smallest change with which the plan's own epsilon allows noise below the limit, by RDP. RDP never
charges less than PLD, so a need is never too optimistic.
Not covered: that a feasible plan learns (data decide that), or what a site has spent before
(client/state/ledger.py). Imports no torch.

The noise ratio: r = sigma·sqrt(d)/B, the norm of the noise over the largest norm that the signal of
one site can have. Averaging S equal sites divides it by sqrt(S).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import ConfigurationError
from common.privacy.accounting import LOSS_STEP, epsilon_pld
from common.privacy.aggregation_noise import efficiency
from common.privacy.events import round_event
from common.privacy.mechanisms import SubsampledGaussian
from common.study.plan import Study
from common.study.training import TrainedModel

SMALLEST_NOISE = 0.3  # noise multipliers that a plan may state
LARGEST_NOISE = 1000.0
MOST_PATIENTS = 10_000_000
MOST_SITES = 10_000
# Ten times coarser than what counts: never below it, and 1.3e-6 a step above it.
PLANNING_LOSS_STEP = 1e-3
PLANNING_STEPS = 1000  # for more, the grid that counts
# Coarse Rényi orders: 7 ms an answer.
PLANNING_ORDERS = (2.0, 2.5, 3.0, 3.5, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128)


# --- noise against signal -------------------------------------------------------------------------


def effective_sites(study: Study) -> float:
    """Return by how many equal sites the plan's aggregation lowers the noise.

    1 / sum of squared shares, times what the rule keeps of it.
    """
    shares = sum(study.weight_of(site.name) ** 2 for site in study.sites)
    return efficiency(study) / shares


@dataclass(frozen=True)
class ModelNoise:
    """One trained model of a plan: its constants and its noise against the clipped signal.

    `event`: all its steps. `calibrated`: the noise multiplier with which the plan would use its
    epsilon exactly. `wire`: float32 numbers in an update.
    """

    name: str
    event: SubsampledGaussian
    plan: TrainedModel
    sites: float
    calibrated: float | None = None
    wire: int | None = None

    @property
    def ratio(self) -> float:
        """r = sigma·sqrt(d)/B: the noise's norm over the largest possible signal's, at one site."""
        deviation = self.event.noise_multiplier * math.sqrt(self.event.dimension)
        return deviation / self.plan.patients_per_step

    @property
    def federated_ratio(self) -> float:
        """r / sqrt(S) after averaging S equal sites."""
        return self.ratio / math.sqrt(self.sites)

    @property
    def round_bytes(self) -> int:
        """Bytes of one site's update, fp32."""
        return 4 * (self.wire or self.event.dimension)

    def noise_at(self, ratio: float) -> float:
        """Return the noise multiplier at which r/sqrt(S) is `ratio`."""
        signal = ratio * math.sqrt(self.sites) * self.plan.patients_per_step
        return signal / math.sqrt(self.event.dimension)

    def ratio_at(self, noise_multiplier: float) -> float:
        """Return r/sqrt(S) at another noise multiplier."""
        event = replace(self.event, noise_multiplier=noise_multiplier)
        return replace(self, event=event).federated_ratio


def noise_of_models(
    study: Study, counts: Mapping[str, int], wire: Mapping[str, int]
) -> tuple[ModelNoise, ...]:
    """Return the constants of every trained model.

    `counts`: trained numbers by model. Raises ConfigurationError when a model has no count.
    """
    trained = study.models.trained()
    missing = sorted(set(trained) - set(counts))
    if missing:
        raise ConfigurationError(
            f"plan {study.name}: parameter counts: expected one for each trained model, "
            f"missing {missing}"
        )
    sites = effective_sites(study)
    found = []
    for name, plan in trained.items():
        event = replace(round_event(study, name, counts[name]), steps=plan.steps)
        found.append(ModelNoise(name, event, plan, sites, wire=wire.get(name)))
    return tuple(found)


def noisiest(models: Sequence[ModelNoise]) -> ModelNoise:
    """Return the model with the largest noise ratio."""
    return max(models, key=lambda model: model.federated_ratio)


# --- what noise the budget allows -----------------------------------------------------------------


def calibrate_together(
    events: Sequence[SubsampledGaussian], epsilon: float, delta: float
) -> tuple[float, ...]:
    """Return noise multipliers with which the events together just stay within `epsilon` by PLD.

    To 0.01, rounded up; all are scaled by one factor. Where even the largest noise that a plan may
    state is too little, that noise.
    """

    def scaled(factor: float) -> list[SubsampledGaussian]:
        return [replace(e, noise_multiplier=_round_up(e.noise_multiplier * factor)) for e in events]

    # Bisection by RDP first: it is quick and never below PLD.
    largest = max(event.noise_multiplier for event in events)
    low = SMALLEST_NOISE / largest
    high = LARGEST_NOISE / largest
    while high / low > 1.003:
        middle = math.sqrt(low * high)
        if _stays_within(scaled(middle), epsilon, delta):
            high = middle
        else:
            low = middle

    # Then a few secant steps down to what PLD charges, which takes a second an answer.
    loss_step = loss_step_for(events)
    found = epsilon_pld(scaled(high), delta, loss_step=loss_step)
    slope = -1.0  # epsilon falls about as 1/sigma
    for _ in range(6):
        guess = high * (0.998 * epsilon / found) ** (1 / slope)
        if found >= 0.997 * epsilon or scaled(guess) == scaled(high):
            break
        tried = epsilon_pld(scaled(guess), delta, loss_step=loss_step)
        slope = min(-0.5, math.log(tried / found) / math.log(guess / high))
        if tried <= epsilon:
            high = guess
            found = tried
    return tuple(event.noise_multiplier for event in scaled(high))


def loss_step_for(events: Sequence[SubsampledGaussian]) -> float:
    """Return the grid of privacy losses on which noise for these events is sought."""
    if sum(event.steps for event in events) > PLANNING_STEPS:
        return LOSS_STEP
    return PLANNING_LOSS_STEP


def _round_up(sigma: float) -> float:
    """To 0.01, within what a plan may state."""
    hundredths = math.ceil(sigma * 100 - 1e-9) / 100
    return min(max(hundredths, SMALLEST_NOISE), LARGEST_NOISE)


@dataclass(frozen=True)
class Needs:
    """What alone brings every model's r/sqrt(S) to `ratio` within the plan's epsilon.

    `steps`, `parameters`: at most, of the model with the largest noise ratio. `patients`: at least,
    at each site. `sites`: at least. None where no value does.
    """

    ratio: float
    steps: int | None
    parameters: int | None
    patients: int | None
    sites: int | None


@dataclass(frozen=True)
class _Change:
    """One constant of the plan changed, the others as they are."""

    patients: int | None = None
    sites: float | None = None
    steps: int | None = None
    dimension: int | None = None


def needs_for(study: Study, models: Sequence[ModelNoise], ratio: float) -> Needs:
    """Return what alone brings every model's r/sqrt(S) to `ratio` within the plan's epsilon."""

    def holds(change: _Change) -> bool:
        return _change_helps(study, models, ratio, change)

    worst = noisiest(models).event
    sites = models[0].sites
    planned = study.privacy.planned_patients
    if holds(_Change()):  # the plan has more noise than its epsilon asks for
        return Needs(ratio, worst.steps, worst.dimension, planned, round(sites))
    patients = _smallest(lambda n: holds(_Change(patients=n)), planned, MOST_PATIENTS)
    fewest_sites = max(1, math.floor(sites))
    return Needs(
        ratio,
        steps=_largest(lambda n: holds(_Change(steps=n)), worst.steps),
        parameters=_largest(lambda n: holds(_Change(dimension=n)), worst.dimension),
        patients=patients,
        sites=_smallest(lambda n: holds(_Change(sites=float(n))), fewest_sites, MOST_SITES),
    )


def _change_helps(
    study: Study, models: Sequence[ModelNoise], ratio: float, change: _Change
) -> bool:
    """Whether epsilon allows, after one change, noise at which every model's r/sqrt(S) is `ratio`.

    Steps and dimension change for the model with the largest noise ratio alone.
    """
    privacy = study.privacy
    patients = change.patients or privacy.planned_patients
    delta = privacy.delta
    if change.patients:
        delta = min(delta, 1 / (10 * change.patients))
    worst = noisiest(models)
    events = []
    for model in models:
        event = replace(model.event, q=model.plan.patients_per_step / patients)
        if model is worst:
            steps = change.steps or event.steps
            event = replace(event, steps=steps, dimension=change.dimension or event.dimension)
        changed = replace(model, event=event, sites=change.sites or model.sites)
        sigma = min(changed.noise_at(ratio), LARGEST_NOISE)
        if sigma < SMALLEST_NOISE:
            return False
        events.append(replace(event, noise_multiplier=sigma))
    return _stays_within(events, privacy.epsilon, delta)


def _stays_within(events: Sequence[SubsampledGaussian], epsilon: float, delta: float) -> bool:
    """Whether the events stay within epsilon by RDP at a few orders (an upper bound of PLD)."""
    from dp_accounting import dp_event
    from dp_accounting.privacy_accountant import NeighboringRelation
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    accountant = RdpAccountant(PLANNING_ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    for event in events:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        sampled = dp_event.PoissonSampledDpEvent(event.q, gaussian)
        accountant.compose(dp_event.SelfComposedDpEvent(sampled, event.steps))
    return bool(accountant.get_epsilon(delta) <= epsilon)


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest whole number in [low, high] for which the monotone `holds`; None for none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _largest(holds: Callable[[int], bool], high: int) -> int | None:
    """The largest whole number in [1, high] for which the monotone `holds`; None for none."""
    found = _smallest(lambda back: holds(high - back), 0, high - 1)
    if found is None:
        return None
    return high - found
