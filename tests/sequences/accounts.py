"""Reads the ledger for the oracle; asks the product's parser and accountants once a question."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from dp_accounting.pld import pld_privacy_accountant, privacy_loss_distribution

from client.state.ledger_file import Entry
from common.config import FrozenModel, parse_yaml
from common.privacy.accounting import Spent, composed_once, epsilon_rdp, sampler_delta, spend
from common.privacy.calibration import analytic_noise_multiplier
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from tests.sequences.composition import GRID, Loss

SPENDING = ("client.state.price", "client.state.ledger", "common.privacy.plan_report")
RENYI = ("client.state.price", "client.state.ledger")
ORDERS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
GAUSSIAN = functools.cache(privacy_loss_distribution.from_gaussian_mechanism)


def count_ledger(rows: Sequence[Entry]) -> Counter[Loss]:
    """Return how often each single application stands in the ledger's reservations."""
    counted: Counter[Loss] = Counter()
    for row in rows:
        event = row.data["event"]
        kind = event["mechanism"]
        if kind == "subsampled_gaussian":
            counted[Loss("sampled", event["noise_multiplier"], event["q"])] += event["steps"]
        elif kind == "noisy_anchors":
            threshold = event["threshold_delta"]
            counted[Loss("gaussian", event["noise_multiplier"], threshold=threshold)] += 1
        elif kind == "latent_gaussian":
            sigma = analytic_noise_multiplier(event["epsilon"], event["delta"])
            counted[Loss("gaussian", sigma)] += 1
        else:
            raise AssertionError(f"a mechanism that no history asks for: {kind}")
    return counted


def install_accounts(stack: ExitStack) -> None:
    """Let the product's accountants answer each question once, on a coarser grid.

    All stay upper bounds: a coarse grid rounds up, and fewer orders give a larger Rényi epsilon.
    """
    for module in SPENDING:
        stack.enter_context(patch(f"{module}.spend", spend_once))
    for module in RENYI:
        stack.enter_context(patch(f"{module}.epsilon_rdp", epsilon_rdp_once))
    stack.enter_context(patch("common.privacy.accounting.RDP_ORDERS", ORDERS))
    accountant = pld_privacy_accountant.PLDAccountant
    coarser = patch.object(
        pld_privacy_accountant, "PLDAccountant", lambda relation, _: accountant(relation, GRID)
    )
    stack.enter_context(coarser)
    gaussian = patch.object(privacy_loss_distribution, "from_gaussian_mechanism", GAUSSIAN)
    stack.enter_context(gaussian)
    # what was composed on the other grid is composed anew
    composed_once.cache_clear()
    stack.callback(composed_once.cache_clear)


def spend_once(mechanisms: Iterable[Mechanism], delta: float, *, prv: bool = False) -> Spent:
    """Return what the real accountants say, asked once for each history whatever its order.

    Models do not matter to them; the sampler's tail, which sees dimensions, is computed anew.
    """
    mechanisms = tuple(mechanisms)
    found = _spent(_joined(mechanisms), delta)
    tail = sampler_delta(mechanisms, found.pld)
    return Spent(delta, found.pld, found.rdp, None, tail)


def epsilon_rdp_once(
    mechanisms: Iterable[Mechanism], delta: float, *, order: float | None = None
) -> float:
    """Return what the real accountant says, asked once for each history whatever its order."""
    return _renyi(_joined(mechanisms), delta, order)


def _joined(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """The mechanisms with steps of one rate and noise joined, in canonical order."""
    steps: Counter[tuple[float, float]] = Counter()
    others: list[Mechanism] = []
    for one in mechanisms:
        if isinstance(one, SubsampledGaussian):
            steps[one.q, one.noise_multiplier] += one.steps
        else:
            others.append(one)
    joined = [SubsampledGaussian(q, sigma, count) for (q, sigma), count in steps.items()]
    return tuple(sorted((*joined, *others), key=lambda one: one.event()))


@functools.cache
def _spent(mechanisms: tuple[Mechanism, ...], delta: float) -> Spent:
    """The accountants' answer for one multiset of mechanisms."""
    return spend(mechanisms, delta)


@functools.cache
def _renyi(mechanisms: tuple[Mechanism, ...], delta: float, order: float | None) -> float:
    """The Rényi accountant's answer for one multiset of mechanisms."""
    return epsilon_rdp(mechanisms, delta, order=order)


def parse_once(text: str, model: type[FrozenModel], path: Path) -> FrozenModel:
    """Return the model in a text, parsed once: the few files of all histories are the same."""
    return _parse(text, model, path.name)


@functools.cache
def _parse(text: str, model: type[FrozenModel], name: str) -> FrozenModel:
    """The same, whatever folder the file lies in."""
    return parse_yaml(text, model, Path(name))
