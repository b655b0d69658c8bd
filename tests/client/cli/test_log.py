"""`kohort-site log`: what a hospital's auditor asks, and what nobody can read out of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from client.daemon.site import Site
from client.fleet.renewal import finish_rotation
from client.state.chains import chains
from client.state.folder import State
from client.state.head import Heads, head_of
from client.state.signers import signing_keys
from common.audit_log.log import FILE, HEADS_FILE
from common.errors import PolicyError
from common.privacy.boundary import OPERATOR_LOG
from common.wire import signing
from common.wire.messages import Header, Sealed
from tests.client.cli.typing_commands import Cli
from tests.sites import SITE, Hospital, make_hospital, scripted, write_cohort

HEAD = "5" * 64


def header_of(sealed: Sealed) -> Header:
    return Header.model_validate_json(sealed.header)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """A site that has answered its first round."""
    hospital = make_hospital(tmp_path)
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    return hospital


def events(root: Path) -> list[str]:
    return [entry.event for entry in State(root).log.entries()]


def test_the_log_tells_what_was_done_and_who_decided(
    worked: tuple[Hospital, Site], cli: Cli
) -> None:
    hospital, _ = worked
    root = hospital.root
    assert cli("review", "--state", root, "--approve", "--reviewer", "Dr. R")[0] == 0
    hospital.site().answer(hospital.ask("synthesize"))
    expected = ["plan-approved", "reserved", "signed", "reserved", "reviewed", "signed"]
    assert events(root) == expected
    code, out, _ = cli("log", "--state", root)
    assert code == 0
    assert len(out.splitlines()) == len(expected)
    assert "by Dr. R" in out
    rows = [json.loads(line) for line in cli("log", "--state", root, "--json")[1].splitlines()]
    assert [row["event"] for row in rows] == expected
    code, out, _ = cli("log", "--state", root, "verify")
    assert code == 0
    assert "6 entries, each as it was written" in out
    assert "countersigned the first 0 of them" in out
    assert cli("log", "--state", root, "burn")[0] == 2


def test_an_answer_twice_is_one_entry(trained: Hospital) -> None:
    hospital = trained
    before = events(hospital.root)
    hospital.site().answer(hospital.ask("train"))
    assert events(hospital.root) == before


def test_the_operator_countersigns_with_its_next_instruction(trained: Hospital, cli: Cli) -> None:
    hospital = trained
    reply = hospital.site().answer(hospital.ask("train"))
    head = str(header_of(reply).statement["head_commitment"])
    hospital.site().answer(hospital.ask("train", round=1, heads=(head,)))
    facts = json.loads(cli("log", "--state", hospital.root, "verify", "--json")[1])
    # plan-approved, reserved, signed; the head of a round covers its own entry
    assert facts["countersigned"] == 3
    assert facts["entries"] == 5


def test_the_site_countersigns_the_operators_head(trained: Hospital) -> None:
    hospital = trained
    asked = hospital.ask("train", round=1, statement={OPERATOR_LOG: HEAD})
    assert header_of(hospital.site().answer(asked)).statement[OPERATOR_LOG] == HEAD
    signed = [e.facts for e in State(hospital.root).log.entries() if e.event == "signed"]
    assert [facts["operator_log"] for facts in signed] == ["", HEAD]


@pytest.mark.parametrize("head", ["5", 5, True, "patient 4711", "G" * 64], ids=str)
def test_what_is_no_head_is_refused_and_not_repeated(trained: Hospital, head: object) -> None:
    hospital = trained
    asked = hospital.ask("train", round=1, statement={OPERATOR_LOG: head})
    with pytest.raises(Exception, match="statement has unknown keys"):
        hospital.site().answer(asked)


def test_a_plan_that_is_refused_is_noted_once_with_its_code(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path)
    for _ in range(2):
        with pytest.raises(PolicyError):
            hospital.site(max_epsilon=0.1).answer(hospital.ask("train"))
    refused = [e.facts for e in State(hospital.root).log.entries() if e.event == "plan-refused"]
    assert [facts["code"] for facts in refused] == ["E-POLICY-PLAN"]


@pytest.mark.parametrize("older", ["the log", "log and signed heads", "no log at all"])
def test_a_log_that_is_older_than_what_left_spends_nothing(
    trained: Hospital, cli: Cli, tmp_path: Path, older: str
) -> None:
    hospital = trained
    root = hospital.root
    names = [FILE] if older == "the log" else [FILE, HEADS_FILE]
    kept = tmp_path / "kept"
    kept.mkdir()
    State(root).log.close()
    for name in names:
        copy(root / name, kept / name)
    hospital.site().answer(hospital.ask("train", round=1))
    for name in names:
        for path in root.glob(f"{name}*"):
            path.unlink()
        if older != "no log at all":
            shutil.copy(kept / name, root / name)
    with pytest.raises(PolicyError, match="log is older") as refused:
        hospital.site().answer(hospital.ask("train", round=1))
    assert refused.value.code == "E-ROLLBACK"
    code, _, err = cli("log", "--state", root, "verify")
    assert code in (1, 3)
    assert "E-ROLLBACK" in err or "older" in err or "missing" in err


def copy(source: Path, target: Path) -> None:
    """A whole copy of a database that is in use."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def test_a_folder_from_before_there_was_a_log_goes_on(tmp_path: Path, cli: Cli) -> None:
    hospital = make_hospital(tmp_path)
    for path in hospital.root.glob("log*.sqlite*"):
        path.unlink()
    head = head_of(chains(State(hospital.root)))
    assert head.pop("log") == [0, ""]
    # a head of that time names no log
    Heads(State(hospital.root))._heads.append("old", "head", {"head": head, "commitment": "c"})
    Heads(State(hospital.root)).check()
    assert "nothing was done here yet" in cli("log", "--state", hospital.root)[1]


def test_one_more_patient_changes_nothing_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for patients in (16, 17):
        hospital = make_hospital(tmp_path / str(patients))
        place = State(hospital.root).cohort(hospital.study.intake)
        place.rename(place.with_name("other"))
        write_cohort(place, hospital.study, patients)
        with monkeypatch.context() as patched:
            scripted(patched, hospital.study)
            site = hospital.site()
            site.answer(hospital.ask("train"))
            site.stop.set()
            with pytest.raises(Exception, match="wait for review"):
                site.answer(hospital.ask("synthesize"))
        logs.append([(e.event, sorted(e.facts)) for e in State(hospital.root).log.entries()])
        text = "".join(entry.line() for entry in State(hospital.root).log.entries())
        assert str(patients) not in _without_digests(text)
    assert logs[0] == logs[1]


def _without_digests(text: str) -> str:
    """The log without hashes and times, in which any two digits may stand."""
    words = [word for word in text.replace(",", " ").split() if len(word) < 20]
    return " ".join(words)


def test_what_an_earlier_key_signed_stays_whole(trained: Hospital, cli: Cli) -> None:
    place = State(trained.root)
    signing.save_private(place.next_sign_key, signing.new_key())
    place.next_sign_known.touch()
    finish_rotation(place, SITE)
    assert not place.next_sign_key.exists()
    trained.site().answer(trained.ask("train", round=1))
    code, out, err = cli("log", "--state", trained.root, "verify")
    assert code == 0, err
    assert "6 entries, each as it was written" in out
    # without the kept statement nobody knows the earlier key
    assert len(signing_keys(place)) == 2
