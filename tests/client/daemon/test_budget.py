"""A plan that spends more than it promises is refused before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import PolicyError
from common.privacy.accounting import epsilon_pld
from common.privacy.events import plan_events
from common.privacy.mechanisms import SubsampledGaussian
from tests.sites import make_hospital, scripted
from tests.studies import small_study

# A plan that promises 1 and spends 6.2 (gan alone: 4 steps at q = 0.16), in every form that the
# daemon meets it. The noise stays above the site's own policy.
OVER = {"models__gan__noise_multiplier": 0.6, "privacy__epsilon": 1.0}


@pytest.mark.parametrize("promised", [1.0, 2.0])
def test_a_plan_that_spends_more_than_it_promises_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: float
) -> None:
    hospital = make_hospital(tmp_path, **OVER | {"privacy__epsilon": promised})
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train"))
    assert refused.value.code == "E-PLAN-BUDGET"
    assert f"the plan promises {promised:g}; nothing was spent" in str(refused.value)
    assert children.runs == 0
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open"]


def test_a_plan_over_budget_that_spent_before_spends_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, **OVER)
    scripted(monkeypatch, hospital.study)
    earlier = SubsampledGaussian(0.16, 0.6, 2, 304, "gan")
    hospital.site().ledger().reserve(earlier, hospital.study.hash())
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train"))
    assert refused.value.code == "E-PLAN-BUDGET"


def test_a_plan_that_spends_what_it_promises_to_the_last_digit_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study()
    spent = epsilon_pld(plan_events(study, {"gan": 4, "glow": 5}), study.privacy.delta)
    hospital = make_hospital(tmp_path / "exact", privacy__epsilon=spent)
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    less = make_hospital(tmp_path / "less", privacy__epsilon=spent * (1 - 1e-6))
    with pytest.raises(PolicyError) as refused:
        less.site().answer(less.ask("train"))
    assert refused.value.code == "E-PLAN-BUDGET"
