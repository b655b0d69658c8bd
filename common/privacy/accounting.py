"""How much privacy a list of mechanisms spends, by three accountants, and whether a study plan can work at all.

In: mechanisms (public constants) and a delta; or a study plan and its models' parameter counts. Out: epsilons; a `PlanReport`.
Guaranteed: one adjacency for all (zero-out of one patient; a replace-one epsilon is charged in full, which is no less);
equal mechanisms are merged before composing; unknown mechanisms, an empty history or accountants that disagree are refused,
never guessed.
Not: whether the mechanisms were run as described (private_step.py), or who may spend what (ledger.py).

PLD (dp-accounting) is the truth; RDP (dp-accounting) and PRV (opacus) are second opinions. This is the only file that
imports opacus, which imports torch: `epsilon_prv`, `epsilon_rdp_opacus`, `calibrate` and `feasibility` do; `spend` does so
only when asked for PRV.
Sources: Koskela et al. 2020 (PLD); Mironov 2017 (RDP); Gopi et al. 2021 (PRV); Feldman and Zrnic 2021 (filter at one order).
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import Bug, ConfigurationError
from common.privacy.mechanisms import LatentLaplace, Mechanism, SubsampledGaussian, round_event
from common.study import Study, TrainedModel

TAIL_MASS = 5e-21  # a Box–Muller draw with a 64-bit radius misses 2.3e-21 of a Gaussian's mass
SAMPLER_SHARE = 0.01  # of delta: what the sampler's missing tail may add
RDP_ORDERS = (*(2 + tenth / 10 for tenth in range(90)), *range(11, 64), 128, 256, 512, 1024)
LARGEST_COMPOSED = 50.0  # beyond it an upper bound stands in for PLD: nobody's cap lies there
RATIO_FEASIBLE, RATIO_MARGINAL = 10.0, 20.0
SAMPLE_SITE_CAP = 10.0


# --- composition --------------------------------------------------------------------------------------------------------


def epsilon_pld(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` by privacy loss distributions; above 50 an upper bound instead. Raises `ConfigurationError`."""
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    mechanisms = _checked(mechanisms, delta)
    pure, composed = _split(mechanisms)
    rough = epsilon_rdp(composed, delta) if composed else 0.0
    if not composed or rough > LARGEST_COMPOSED:
        return pure + rough
    accountant = PLDAccountant(_zero_out())
    for event in _dp_events(composed):
        accountant.compose(event)
    return pure + float(accountant.get_epsilon(delta))


def epsilon_rdp(mechanisms: Iterable[Mechanism], delta: float, *, order: float | None = None) -> float:
    """Epsilon at `delta` by Rényi DP, at the best order or at one fixed `order`. Raises `ConfigurationError`."""
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    pure, composed = _split(_checked(mechanisms, delta))
    if not composed:
        return pure
    accountant = RdpAccountant(RDP_ORDERS if order is None else [order], _zero_out())
    for event in _dp_events(composed):
        accountant.compose(event)
    return pure + float(accountant.get_epsilon(delta))


def epsilon_prv(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` of the Gaussian part alone, by opacus' PRV accountant (imports torch). Raises `ConfigurationError`."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = _opacus_history(mechanisms, delta)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # opacus takes the log of 0 where q = 1, and then uses neither value
        return float(accountant.get_epsilon(delta=delta))


def epsilon_rdp_opacus(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` of the Gaussian part alone, by opacus' RDP accountant (imports torch)."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _opacus_history(mechanisms, delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its orders
        return float(accountant.get_epsilon(delta=delta, alphas=list(RDP_ORDERS)))


def sampler_delta(mechanisms: Iterable[Mechanism], epsilon: float) -> float:
    """What the Gaussian sampler's missing tail adds to delta: d·T·5e-21·(1 + e^epsilon)."""
    draws = sum(m.dimension * m.steps for m in mechanisms if isinstance(m, SubsampledGaussian))
    return draws * TAIL_MASS * (1.0 + math.exp(min(epsilon, 700.0)))


@dataclass(frozen=True)
class Spent:
    """One history's epsilon at `delta` by each accountant (`prv`: Gaussian part, None when not asked for)."""

    delta: float
    pld: float
    rdp: float
    prv: float | None
    sampler_delta: float


def spend(mechanisms: Iterable[Mechanism], delta: float, *, prv: bool = False) -> Spent:
    """What a history spends, with the accountants compared; nothing at all for an empty one.

    Raises `Bug` (E-ACCOUNTANTS) where they disagree: |PRV - PLD| <= 0.02 + 0.005·PLD on the Gaussian part, RDP >= PLD - 0.01.
    """
    mechanisms = tuple(mechanisms)
    if not mechanisms:
        return Spent(delta, 0.0, 0.0, 0.0 if prv else None, 0.0)
    pld, rdp = epsilon_pld(mechanisms, delta), epsilon_rdp(mechanisms, delta)
    spent = Spent(delta, pld, rdp, None, sampler_delta(mechanisms, pld))
    gaussian = [m for m in mechanisms if isinstance(m, SubsampledGaussian)]
    if prv and gaussian and pld <= LARGEST_COMPOSED:
        spent = replace(spent, prv=epsilon_prv(gaussian, delta))
        check_agreement(replace(spent, pld=epsilon_pld(gaussian, delta), rdp=math.inf))
    check_agreement(replace(spent, prv=None))
    return spent


def check_agreement(spent: Spent) -> None:
    """Raise `Bug` (E-ACCOUNTANTS) unless the accountants agree within their known tolerances."""
    off = spent.prv is not None and abs(spent.prv - spent.pld) > 0.02 + 0.005 * spent.pld
    if off or not spent.rdp >= spent.pld - 0.01 or not math.isfinite(spent.pld):
        raise Bug(
            f"accounting: accountants disagree: PLD {spent.pld:.4f}, RDP {spent.rdp:.4f}, PRV {spent.prv}",
            hint="nothing was spent; report this history with the versions of dp-accounting and opacus",
            code="E-ACCOUNTANTS",
        )


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The mechanisms with equal ones joined: steps of one model, q and sigma add up (25 times faster to compose)."""
    joined: dict[tuple[str, float, float], SubsampledGaussian] = {}
    others: list[Mechanism] = []
    for m in mechanisms:
        if not isinstance(m, SubsampledGaussian):
            others.append(m)
            continue
        key = (m.model, m.q, m.noise_multiplier)
        known = joined.get(key)
        joined[key] = (
            m
            if known is None
            else replace(known, steps=known.steps + m.steps, dimension=max(known.dimension, m.dimension))
        )
    return (*joined.values(), *others)


def _checked(mechanisms: Iterable[Mechanism], delta: float) -> tuple[Mechanism, ...]:
    mechanisms = tuple(mechanisms)
    unknown = [type(m).__name__ for m in mechanisms if not isinstance(m, (SubsampledGaussian, LatentLaplace))]
    if unknown or not mechanisms or not 0.0 < delta < 1.0:
        raise ConfigurationError(
            f"accounting: expected known mechanisms and 0 < delta < 1, got {unknown or mechanisms}, {delta!r}"
        )
    return merged(mechanisms)


def _split(mechanisms: Sequence[Mechanism]) -> tuple[float, tuple[Mechanism, ...]]:
    """The summed epsilon of pure mechanisms too large to compose (basic composition), and the rest."""
    large = [m for m in mechanisms if isinstance(m, LatentLaplace) and m.epsilon_per_image > LARGEST_COMPOSED]
    return sum(m.epsilon_per_image for m in large), tuple(m for m in mechanisms if m not in large)


def _dp_events(mechanisms: Iterable[Mechanism]) -> list[Any]:
    """dp-accounting's events. Laplace as its continuous limit: an upper bound for the lattice, equal from 64 steps on."""
    from dp_accounting import dp_event

    # Models of one rate and noise compose as one: half the time, the same epsilon.
    steps: dict[tuple[float, float], int] = {}
    events: list[Any] = []
    for m in mechanisms:
        if isinstance(m, SubsampledGaussian):
            steps[m.q, m.noise_multiplier] = steps.get((m.q, m.noise_multiplier), 0) + m.steps
        else:
            events.append(dp_event.LaplaceDpEvent(1.0 / m.epsilon_per_image))
    for (q, sigma), count in steps.items():
        sampled = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma))
        events.append(dp_event.SelfComposedDpEvent(sampled, count))
    return events


def _zero_out() -> Any:
    """The relation of all accounting. REPLACE_ONE would be another promise (17.0 where zero-out gives 8.03)."""
    from dp_accounting.privacy_accountant import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL


def _opacus_history(mechanisms: Iterable[Mechanism], delta: float) -> list[tuple[float, float, int]]:
    gaussian = [m for m in _checked(mechanisms, delta) if isinstance(m, SubsampledGaussian)]
    if not gaussian:
        raise ConfigurationError("accounting: opacus knows only the Gaussian mechanism, and there is none")
    return [(m.noise_multiplier, m.q, m.steps) for m in gaussian]


# --- planning -----------------------------------------------------------------------------------------------------------


def calibrate(q: float, steps: int, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier (to 0.01, rounded up) with which `steps` at rate `q` stay within `epsilon` by PLD."""
    from opacus.accountants.utils import get_noise_multiplier

    found = get_noise_multiplier(
        target_epsilon=epsilon,
        target_delta=delta,
        sample_rate=q,
        steps=steps,
        accountant="prv",
        epsilon_tolerance=0.001,
    )
    sigma = math.ceil(float(found) * 100 - 1e-9) / 100
    while epsilon_pld([SubsampledGaussian(q, sigma, steps)], delta) > epsilon:
        sigma = round(sigma + 0.01, 2)
    return sigma


@dataclass(frozen=True)
class ModelReport:
    """One trained model of a plan: its constants and how loud the noise is against the clipped signal."""

    name: str
    event: SubsampledGaussian  # all its steps
    plan: TrainedModel
    sites: int

    @property
    def ratio(self) -> float:
        """r = sigma·sqrt(d)/B: the noise's norm over the largest possible signal's, at one site."""
        return self.event.noise_multiplier * math.sqrt(self.event.dimension) / self.plan.patients_per_step

    @property
    def federated_ratio(self) -> float:
        """r / sqrt(S) after averaging S equal sites."""
        return self.ratio / math.sqrt(self.sites)

    @property
    def round_bytes(self) -> int:
        """Bytes of the trained parameters' update, fp32."""
        return 4 * self.event.dimension

    def to_text(self) -> str:
        """Two lines."""
        e, p = self.event, self.plan
        return (
            f"  {self.name}: q={e.q:.4g} B={p.patients_per_step} m={p.items_per_patient} T={e.steps} "
            f"({p.rounds} rounds x {p.local_steps}) sigma={e.noise_multiplier:g} C={p.clip:g} d={e.dimension:,}\n"
            f"    noise ratio r={self.ratio:.1f}, over {self.sites} sites r/sqrt(S)={self.federated_ratio:.1f}; "
            f"{self.round_bytes / 1e6:.1f} MB a round"
        )


@dataclass(frozen=True)
class PlanReport:
    """What a plan would spend and whether it can learn: the numbers of `kohort-server plan`.

    `verdict`: "feasible" (r/sqrt(S) <= 10), "marginal" (<= 20), "infeasible" (above: refused unless the plan accepts it) or
    "over budget" (always refused). `fixes`: cheapest first.
    """

    study: Study
    models: tuple[ModelReport, ...]
    spent: Spent
    site_cap: float
    verdict: str
    fixes: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the plan may be signed."""
        marked = self.verdict == "infeasible" and self.study.privacy.accept_infeasible
        return self.verdict in ("feasible", "marginal") or marked

    def to_text(self) -> str:
        """The report as printed."""
        privacy, spent = self.study.privacy, self.spent
        prv = "n/a" if spent.prv is None else f"{spent.prv:.3f}"
        lines = [
            f"plan {self.study.name}: unit {privacy.unit}, adjacency zero-out, N_plan={privacy.planned_patients:,}",
            *(model.to_text() for model in self.models),
            f"  together: epsilon PLD {spent.pld:.3f}, PRV {prv}, RDP {spent.rdp:.3f} "
            f"at delta {spent.delta:g} + sampler {spent.sampler_delta:.1g} (plan allows {privacy.epsilon:g})",
            f"  share of a site's cap of {self.site_cap:g}: {spent.pld / self.site_cap:.0%}",
            f"  verdict: {self.verdict}{', accepted by the plan' if self.verdict == 'infeasible' and self.accepted else ''}",
            *(f"    fix: {fix}" for fix in self.fixes),
        ]
        return "\n".join(lines)


def feasibility(study: Study, parameter_counts: Mapping[str, int], *, site_cap: float = SAMPLE_SITE_CAP) -> PlanReport:
    """The report on a plan; `parameter_counts`: trainable parameters by model name (imports torch). Spends nothing.

    Raises `ConfigurationError` when a trained model has no parameter count.
    """
    trained = study.models.trained()
    missing = sorted(set(trained) - set(parameter_counts))
    if missing:
        raise ConfigurationError(
            f"plan {study.name}: parameter counts: expected one for each trained model, missing {missing}"
        )
    models = tuple(
        ModelReport(name, _whole(study, name, parameter_counts[name]), plan, len(study.sites))
        for name, plan in trained.items()
    )
    events = [model.event for model in models]
    spent = spend(events, study.privacy.delta, prv=True)
    verdict = _verdict(study, spent, max(model.federated_ratio for model in models))
    return PlanReport(study, models, spent, site_cap, verdict, tuple(_fixes(study, spent, models, verdict)))


def _whole(study: Study, name: str, dimension: int) -> SubsampledGaussian:
    return replace(round_event(study, name, dimension), steps=study.models.trained()[name].steps)


def _verdict(study: Study, spent: Spent, ratio: float) -> str:
    if spent.pld > study.privacy.epsilon or spent.sampler_delta > SAMPLER_SHARE * spent.delta:
        return "over budget"
    if ratio <= RATIO_FEASIBLE:
        return "feasible"
    return "marginal" if ratio <= RATIO_MARGINAL else "infeasible"


def _fixes(study: Study, spent: Spent, models: tuple[ModelReport, ...], verdict: str) -> Iterable[str]:
    """What would change the verdict, cheapest first."""
    worst = max(models, key=lambda model: model.federated_ratio)
    if verdict == "over budget" and spent.pld <= study.privacy.epsilon:
        yield "the sampler's tail adds over 1 % of delta: fewer steps or trained parameters, or a smaller epsilon"
    elif verdict == "over budget":
        factor = _noise_factor([model.event for model in models], study.privacy.epsilon, study.privacy.delta)
        yield f"multiply every noise_multiplier by {factor:.2f}, or take fewer rounds or local steps"
    elif verdict != "feasible":
        shrink = (RATIO_FEASIBLE / worst.federated_ratio) ** 2
        sites = math.ceil(worst.sites / shrink)
        yield f"{worst.name}: fewer steps allow a smaller noise_multiplier"
        yield f"{worst.name}: train about {max(1, int(worst.event.dimension * shrink)):,} parameters (trainable: the last blocks)"
        yield f"{sites:,} sites of this size, or start from a checkpoint pretrained on public images"


def _noise_factor(events: list[SubsampledGaussian], epsilon: float, delta: float) -> float:
    """By what all noise must grow to fit, by RDP (a little more than PLD asks for), rounded up."""
    low, high = 1.0, 4096.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        louder = [replace(e, noise_multiplier=e.noise_multiplier * middle) for e in events]
        low, high = (middle, high) if epsilon_rdp(louder, delta) > epsilon else (low, middle)
    return math.ceil(high * 100) / 100
