"""Reads the ledger for the oracle; asks the product's parser and accountants once a question."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from client.state.ledger_file import Entry
from common.config import FrozenModel, parse_yaml
from common.privacy.accounting import Spent, sampler_delta, spend
from common.privacy.calibration import analytic_noise_multiplier
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from tests.sequences.composition import Loss


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


def spend_once(mechanisms: Iterable[Mechanism], delta: float, *, prv: bool = False) -> Spent:
    """Return what the real accountants say, asked once for each history whatever its order.

    Models do not matter to them; the sampler's tail, which sees dimensions, is computed anew.
    """
    mechanisms = tuple(mechanisms)
    steps: Counter[tuple[float, float]] = Counter()
    others: list[Mechanism] = []
    for one in mechanisms:
        if isinstance(one, SubsampledGaussian):
            steps[one.q, one.noise_multiplier] += one.steps
        else:
            others.append(one)
    joined = [SubsampledGaussian(q, sigma, count) for (q, sigma), count in steps.items()]
    key = (frozenset(joined), tuple(sorted(others, key=lambda one: one.event())))
    found = _spent(key, delta)
    tail = sampler_delta(mechanisms, found.pld)
    return Spent(delta, found.pld, found.rdp, None, tail)


@functools.cache
def _spent(key: tuple[frozenset[SubsampledGaussian], tuple[Mechanism, ...]], delta: float) -> Spent:
    """The accountants' answer for one multiset of mechanisms."""
    joined, others = key
    return spend((*sorted(joined, key=lambda one: one.event()), *others), delta)


def parse_once(text: str, model: type[FrozenModel], path: Path) -> FrozenModel:
    """Return the model in a text, parsed once: the few files of all histories are the same."""
    return _parse(text, model, path.name)


@functools.cache
def _parse(text: str, model: type[FrozenModel], name: str) -> FrozenModel:
    """The same, whatever folder the file lies in."""
    return parse_yaml(text, model, Path(name))
