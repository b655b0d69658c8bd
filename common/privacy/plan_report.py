"""The report on a study plan in words: what it spends, its verdict, and what would change it.

In: a plan and how many numbers each of its models trains. Out: a `PlanReport`; or PolicyError at a
site that is asked to run a plan that spends more than its own epsilon (E-PLAN-BUDGET), or whose
noise exceeds its signal too far (E-PLAN-INFEASIBLE).
Guarantees: spends nothing; the numbers are those of planning.py. An accountant is printed only
beside what it covers.
Not covered: that a feasible plan learns.

The verdict by r/sqrt(S): at most 10 is feasible, at most 20 marginal, more is refused
(docs/decisions/0021-verdict-before-spending.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.errors import PolicyError
from common.privacy.accounting import SAMPLER_SHARE, Spent, spend
from common.privacy.aggregation_noise import efficiency
from common.privacy.claims import SAFER_K, found_again
from common.privacy.events import charged_image_event, plan_events
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from common.privacy.planned_price import average_price, plan_price
from common.privacy.planning import (
    ModelNoise,
    Needs,
    calibrate_together,
    effective_sites,
    needs_for,
    noise_of_models,
    noisiest,
)
from common.privacy.price import OF_AVERAGE, OF_PATIENT, PlanPrice, at_most, exactly, row
from common.privacy.update_norm import MOST, UpdateNorm
from common.study.plan import Study
from common.study.sections import trimmed_sites
from common.study.training import LOOK_ALONE, TrainedModel, WganPlan

BUDGET_ROUNDING = 1e-9  # relative: of floating point alone
RATIO_FEASIBLE = 10.0
RATIO_MARGINAL = 20.0
SAMPLE_SITE_CAP = 10.0
FEWEST_STEPS = 200  # fewer are too few to learn from
MEANINGS = {"feasible": "it can learn", "marginal": "it may learn, coarsely"}
UNMET = {"infeasible": (RATIO_MARGINAL, RATIO_FEASIBLE), "marginal": (RATIO_FEASIBLE,)}  # ratios


@dataclass(frozen=True)
class PlanReport:
    """What a plan would spend and whether it can learn: the numbers of `kohort-server plan`.

    `verdict`: "feasible" (r/sqrt(S) <= 10), "marginal" (<= 20), "infeasible" (above: refused unless
    the plan accepts it) or "over budget" (always refused). `fixes`: cheapest first. `needs`: for
    the limits 20 and 10, where they are not met. `spent`: all that the plan spends, its images too
    where they are charged. `updates`: the training alone. `norms`: how large an honest update is,
    by model, where it was asked for.
    """

    study: Study
    models: tuple[ModelNoise, ...]
    spent: Spent
    updates: Spent
    site_cap: float
    verdict: str
    fixes: tuple[str, ...]
    needs: tuple[Needs, ...] = ()
    norms: Mapping[str, UpdateNorm] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether the plan may be signed."""
        if self.verdict == "infeasible":
            return self.study.privacy.accept_infeasible
        return self.verdict != "over budget"

    @property
    def sentence(self) -> str:
        """The verdict in words that an operator understands."""
        worst = noisiest(self.models)
        if self.verdict == "infeasible":
            return _infeasible_words(self.study, worst)
        if self.verdict == "over budget":
            return _budget_words(self.study, self.spent)
        return (
            f"{self.verdict}: {worst.name}'s noise is {worst.federated_ratio:.1f} times "
            f"the largest possible signal: {MEANINGS[self.verdict]}"
        )

    def to_text(self) -> str:
        """The report as printed."""
        privacy = self.study.privacy
        lines = [
            f"plan {self.study.name}: unit {privacy.unit}, adjacency zero-out, "
            f"N_plan={privacy.planned_patients:,}"
        ]
        for model in self.models:
            lines.append(_model_words(model))
            if model.name in self.norms:
                lines += _norm_words(model.name, model.plan, self.norms[model.name])
        lines += _aggregation_words(self.study)
        images = charged_image_event(self.study)
        if images:
            lines.append(f"  {images.statement()}")
        lines += _grouping_words(self.study)
        lines += [*self._price_words(), self._verdict_words()]
        lines += [f"    fix: {fix}" for fix in self.fixes]
        return "\n".join(lines)

    @property
    def price(self) -> PlanPrice:
        """What the plan costs one patient."""
        return plan_price(self.study, self.spent)

    def _price_words(self) -> Iterator[str]:
        """What the plan costs one patient, and one average where that is another promise."""
        yield f"  {OF_PATIENT}"
        yield from self.price.lines()
        cap = exactly(self.site_cap)
        yield row("cap", cap, "a site's usual policy.max_epsilon, over all its plans")
        yield from self._accountant_words()
        average = average_price(self.study)
        if average is not None:
            yield f"  {OF_AVERAGE}"
            yield from average.lines()

    def _accountant_words(self) -> Iterator[str]:
        """All mechanisms together; where images are charged, the updates alone as well."""
        if charged_image_event(self.study) is None:
            yield f"    by accountant: {self.spent.words()}"
            return
        yield f"    by accountant, updates alone: {self.updates.words()}"
        yield f"    by accountant, updates and images together: {self.spent.words()}"

    def _verdict_words(self) -> str:
        accepted = self.verdict == "infeasible" and self.accepted
        suffix = ", accepted by the plan" if accepted else ""
        return f"  verdict: {self.sentence}{suffix}"


# --- reports and refusals -------------------------------------------------------------------------


def feasibility(
    study: Study,
    parameter_counts: Mapping[str, int],
    *,
    site_cap: float = SAMPLE_SITE_CAP,
    wire: Mapping[str, int] | None = None,
    norms: Mapping[str, UpdateNorm] | None = None,
    prv: bool = True,
) -> PlanReport:
    """Return the report on a plan. Spends nothing. `prv` asks opacus too.

    `parameter_counts`: trained numbers by model; `wire`: numbers in an update, `norms`: how large
    an honest one is, by model. Raises ConfigurationError when a trained model has no parameter
    count.
    """
    models = noise_of_models(study, parameter_counts, wire or {})
    images = charged_image_event(study)
    events = plan_events(study, parameter_counts)
    updates = [event for event in events if isinstance(event, SubsampledGaussian)]
    alone = spend(updates, study.privacy.delta, prv=prv)
    spent = alone
    if images is None:
        models = _calibrate(study, models)
    else:
        spent = spend(events, study.privacy.delta)
    verdict = _verdict(study, spent, models)
    needs = tuple(needs_for(study, models, ratio) for ratio in UNMET.get(verdict, ()))
    fixes = tuple(_fixes(study, spent, models, verdict, needs))
    return PlanReport(
        study, models, spent, alone, site_cap, verdict, fixes, needs, dict(norms or {})
    )


def refuse_infeasible(study: Study, counts: Mapping[str, int]) -> None:
    """Raise PolicyError (E-PLAN-INFEASIBLE) for an infeasible plan that does not accept it itself.

    A site's own check, before it spends anything: public constants alone, no torch.
    """
    models = noise_of_models(study, counts, {})
    worst = noisiest(models)
    if worst.federated_ratio <= RATIO_MARGINAL or study.privacy.accept_infeasible:
        return
    needs = needs_for(study, models, RATIO_MARGINAL)
    raise PolicyError(
        f"plan {study.name}: {_infeasible_words(study, worst)}; nothing was spent",
        hint="; or ".join(_remedies(study, worst, [needs])),
        code="E-PLAN-INFEASIBLE",
    )


def refuse_over_budget(study: Study, events: Sequence[Mechanism]) -> None:
    """Raise PolicyError (E-PLAN-BUDGET) for a plan that spends more than its own epsilon.

    A site's own check, before it computes anything. `events`: all that the plan spends at a site
    (common/privacy/events.py: plan_events).
    """
    spent = spend(events, study.privacy.delta)
    if _is_over_budget(study, spent):
        raise PolicyError(
            f"plan {study.name}: {_budget_words(study, spent)}; nothing was spent",
            hint="ask the operator for a plan that keeps its own promise",
            code="E-PLAN-BUDGET",
        )


def _calibrate(study: Study, models: Sequence[ModelNoise]) -> tuple[ModelNoise, ...]:
    """The models with the noise at which they would use the plan's epsilon exactly."""
    privacy = study.privacy
    events = [model.event for model in models]
    sigmas = calibrate_together(events, privacy.epsilon, privacy.delta)
    pairs = zip(models, sigmas, strict=True)
    return tuple(replace(model, calibrated=sigma) for model, sigma in pairs)


def _verdict(study: Study, spent: Spent, models: Sequence[ModelNoise]) -> str:
    if _is_over_budget(study, spent):
        return "over budget"
    return _verdict_by_ratio(noisiest(models).federated_ratio)


def _is_over_budget(study: Study, spent: Spent) -> bool:
    """Whether a plan spends more than it promises; a NaN counts as more."""
    return _spends_too_much(study, spent) or not spent.sampler_delta <= SAMPLER_SHARE * spent.delta


def _spends_too_much(study: Study, spent: Spent) -> bool:
    return not spent.pld <= study.privacy.epsilon * (1 + BUDGET_ROUNDING)


def _verdict_by_ratio(ratio: float) -> str:
    if ratio <= RATIO_FEASIBLE:
        return "feasible"
    if ratio <= RATIO_MARGINAL:
        return "marginal"
    return "infeasible"


# --- words ----------------------------------------------------------------------------------------


def _model_words(model: ModelNoise) -> str:
    """Two or three lines on one model."""
    event = model.event
    plan = model.plan
    text = (
        f"  {model.name}: q={event.q:.4g} B={plan.patients_per_step} m={plan.items_per_patient} "
        f"T={event.steps} ({plan.rounds} rounds x {plan.local_steps}) "
        f"sigma={event.noise_multiplier:g} C={plan.clip:g} d={event.dimension:,}\n"
        f"    noise ratio r={model.ratio:.1f}, "
        f"over {model.sites:.3g} sites r/sqrt(S)={model.federated_ratio:.1f}; "
        f"{model.round_bytes / 1e6:.1f} MB a round"
    )
    if model.calibrated is None or model.calibrated == event.noise_multiplier:
        return text
    return f"{text}\n    noise_multiplier {model.calibrated:g} would use the budget exactly"


def _aggregation_words(study: Study) -> Iterator[str]:
    """What a rule other than the mean does, and what it costs in noise."""
    rule = study.aggregation.rule
    sites = len(study.sites)
    if rule == "trimmed_mean":
        out = trimmed_sites(study.aggregation.trim, sites)
        yield (
            f"  aggregation: trimmed_mean leaves out {out} of {sites} answers at each end; it "
            f"averages noise as {effective_sites(study):.3g} sites do with the mean "
            f"({efficiency(study):.0%} of it)"
        )
    if rule == "norm_weighted":
        yield "  aggregation: norm_weighted costs no noise where honest norms are alike"


def _grouping_words(study: Study) -> Iterator[str]:
    """A warning where the plan's averages are not safe from re-identification."""
    sentence = study.synthesis and found_again(study.synthesis)
    if sentence:
        yield f"  warning: {sentence[0].lower()}{sentence[1:]}"
        yield f"    safer: cells or random groups with k of {SAFER_K} or more, or anchors"


def _norm_words(name: str, plan: TrainedModel, norm: UpdateNorm) -> Iterator[str]:
    """What an honest update's norm is, and a warning where the plan's cap does not fit it."""
    times = norm.times(plan.max_update_norm)
    first = f" (the first by {norm.start:.3g} more)" if norm.start else ""
    yield (
        f"    an honest update has a norm of about {norm.noise:.3g}{first}, at most "
        f"{norm.honest:.3g}; max_update_norm {plan.max_update_norm:g} is {times:.2g} times that of "
        "the noise"
    )
    fix = f"set models.{name}.max_update_norm: {norm.cap:g}"
    if times > MOST:
        yield f"    warning: one hostile site can weigh as much as {times:.0f} honest ones; {fix}"
    if plan.max_update_norm < norm.honest:
        yield f"    warning: the cap can scale honest updates down; {fix}"


def _budget_words(study: Study, spent: Spent) -> str:
    """Why a plan is over its budget."""
    if not _spends_too_much(study, spent):
        return "over budget: the sampler's missing tail would add more than 1 % to delta"
    return (
        f"over budget: it would spend epsilon {at_most(spent.pld)} a patient, "
        f"the plan promises {exactly(study.privacy.epsilon)}"
    )


def _infeasible_words(study: Study, worst: ModelNoise) -> str:
    """Why an infeasible plan is one."""
    return (
        f"infeasible: at {study.privacy.planned_patients:,} patients a site this will not learn: "
        f"{worst.name}'s noise is {worst.federated_ratio:.0f} times the signal "
        f"(r = {worst.ratio:.1f}, r/sqrt(S) = {worst.federated_ratio:.1f}, "
        f"at most {RATIO_MARGINAL:g} is allowed)"
    )


def _fixes(
    study: Study,
    spent: Spent,
    models: Sequence[ModelNoise],
    verdict: str,
    needs: Sequence[Needs],
) -> Iterator[str]:
    """What would change the verdict, cheapest first."""
    if verdict == "over budget":
        yield from _budget_fixes(study, spent, models)
    elif needs:
        yield from _remedies(study, noisiest(models), needs)


def _budget_fixes(study: Study, spent: Spent, models: Sequence[ModelNoise]) -> Iterator[str]:
    """What would bring a plan within its own epsilon."""
    if not _spends_too_much(study, spent):
        yield "fewer steps or trained parameters, or a smaller epsilon"
        return
    if charged_image_event(study):
        yield "more noise on the images (synthesis), which spend the same epsilon"
        yield "or fewer rounds or local steps, or more noise on the updates"
        return
    keys = [f"models.{model.name}.noise_multiplier: {model.calibrated:g}" for model in models]
    then = max(model.ratio_at(model.calibrated or 0.0) for model in models)
    yield (
        f"{'; '.join(keys)} keeps the promise; the noise would then be {then:.1f} times "
        f"the signal ({_verdict_by_ratio(then)})"
    )
    yield "or fewer rounds or local steps"


def _remedies(study: Study, worst: ModelNoise, needs: Sequence[Needs]) -> Iterator[str]:
    """One line a remedy, cheapest first.

    Less noise where the epsilon allows it; else steps, parameters, patients, sites. `needs`: for
    the limit to meet, and for the comfortable one where it differs.
    """
    first = needs[0]
    comfortable = needs[-1]
    if first.steps == worst.event.steps:
        less = "less noise"
        if worst.calibrated:
            less = f"models.{worst.name}.noise_multiplier: {worst.calibrated:g}"
        yield f"{less} is enough for the epsilon of the plan"
        return
    few = first.steps is None or first.steps < FEWEST_STEPS
    if first.steps and not few:
        yield f"at most {first.steps:,} steps of {worst.name} instead of {worst.event.steps:,}"
    if first.parameters:
        more = _comfortable_words(comfortable.parameters, len(needs))
        yield (
            f"only {first.parameters:,} trained parameters of {worst.name} "
            f"instead of {worst.event.dimension:,}{more}: `trainable` names its last layers, "
            "the rest comes from a public pretrained checkpoint"
        )
    if first.parameters and isinstance(worst.plan, WganPlan):
        yield (f"or {LOOK_ALONE} learns how much is vessel, how bright vessels are, and the grain")
    if first.patients:
        more = _comfortable_words(comfortable.patients, len(needs))
        yield f"at least {first.patients:,} patients a site{more}"
    if first.sites:
        yield f"at least {first.sites:,} sites of {study.privacy.planned_patients:,} patients"
    if few:
        yield (
            f"fewer steps alone do not help: at most {first.steps or 0} would be left, "
            "too few to learn from"
        )


def _comfortable_words(value: int | None, limits: int) -> str:
    """The value for the comfortable limit, where it was asked for and exists."""
    if limits < 2 or not value:
        return ""
    return f" ({value:,} to be comfortable)"
