"""`renewals`, `rollover` and `certify` of a renewal, by typing."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.fleet.connection import read_node_key
from common.errors import PolicyError
from common.wire import renewal
from server.cli.main import app
from server.operator.renewals import Mailbox
from tests.renewing import Clock, Member, Operator


def server(*arguments: object) -> None:
    app([str(one) for one in arguments], standalone_mode=False)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "server", Clock())


def ask_early(operator: Operator, member: Member) -> None:
    """A request in the mailbox, as in the last days of a certificate."""
    key = read_node_key(member.state.node_key)
    body = renewal.write_request(member.name, member.present, key, key)
    Mailbox(operator.state)._keep(member.name, body, operator.clock.now)


def test_what_waits_is_signed_on_another_machine_and_taken_here(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = Member.join("hospital-a", tmp_path / "a", operator)
    root = operator.state.root
    server("renewals", "--state", root)
    assert "no site waits" in capsys.readouterr().out
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("ca.key", "ca.crt"):
        (disk / name).write_bytes((operator.state.authority / name).read_bytes())
    (operator.state.authority / "ca.key").unlink()
    ask_early(operator, member)
    server("renewals", "--state", root)
    said = capsys.readouterr().out
    kept = operator.state.renewal_file("hospital-a")
    assert f"hospital-a waits: {kept}" in said
    assert "next: kohort-server certify" in said
    server("status", "--state", root)
    assert "waits for its certificate: kohort-server renewals" in capsys.readouterr().out
    server("certify", kept, "--ca", disk, "--out", tmp_path / "a.crt")
    assert "its present one signed for it" in capsys.readouterr().out
    server("renewals", "--state", root, "--certificate", tmp_path / "a.crt")
    assert "hospital-a: gets it at its next request" in capsys.readouterr().out
    taken = operator.state.site_certificate("hospital-a").read_bytes()
    assert taken == (tmp_path / "a.crt").read_bytes()


def test_the_authority_is_replaced_by_typing(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = Member.join("hospital-a", tmp_path / "a", operator)
    root = operator.state.root
    server("rollover", "--state", root)
    said = capsys.readouterr().out
    assert "new authority made" in said
    assert "no certificate of the new authority yet: hospital-a" in said
    with pytest.raises(PolicyError) as refused:
        server("rollover", "--finish", "--state", root)
    assert refused.value.code == "E-ROLLOVER"
    # a site that does not renew by itself gets a join file, which carries the statement
    member.take_join_file()
    assert operator.let_in(member)
    server("rollover", "--state", root)
    assert "next: kohort-server rollover --finish" in capsys.readouterr().out
    server("rollover", "--finish", "--state", root)
    assert operator.trusts_server(member)
    assert operator.let_in(member)


def test_a_revocation_writes_the_list(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = Member.join("hospital-a", tmp_path / "a", operator)
    server("sites", "revoke", "hospital-a", "--state", operator.state.root)
    assert f"written {operator.state.authority / 'crl.pem'}" in capsys.readouterr().out
    assert not operator.let_in(member)
