"""What a round costs: retries, refusals, old ledgers and plans that cannot learn."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.daemon.jobs import Ending, run_child
from client.state.folder import State
from client.state.plans import Plans
from client.state.records import FILTER_ORDER
from common.codes import advise
from common.errors import KohortError, PolicyError
from common.privacy.accounting import epsilon_pld, epsilon_rdp
from common.privacy.events import anchors_event, round_event
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire.tensors import Arrays
from tests.sites import WEIGHTS, Hospital, make_hospital, scripted, write_plan


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_a_child_that_keeps_crashing_is_given_up_with_a_code(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, *["crash"] * 9)
    site = hospital.site()
    for _ in range(2):  # asked again, it spends nothing more
        with pytest.raises(KohortError) as fault:
            site.answer(hospital.ask("train"))
        assert fault.value.code == "E-WORK-CRASHED"
    assert children.runs == 3
    assert sum(row.kind == "reserve" for row in site.ledger().rows()) == 3


def test_an_error_of_the_program_itself_is_not_tried_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a checkpoint that does not fit a network: it would fail again, and spend again."""
    children = scripted(monkeypatch, hospital.study, *["fault"] * 9)
    site = hospital.site()
    for _ in range(6):
        with pytest.raises(KohortError) as fault:
            site.answer(hospital.ask("train"))
        assert fault.value.code == "E-WORK-CRASHED"
    assert children.runs == 1
    assert sum(row.kind == "reserve" for row in site.ledger().rows()) == 1


@pytest.mark.parametrize(
    ("program", "again"),
    [
        ("raise ValueError", False),
        ("import sys; sys.exit(71)", True),
        ("import os; os.kill(os.getpid(), 9)", True),
    ],
    ids=["an-error-of-its-own", "another-rank-was-lost", "killed"],
)
def test_a_child_is_tried_again_only_where_something_else_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, again: bool
) -> None:
    monkeypatch.setattr("client.daemon.jobs.PROGRAM", ("-c", program))
    ending = run_child(tmp_path, 1, b"", threading.Event(), lambda done, total: None)
    assert ending == Ending(False, "", again)


def test_what_a_child_refuses_is_not_tried_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, "refuse", "refuse")
    site = hospital.site()
    for _ in range(2):
        with pytest.raises(PolicyError) as refused:
            site.answer(hospital.ask("train"))
        assert refused.value.code == "E-GROUP-SIZE"
    assert children.runs == 1
    # the hint says what this code asks for, and what a restart costs
    assert advise("E-GROUP-SIZE").fix in refused.value.hint
    assert "charged" in refused.value.hint


def test_an_old_ledger_spends_nothing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.ledger()
    backup = site.state.ledger.read_bytes()
    site.answer(hospital.ask("train"))
    site.state.ledger.write_bytes(backup)
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train", round=1))
    assert refused.value.code == "E-ROLLBACK"
    assert children.runs == 1


def test_a_hopeless_plan_spends_nothing_unless_it_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        "gan": {"generator.a": np.ones(3, np.float32), "critic.a": np.ones(40_000, np.float32)},
        "glow": WEIGHTS["glow"],
    }
    for accepts in (False, True):
        hospital = make_hospital(
            tmp_path / str(accepts),
            weights=weights,
            privacy__accept_infeasible=accepts,
            models__gan__max_update_norm=100.0,
        )
        children = scripted(monkeypatch, hospital.study)
        site = hospital.site()
        if accepts:
            site.answer(hospital.ask("train", weights=weights["gan"]))
            assert children.runs == 1
            continue
        with pytest.raises(PolicyError, match="100 patients a site this will not learn") as refused:
            site.answer(hospital.ask("train", weights=weights["gan"]))
        assert (
            refused.value.code == "E-PLAN-INFEASIBLE"
            and "less noise is enough" in refused.value.hint
        )
        assert children.runs == 0 and [row.kind for row in site.ledger().rows()] == ["open"]


def of_second_plan(
    hospital: Hospital, folder: Path, weights: dict[str, Arrays] = WEIGHTS, **changes: object
) -> Hospital:
    """The same site after its staff approved another plan."""
    folder.mkdir()
    plan = write_plan(folder, weights, **{"name": "second", **changes})
    write_bundle(plan, hospital.operator, folder / "bundle")
    Plans(State(hospital.root), hospital.operator.public_key()).approve(folder / "bundle")
    return replace(hospital, study=load_study(plan))


@pytest.mark.parametrize("room", [False, True])
def test_a_later_plan_is_checked_as_a_whole_with_everything_that_was_spent_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Two equal plans: each fits alone, and both do by PLD, but not by Rényi DP at one order.

    The second plan depends on what the first released, so Rényi DP at one order decides.
    """
    constants = {"models__gan__rounds": 4, "privacy__epsilon": 3.0}
    first = make_hospital(tmp_path / "first", **constants)
    children = scripted(monkeypatch, first.study)
    whole = [round_event(first.study, "gan", 2**20)] * 4 + [round_event(first.study, "glow", 2**20)]
    alone, both = (epsilon_rdp(whole * plans, 1e-5, order=FILTER_ORDER) for plans in (1, 2))
    assert epsilon_pld(whole * 2, 1e-5) < alone < both

    cap = both + 0.01 if room else (alone + both) / 2
    for number in range(4):
        first.site(max_epsilon=cap).answer(first.ask("train", round=number))
    second = of_second_plan(first, tmp_path / "plans", **constants)
    if room:
        second.site(max_epsilon=cap).answer(second.ask("train"))
        assert children.runs == 5
        return
    with pytest.raises(PolicyError, match="all its rounds") as refused:
        second.site(max_epsilon=cap).answer(second.ask("train"))
    assert refused.value.code == "E-POLICY-CAP"
    assert children.runs == 4


def test_the_images_of_a_later_plan_are_counted_before_its_first_training_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainings of both plans fit under the cap, the second plan's images do not."""
    first = make_hospital(tmp_path / "first", privacy__epsilon=3.0)
    children = scripted(monkeypatch, first.study)
    first.site().answer(first.ask("train"))
    second = of_second_plan(
        first,
        tmp_path / "plans",
        {"gan": WEIGHTS["gan"]},
        privacy__epsilon=3.0,
        models__glow=None,
        synthesis={
            "k": 5,
            "grouping": "anchors",
            "inversion_steps": 0,
            "alignment_steps": 0,
            "max_images_per_site": 40,
            "anchors": {"noise_multiplier": 2.0, "threshold_delta": 1e-6, "components": 8},
        },
    )
    step, images = round_event(second.study, "gan", 2**20), anchors_event(second.study)
    assert images is not None
    trained, all_of_it = (
        epsilon_rdp(history, 1e-5, order=FILTER_ORDER)
        for history in ([step] * 3, [step] * 3 + [images])
    )
    assert all_of_it > trained + 0.1
    with pytest.raises(PolicyError, match="all its rounds") as refused:
        second.site(max_epsilon=all_of_it - 0.05).answer(second.ask("train"))
    assert refused.value.code == "E-POLICY-CAP"
    second.site(max_epsilon=all_of_it + 0.05).answer(second.ask("train"))
    assert children.runs == 2


def test_a_plan_under_the_name_of_another_is_held_to_its_own_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_hospital(tmp_path / "first")
    children = scripted(monkeypatch, first.study)
    site = first.site()
    site.answer(first.ask("train"))
    second = of_second_plan(first, tmp_path / "plans", name=first.study.name, privacy__epsilon=0.2)
    with pytest.raises(PolicyError) as refused:
        site.answer(second.ask("train"))
    assert refused.value.code == "E-PLAN-BUDGET"
    assert children.runs == 1
