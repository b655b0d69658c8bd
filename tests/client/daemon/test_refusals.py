"""Whatever a site refuses is told by a code that has words, and costs what its ledger says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from client.daemon.site import Site
from client.fleet.app import public_code
from client.state.folder import State
from client.state.ledger_file import of_kind
from common.codes import advise
from common.errors import EnvironmentFault, KohortError
from common.privacy.events import round_event
from tests.sites import Hospital, make_hospital, scripted, spend_once

Spoil = Callable[[Site, Hospital, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Case:
    """A cause, its code, and how many reservations it costs."""

    code: str
    plan: dict[str, Any]
    policy: dict[str, Any]
    spoil: Spoil
    reserved: int = 0
    approve: bool = True


def nothing(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """The plan or the policy is the cause."""


def lose_data(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """Neither a cohort nor the folder to build it from."""
    shutil.rmtree(site.state.cohort(hospital.study.intake))
    shutil.rmtree(site.config.data.folder)


def little_memory(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """Less memory than any phase needs."""
    limits = site.config.limits.model_copy(update={"child_memory_gib": 0.1})
    object.__setattr__(site.records, "config", site.config.model_copy(update={"limits": limits}))


def fill_disk(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """No room for the job's folder."""

    def full(*_: object) -> None:
        raise EnvironmentFault("cannot write", code="E-DISK-FULL")

    patch.setattr("client.state.jobs.Job.write", full)


def spend_before(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """Another plan left next to nothing under the cap."""
    event = replace(round_event(hospital.study, "gan", 2**20), steps=500)
    site.ledger().reserve(event, "0" * 64)
    cap = spend_once([event], site.config.policy.max_delta).pld + 1e-3
    policy = site.config.policy.model_copy(update={"max_epsilon": cap})
    site.config = site.config.model_copy(update={"policy": policy})
    object.__setattr__(site.records, "config", site.config)


def few_patients(site: Site, hospital: Hospital, patch: pytest.MonkeyPatch) -> None:
    """The child finds too few."""
    scripted(patch, hospital.study, "refuse")


CASES = {
    "the policy allows less": Case("E-POLICY-PLAN", {}, {"min_k": 9}, nothing),
    "the cap is reached": Case("E-POLICY-CAP", {"privacy__epsilon": 2.0}, {}, spend_before),
    "nobody approved the plan": Case("E-PLAN-UNAPPROVED", {}, {}, nothing, approve=False),
    "the data folder is gone": Case("E-CONFIG", {}, {}, lose_data),
    "the machine is too small": Case("E-PLAN-MEMORY", {}, {}, little_memory),
    "the disk is full": Case("E-DISK-FULL", {}, {}, fill_disk, reserved=1),
    "too few patients": Case("E-GROUP-SIZE", {}, {}, few_patients, reserved=1),
}


@pytest.mark.parametrize("cause", CASES, ids=lambda cause: cause.replace(" ", "-"))
def test_a_refusal_is_told_by_a_code_with_words_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    case = CASES[cause]
    hospital = make_hospital(tmp_path, approve=case.approve, **case.plan)
    scripted(monkeypatch, hospital.study)
    site = hospital.site(**case.policy)
    case.spoil(site, hospital, monkeypatch)
    told = set()
    for _ in range(6):
        with pytest.raises(KohortError) as refused:
            site.answer(hospital.ask("train"))
        told.add(public_code(refused.value))
    assert told == {case.code}
    # six questions cost no more than one
    rows = site.ledger().rows() if State(hospital.root).ledger.is_file() else ()
    reserved = [row for row in of_kind(rows, "reserve") if row.data["plan"] != "0" * 64]
    assert len(reserved) == case.reserved
    # the operator's status has words for it
    assert advise(case.code).means and advise(case.code).fix
