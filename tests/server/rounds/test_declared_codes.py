"""What a site refuses stands at once in the server's record: code, round and time alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from client.cli.serve import note_refusal
from client.fleet import health as states
from client.fleet.app import build_app
from client.fleet.health import Health
from common.errors import EnvironmentFault, PolicyError
from common.wire import signing
from server.operator.state import ServerState
from server.rounds import gathering, orders
from server.rounds.history import DeclaredCode
from server.rounds.loop import run_study, train_round
from server.rounds.record import MOST_CODES, StudyRecord
from tests.federation import Federation, failed
from tests.sites import make_hospital, scripted
from tests.sized_plans import CODE, misfit, write_misfit

WAIT_S = 20.0


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


@pytest.fixture
def record(federation: Federation) -> Iterator[StudyRecord]:
    found = federation.open().record
    yield found
    found.close()


def test_a_refusing_site_is_named_with_code_round_and_time_and_forgotten_once_it_answers(
    federation: Federation,
) -> None:
    run = federation.open()
    seen: list[DeclaredCode | None] = []

    def refuse(message: Message, answer: Callable[[], Message]) -> list[tuple[float, Message]]:
        deadline = time.monotonic() + WAIT_S
        while seen and run.record.last_code("hospital-b") is None and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(run.record.last_code("hospital-b"))
        return failed(2, "E-PLAN-MEMORY")(message, answer)

    train_round(run, federation.grid({"hospital-b": [refuse] * 3}), "gan", 0)
    # nothing before its first refusal, then one entry for all of them
    assert seen[0] is None and seen[1] == seen[2]
    assert seen[1] is not None and seen[1].code == "E-PLAN-MEMORY"
    assert seen[1].place == run.record.place("train", "gan", 0)
    assert seen[1].since.endswith("+00:00")
    codes = [entry for entry in run.record.journal.entries() if entry.state == "code"]
    assert len(codes) == 1
    # it answered after that
    assert run.record.last_code("hospital-b") is None
    assert run.record.last_code("hospital-a") is None


def test_another_code_replaces_the_first_and_a_restart_keeps_both_times(
    federation: Federation, record: StudyRecord
) -> None:
    key = record.place("train", "gan", 0) + "/0"
    assert record.note_code(key, "hospital-a", "E-PLAN-MEMORY")
    assert not record.note_code(key, "hospital-a", "E-PLAN-MEMORY")
    again = federation.open().record
    assert again.last_code("hospital-a") == record.last_code("hospital-a")
    assert not again.note_code(key, "hospital-a", "E-PLAN-MEMORY")
    assert again.note_code(key, "hospital-a", "E-DISK-FULL")
    found = record.last_code("hospital-a")
    assert found is not None and found.code == "E-DISK-FULL"
    again.close()


def test_a_code_that_comes_again_after_an_answer_is_news(record: StudyRecord) -> None:
    key = record.place("synthesize", "", 0)
    record.note_code(f"{key}/0", "hospital-a", "E-NO-IMAGES")
    record.note_accepted(f"{key}/0", "hospital-a", "0" * 64, "key")
    assert record.last_code("hospital-a") is None
    assert record.note_code(f"{key}/0", "hospital-a", "E-NO-IMAGES")
    assert record.last_code("hospital-a") is not None


def test_a_site_that_invents_codes_fills_no_journal(record: StudyRecord) -> None:
    key = record.place("train", "gan", 0) + "/0"
    noted = [record.note_code(key, "hospital-a", f"E-{number}") for number in range(100)]
    assert noted.count(True) == MOST_CODES


def test_a_code_of_an_earlier_version_has_no_time(record: StudyRecord) -> None:
    key = record.place("train", "gan", 0) + "/0/hospital-a/code"
    record.journal.append(key, "code", {"site": "hospital-a", "code": "E-CAP"})
    found = record.last_code("hospital-a")
    assert found == DeclaredCode("E-CAP", record.place("train", "gan", 0), "")


def test_a_plan_of_128_px_with_checkpoints_of_64_px_spends_nothing_and_the_server_knows_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle from elsewhere: an older version signed and approved it."""
    monkeypatch.setattr(gathering, "REGISTRY_S", 0.05)
    weights, changes = misfit("gan", 128)
    hospital = make_hospital(tmp_path / "site", weights=weights, **changes)
    children = scripted(monkeypatch, hospital.study)
    folder = tmp_path / "consortium"
    folder.mkdir()
    plan = write_misfit(folder / "plan", "gan", 128)
    state = ServerState(folder / "server")
    signing.save_private(state.operator_key, hospital.operator)
    federation = Federation.of(folder, plan, hospital.operator, state)
    assert federation.study.hash() == hospital.study.hash()
    # one real daemon among the toys, with the states that `kohort-site status` shows
    site, health = hospital.site(), Health()
    run, grid = federation.open(), federation.grid()
    node = run.registry.get("hospital-a").node_id
    assert node is not None
    grid.apps[node] = build_app(site.answer, lambda error: note_refusal(health, error))
    told = threading.Event()
    append = run.record.journal.append

    def listen(key: str, what: str, data: dict[str, object] | None = None) -> None:
        append(key, what, data)
        if what == "code":
            told.set()

    monkeypatch.setattr(run.record.journal, "append", listen)
    thread = threading.Thread(target=run_study, args=(run, grid), daemon=True)
    thread.start()
    assert told.wait(WAIT_S)
    # the site says why, with the fix
    shown = health.get(states.WORK)
    assert shown is not None and shown.state is states.WORK_REFUSED
    assert shown.facts.startswith(f"{CODE}: plan small: models.gan.start")
    assert "kohort-server pretrain" in shown.facts
    orders.abandon(federation.open().record)
    thread.join(WAIT_S)

    # nothing was spent, no child ran
    assert [row.kind for row in site.ledger().rows()] == ["open"]
    assert children.runs == 0
    # the server says who, and the code
    found = federation.open().record.last_code("hospital-a")
    assert found is not None and found.code == CODE
    assert found.place == run.record.place("train", "gan", 0)


def test_a_cause_with_a_patient_in_it_stands_in_no_state() -> None:
    health = Health()
    note_refusal(health, EnvironmentFault("/data/Doe^Jane.dcm: gone", hint="look at the disk"))
    shown = health.get(states.WORK)
    assert shown is not None and shown.facts == "E-ENVIRONMENT (look at the disk)"
    note_refusal(health, PolicyError("plan small: too much", code="E-POLICY-CAP"))
    shown = health.get(states.WORK)
    assert shown is not None and shown.facts == "E-POLICY-CAP: plan small: too much (no hint)"
    note_refusal(health, None)
    assert health.get(states.WORK) is None
    note_refusal(health, PolicyError("over", code="E-STUDY-ENDED"))
    assert health.get(states.WORK) is None


def test_a_code_in_a_journal_is_bound_to_its_site(record: StudyRecord) -> None:
    key = record.place("train", "gan", 0) + "/0"
    record.note_code(key, "hospital-a", "E-CAP")
    other = replace(record.last_code("hospital-a") or pytest.fail("no code"), code="E-FILTER")
    record.note_code(key, "hospital-ab", "E-FILTER")
    assert record.last_code("hospital-ab") == other
    assert not record.note_code(key, "hospital-a", "E-CAP")
