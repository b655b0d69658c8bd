"""What plans cost the patients of a site."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state.config import load_site
from client.state.folder import State
from client.state.plans import Plans
from client.state.price import epsilon_after, refuse_over_cap, site_report, spent_of_plan
from client.state.records import Records, note_loss
from common.errors import PolicyError
from common.privacy.accounting import epsilon_pld
from common.privacy.events import plan_events
from common.privacy.mechanisms import SubsampledGaussian
from common.study.plan import Study
from tests.sites import Hospital, make_hospital, spend_once

DELTA = 1e-5
ROUND = SubsampledGaussian(0.16, 4.0, 2, 4, "gan")
OTHER = "f" * 64


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    for module in ("client.state.price", "client.state.ledger"):
        monkeypatch.setattr(f"{module}.spend", spend_once)
    return make_hospital(tmp_path)


def records_of(hospital: Hospital) -> Records:
    state = State(hospital.root)
    return Records(state, load_site(hospital.root), Plans(state, hospital.operator.public_key()))


def test_a_site_without_a_ledger_has_spent_nothing_and_begins_none(hospital: Hospital) -> None:
    records = records_of(hospital)
    assert site_report(records).price.short() == "spent so far 0, left 10, cap 10"
    note_loss(records.state, 2.5)
    assert site_report(records).price.short() == "spent so far 2.5, left 7.5, cap 10"
    assert not records.state.ledger.exists()


def test_a_plan_is_counted_once_however_far_it_is(hospital: Hospital) -> None:
    records = records_of(hospital)
    plan = hospital.study.hash()
    whole = (SubsampledGaussian(0.16, 4.0, 4, 4, "gan"),)
    before = epsilon_after(site_report(records), plan, whole)
    records.ledger().reserve(ROUND, plan)
    assert epsilon_after(site_report(records), plan, whole) == before
    # a round that was computed again is spent beside the plan
    for _ in range(3):
        records.ledger().reserve(ROUND, plan)
    report = site_report(records)
    assert epsilon_after(report, plan, whole).epsilon == report.price.spent > before.epsilon


def test_what_other_plans_spent_is_composed_with_a_plan(hospital: Hospital) -> None:
    records = records_of(hospital)
    records.ledger().reserve(ROUND, OTHER)
    after = epsilon_after(site_report(records), hospital.study.hash(), (ROUND,))
    both = epsilon_pld([ROUND, ROUND], DELTA)
    assert after.epsilon == pytest.approx(both)
    # a later plan is admitted by Rényi DP at one order, too
    assert after.admitted > after.epsilon
    refuse_over_cap(hospital.study, after, after.admitted)
    with pytest.raises(PolicyError) as refused:
        refuse_over_cap(hospital.study, after, after.epsilon)
    assert refused.value.code == "E-POLICY-CAP"
    with pytest.raises(PolicyError):
        refuse_over_cap(hospital.study, after, float("nan"))


def test_a_next_version_has_spent_what_it_goes_on_from(hospital: Hospital) -> None:
    first = hospital.study
    data = first.model_dump(mode="json")
    rounds = {"gan": 1, "glow": 0}
    later = Study.model_validate(data | {"continues": {"plan": first.hash(), "rounds": rounds}})
    records = records_of(hospital)
    records.ledger().reserve(ROUND, first.hash())
    records.ledger().reserve(ROUND, later.hash())
    spent = spent_of_plan(records, site_report(records), later)
    assert spent == pytest.approx(epsilon_pld([ROUND, ROUND], DELTA))
    assert spent_of_plan(records, site_report(records), first) < spent
    # what is planned counts them, too
    events = plan_events(later, {"gan": 4, "glow": 5})
    assert [event.steps for event in events] == [2 * 3, 2]
