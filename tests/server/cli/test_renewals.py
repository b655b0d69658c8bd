"""`renewals`, `rollover` and `certify` of a renewal, by typing."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.fleet.connection import read_node_key
from common.errors import PolicyError, RefusedError
from common.wire import renewal
from server.cli.main import app
from server.cli.serve import issue_certificate
from server.operator.certificates import read_certificate
from server.operator.config import load_config
from server.operator.renewal import install_certificate
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


@pytest.fixture
def due(tmp_path: Path) -> tuple[Operator, Member]:
    """An operator and a site whose certificate is 16 days old now."""
    clock = Clock()
    clock.pass_days(-16)
    operator = Operator(tmp_path / "server", clock)
    member = Member.join("hospital-a", tmp_path / "a", operator)
    clock.pass_days(16)
    return operator, member


def certify_server(operator: Operator, ca: Path) -> None:
    """The server's next certificate: asked for here, signed where the key lies, taken here."""
    root = operator.state.root
    made = root.parent / "server.crt"
    server("renew", "--state", root)
    server("certify", operator.state.tls / "server.request.pem", "--ca", ca, "--out", made)
    server("renew", "--state", root, "--certificate", made)


def certify_site(operator: Operator, member: Member, ca: Path) -> str:
    """A site's renewal: asked for, signed where the key lies, taken here, and there."""
    root = operator.state.root
    made = root.parent / "a.crt"
    assert member.renew() == ""
    server("certify", operator.state.renewal_file(member.name), "--ca", ca, "--out", made)
    server("renewals", "--state", root, "--certificate", made)
    return member.renew()


def test_an_authority_whose_key_is_elsewhere_is_replaced_by_typing(
    due: tuple[Operator, Member], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, member = due
    root, disk, new = operator.state.root, tmp_path / "disk", tmp_path / "new"
    disk.mkdir()
    for name in ("ca.key", "ca.crt"):
        (disk / name).write_bytes((operator.state.authority / name).read_bytes())
    (operator.state.authority / "ca.key").unlink()
    # (1) the new one is made where the key of the old one lies; here the operator states it
    server("authority", "--ca", disk, "--out", new)
    assert f"rollover --certificate {new / 'ca.crt'}" in capsys.readouterr().out
    with pytest.raises(RefusedError, match="not a new authority"):
        server("rollover", "--state", root, "--certificate", disk / "ca.crt")
    with pytest.raises(RefusedError, match="not a new authority"):
        server("rollover", "--state", root, "--certificate", member.state.certificate)
    server("rollover", "--state", root, "--certificate", new / "ca.crt")
    said = capsys.readouterr().out
    assert "no certificate of the new authority yet: hospital-a" in said
    assert "kohort-server renew" in said
    assert not list(root.rglob("ca.key"))
    # (2) the server's next certificate waits until every site trusts who signed it
    certify_server(operator, new)
    assert "kept for the new authority" in capsys.readouterr().out
    assert operator.trusts_server(member)
    with pytest.raises(PolicyError, match="hospital-a") as refused:
        server("rollover", "--finish", "--state", root)
    assert refused.value.code == "E-ROLLOVER"
    assert operator.trusts_server(member)
    # (3) the site renews; a machine that knows nothing of the old authority would not sign
    previous = (new / "previous.crt").read_bytes()
    (new / "previous.crt").unlink()
    with pytest.raises(RefusedError, match="of another authority"):
        certify_site(operator, member, new)
    (new / "previous.crt").write_bytes(previous)
    assert certify_site(operator, member, new).startswith("certificate renewed")
    assert operator.let_in(member) and operator.trusts_server(member)
    # (4) killed after the server's certificate was put in place, the server starts all the same
    tls, config = operator.state.tls, load_config(operator.state.config)
    install_certificate(tls, read_certificate(new / "ca.crt"), tls / "next.crt", config.host)
    issue_certificate(operator.state, config)
    # (5) the old one is dropped; the server shows what was kept, and starts
    server("rollover", "--finish", "--state", root)
    assert "the old authority is dropped" in capsys.readouterr().out
    assert operator.let_in(member) and operator.trusts_server(member)
    assert (operator.state.authority / "ca.crt").read_bytes() == (new / "ca.crt").read_bytes()
    assert not (tls / "next.key").exists()
    issue_certificate(operator.state, config)
    # (6) and from then on as ever
    certify_server(operator, new)
    assert operator.trusts_server(member)


def test_a_new_authority_goes_to_another_disk_and_the_server_needs_its_certificate(
    due: tuple[Operator, Member], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator, member = due
    root, disk = operator.state.root, tmp_path / "disk"
    server("rollover", "--state", root, "--ca", disk)
    assert certify_site(operator, member, disk).startswith("certificate renewed")
    assert operator.let_in(member)
    with pytest.raises(PolicyError, match="no certificate of the new authority") as refused:
        server("rollover", "--finish", "--state", root)
    assert refused.value.code == "E-ROLLOVER"
    assert operator.trusts_server(member)
    # the old authority signs here once more, and the request for the new one is written
    certify_server(operator, disk)
    assert operator.trusts_server(member)
    server("rollover", "--finish", "--state", root)
    assert operator.let_in(member) and operator.trusts_server(member)
    assert not list(root.rglob("ca.key"))


def test_a_revocation_writes_the_list(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = Member.join("hospital-a", tmp_path / "a", operator)
    server("sites", "revoke", "hospital-a", "--state", operator.state.root)
    assert f"written {operator.state.authority / 'crl.pem'}" in capsys.readouterr().out
    assert not operator.let_in(member)
