"""`kohort-site review`, as typed: two persons, images left out, records checked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from client.state.folder import State
from tests.client.cli.typing_commands import Cli
from tests.client.desk.conftest import wait_for_people
from tests.passphrases import descriptor_of, forget_passphrase
from tests.shown_batches import showing_hospital
from tests.sites import Hospital


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    """Eight images wait; the policy asks for two persons."""
    found = showing_hospital(tmp_path, monkeypatch)
    config = found.root / "site.yaml"
    config.write_text(config.read_text().replace("reviewers: 1", "reviewers: 2"))
    State(found.root).membership.write_text(found.site().membership.model_dump_json())
    wait_for_people(found, reviewers=2)
    return found


def test_two_persons_approve_by_typing(hospital: Hospital, cli: Cli) -> None:
    review = ("review", "--state", hospital.root)
    code, said, _ = cli(*review, "--approve", "--reviewer", "Dr. A")
    assert code == 0
    assert "waiting for another person; 1 of 2 approved: Dr. A" in said
    code, _, errors = cli(*review, "--approve", "--reviewer", "DR. A")
    assert code == 3
    assert "asks for another person" in errors
    code, said, _ = cli(*review, "--approve", "--reviewer", "Dr. B")
    assert (code, "approved by Dr. A, Dr. B" in said) == (0, True)
    assert "2 records" not in cli(*review, "verify")[1]
    assert "3 records, each as it was written" in cli(*review, "verify")[1]


def test_images_are_left_out_by_their_numbers(hospital: Hospital, cli: Cli) -> None:
    review = ("review", "--state", hospital.root)
    for wrong in ("0", "9", "1,x", "-1", "1;2", "1 2 3 4 5 6 7 8"):
        assert cli(*review, "--leave-out", wrong, "--reviewer", "Dr. A")[0] in (2, 3)
    assert cli(*review, "--leave-out", "1", "--approve", "--reviewer", "Dr. A")[0] == 2
    options = ("--reason", "text", "--note", "a name in it", "--reviewer", "Dr. A")
    code, said, _ = cli(*review, "--leave-out", "3, 7", *options)
    assert (code, "reduced by Dr. A" in said) == (0, True)
    said = cli(*review)[1]
    assert "Dr. A: text or marks of a device are in it" in said and "a name in it" in said
    assert "Dr. A: images 3, 7 stay" in said


def test_a_record_that_was_changed_is_named(hospital: Hospital, cli: Cli) -> None:
    review = ("review", "--state", hospital.root)
    cli(*review, "--reject", "--reviewer", "Dr. A")
    with closing(sqlite3.connect(State(hospital.root).reviews / "decisions.sqlite")) as db, db:
        db.execute("DROP TRIGGER no_update")
        db.execute("UPDATE entry SET data = replace(data, 'Dr. A', 'Dr. B')")
    code, _, errors = cli(*review, "verify")
    assert code == 3
    assert "record 2" in errors and "this site did not sign it" in errors


def test_a_decision_needs_the_passphrase_of_a_protected_key_and_a_look_does_not(
    hospital: Hospital, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_passphrase(monkeypatch)
    place = State(hospital.root)
    monkeypatch.setattr("client.cli.protect.read_node_key", lambda path: place.signing_key())
    secret = b"words\n"
    cli("protect", "--state", hospital.root, "--new-passphrase-fd", descriptor_of(secret))
    forget_passphrase(monkeypatch)
    review = ("review", "--state", hospital.root)
    assert "waiting" in cli(*review)[1]
    code, _, errors = cli(*review, "--approve", "--reviewer", "Dr. A")
    assert (code, "passphrase" in errors) == (2, True)
    options = ("--approve", "--reviewer", "Dr. A")
    assert cli("--passphrase-fd", descriptor_of(secret), *review, *options)[0] == 0
