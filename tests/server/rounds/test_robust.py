"""Aggregation against hostile sites: what moves the step, beside numpy, and in a whole study."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import PolicyError, RefusedError
from common.privacy.boundary import norm_of
from common.study.plan import Study
from common.wire import tensors
from common.wire.tensors import Arrays
from server.rounds import robust
from server.rounds.aggregate import aggregate
from server.rounds.intake import Accepted
from server.rounds.loop import run_study
from tests.federation import Federation
from tests.studies import small_plan

CAP = 10.0
SHAPES = {"critic.a": (3, 2), "critic.b": (5,)}
Column = NDArray[np.float64]


def plan(sites: int, rule: str, trim: float = 0.0) -> Study:
    """A plan with the GAN's cap of 10, all of whose sites must answer."""
    names = [{"name": f"site-{number}"} for number in range(sites)]
    how = {"rule": rule, "trim": trim}
    return Study.model_validate(small_plan(sites=names, quorum=sites, aggregation=how))


def updates(count: int, seed: int = 0, size: float = 1.0) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [
        {name: (size * rng.standard_normal(s)).astype(np.float32) for name, s in SHAPES.items()}
        for _ in range(count)
    ]


def step_of(study: Study, given_: Sequence[Arrays], folder: Path) -> Arrays:
    """The step from weights of zero; site-i sends given_[i]."""
    weights: Arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    sites = {f"site-{number}": update for number, update in enumerate(given_)}

    def read(site: str) -> Accepted:
        return cast(Accepted, SimpleNamespace(arrays=sites[site]))

    moved: Arrays = {}
    moved |= aggregate(study, "gan", weights, sites, read, folder)
    return moved


def flat(arrays: Arrays) -> Column:
    return np.concatenate([arrays[name].astype(np.float64).ravel() for name in SHAPES])


# --- the trimmed mean


@pytest.mark.parametrize(("sites", "trim"), [(3, 0.34), (5, 0.2), (5, 0.4), (9, 0.25)])
def test_a_trimmed_mean_is_numpys_mean_of_the_middle(
    sites: int, trim: float, tmp_path: Path
) -> None:
    out = int(trim * sites)
    sent = updates(sites)
    middle = np.sort([flat(update) for update in sent], axis=0)[out : sites - out]
    found = flat(step_of(plan(sites, "trimmed_mean", trim), sent, tmp_path))
    np.testing.assert_allclose(found, middle.mean(axis=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("sites", "hostile", "trim"), [(3, 1, 0.34), (5, 1, 0.2), (5, 2, 0.4)])
@pytest.mark.parametrize("attack", ["label-flipped", "scaled", "zero"])
def test_hostile_sites_leave_each_number_between_values_of_honest_sites(
    sites: int, hostile: int, trim: float, attack: str, tmp_path: Path
) -> None:
    honest = updates(sites - hostile)
    factor = {"label-flipped": -1.0, "scaled": 1e6, "zero": 0.0}[attack]
    turned = {name: (factor * array).astype(np.float32) for name, array in honest[0].items()}
    found = flat(
        step_of(plan(sites, "trimmed_mean", trim), [*honest, *[turned] * hostile], tmp_path)
    )
    values = np.array([flat(update) for update in honest])
    slack = 1e-6 * np.abs(values).max()
    assert (found >= values.min(axis=0) - slack).all()
    assert (found <= values.max(axis=0) + slack).all()


@given(
    honest=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=8),
    poison=st.floats(-1e30, 1e30),
    share=st.floats(0.1, 10),
)
def test_one_hostile_value_stays_between_the_honest_ones_whatever_its_weight(
    honest: list[float], poison: float, share: float
) -> None:
    values = np.array([[value] for value in [*honest, poison]])
    shares = np.ones(len(values))
    shares[-1] = share
    (found,) = robust.trimmed_mean(values, shares, 1 / len(values))
    slack = 1e-9 * max(1.0, max(map(abs, honest)))
    assert min(honest) - slack <= found <= max(honest) + slack


def test_the_plain_mean_is_what_a_hostile_site_moves(tmp_path: Path) -> None:
    """The other rules are there for a reason: without them the same site decides the step."""
    honest = updates(2, size=0.01)
    poison = {name: np.full(shape, 1.0, np.float32) for name, shape in SHAPES.items()}
    sent = [*honest, poison]
    moved = {
        rule: np.abs(flat(step_of(plan(3, rule, trim), sent, tmp_path))).mean()
        for rule, trim in (("mean", 0.0), ("trimmed_mean", 0.34), ("norm_weighted", 0.0))
    }
    assert moved["mean"] > 0.3
    assert moved["trimmed_mean"] < 0.03 and moved["norm_weighted"] < 0.03


def test_weights_count_among_the_answers_that_stay() -> None:
    values = np.array([[0.0], [10.0], [1.0], [2.0]])
    (found,) = robust.trimmed_mean(values, np.array([9.0, 9.0, 3.0, 1.0]), 0.25)
    assert found == pytest.approx((3 * 1 + 1 * 2) / 4)


def test_the_order_of_arrival_changes_no_byte(tmp_path: Path) -> None:
    sent = updates(5)
    for rule, trim in (("trimmed_mean", 0.2), ("norm_weighted", 0.0)):
        study = plan(5, rule, trim)
        weights: Arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        found = []
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 1, 3]):
            names = [f"site-{number}" for number in order]
            made: Arrays = {}
            made |= aggregate(
                study,
                "gan",
                weights,
                names,
                lambda name: cast(Accepted, SimpleNamespace(arrays=sent[int(name[-1])])),
                tmp_path / rule,
            )
            found.append(tensors.dumps(made))
        assert found[0] == found[1]


def test_a_step_is_never_longer_than_the_cap(tmp_path: Path) -> None:
    """The middle of vectors of norm c can be longer: each site is large in other places."""
    sent = []
    for number in range(3):
        values = np.full(11, CAP / np.sqrt(8))
        values[number::3] = 0
        sent.append({"critic.a": values[:6].reshape(3, 2), "critic.b": values[6:]})
    sent = [{name: array.astype(np.float32) for name, array in one.items()} for one in sent]
    assert all(norm_of(one) <= CAP * 1.0001 for one in sent)
    middle = np.median([flat(one) for one in sent], axis=0)
    assert np.linalg.norm(middle) > 1.1 * CAP
    found = step_of(plan(3, "trimmed_mean", 0.34), sent, tmp_path)
    assert norm_of(found) == pytest.approx(CAP)


def test_blocks_give_the_same_step_as_everything_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, sent = plan(5, "trimmed_mean", 0.2), updates(5)
    whole = tensors.dumps(step_of(study, sent, tmp_path / "a"))
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 10)  # two numbers of each site
    assert tensors.dumps(step_of(study, sent, tmp_path / "b")) == whole


def peak_of_step(scratch: robust.Scratch, sites: int) -> int:
    """Bytes at the peak of one step; what other threads take meanwhile is in it."""
    tracemalloc.start()
    robust.trimmed_step(scratch, [1.0] * sites, 0.34)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "BLOCK_NUMBERS", 1 << 14)
    size = 200_000
    peaks = []
    for sites in (3, 30):
        scratch = robust.Scratch(tmp_path / str(sites), {"critic.a": (size,)})
        for number in range(sites):
            scratch.add(f"site-{number}", {"critic.a": np.full(size, number, np.float32)})
        peaks.append(min(peak_of_step(scratch, sites) for _ in range(3)))
    assert peaks[1] < 1.5 * peaks[0]


# --- norm weights


def test_a_long_update_counts_as_one_of_the_median_norm(tmp_path: Path) -> None:
    honest = updates(4, size=0.1)
    poison = {
        name: (30 * array).astype(np.float32) for name, array in updates(1, 9, 0.1)[0].items()
    }
    found = flat(step_of(plan(5, "norm_weighted"), [*honest, poison], tmp_path))
    norms = np.array([np.linalg.norm(flat(update)) for update in [*honest, poison]])
    median = float(np.median(norms))
    factors = np.minimum(1.0, median / norms)
    values = np.array([flat(update) for update in [*honest, poison]])
    np.testing.assert_allclose(
        found, (factors[:, None] * values).sum(axis=0) / factors.sum(), rtol=1e-5, atol=1e-8
    )
    share = np.linalg.norm(factors[-1] * values[-1]) / factors.sum()
    assert share <= 1.0001 * median / factors.sum()


def test_norm_weights_of_updates_of_zero_are_the_plans() -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert robust.norm_shares(shares, {"a": 0.0, "b": 0.0, "c": 7.0}) == shares


# --- both


@pytest.mark.parametrize(("rule", "trim"), [("trimmed_mean", 0.34), ("norm_weighted", 0.0)])
def test_below_the_quorum_or_with_a_misfit_nothing_is_averaged(
    rule: str, trim: float, tmp_path: Path
) -> None:
    study = plan(3, rule, trim)
    with pytest.raises(PolicyError) as few:
        step_of(study, updates(2), tmp_path)
    assert few.value.code == "E-QUORUM"
    sent = updates(3)
    sent[1]["critic.b"] = np.zeros(4, np.float32)
    with pytest.raises(RefusedError) as misfit:
        step_of(study, sent, tmp_path)
    assert misfit.value.code == "E-AGGREGATE"


@pytest.mark.parametrize(("rule", "trim"), [("trimmed_mean", 0.34), ("norm_weighted", 0.0)])
def test_a_study_with_a_poisoning_site_ends_with_weights_near_the_honest_ones(
    rule: str, trim: float, tmp_path: Path
) -> None:
    """One of three sends updates a hundred times as long, which the intake has to accept."""
    moved = {}
    for how in ("mean", rule):
        aggregation: dict[str, Any] = {"rule": how}
        if how == "trimmed_mean":
            aggregation["trim"] = trim
        federation = Federation.create(tmp_path / how, aggregation=aggregation, quorum=3)
        federation.sites["hospital-c"].size = 1.0
        federation.sites["hospital-c"].seed = 7
        run = federation.run()
        assert run.record.complete()
        assert not list(run.record.root.glob("rounds/*"))
        start = run.record._start("gan")
        end = tensors.read(run.record.final_weights()["gan"], max_bytes=1 << 20)
        moved[how] = norm_of({name: end[name] - start[name] for name in start})
    assert moved[rule] < 0.1 * moved["mean"]
    run_study(run, federation.grid())  # a complete study stays as it is
