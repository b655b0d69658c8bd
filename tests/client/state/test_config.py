"""site.yaml: the sample is the model, every mistake is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state.config import Policy, SiteConfig, load_site
from client.state.plan_check import PlanRefused, check_plan
from client.state.sample import sample
from common.errors import ConfigurationError
from tests.studies import SMALL, small_study


def test_the_sample_file_is_the_models_defaults(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(sample("hospital-a", "/data/été"))
    config = load_site(tmp_path)
    assert config == SiteConfig.model_validate(
        {"site": "hospital-a", "data": {"folder": "/data/été"}}
    )
    assert (config.policy.max_epsilon, config.policy.max_delta, config.policy.min_k) == (
        10.0,
        1e-5,
        5,
    )
    assert config.policy.review == "required"


def test_every_key_of_the_sample_is_explained() -> None:
    for line in sample("a", "/data").splitlines():
        if ":" in line and not line.startswith("#") and not line.endswith(":"):
            assert "  # " in line


def test_all_mistakes_are_named_with_line_and_suggestion(tmp_path: Path) -> None:
    text = (
        sample("hospital-a", "/data")
        .replace("max_epsilon: 10.0", "max_epsilonn: 3")
        .replace("min_k: 5", "min_k: 1")
    )
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_site(tmp_path)
    assert len(refused.value.problems) == 2
    assert "did you mean 'max_epsilon'" in refused.value.problems[0]
    assert "policy.min_k" in refused.value.problems[1]
    assert all(problem.startswith("site.yaml:") for problem in refused.value.problems)


def test_a_plan_within_the_policy_passes() -> None:
    config = SiteConfig.model_validate({"site": "hospital-a", "data": {"folder": "/data"}})
    check_plan(small_study(), config.policy, "hospital-a")
    check_plan(small_study(synthesis=None), config.policy, "hospital-a")


def test_a_plan_with_a_model_that_no_trainer_is_for_is_refused_before_it_costs_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.state.plan_check.TRAINERS", ("gan",))
    config = SiteConfig.model_validate({"site": "hospital-a", "data": {"folder": "/data"}})
    with pytest.raises(PlanRefused, match=r"models\.glow: .* cannot train"):
        check_plan(small_study(), config.policy, "hospital-a")


def test_the_tightest_groups_are_allowed_only_where_the_hospital_says_so() -> None:
    plan = small_study(synthesis=SMALL["synthesis"] | {"grouping": "similar-swap"})
    usual = SiteConfig.model_validate({"site": "hospital-a", "data": {"folder": "/data"}}).policy
    with pytest.raises(
        PlanRefused, match=r"grouping similar-swap is not in policy\.groupings"
    ) as refused:
        check_plan(plan, usual, "hospital-a")
    assert len(refused.value.problems) == 1
    check_plan(plan, Policy(groupings=("similar-swap",)), "hospital-a")


def test_every_excess_of_a_plan_is_named_at_once() -> None:
    limits = {
        "max_epsilon": 1.0,
        "max_delta": 1e-7,
        "min_k": 20,
        "min_noise_multiplier": 9.0,
        "groupings": ("random",),
        "max_images": 1,
    }
    config = SiteConfig.model_validate(
        {"site": "hospital-x", "data": {"folder": "/data"}, "policy": limits}
    )
    with pytest.raises(PlanRefused) as refused:
        check_plan(small_study(), config.policy, "hospital-x")
    words = (
        "sites",
        "epsilon",
        "delta",
        "gan.noise",
        "glow.noise",
        "synthesis.k",
        "grouping",
        "max_images",
    )
    assert len(refused.value.problems) == len(words)
    assert all(word in problem for word, problem in zip(words, refused.value.problems, strict=True))
    assert refused.value.exit_code == 3
