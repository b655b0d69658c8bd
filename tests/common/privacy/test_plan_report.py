"""The plan's verdict: known plans, what the fixes promise, what a site refuses."""

import subprocess
import sys
from typing import Any

import pytest

from common.errors import ConfigurationError, PolicyError
from common.privacy.accounting import epsilon_rdp
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.plan_report import feasibility, refuse_infeasible
from common.privacy.planning import effective_sites
from common.study.plan import Study
from tests.studies import small_plan, small_study, vessels_plan

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party accountants and torch


EQUAL, ALONE = (1.0,) * 5, (1.0, 1e-9)


def plan(weights: tuple[float, ...] = EQUAL, **changes: object) -> Study:
    """A small plan: five equal hospitals, N_plan 1,000."""
    gan = {
        "rounds": 20,
        "local_steps": 100,
        "learning_rate": 2e-4,
        "noise_multiplier": 1.88,
        "patients_per_step": 64,
        "clip": 1.0,
        "max_update_norm": 10.0,
        "width": 16,
        "latent": 64,
        "generator_learning_rate": 2e-4,
    }
    privacy: dict[str, object] = {"epsilon": 8.0, "delta": 1e-5, "planned_patients": 1000}
    for key, value in changes.items():
        (gan if key in gan else privacy)[key] = value  # type: ignore[assignment]
    return Study.model_validate(
        {
            "format": "kohort-study/1",
            "name": "test",
            "title": "test",
            "modality": "fundus",
            "quorum": 2,
            "sites": [{"name": f"site-{i}", "weight": weight} for i, weight in enumerate(weights)],
            "intake": {"dicom_modalities": ["OP"], "size_px": 64, "channels": 3, "labels": ["a"]},
            "models": {"gan": gan},
            "privacy": privacy,
            "release": {"date": "2026-01-01"},
        }
    )


def test_the_samplers_tail_counts_canaries_and_the_noise_ratio_does_not() -> None:
    few, many = (feasibility(plan(canaries=count), {"gan": 1000}, prv=False) for count in (0, 1000))
    assert many.spent.sampler_delta == pytest.approx(2 * few.spent.sampler_delta)
    assert (many.models[0].ratio, many.spent.pld) == (few.models[0].ratio, few.spent.pld)


def test_the_plan_report_prints_what_a_plan_spends() -> None:
    report = feasibility(plan(), {"gan": 250_000})
    text = report.to_text()
    assert report.models[0].ratio == pytest.approx(14.7, rel=0.01)
    assert report.models[0].federated_ratio == pytest.approx(6.57, rel=0.01)
    assert report.spent.pld == pytest.approx(7.95, abs=0.06)
    assert (report.verdict, report.accepted, report.fixes) == ("feasible", True, ())
    for word in (
        "unit patient",
        "zero-out",
        "N_plan=1,000",
        "q=0.064",
        "B=64",
        "m=1",
        "T=2000",
        "sigma=1.88",
        "PLD",
        "PRV",
        "RDP",
    ):
        assert word in text
    for word in (
        "delta 1e-05",
        "sampler",
        "d=250,000",
        "r=14.7",
        "r/sqrt(S)=6.6",
        "1.0 MB",
        "promised: at most 8",
        "verdict: feasible",
    ):
        assert word in text


VERDICTS: dict[str, tuple[dict[str, Any], int, bool, str]] = {
    "marginal": ({}, 1_000_000, True, "marginal"),
    "infeasible": ({}, 3_200_000, False, "infeasible"),
    "infeasible but accepted": ({"accept_infeasible": True}, 3_200_000, True, "infeasible"),
    "over budget, whatever the plan accepts": (
        {"noise_multiplier": 1.5, "accept_infeasible": True},
        250_000,
        False,
        "over budget",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_follows_the_noise_ratio_and_the_budget(case: str) -> None:
    changes, dimension, accepted, verdict = VERDICTS[case]
    report = feasibility(plan(**changes), {"gan": dimension})
    assert (report.verdict, report.accepted) == (verdict, accepted)
    assert report.fixes
    assert "fix:" in report.to_text() and report.sentence.startswith(verdict)


def test_a_plan_whose_sampler_tail_is_too_heavy_says_so() -> None:
    report = feasibility(plan(accept_infeasible=True), {"gan": 8_000_000})
    assert (report.verdict, report.accepted) == ("over budget", False)
    assert "sampler" in report.sentence and "fewer steps" in report.fixes[0]


def test_a_plan_without_a_parameter_count_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="gan"):
        feasibility(plan(), {})


# N_plan, B, sigma, sites -> r, r/sqrt(S), verdict at T = 2,000, d = 250,000, epsilon 8.
# (docs/methods/dp-wgan.md)
TABLE = {
    "the paper's 41 patients": (41, 16, 10.5, ALONE, 328, 328, "infeasible"),
    "60 sequences": (60, 16, 7.21, ALONE, 225, 225, "infeasible"),
    "200 patients": (200, 64, 8.6, ALONE, 67, 67, "infeasible"),
    "682 radiograph patients, just refused alone": (682, 64, 2.64, ALONE, 20.6, 20.6, "infeasible"),
    "the same in a federation of five": (682, 64, 2.64, EQUAL, 20.6, 9.2, "feasible"),
    "1,000 patients": (1000, 64, 1.88, ALONE, 14.7, 14.7, "marginal"),
    "five sites of 1,000": (1000, 64, 1.88, EQUAL, 14.7, 6.6, "feasible"),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_verdict_is_that_of_the_table(case: str) -> None:
    patients, batch, sigma, weights, ratio, federated, verdict = TABLE[case]
    study = plan(
        weights,
        planned_patients=patients,
        patients_per_step=batch,
        noise_multiplier=sigma,
        epsilon=8.1,
    )
    report = feasibility(study, {"gan": 250_000}, prv=False)
    assert report.models[0].ratio == pytest.approx(ratio, rel=0.01)
    assert report.models[0].federated_ratio == pytest.approx(federated, rel=0.01)
    assert report.verdict == verdict
    assert report.models[0].calibrated == pytest.approx(sigma, rel=0.03)


def affordable(
    steps: int, dimension: int, patients: int, sites: float, ratio: float, epsilon: float
) -> bool:
    """By the full accountant: whether noise of just this ratio stays within epsilon (B = 16)."""
    sigma = ratio * sites**0.5 * 16 / dimension**0.5
    return (
        sigma >= 0.3
        and epsilon_rdp([SubsampledGaussian(16 / patients, sigma, steps)], 1e-5) <= epsilon
    )


def test_what_the_fixes_promise_holds_and_nothing_smaller_does() -> None:
    study = plan(planned_patients=41, patients_per_step=16, noise_multiplier=10.6)
    report = feasibility(study, {"gan": 250_000}, prv=False)
    assert (
        "41 patients a site this will not learn" in report.sentence
        and "148 times the signal" in report.sentence
    )
    for needs, ratio in zip(report.needs, (20, 10), strict=True):
        now = {
            "steps": 2000,
            "dimension": 250_000,
            "patients": 41,
            "sites": 5.0,
            "ratio": ratio,
            "epsilon": 8.0,
        }
        assert not affordable(**now)  # type: ignore[arg-type]
        for name, value, further in (
            ("steps", needs.steps, 1.1),
            ("dimension", needs.parameters, 1.05),
            ("patients", needs.patients, 0.95),
            ("sites", needs.sites, 0.95),
        ):
            assert value is not None
            assert affordable(**{**now, name: value}), (ratio, name)  # type: ignore[arg-type]
            beyond = {
                **now,
                name: float(value * further)
                if name == "sites"
                else int(value * further + (further > 1)),
            }
            assert not affordable(**beyond), (ratio, name)  # type: ignore[arg-type]
    text = report.to_text()
    for word in (
        "trained parameters",
        "public pretrained checkpoint",
        "patients a site",
        "sites of 41",
        "fewer steps alone",
    ):
        assert word in text


def test_a_plan_of_pairs_that_would_not_learn_is_told_of_their_look() -> None:
    few = {
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "planned_patients": 41},
        "models__wgan__rounds": 40,
        "models__wgan__local_steps": 50,
        "models__wgan__noise_multiplier": 10.6,
    }
    study = Study.model_validate(vessels_plan(**few))
    told = "or 6: `architecture: mask-first` with `trainable: [critic.look]`"
    assert told in feasibility(study, {"wgan": 250_000}, prv=False).to_text()
    # and it is true: six numbers are feasible where these are not
    assert feasibility(study, {"wgan": 6}, prv=False).verdict == "feasible"
    images = plan(planned_patients=41, patients_per_step=16, noise_multiplier=10.6)
    assert "critic.look" not in feasibility(images, {"gan": 250_000}, prv=False).to_text()


def test_noise_that_the_epsilon_does_not_ask_for_is_the_first_thing_to_lower() -> None:
    report = feasibility(plan(noise_multiplier=8.0), {"gan": 250_000}, prv=False)
    assert report.verdict == "infeasible" and report.fixes == (
        "models.gan.noise_multiplier: 1.88 is enough for the epsilon of the plan",
    )


def test_unequal_sites_average_the_noise_less_than_equal_ones() -> None:
    assert effective_sites(plan()) == pytest.approx(5)
    assert effective_sites(plan((3.0, 1.0, 1.0))) == pytest.approx(25 / 11)


def test_averages_that_are_not_safe_from_re_identification_are_warned_of() -> None:
    at_risk = small_study()
    groups = {**small_plan()["synthesis"], "grouping": "cells", "k": 10}
    safer = small_study(synthesis=groups)
    for study, warned in ((at_risk, True), (safer, False)):
        text = feasibility(study, {"gan": 9, "glow": 9}, prv=False).to_text()
        assert ("warning: averages of patients who were chosen" in text) is warned


def test_a_site_refuses_an_infeasible_plan_unless_it_says_so_itself() -> None:
    hopeless: dict[str, Any] = {
        "planned_patients": 41,
        "patients_per_step": 16,
        "noise_multiplier": 10.6,
    }
    with pytest.raises(PolicyError, match="41 patients a site this will not learn") as refused:
        refuse_infeasible(plan(**hopeless), {"gan": 250_000})
    assert refused.value.code == "E-PLAN-INFEASIBLE" and "374 patients" in refused.value.hint
    refuse_infeasible(plan(**hopeless, accept_infeasible=True), {"gan": 250_000})
    refuse_infeasible(plan(**hopeless), {"gan": 4_000})
    refuse_infeasible(plan(), {"gan": 1_000_000})  # marginal


def test_a_sites_check_of_the_verdict_needs_no_torch() -> None:
    program = (
        "import sys; from tests.studies import small_study;"
        "from common.privacy import plan_report, planning;"
        "s = small_study(); plan_report.refuse_infeasible(s, {'gan': 9, 'glow': 9});"
        "models = planning.noise_of_models(s, {'gan': 9**6, 'glow': 9}, {});"
        "planning.needs_for(s, models, 20.0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
