"""How much privacy a list of mechanisms spends, by three accountants.

In: mechanisms (public constants) and a delta. Out: epsilons.
Guarantees:
1. One adjacency for all: zero-out of one patient. A replace-one epsilon is charged in full, which
   is never less.
2. Unknown mechanisms, an empty history and accountants that disagree are refused, never guessed.
Not covered: whether the mechanisms ran as described (client/learn/private_step.py), who may spend
what (client/state/ledger.py), whether a plan can learn (planning.py).

PLD is the epsilon that counts; RDP and PRV are checks. Only this file reads opacus (PRV), without
the torch that `import opacus` loads; `calibrate` alone imports it whole.
Sources: Koskela et al. 2020 (PLD); Mironov 2017 (RDP); Gopi et al. 2021 (PRV); Feldman and Zrnic
2021 (filter at one order).
"""

import importlib
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from common.errors import Bug, ConfigurationError, PolicyError
from common.privacy.anchors import NoisyAnchors
from common.privacy.latent_mechanisms import LatentLaplace, PrivUnit
from common.privacy.mechanisms import KINDS, Mechanism, SubsampledGaussian
from common.privacy.price import at_most

TAIL_MASS = 5e-21  # a Box–Muller draw with a 64-bit radius misses 2.3e-21 of a Gaussian's mass
SAMPLER_SHARE = 0.01  # of delta: what the sampler's missing tail may add
RDP_ORDERS = (*(2 + tenth / 10 for tenth in range(90)), *range(11, 64), 128, 256, 512, 1024)
LARGEST_COMPOSED = 50.0  # above it, where no cap lies, an upper bound replaces PLD
LOSS_STEP = 1e-4  # the grid of privacy losses of the PLD that counts
OPACUS = "_opacus_accountants"  # the name under which opacus' accountants are loaded alone


# --- composition ----------------------------------------------------------------------------------


def epsilon_pld(
    mechanisms: Iterable[Mechanism], delta: float, *, loss_step: float = LOSS_STEP
) -> float:
    """Return epsilon at `delta` by privacy loss distributions; above 50 an upper bound instead.

    `loss_step`: the grid of privacy losses; a multiple of the usual one is quicker, and its epsilon
    is never smaller (Doroshenko et al. 2022, "Connect the Dots").
    Raises ConfigurationError for an unknown mechanism, an empty history or an impossible delta.
    """
    pure, composed = _split(_check_and_merge(mechanisms, delta))
    return pure + (composed_once(composed, delta, loss_step) if composed else 0.0)


@lru_cache(maxsize=256)
def composed_once(
    mechanisms: tuple[Mechanism, ...], delta: float, loss_step: float = LOSS_STEP
) -> float:
    """Epsilon at `delta` of merged mechanisms that compose; each history is composed once."""
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

    rough = epsilon_rdp(mechanisms, delta)
    if rough > LARGEST_COMPOSED:
        return rough
    accountant = PLDAccountant(_zero_out(), loss_step)
    for event in _dp_events(mechanisms):
        accountant.compose(event)
    return float(accountant.get_epsilon(_delta_left(mechanisms, delta)))


def epsilon_rdp(
    mechanisms: Iterable[Mechanism], delta: float, *, order: float | None = None
) -> float:
    """Return epsilon at `delta` by Rényi DP, at the best order or at one fixed `order`.

    Raises ConfigurationError as `epsilon_pld` does.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    pure, composed = _split(_check_and_merge(mechanisms, delta))
    if not composed:
        return pure
    orders = list(RDP_ORDERS) if order is None else [order]
    accountant = RdpAccountant(orders, _zero_out())
    for event in _dp_events(composed):
        accountant.compose(event)
    return pure + float(accountant.get_epsilon(_delta_left(composed, delta)))


def epsilon_prv(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return epsilon at `delta` of the Gaussian part alone, by opacus' PRV accountant.

    Raises ConfigurationError as `epsilon_pld` does, and where no part is Gaussian.
    """
    accountant = _opacus_accountant("prv", "PRVAccountant")
    accountant.history = _opacus_history(mechanisms, delta)
    with warnings.catch_warnings():
        # opacus warns about a log of 0 where q = 1, never used, and about its first guess's orders.
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def epsilon_rdp_opacus(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return epsilon at `delta` of the Gaussian part alone, by opacus' RDP accountant."""
    accountant = _opacus_accountant("rdp", "RDPAccountant")
    accountant.history = _opacus_history(mechanisms, delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its orders
        return float(accountant.get_epsilon(delta=delta, alphas=list(RDP_ORDERS)))


def sampler_delta(mechanisms: Iterable[Mechanism], epsilon: float) -> float:
    """Return what the Gaussian sampler's missing tail adds to delta: d·T·5e-21·(1 + e^epsilon)."""
    draws = sum(m.dimension * m.steps for m in mechanisms if _is_gaussian(m))
    if epsilon > LARGEST_COMPOSED and draws:
        return 1.0  # no bound: every delta is at most 1
    return min(1.0, draws * TAIL_MASS * (1.0 + math.exp(epsilon)))


@dataclass(frozen=True)
class Spent:
    """One history's epsilon at `delta` by each accountant.

    `pld`: above 50 an upper bound instead. `prv`: None when not asked for, and for a history with
    other mechanisms than the subsampled Gaussian, which it does not know. `sampler_delta`: at most
    1, where there is no bound.
    """

    delta: float
    pld: float
    rdp: float
    prv: float | None
    sampler_delta: float

    @property
    def is_upper_bound(self) -> bool:
        """Whether `pld` and `rdp` are upper bounds that no accountant gives."""
        return self.pld > LARGEST_COMPOSED

    def by_accountant(self) -> dict[str, float]:
        """Return the figures that a release states, by name."""
        if self.is_upper_bound:
            return {"upper bound": self.pld}
        return {"PLD": self.pld, "RDP": self.rdp}

    def words(self) -> str:
        """Return the epsilons by the accountants that cover the whole history, and delta."""
        text = f"PLD {at_most(self.pld)}, RDP {at_most(self.rdp)}"
        if self.is_upper_bound:
            text = f"at most {at_most(self.pld)} (an upper bound: too large for PLD)"
        if self.prv is not None:
            text += f", PRV {at_most(self.prv)}"
        sampler = f"{self.sampler_delta:.1g}"
        if self.sampler_delta >= 1:
            sampler = "without a bound"
        return f"{text} at delta {self.delta:g} + sampler {sampler}"


def spend(mechanisms: Iterable[Mechanism], delta: float, *, prv: bool = False) -> Spent:
    """Return what a history spends, with the accountants compared; zeros for an empty one.

    Raises Bug (E-ACCOUNTANTS) where they disagree. They agree where |PRV - PLD| <= 0.02 + 0.005·PLD
    on the Gaussian part and RDP >= PLD - 0.01.
    """
    mechanisms = tuple(mechanisms)
    if not mechanisms:
        return Spent(delta, 0.0, 0.0, 0.0 if prv else None, 0.0)
    pld = epsilon_pld(mechanisms, delta)
    rdp = epsilon_rdp(mechanisms, delta)
    spent = Spent(delta, pld, rdp, None, sampler_delta(mechanisms, pld))
    check_agreement(spent)
    gaussian = [m for m in mechanisms if isinstance(m, SubsampledGaussian)]
    if prv and gaussian and pld <= LARGEST_COMPOSED:
        checked = replace(
            spent,
            pld=epsilon_pld(gaussian, delta),
            rdp=math.inf,
            prv=epsilon_prv(gaussian, delta),
        )
        check_agreement(checked)
        if len(gaussian) == len(mechanisms):
            spent = replace(spent, prv=checked.prv)
    return spent


def check_agreement(spent: Spent) -> None:
    """Raise `Bug` (E-ACCOUNTANTS) unless the accountants agree within their known tolerances."""
    off = spent.prv is not None and abs(spent.prv - spent.pld) > 0.02 + 0.005 * spent.pld
    if off or not spent.rdp >= spent.pld - 0.01 or not math.isfinite(spent.pld):
        raise Bug(
            f"accounting: accountants disagree: PLD {spent.pld:.4f}, RDP {spent.rdp:.4f}, "
            f"PRV {spent.prv}",
            hint="nothing was spent; report this history with the versions of dp-accounting "
            "and opacus",
            code="E-ACCOUNTANTS",
        )


def merge(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Return the mechanisms with equal ones joined: steps of one model, q and sigma add up.

    That composes 25 times faster.
    """
    joined: dict[tuple[str, float, float], SubsampledGaussian] = {}
    others: list[Mechanism] = []
    for m in mechanisms:
        if not isinstance(m, SubsampledGaussian):
            others.append(m)
            continue
        key = (m.model, m.q, m.noise_multiplier)
        known = joined.get(key)
        if known is None:
            joined[key] = m
            continue
        dimension = max(known.dimension, m.dimension)
        joined[key] = replace(known, steps=known.steps + m.steps, dimension=dimension)
    return (*joined.values(), *others)


def _check_and_merge(mechanisms: Iterable[Mechanism], delta: float) -> tuple[Mechanism, ...]:
    """The merged mechanisms, all of a known kind."""
    mechanisms = tuple(mechanisms)
    unknown = [type(m).__name__ for m in mechanisms if type(m) not in KINDS.values()]
    if unknown or not mechanisms or not 0.0 < delta < 1.0:
        raise ConfigurationError(
            "accounting: expected known mechanisms and 0 < delta < 1, "
            f"got {unknown or mechanisms}, {delta!r}"
        )
    return merge(mechanisms)


def _split(mechanisms: Sequence[Mechanism]) -> tuple[float, tuple[Mechanism, ...]]:
    """The summed epsilon of mechanisms that are added in full, and the rest, which is composed.

    Added in full: basic composition of pure epsilon.
    """
    pure: float = 0
    composed: list[Mechanism] = []
    for mechanism in mechanisms:
        if _is_added(mechanism):
            pure += mechanism.epsilon_per_image
        else:
            composed.append(mechanism)
    return pure, tuple(composed)


def _delta_left(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Delta without what the thresholds of `anchors` releases take of it.

    Raises PolicyError (E-CAP) where nothing is left.
    """
    left = delta - sum(m.threshold_delta for m in mechanisms if isinstance(m, NoisyAnchors))
    if not left > 0:
        raise PolicyError(
            f"accounting: the thresholds of anchors releases add up to delta {delta:g} or more",
            hint="ask for a plan with a smaller synthesis.anchors.threshold_delta; "
            "nothing was spent",
            code="E-CAP",
        )
    return left


def _is_added(mechanism: Mechanism) -> TypeGuard[LatentLaplace | PrivUnit]:
    """Whether it is pure without a known loss distribution, or a Laplace too large to compose."""
    if isinstance(mechanism, SubsampledGaussian):
        return False
    return all(_is_added_in_full(kind, value) for kind, value in mechanism.losses)


def _is_added_in_full(kind: str, value: float) -> bool:
    return kind == "pure" or (kind == "laplace" and value > LARGEST_COMPOSED)


def _is_gaussian(mechanism: Mechanism) -> bool:
    """Whether its noise comes from the Gaussian sampler, which misses a tail."""
    if isinstance(mechanism, SubsampledGaussian):
        return True
    return "gaussian" in {kind for kind, _ in mechanism.losses}


def _loss_event(kind: str, value: float) -> Any:
    """dp-accounting's event of one loss; raises ConfigurationError for a kind it cannot compose.

    Laplace is composed as its continuous limit: an upper bound for the lattice, equal from 64 steps
    on.
    """
    from dp_accounting import dp_event

    if kind == "gaussian":
        return dp_event.GaussianDpEvent(value)
    if kind == "laplace":
        return dp_event.LaplaceDpEvent(1.0 / value)
    raise ConfigurationError(f"accounting: expected a loss of gaussian or laplace, got {kind!r}")


def _dp_events(mechanisms: Iterable[Mechanism]) -> list[Any]:
    """dp-accounting's events."""
    from dp_accounting import dp_event

    # Models of one rate and noise compose as one: half the time, the same epsilon.
    steps: dict[tuple[float, float], int] = {}
    events: list[Any] = []
    for m in mechanisms:
        if isinstance(m, SubsampledGaussian):
            key = (m.q, m.noise_multiplier)
            steps[key] = steps.get(key, 0) + m.steps
        else:
            events += [_loss_event(kind, value) for kind, value in m.losses]
    for (q, sigma), count in steps.items():
        sampled = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma))
        events.append(dp_event.SelfComposedDpEvent(sampled, count))
    return events


def _zero_out() -> Any:
    """The adjacency of all accounting: zero-out.

    REPLACE_ONE would be another promise (17.0 where zero-out gives 8.03).
    """
    from dp_accounting.privacy_accountant import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL


class _History:
    """What opacus' accountants need of their base class, whose own file imports torch."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


def _opacus_accountant(module: str, name: str) -> Any:
    """One of opacus' accountants, from its own file; `import opacus` takes seconds, for torch."""
    if OPACUS not in sys.modules:
        found = find_spec("opacus")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("opacus")
        package = ModuleType(OPACUS)
        package.__path__ = [str(Path(found.origin).parent / "accountants")]
        base = ModuleType(f"{OPACUS}.accountant")
        base.IAccountant = _History  # type: ignore[attr-defined]
        sys.modules[base.__name__] = base
        sys.modules[OPACUS] = package
    return getattr(importlib.import_module(f"{OPACUS}.{module}"), name)()


def _opacus_history(
    mechanisms: Iterable[Mechanism], delta: float
) -> list[tuple[float, float, int]]:
    merged = _check_and_merge(mechanisms, delta)
    gaussian = [m for m in merged if isinstance(m, SubsampledGaussian)]
    if not gaussian:
        raise ConfigurationError(
            "accounting: opacus knows only the Gaussian mechanism, and there is none"
        )
    return [(m.noise_multiplier, m.q, m.steps) for m in gaussian]


# --- calibration ----------------------------------------------------------------------------------


def calibrate(q: float, steps: int, epsilon: float, delta: float) -> float:
    """Return the smallest noise multiplier with which `steps` at rate `q` stay within `epsilon`.

    By PLD; to 0.01, rounded up.
    """
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings():
        # opacus warns about the orders of its Rényi bounds, from which the search only starts.
        warnings.simplefilter("ignore")
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
