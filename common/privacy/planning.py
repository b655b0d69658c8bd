"""Whether a study plan can work at all, before anything is spent: its cost, its noise against its signal, what would help.

In: a study plan and how many numbers each of its models trains. Out: a `PlanReport` with a verdict in an operator's words; or
PolicyError (E-PLAN-INFEASIBLE) at a site that is asked to run a hopeless plan.
Guaranteed: everything follows from the plan's public constants; no number in a fix is guessed: each is the smallest change
with which the plan's own epsilon allows noise below the limit, by RDP (never less than PLD charges, so never too hopeful).
Not: that a feasible plan learns (data decide that), or what a site has spent before (client/state/ledger.py).

The measure: r = sigma·sqrt(d)/B, the noise's norm over the largest possible signal's norm at one site; averaging S equal sites
divides it by sqrt(S). r/sqrt(S) <= 10 is feasible, <= 20 marginal, more is refused (methods/dp-training.md, section 4; published
runs that learned: 3 to 10). `feasibility` imports torch where opacus is asked too; `refuse_hopeless` does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import ConfigurationError, PolicyError
from common.privacy.accounting import SAMPLER_SHARE, Spent, epsilon_pld, spend
from common.privacy.events import charged_image_event, round_event
from common.privacy.mechanisms import SubsampledGaussian
from common.study.plan import Study
from common.study.training import TrainedModel

RATIO_FEASIBLE, RATIO_MARGINAL = 10.0, 20.0
SAMPLE_SITE_CAP = 10.0
NOISE_RANGE = (0.3, 1000.0)  # what a plan may state
PLANNING_ORDERS = (
    2.0,
    2.5,
    3.0,
    3.5,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    16,
    20,
    24,
    32,
    48,
    64,
    128,
)  # coarse: 7 ms an answer
MOST_PATIENTS, MOST_SITES, FEWEST_STEPS = 10_000_000, 10_000, 200


# --- noise against signal ---------------------------------------------------------------------------------------------------


def effective_sites(study: Study) -> float:
    """Return by how many equal sites the average over the plan's sites lowers the noise: 1 / sum of squared shares."""
    return 1.0 / sum(study.weight_of(site.name) ** 2 for site in study.sites)


@dataclass(frozen=True)
class ModelReport:
    """One trained model of a plan: its constants and how loud the noise is against the clipped signal.

    `calibrated`: the noise multiplier with which the plan would use its epsilon exactly; `wire`: float32 numbers an update.
    """

    name: str
    event: SubsampledGaussian  # all its steps
    plan: TrainedModel
    sites: float
    calibrated: float | None = None
    wire: int | None = None

    @property
    def ratio(self) -> float:
        """r = sigma·sqrt(d)/B: the noise's norm over the largest possible signal's, at one site."""
        return (
            self.event.noise_multiplier
            * math.sqrt(self.event.dimension)
            / self.plan.patients_per_step
        )

    @property
    def federated_ratio(self) -> float:
        """r / sqrt(S) after averaging S equal sites."""
        return self.ratio / math.sqrt(self.sites)

    @property
    def round_bytes(self) -> int:
        """Bytes of one site's update, fp32."""
        return 4 * (self.wire or self.event.dimension)

    def loudest(self, ratio: float) -> float:
        """Return the noise multiplier at which r/sqrt(S) is `ratio`."""
        return (
            ratio
            * math.sqrt(self.sites)
            * self.plan.patients_per_step
            / math.sqrt(self.event.dimension)
        )

    def to_text(self) -> str:
        """Two or three lines."""
        e, p = self.event, self.plan
        text = (
            f"  {self.name}: q={e.q:.4g} B={p.patients_per_step} m={p.items_per_patient} T={e.steps} "
            f"({p.rounds} rounds x {p.local_steps}) sigma={e.noise_multiplier:g} C={p.clip:g} d={e.dimension:,}\n"
            f"    noise ratio r={self.ratio:.1f}, over {self.sites:.3g} sites r/sqrt(S)={self.federated_ratio:.1f}; "
            f"{self.round_bytes / 1e6:.1f} MB a round"
        )
        if self.calibrated is None or self.calibrated == e.noise_multiplier:
            return text
        return f"{text}\n    noise_multiplier {self.calibrated:g} would use the budget exactly"


@dataclass(frozen=True)
class Needs:
    """What alone brings every model's r/sqrt(S) to `ratio` within the plan's epsilon; None where nothing of the kind does.

    `steps`, `parameters`: at most, of the model with the loudest noise. `patients`: at least, at each site. `sites`: at least.
    """

    ratio: float
    steps: int | None
    parameters: int | None
    patients: int | None
    sites: int | None


@dataclass(frozen=True)
class PlanReport:
    """What a plan would spend and whether it can learn: the numbers of `kohort-server plan`.

    `verdict`: "feasible" (r/sqrt(S) <= 10), "marginal" (<= 20), "infeasible" (above: refused unless the plan accepts it) or
    "over budget" (always refused). `fixes`: cheapest first. `needs`: for the limits 20 and 10, where they are not met.
    """

    study: Study
    models: tuple[ModelReport, ...]
    spent: Spent
    site_cap: float
    verdict: str
    fixes: tuple[str, ...]
    needs: tuple[Needs, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the plan may be signed."""
        marked = self.verdict == "infeasible" and self.study.privacy.accept_infeasible
        return self.verdict in ("feasible", "marginal") or marked

    @property
    def sentence(self) -> str:
        """The verdict in words that an operator understands."""
        return _sentence(self)

    def to_text(self) -> str:
        """The report as printed."""
        privacy, spent = self.study.privacy, self.spent
        prv = "n/a" if spent.prv is None else f"{spent.prv:.3f}"
        accepted = (
            ", accepted by the plan" if self.verdict == "infeasible" and self.accepted else ""
        )
        lines = [
            f"plan {self.study.name}: unit {privacy.unit}, adjacency zero-out, N_plan={privacy.planned_patients:,}",
            *(model.to_text() for model in self.models),
            *(f"  {event.statement()}" for event in [charged_image_event(self.study)] if event),
            f"  together: epsilon PLD {spent.pld:.3f}, PRV {prv}, RDP {spent.rdp:.3f} "
            f"at delta {spent.delta:g} + sampler {spent.sampler_delta:.1g} (plan allows {privacy.epsilon:g})",
            f"  share of a site's cap of {self.site_cap:g}: {spent.pld / self.site_cap:.0%}",
            f"  verdict: {self.sentence}{accepted}",
            *(f"    fix: {fix}" for fix in self.fixes),
        ]
        return "\n".join(lines)


def feasibility(
    study: Study,
    parameter_counts: Mapping[str, int],
    *,
    site_cap: float = SAMPLE_SITE_CAP,
    wire: Mapping[str, int] | None = None,
    prv: bool = True,
) -> PlanReport:
    """The report on a plan; `parameter_counts`: trained numbers by model name. Spends nothing. `prv` imports torch.

    Raises `ConfigurationError` when a trained model has no parameter count.
    """
    models = model_reports(study, parameter_counts, wire or {})
    drawn = [
        replace(m.event, dimension=m.event.dimension + study.privacy.canaries) for m in models
    ]  # what gets noise
    images = charged_image_event(study)  # of the same patients; `needs` leaves them out
    spent = spend([*drawn, *([images] if images else [])], study.privacy.delta, prv=prv)
    if images is None:
        fitted = calibrated(
            [model.event for model in models], study.privacy.epsilon, study.privacy.delta
        )
        models = tuple(
            replace(model, calibrated=sigma) for model, sigma in zip(models, fitted, strict=True)
        )
    verdict = _verdict(study, spent, max(model.federated_ratio for model in models))
    needs = tuple(needed(study, models, ratio) for ratio in _missed(verdict))
    return PlanReport(
        study,
        models,
        spent,
        site_cap,
        verdict,
        tuple(_fixes(study, spent, models, verdict, needs)),
        needs,
    )


def model_reports(
    study: Study, counts: Mapping[str, int], wire: Mapping[str, int]
) -> tuple[ModelReport, ...]:
    """Return the constants of every trained model. Raises ConfigurationError when one has no parameter count."""
    trained = study.models.trained()
    missing = sorted(set(trained) - set(counts))
    if missing:
        raise ConfigurationError(
            f"plan {study.name}: parameter counts: expected one for each trained model, missing {missing}"
        )
    sites = effective_sites(study)
    return tuple(
        ModelReport(
            name,
            replace(round_event(study, name, counts[name]), steps=plan.steps),
            plan,
            sites,
            None,
            wire.get(name),
        )
        for name, plan in trained.items()
    )


def refuse_hopeless(study: Study, counts: Mapping[str, int]) -> None:
    """Raise PolicyError (E-PLAN-INFEASIBLE) for a plan whose noise drowns its signal and that does not say so itself.

    A site's own check, before it spends anything: public constants alone, no torch.
    """
    models = model_reports(study, counts, {})
    worst = max(models, key=lambda model: model.federated_ratio)
    if worst.federated_ratio <= RATIO_MARGINAL or study.privacy.accept_infeasible:
        return
    raise PolicyError(
        f"plan {study.name}: {_hopeless(study, worst)}; nothing was spent",
        hint="; or ".join(_remedies(study, worst, [needed(study, models, RATIO_MARGINAL)])),
        code="E-PLAN-INFEASIBLE",
    )


# --- what noise the budget allows -------------------------------------------------------------------------------------------


def calibrated(
    events: Sequence[SubsampledGaussian], epsilon: float, delta: float
) -> tuple[float, ...]:
    """The noise multipliers (to 0.01, rounded up) with which the events together just stay within `epsilon` by PLD.

    All are scaled by one factor; where even the loudest noise a plan may state is too little, that noise.
    """

    def louder(factor: float) -> list[SubsampledGaussian]:
        return [
            replace(e, noise_multiplier=_rounded_up(e.noise_multiplier * factor)) for e in events
        ]

    loudest = max(event.noise_multiplier for event in events)
    low, high = NOISE_RANGE[0] / loudest, NOISE_RANGE[1] / loudest
    while high / low > 1.003:  # RDP first: quick, and never below PLD
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _within(louder(middle), epsilon, delta) else (middle, high)
    found, slope = epsilon_pld(louder(high), delta), -1.0  # epsilon falls about as 1/sigma
    for _ in range(
        6
    ):  # then a few secant steps down to what PLD charges, which takes seconds to say
        guess = high * (0.998 * epsilon / found) ** (1 / slope)
        if found >= 0.997 * epsilon or louder(guess) == louder(high):
            break
        tried = epsilon_pld(louder(guess), delta)
        slope = min(-0.5, math.log(tried / found) / math.log(guess / high))
        high, found = (guess, tried) if tried <= epsilon else (high, found)
    return tuple(event.noise_multiplier for event in louder(high))


def _rounded_up(sigma: float) -> float:
    return min(max(math.ceil(sigma * 100 - 1e-9) / 100, NOISE_RANGE[0]), NOISE_RANGE[1])


def needed(study: Study, models: Sequence[ModelReport], ratio: float) -> Needs:
    """Return what alone would bring every model's r/sqrt(S) to `ratio` within the plan's epsilon."""
    worst = max(range(len(models)), key=lambda i: models[i].federated_ratio)
    now, plan = models[worst].event, study.privacy

    def holds(
        patients: int | None = None,
        sites: float | None = None,
        steps: int | None = None,
        dimension: int | None = None,
    ) -> bool:
        tried = [replace(m, sites=sites) if sites else m for m in models]
        event = replace(now, steps=steps or now.steps, dimension=dimension or now.dimension)
        tried[worst] = replace(tried[worst], event=event)
        rates = [m.plan.patients_per_step / (patients or plan.planned_patients) for m in tried]
        delta = min(plan.delta, 1 / (10 * patients)) if patients else plan.delta
        return _affordable(tried, rates, ratio, plan.epsilon, delta)

    if holds():  # the plan is only louder than its epsilon asks for
        return Needs(ratio, now.steps, now.dimension, plan.planned_patients, round(models[0].sites))
    patients = _smallest(lambda n: holds(patients=n), plan.planned_patients, MOST_PATIENTS)
    return Needs(
        ratio,
        _largest(lambda steps: holds(steps=steps), now.steps),
        _largest(lambda dimension: holds(dimension=dimension), now.dimension),
        patients,
        _smallest(
            lambda sites: holds(sites=float(sites)), max(1, math.floor(models[0].sites)), MOST_SITES
        ),
    )


def _affordable(
    models: Sequence[ModelReport],
    rates: Sequence[float],
    ratio: float,
    epsilon: float,
    delta: float,
) -> bool:
    """Whether epsilon allows noise so low that every model's r/sqrt(S) is `ratio`: checked at just that noise."""
    sigmas = [min(model.loudest(ratio), NOISE_RANGE[1]) for model in models]
    if min(sigmas) < NOISE_RANGE[0]:
        return False
    events = [
        replace(m.event, q=q, noise_multiplier=sigma)
        for m, q, sigma in zip(models, rates, sigmas, strict=True)
    ]
    return _within(events, epsilon, delta)


def _within(events: Sequence[SubsampledGaussian], epsilon: float, delta: float) -> bool:
    """Whether the events stay within epsilon by RDP at a few orders (an upper bound of what PLD charges)."""
    from dp_accounting import dp_event
    from dp_accounting.privacy_accountant import NeighboringRelation
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    accountant = RdpAccountant(PLANNING_ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    for event in events:
        sampled = dp_event.PoissonSampledDpEvent(
            event.q, dp_event.GaussianDpEvent(event.noise_multiplier)
        )
        accountant.compose(dp_event.SelfComposedDpEvent(sampled, event.steps))
    return bool(accountant.get_epsilon(delta) <= epsilon)


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest whole number in [low, high] for which `holds`, which is monotone; None for none."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _largest(holds: Callable[[int], bool], high: int) -> int | None:
    """The largest whole number in [1, high] for which `holds`, which is monotone; None for none."""
    found = _smallest(lambda back: holds(high - back), 0, high - 1)
    return None if found is None else high - found


# --- words ------------------------------------------------------------------------------------------------------------------


def _verdict(study: Study, spent: Spent, ratio: float) -> str:
    if spent.pld > study.privacy.epsilon or spent.sampler_delta > SAMPLER_SHARE * spent.delta:
        return "over budget"
    return _word(ratio)


def _word(ratio: float) -> str:
    if ratio <= RATIO_FEASIBLE:
        return "feasible"
    return "marginal" if ratio <= RATIO_MARGINAL else "infeasible"


def _ratio_at(model: ModelReport, sigma: float) -> float:
    return replace(model, event=replace(model.event, noise_multiplier=sigma)).federated_ratio


def _missed(verdict: str) -> tuple[float, ...]:
    return {"infeasible": (RATIO_MARGINAL, RATIO_FEASIBLE), "marginal": (RATIO_FEASIBLE,)}.get(
        verdict, ()
    )


def _sentence(report: PlanReport) -> str:
    """The verdict, and what it means."""
    worst = max(report.models, key=lambda model: model.federated_ratio)
    privacy, spent = report.study.privacy, report.spent
    if report.verdict == "infeasible":
        return _hopeless(report.study, worst)
    if report.verdict == "over budget":
        if spent.pld <= privacy.epsilon:
            return "over budget: the sampler's missing tail would add more than 1 % to delta"
        return f"over budget: it would spend epsilon {spent.pld:.3f} a patient, the plan promises {privacy.epsilon:g}"
    meaning = "it may learn, coarsely" if report.verdict == "marginal" else "it can learn"
    return f"{report.verdict}: {worst.name}'s noise is {worst.federated_ratio:.1f} times the largest possible signal: {meaning}"


def _hopeless(study: Study, worst: ModelReport) -> str:
    """Why an infeasible plan is one."""
    return (
        f"infeasible: at {study.privacy.planned_patients:,} patients a site this will not learn: {worst.name}'s noise is "
        f"{worst.federated_ratio:.0f} times the signal (r = {worst.ratio:.1f}, r/sqrt(S) = {worst.federated_ratio:.1f}, "
        f"at most {RATIO_MARGINAL:g} is allowed)"
    )


def _fixes(
    study: Study,
    spent: Spent,
    models: tuple[ModelReport, ...],
    verdict: str,
    needs: Sequence[Needs],
) -> Iterator[str]:
    """What would change the verdict, cheapest first."""
    if verdict == "over budget" and spent.pld <= study.privacy.epsilon:
        yield "fewer steps or trained parameters, or a smaller epsilon"
    elif verdict == "over budget" and charged_image_event(study):
        yield "more noise on the images (synthesis), which spend the same epsilon"
        yield "or fewer rounds or local steps, or more noise on the updates"
    elif verdict == "over budget":
        quiet = "; ".join(
            f"models.{model.name}.noise_multiplier: {model.calibrated:g}" for model in models
        )
        then = max(_ratio_at(model, model.calibrated or 0.0) for model in models)
        yield f"{quiet} keeps the promise; the noise would then be {then:.1f} times the signal ({_word(then)})"
        yield "or fewer rounds or local steps"
    elif needs:
        yield from _remedies(study, max(models, key=lambda model: model.federated_ratio), needs)


def _remedies(study: Study, worst: ModelReport, needs: Sequence[Needs]) -> Iterator[str]:
    """One line a remedy, cheapest first: noise the budget does not ask for, steps, parameters, patients, sites."""
    first, comfortable = needs[0], needs[1] if len(needs) > 1 else None
    if first.steps == worst.event.steps:
        less = (
            f"models.{worst.name}.noise_multiplier: {worst.calibrated:g}"
            if worst.calibrated
            else "less noise"
        )
        yield f"{less} is enough for the epsilon of the plan"
        return
    few = first.steps is None or first.steps < FEWEST_STEPS
    if first.steps and not few:
        yield f"at most {first.steps:,} steps of {worst.name} instead of {worst.event.steps:,}"
    if first.parameters:
        more = (
            f" ({comfortable.parameters:,} to be comfortable)"
            if comfortable and comfortable.parameters
            else ""
        )
        yield (
            f"only {first.parameters:,} trained parameters of {worst.name} instead of {worst.event.dimension:,}{more}: "
            "`trainable` names its last layers, the rest comes from a public pretrained checkpoint"
        )
    if first.patients:
        more = (
            f" ({comfortable.patients:,} to be comfortable)"
            if comfortable and comfortable.patients
            else ""
        )
        yield f"at least {first.patients:,} patients a site{more}"
    if first.sites:
        yield f"at least {first.sites:,} sites of {study.privacy.planned_patients:,} patients"
    if few:
        yield f"fewer steps alone do not help: at most {first.steps or 0} would be left, too few to learn from"
