"""The plan's rule of aggregation: what is valid, and what it costs in noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from common.privacy.aggregation_noise import efficiency, trimmed_efficiency
from common.privacy.planning import effective_sites, noise_of_models
from common.study.plan import Study
from common.study.sections import trimmed_sites
from tests.server.cli.reports import fake_report
from tests.studies import small_plan

TRIMMED = {"rule": "trimmed_mean", "trim": 0.34}


def plan(sites: int = 3, quorum: int = 3, **aggregation: Any) -> Study:
    names = [{"name": f"site-{number}"} for number in range(sites)]
    return Study.model_validate(small_plan(sites=names, quorum=quorum, aggregation=aggregation))


def test_the_mean_is_the_rule_of_a_plan_that_says_nothing() -> None:
    assert Study.model_validate(small_plan()).aggregation.rule == "mean"


@pytest.mark.parametrize(
    ("quorum", "trim", "words"),
    [
        (2, 0.49, "set a quorum of at least 3"),
        (3, 0.3, "quorum 3 and trim 0.334"),
        (3, 0.0, "leaves no site out"),
        (4, 0.24, "quorum 4 and trim 0.25"),
    ],
)
def test_a_trim_that_leaves_no_site_out_is_refused_with_the_fix(
    quorum: int, trim: float, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        plan(5, quorum, rule="trimmed_mean", trim=trim)


def test_the_fix_that_is_offered_is_valid() -> None:
    for quorum in range(3, 40):
        trim = math.ceil(1000 / quorum) / 1000
        assert trimmed_sites(trim, quorum) == 1
        assert plan(quorum, quorum, rule="trimmed_mean", trim=trim)


def test_a_trim_without_its_rule_and_a_trim_of_half_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave it out"):
        plan(trim=0.34)
    with pytest.raises(ValidationError):
        plan(rule="trimmed_mean", trim=0.5)


def test_something_is_left_to_average_whatever_the_trim() -> None:
    for sites in range(1, 60):
        for hundredths in range(50):
            assert sites - 2 * trimmed_sites(hundredths / 100, sites) >= 1


@pytest.mark.parametrize(
    ("sites", "out", "variance"),
    [
        (3, 1, 0.44867),  # the median of three: 1 - sqrt(3)/pi
        (5, 2, 0.28683),  # the medians of five and seven: David and Nagaraja 2003
        (7, 3, 0.21045),
    ],
)
def test_the_efficiency_is_that_of_known_medians(sites: int, out: int, variance: float) -> None:
    assert trimmed_efficiency(sites, out) == pytest.approx(1 / sites / variance, rel=0.005)


def test_the_plan_weighs_noise_against_signal_with_the_rules_own_cost() -> None:
    mean = plan()
    trimmed = plan(**TRIMMED)
    assert efficiency(mean) == efficiency(plan(rule="norm_weighted")) == 1
    assert effective_sites(trimmed) == pytest.approx(3 * efficiency(trimmed))
    counts = {"gan": 1000, "glow": 1000}
    plain, robust = (noise_of_models(one, counts, {})[0] for one in (mean, trimmed))
    assert robust.federated_ratio > 1.1 * plain.federated_ratio
    report = fake_report("feasible")
    text = report(trimmed, counts, norms={}).to_text()
    assert "leaves out 1 of 3 answers at each end" in text
    assert f"{effective_sites(trimmed):.3g} sites" in text
    assert "aggregation" not in report(mean, counts, norms={}).to_text()
