"""The operator's key hands over: what the old key signed counts on, and a thief's does not."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from client.cli.main import run_command_line
from client.state import operators
from client.state.folder import State
from client.state.membership import read_membership
from client.state.operators import (
    FILE,
    MARK,
    Operators,
    plans_of,
    read_handovers,
    take_handover,
)
from common.errors import KohortError, RefusedError
from common.study.bundle import write_bundle
from common.wire import signing
from common.wire.handover import write_handover
from common.wire.messages import Sealed
from server.cli.main import app
from server.operator.hand_over import operator_keys
from server.operator.state import ServerState
from tests.sites import Hospital, make_hospital, scripted


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """A site that has joined an operator and approved its plan."""
    found = make_hospital(tmp_path)
    State(found.root).membership.write_text(found.site().membership.model_dump_json())
    return found


def hand_over(hospital: Hospital, new: signing.Ed25519PrivateKey) -> Path:
    """The operator's file."""
    path = hospital.root.parent / "operator.handover.json"
    path.write_bytes(write_handover("operator", "demo", hospital.operator, new))
    return path


def restarted(hospital: Hospital):  # type: ignore[no-untyped-def]
    """A daemon with the membership on disk."""
    site = hospital.site(review="none")
    return type(site)(site.state, site.config, read_membership(site.state.membership))


def refusal(call) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(KohortError) as error:
        call()
    return error.value.code


def test_a_study_goes_on_under_the_new_key_and_the_old_one_counts_until_that_was_used(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, hospital.study)
    new = signing.new_key()
    early = hospital.ask("train", key=new)
    assert refusal(lambda: restarted(hospital).answer(early)) == "E-REFUSED"
    file = hand_over(hospital, new)
    assert run_command_line(["join", "--state", str(hospital.root), str(file)]) == 0
    said = capsys.readouterr().out
    for key in (hospital.operator, new):
        assert signing.fingerprint(key.public_key()) in said
    # both count, for the plan that the old key signed
    first = restarted(hospital).answer(hospital.ask("train"))
    assert isinstance(first, Sealed)
    restarted(hospital).answer(hospital.ask("train", key=new, round=1))
    # the new one was used: the old one gives no instruction any more, and signs no new plan
    late = hospital.ask("train", model="glow")
    assert refusal(lambda: restarted(hospital).answer(late)) == "E-REFUSED"
    site = restarted(hospital)
    assert refusal(lambda: site.plans.approve(hospital.bundle)) == "E-REFUSED"
    # the plan of before stays what it was, and the new key signs the next
    site.answer(hospital.ask("train", key=new, model="glow"))
    write_bundle(hospital.bundle.parent / "study.yaml", new, hospital.root.parent / "again")
    assert restarted(hospital).plans.approve(hospital.root.parent / "again") == hospital.study
    assert site.answer(hospital.ask("train", key=new)) == first


def test_the_same_hand_over_again_changes_nothing_and_a_second_one_goes_on(
    hospital: Hospital,
) -> None:
    place = State(hospital.root)
    keys = [hospital.operator, *(signing.new_key() for _ in range(2))]
    for old, new in itertools.pairwise(keys):
        text = write_handover("operator", "demo", old, new)
        for _ in range(2):
            take_handover(place, read_membership(place.membership), text)
    known = Operators(place, read_membership(place.membership))
    assert known.keys == tuple(key.public_key() for key in reversed(keys))
    assert len(read_handovers(place)) == 2
    assert plans_of(place, read_membership(place.membership)).hashes()


def test_a_key_counts_as_used_only_once_it_was_the_newest_and_gave_an_instruction(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "MOST", 2)
    place = State(hospital.root)
    keys = [hospital.operator, *(signing.new_key() for _ in range(3))]
    public = [key.public_key() for key in keys]
    for step, (old, new) in enumerate(itertools.pairwise(keys)):
        text = write_handover("operator", "demo", old, new)
        take_handover(place, read_membership(place.membership), text)
        known = Operators(place, read_membership(place.membership))
        # the one before was used, which says nothing of the newest
        assert known.trusted == (public[step + 1], public[step])
        known.note_used(public[step])
        assert known.trusted == (public[step + 1], public[step])
        assert len(place.journal.entries(MARK)) == step
        known.note_used(public[step + 1])
        assert known.trusted == (public[step + 1],)
    assert len(read_handovers(place)) == 2


def test_a_file_of_hand_overs_that_was_written_by_others_adds_no_key(hospital: Hospital) -> None:
    place = State(hospital.root)
    thief, other = signing.new_key(), signing.new_key()
    known = Operators(place, read_membership(place.membership))
    # of two keys that are nobody's here
    apart = write_handover("operator", "demo", thief, other).decode()
    (place.root / FILE).write_text(json.dumps({"handovers": [apart]}))
    assert known.keys == (hospital.operator.public_key(),)
    # to this operator's key, which never signed it
    forged = json.loads(apart) | {"new": signing.public_text(hospital.operator.public_key())}
    (place.root / FILE).write_text(json.dumps({"handovers": [json.dumps(forged)]}))
    with pytest.raises(KohortError):
        _ = known.keys


HOSTILE = ["from another key", "of a site", "back to the old key", "altered", "no statement"]


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hand_over_that_this_operator_did_not_sign_is_refused(
    hospital: Hospital, attack: str
) -> None:
    place, thief = State(hospital.root), signing.new_key()
    known = signing.public_text(hospital.operator.public_key())
    good = json.loads(write_handover("operator", "demo", hospital.operator, thief))
    text = {
        "from another key": write_handover("operator", "demo", signing.new_key(), thief),
        "of a site": write_handover("site", "hospital-a", hospital.operator, thief),
        "back to the old key": write_handover("operator", "demo", thief, hospital.operator),
        "altered": json.dumps(good | {"name": "other"}).encode(),
        "no statement": b'{"format": "kohort-handover/1"}',
    }[attack]
    before = place.membership.read_bytes()
    with pytest.raises(RefusedError) as error:
        take_handover(place, read_membership(place.membership), text)
    assert error.value.code == "E-HANDOVER"
    assert place.membership.read_bytes() == before
    assert signing.public_text(read_membership(place.membership).operator) == known


def server(*arguments: object) -> None:
    app([str(one) for one in arguments], standalone_mode=False)


def test_the_operator_changes_its_key_by_typing_and_a_kill_in_between_is_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "server"
    state = ServerState(root)
    server("init", "--state", root, "--name", "demo", "--url", "https://127.0.0.1:4433")
    old = operator_keys(state)
    with pytest.raises(KohortError, match="was not made"):
        server("rotate", "operator", "--finish", "--state", root)
    server("rotate", "operator", "--state", root)
    server("rotate", "operator", "--state", root)
    said = capsys.readouterr().out
    assert said.count(signing.fingerprint(old[0])) == 3
    text = (root / "operator.handover.json").read_bytes()
    assert operator_keys(state) == old
    public = state.operator_key.with_suffix(".pub").read_bytes()
    server("rotate", "operator", "--finish", "--state", root)
    new = signing.parse_public(json.loads(text)["new"])
    assert operator_keys(state) == (new, *old)
    # killed before the public line was written
    state.operator_key.with_suffix(".pub").write_bytes(public)
    server("rotate", "operator", "--finish", "--state", root)
    assert operator_keys(state) == (new, *old)
