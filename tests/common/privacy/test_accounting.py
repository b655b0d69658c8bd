"""Accounting: golden values, agreement of the accountants, and what they refuse."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from common.errors import Bug, ConfigurationError
from common.privacy import accounting
from common.privacy.accounting import (
    LOSS_STEP,
    SAMPLER_SHARE,
    Spent,
    calibrate,
    check_agreement,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilon_rdp_opacus,
    merge,
    sampler_delta,
    spend,
)
from common.privacy.latent_mechanisms import LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from common.privacy.planning import loss_step_for

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party accountants and torch

GOLDEN = [  # q, sigma, steps, delta, RDP, PRV, PLD
    (0.01, 1.0, 1000, 1e-5, 2.1014, 1.8384, 1.8282),
    (128 / 60000, 1.0, 450000, 1e-5, 9.9697, 9.2878, 9.2786),
    (512 / 60000, 2.0, 174000, 1e-5, 10.0791, 9.3957, 9.3857),
    (0.2, 4.0, 500, 1e-3, 4.1835, 3.7155, 3.7052),
    (1.0, 10.0, 50, 1e-5, 3.1890, 2.9534, 2.9432),
    (32 / 41000, 1.0, 64050, 1 / 41000, 1.0395, 0.9271, 0.9178),
    (0.064, 1.87, 2000, 1e-5, 8.665, None, 8.026),
]


def pld_oracle(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon by dp-accounting's own accountant, composed live."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def prv_oracle(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon by opacus' own accountant, imported whole."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    return float(accountant.get_epsilon(delta=delta))


@pytest.mark.parametrize(("q", "sigma", "steps", "delta", "rdp", "prv", "pld"), GOLDEN)
def test_golden_epsilons_hold_to_one_in_a_thousand_and_prv_and_rdp_bracket_them(
    q: float, sigma: float, steps: int, delta: float, rdp: float, prv: float | None, pld: float
) -> None:
    history = [SubsampledGaussian(q, sigma, steps)]
    found = epsilon_pld(history, delta)
    assert found == pytest.approx(pld_oracle(q, sigma, steps, delta), rel=1e-3)
    assert found == pytest.approx(pld, rel=1e-3)
    assert epsilon_rdp(history, delta) == pytest.approx(rdp, rel=1e-3)
    assert epsilon_rdp_opacus(history, delta) == pytest.approx(rdp, rel=5e-3)
    above = epsilon_prv(history, delta)
    assert above == prv_oracle(q, sigma, steps, delta)  # to the bit
    assert found <= above <= epsilon_rdp(history, delta)
    assert above <= found + 0.02 + 0.005 * found
    if prv is not None:
        assert above == pytest.approx(prv, rel=1e-3)


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.01, 1.0, 1000), (0.25, 0.88, 6)])
def test_the_grid_of_planning_never_charges_less_and_hardly_more(
    q: float, sigma: float, steps: int
) -> None:
    history = [SubsampledGaussian(q, sigma, steps)]
    coarse = epsilon_pld(history, 1e-5, loss_step=loss_step_for(history))
    assert 0 < coarse - epsilon_pld(history, 1e-5) < 0.002


def test_a_plan_of_more_steps_is_planned_on_the_grid_that_counts() -> None:
    assert loss_step_for([SubsampledGaussian(0.01, 1.0, 1001)]) == LOSS_STEP
    assert loss_step_for([SubsampledGaussian(0.01, 1.0, 501)] * 2) == LOSS_STEP


def test_zero_out_is_the_relation_of_all_accounting() -> None:
    """Replace-one would read 17.04 here; the golden 8.026 pins zero-out."""
    assert epsilon_pld([SubsampledGaussian(0.064, 1.87, 2000)], 1e-5) == pytest.approx(
        8.026, rel=2e-3
    )


def test_gaussian_and_laplace_compose_in_one_pld() -> None:
    gaussian = SubsampledGaussian(0.01, 1.1, 1000)
    laplace = LatentLaplace("box", 1.0, 1, 1, "random", 4.0)  # pure epsilon 0.5
    assert epsilon_pld([gaussian], 1e-5) == pytest.approx(1.515, rel=2e-3)
    assert epsilon_pld([gaussian, laplace], 1e-5) == pytest.approx(1.946, rel=2e-3)
    assert epsilon_rdp([gaussian, laplace], 1e-5) == pytest.approx(2.137, rel=2e-3)
    assert epsilon_rdp([gaussian], 1e-5, order=8.0) == pytest.approx(1.80, rel=2e-3)
    assert epsilon_pld([gaussian, gaussian], 1e-5) == pytest.approx(2.160, rel=2e-3)


def test_merged_equals_unmerged() -> None:
    parts = [
        SubsampledGaussian(0.05, 2.0, 40, 10, "gan"),
        SubsampledGaussian(0.05, 2.0, 60, 30, "gan"),
    ]
    assert merge(parts) == (SubsampledGaussian(0.05, 2.0, 100, 30, "gan"),)
    unmerged = [dataclasses.replace(part, model=f"m{i}") for i, part in enumerate(parts)]
    assert len(merge(unmerged)) == 2
    assert epsilon_pld(parts, 1e-5) == pytest.approx(epsilon_pld(unmerged, 1e-5), rel=1e-3)


@pytest.mark.parametrize(
    "other",
    [{"q": 0.2}, {"noise_multiplier": 1.0}, {"model": "glow"}],
    ids=lambda change: next(iter(change)),
)
def test_steps_of_another_rate_noise_or_model_are_never_joined(other: dict[str, Any]) -> None:
    one = SubsampledGaussian(0.05, 2.0, 4, 10, "gan")
    two = dataclasses.replace(one, **other)
    assert set(merge([one, two])) == set(merge([two, one])) == {one, two}
    for accountant in (epsilon_pld, epsilon_rdp):
        both = accountant([one, two], 1e-5)
        assert both == pytest.approx(accountant([two, one], 1e-5), rel=1e-6)
        assert both > accountant([two], 1e-5)


def test_a_large_pure_epsilon_adds_up_and_never_looks_small() -> None:
    big = LatentLaplace("box", 3.0, 1024, 1, "random", 0.5)
    small = SubsampledGaussian(0.01, 1.1, 1000)
    assert epsilon_pld([big, small], 1e-5) == pytest.approx(
        big.epsilon_per_image + epsilon_pld([small], 1e-5)
    )
    assert epsilon_pld([big, big], 1e-5) == pytest.approx(2 * big.epsilon_per_image)
    loud = SubsampledGaussian(1.0, 0.3, 100)
    assert epsilon_pld([loud], 1e-5) > 500
    together = epsilon_pld([big, loud], 1e-5)
    assert together == pytest.approx(big.epsilon_per_image + epsilon_pld([loud], 1e-5))
    assert epsilon_rdp([big, loud], 1e-5) == pytest.approx(together)


REFUSED: dict[str, tuple[list[object], float]] = {
    "an empty history": ([], 1e-5),
    "an unknown mechanism": (["gaussian"], 1e-5),
    "delta of zero": ([SubsampledGaussian(0.1, 1.0, 1)], 0.0),
    "delta of one": ([SubsampledGaussian(0.1, 1.0, 1)], 1.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_accountants_cannot_mean_is_refused(case: str) -> None:
    history, delta = REFUSED[case]
    for accountant in (epsilon_pld, epsilon_rdp, epsilon_prv):
        with pytest.raises(ConfigurationError):
            accountant(history, delta)  # type: ignore[arg-type]


def test_a_mechanism_without_noise_cannot_be_written_down() -> None:
    with pytest.raises(ConfigurationError):
        SubsampledGaussian(0.1, 0.0, 1)


@pytest.mark.parametrize(
    "spent",
    [
        Spent(1e-5, 5.0, 4.98, None, 0.0),
        Spent(1e-5, 5.0, 6.0, 5.1, 0.0),
        Spent(1e-5, 5.0, 6.0, 4.9, 0.0),
        Spent(1e-5, float("nan"), 6.0, None, 0.0),
        Spent(1e-5, float("inf"), float("inf"), None, 0.0),
    ],
)
def test_accountants_that_disagree_refuse_the_run(spent: Spent) -> None:
    with pytest.raises(Bug) as refusal:
        check_agreement(spent)
    assert refusal.value.code == "E-ACCOUNTANTS"


def test_spend_compares_three_accountants() -> None:
    spent = spend(
        [SubsampledGaussian(0.05, 2.0, 100, model="gan"), SubsampledGaussian(0.1, 3.0, 50)],
        1e-5,
        prv=True,
    )
    assert spent.prv == pytest.approx(spent.pld, abs=0.02 + 0.005 * spent.pld)
    assert spent.pld < spent.rdp < 1.3 * spent.pld
    assert spend([], 1e-5).pld == 0.0


def test_the_accountant_of_gaussians_says_nothing_of_a_history_with_other_mechanisms() -> None:
    training = SubsampledGaussian(0.05, 2.0, 100)
    images = LatentGaussian(16, 5, "random", 1.0, 1e-6)
    assert spend([training], 1e-5, prv=True).prv is not None
    assert spend([training, images], 1e-5, prv=True).prv is None


def test_the_gaussian_part_of_a_mixed_history_is_still_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounting, "epsilon_prv", lambda mechanisms, delta: 3.0)
    history = [SubsampledGaussian(0.05, 2.0, 100), LatentGaussian(16, 5, "random", 1.0, 1e-6)]
    with pytest.raises(Bug) as refusal:
        spend(history, 1e-5, prv=True)
    assert refusal.value.code == "E-ACCOUNTANTS"


def test_the_samplers_missing_tail_is_priced() -> None:
    small, huge = (
        SubsampledGaussian(0.1, 2.0, 2000, 250_000),
        SubsampledGaussian(0.1, 2.0, 100_000, 10**9),
    )
    assert sampler_delta([small], 8.0) == pytest.approx(250_000 * 2000 * 5e-21 * 2981.96, rel=1e-4)
    assert sampler_delta([small], 8.0) < SAMPLER_SHARE * 1e-5 < sampler_delta([huge], 8.0)


def test_calibration_rounds_up_and_stays_within_the_target() -> None:
    sigma = calibrate(0.2, 10, 2.0, 1e-4)
    assert sigma == round(sigma, 2)
    assert epsilon_pld([SubsampledGaussian(0.2, sigma, 10)], 1e-4) <= 2.0
    assert epsilon_pld([SubsampledGaussian(0.2, sigma - 0.05, 10)], 1e-4) > 2.0


def test_a_reserves_arithmetic_needs_no_torch() -> None:
    program = (
        "import sys, json, client.state.ledger; from common.privacy.accounting import spend;"
        "from common.privacy.mechanisms import SubsampledGaussian as G;"
        "spend([G(.1, 2., 20)], 1e-5, prv=True);"
        "print(json.dumps([m for m in ('torch', 'opacus') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_a_latent_gaussian_alone_spends_what_its_plan_says(epsilon: float) -> None:
    m = LatentGaussian(32, 10, "random", epsilon, 1e-5)
    assert epsilon_pld([m], 1e-5) == pytest.approx(epsilon, rel=0.01)
    assert epsilon_rdp([m], 1e-5) >= epsilon


def test_a_privunits_pure_epsilon_is_added_in_full() -> None:
    """Under this relation dp-accounting's randomized response would say 7.3 for 8: too low."""
    m, other = PrivUnit(16, 8.0), LatentGaussian(32, 10, "random", 1.0, 1e-5)
    assert epsilon_pld([m], 1e-5) == epsilon_rdp([m], 1e-5) == 8.0
    assert epsilon_pld([m, m], 1e-5) == 16.0
    assert epsilon_pld([m, other], 1e-5) == pytest.approx(8.0 + epsilon_pld([other], 1e-5))


def test_every_mechanism_composes_and_no_part_is_forgotten() -> None:
    parts = [
        LatentGaussian(32, 10, "random", 1.0, 1e-5),
        PrivUnit(16, 1.0),
        LatentLaplace("box", 1.0, 1, 1, "random", 4.0),
    ]
    whole = spend(parts, 1e-5)
    assert whole.rdp >= whole.pld - 0.01
    for i in range(len(parts)):
        assert epsilon_pld(parts[:i] + parts[i + 1 :], 1e-5) < whole.pld - 0.1


@pytest.mark.parametrize(
    "mechanism",
    [
        LatentLaplace("box", 3.0, 1, 30, "random", 0.5),
        LatentGaussian(16, 30, "random", 1.0, 1e-6),
        PrivUnit(16, 1.0),
    ],
    ids=lambda mechanism: type(mechanism).__name__,
)
def test_a_second_release_by_the_same_mechanism_is_spent_again(mechanism: Mechanism) -> None:
    for accountant in (epsilon_pld, epsilon_rdp):
        once, twice = (accountant([mechanism] * releases, 1e-5) for releases in (1, 2))
        assert twice > 1.25 * once


def test_the_latent_gaussians_sampler_has_its_share_of_delta() -> None:
    assert sampler_delta([LatentGaussian(65_536, 10, "random", 8.0, 1e-5)], 8.0) > 0
    assert sampler_delta([PrivUnit(16, 8.0)], 8.0) == 0


def test_an_unknown_loss_is_refused() -> None:
    class Odd(PrivUnit):
        """A stranger that looks like one of ours."""

    with pytest.raises(ConfigurationError, match="known mechanisms"):
        epsilon_pld([Odd(16, 1.0)], 1e-5)
    with pytest.raises(ConfigurationError, match="cauchy"):
        accounting._loss_event("cauchy", 1.0)


def test_a_history_is_composed_once_and_another_one_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [SubsampledGaussian(0.1, 1.37, 20, 10)]
    accounting.composed_once.cache_clear()
    first = epsilon_pld(history, 1e-5)
    longer = epsilon_pld([*history, *history], 1e-5)
    assert epsilon_pld(history, 1e-6) > first
    assert longer > first

    def forbidden(*_: object) -> None:
        raise AssertionError("composed again")

    monkeypatch.setattr("dp_accounting.pld.pld_privacy_accountant.PLDAccountant", forbidden)
    assert epsilon_pld(list(history), 1e-5) == first
    assert epsilon_pld([*history, *history], 1e-5) == longer
    with pytest.raises(AssertionError, match="composed again"):
        epsilon_pld([dataclasses.replace(history[0], noise_multiplier=1.38)], 1e-5)
