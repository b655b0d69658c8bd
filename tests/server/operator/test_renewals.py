"""Renewals of certificates: what a site may ask for, and what an attacker gets instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.daemon.certificates import mend_rotation, take_over
from client.fleet.connection import create_node_key, read_node_key
from client.fleet.failures import CallFailed
from common.errors import ConfigurationError, PolicyError, RefusedError
from common.wire import renewal, signing
from common.wire.authority import sign_authorities
from common.wire.handover import write_handover
from common.wire.messages import Header, digest_of, seal
from server.operator import authorities
from server.operator.certificates import create_authority, issue_site_certificate, load_authority
from server.operator.renewals import (
    EVERY,
    FOREIGN,
    ISSUED,
    NOT_ASKED,
    TOO_MANY,
    WAITING,
    Mailbox,
    certify_renewal,
    import_issued,
    read_kept,
    waiting_requests,
)
from server.rounds.intake import signer_of
from tests.renewing import Clock, Member, Operator

HEADER = Header(
    kind="update",
    study="0" * 64,
    phase="train",
    model="gan",
    round=0,
    sender="hospital-a",
    digest=digest_of(b""),
)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    found = Operator(tmp_path / "server", Clock())
    yield found
    found.close()


@pytest.fixture
def site(tmp_path: Path, operator: Operator) -> Member:
    return Member.join("hospital-a", tmp_path / "a", operator)


@pytest.fixture
def other(tmp_path: Path, operator: Operator) -> Member:
    return Member.join("hospital-b", tmp_path / "b", operator)


def request_of(member: Member, next_key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A request as the site writes it."""
    key = read_node_key(member.state.node_key)
    return renewal.write_request(member.name, member.present, key, next_key or key)


def der(member: Member) -> bytes:
    return member.present.public_bytes(serialization.Encoding.DER)


def ask(operator: Operator, member: Member, body: bytes, name: str = "") -> int:
    """The status that the front gives in the connection of a member."""
    box = Mailbox(operator.state)
    key = operator.sites.sign_key(member.name)
    return box.answer(name or member.name, der(member), body, key, operator.clock.now)[0]


def test_a_site_asks_from_day_15_on_and_has_a_new_certificate_a_minute_later(
    operator: Operator, site: Member
) -> None:
    operator.clock.pass_days(14.9)
    assert site.renew() == ""
    assert operator.issued_to(site.name) == 1
    operator.clock.pass_days(0.2)
    assert site.renew().startswith("certificate renewed")
    assert site.ends - operator.clock.now > timedelta(days=29)
    assert operator.let_in(site)
    # one was issued, whatever is asked again
    assert site.renew() == ""
    assert operator.issued_to(site.name) == 2


def test_an_answer_that_was_lost_is_given_again_and_nothing_is_issued_twice(
    operator: Operator, site: Member
) -> None:
    operator.clock.pass_days(16)
    body = request_of(site)
    assert ask(operator, site, body) == WAITING
    assert len(operator.issue()) == 1
    assert [ask(operator, site, request_of(site)) for _ in range(5)] == [ISSUED] * 5
    assert operator.issue() == []
    assert operator.issued_to(site.name) == 2


def test_a_server_whose_clock_went_back_issues_once_and_not_for_ever(
    operator: Operator, site: Member
) -> None:
    """Its new certificate seems to be older than the present one, and answers nothing."""
    operator.clock.pass_days(16)
    assert ask(operator, site, request_of(site)) == WAITING
    operator.clock.pass_days(-17)
    assert [len(operator.issue()) for _ in range(5)] == [1, 0, 0, 0, 0]
    operator.clock.pass_days(17.1)
    # an hour later the site is heard again
    assert site.renew().startswith("certificate renewed")


ATTACKS = [
    ("of a site for another", FOREIGN),
    ("with another's certificate in it", NOT_ASKED),
    ("with another's certificate and name", FOREIGN),
    ("signed by another key", NOT_ASKED),
    ("for a key that did not sign", NOT_ASKED),
    ("with a field more", NOT_ASKED),
    ("garbage", NOT_ASKED),
    ("nothing", NOT_ASKED),
    ("oversized", NOT_ASKED),
]


@pytest.mark.parametrize(("attack", "status"), ATTACKS, ids=[name for name, _ in ATTACKS])
def test_a_hostile_request_gets_nothing(
    operator: Operator, site: Member, other: Member, attack: str, status: int
) -> None:
    operator.clock.pass_days(16)
    own = json.loads(request_of(site))
    foreign = json.loads(request_of(other))
    fresh = json.loads(request_of(site, ec.generate_private_key(ec.SECP256R1())))
    bodies = {
        "of a site for another": json.dumps(foreign),
        "with another's certificate in it": json.dumps(
            own | {"certificate": foreign["certificate"]}
        ),
        "with another's certificate and name": json.dumps(foreign),
        "signed by another key": json.dumps(own | {"present": foreign["present"]}),
        "for a key that did not sign": json.dumps(fresh | {"next": fresh["present"]}),
        "with a field more": json.dumps(own | {"days": 900}),
        "garbage": "\x00\xff{",
        "nothing": "",
        "oversized": json.dumps(own | {"present": "x" * renewal.REQUEST_CAP_BYTES}),
    }
    assert ask(operator, site, bodies[attack].encode("latin-1")) == status
    assert waiting_requests(operator.state, operator.registry) == []
    assert not operator.state.renewal_file(site.name).exists()


def test_a_revoked_site_is_refused_at_its_next_request_and_a_kept_one_is_not_signed(
    operator: Operator, site: Member
) -> None:
    operator.clock.pass_days(16)
    assert ask(operator, site, request_of(site)) == WAITING
    operator.registry.revoke(site.name)
    assert operator.issue() == []
    assert operator.issued_to(site.name) == 1
    assert not operator.let_in(site)
    with pytest.raises(CallFailed, match="FORBIDDEN"):
        site.renew()


def test_a_stranger_with_a_certificate_of_another_authority_is_not_signed_for(
    operator: Operator, site: Member, tmp_path: Path
) -> None:
    """Even where its request lay in the mailbox: who signs checks all of it again."""
    foreign = create_authority(tmp_path / "foreign")
    line = (site.state.root / "keys" / "node.pub").read_text()
    issue_site_certificate(foreign, site.name, line, site.state.certificate)
    operator.clock.pass_days(16)
    assert ask(operator, site, request_of(site)) == WAITING
    assert operator.issue() == []
    assert operator.issued_to(site.name) == 1


def test_a_request_in_the_mailbox_that_was_altered_is_not_signed(
    operator: Operator, site: Member
) -> None:
    operator.clock.pass_days(16)
    ask(operator, site, request_of(site))
    path = operator.state.renewal_file(site.name)
    kept = json.loads(path.read_text())
    mine = renewal.key_line(ec.generate_private_key(ec.SECP256R1()).public_key())
    changed = json.loads(kept["request"]) | {"node_key": mine}
    path.write_text(json.dumps(kept | {"request": json.dumps(changed)}))
    assert operator.issue() == []
    path.write_bytes(b"\x00" * 70_000)
    assert operator.issue() == []
    assert operator.issued_to(site.name) == 1


def test_a_replayed_request_brings_no_second_certificate(operator: Operator, site: Member) -> None:
    operator.clock.pass_days(16)
    old, old_der = request_of(site), der(site)
    site.renew()
    operator.clock.pass_days(2)
    # in the connection of the new certificate it names another one
    assert ask(operator, site, old) == FOREIGN
    # in its own it gets what was issued then
    box = Mailbox(operator.state)
    key = operator.sites.sign_key(site.name)
    assert box.answer(site.name, old_der, old, key, operator.clock.now)[0] == ISSUED
    assert operator.issue() == []
    assert operator.issued_to(site.name) == 2


def test_a_flood_leaves_one_file_and_one_new_request_an_hour(
    operator: Operator, site: Member
) -> None:
    operator.clock.pass_days(16)
    assert ask(operator, site, request_of(site)) == WAITING
    before = operator.state.renewal_file(site.name).read_bytes()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]
    assert [ask(operator, site, request_of(site, key)) for key in keys] == [TOO_MANY] * 5
    assert operator.state.renewal_file(site.name).read_bytes() == before
    assert len(list(operator.state.renewal_file(site.name).parent.iterdir())) == 1
    # an hour later one of them is taken
    operator.clock.now += EVERY
    assert [ask(operator, site, request_of(site, key)) for key in keys[:2]] == [WAITING, TOO_MANY]


def test_a_certificate_with_many_days_left_is_not_renewed(operator: Operator, site: Member) -> None:
    operator.clock.pass_days(13)
    assert ask(operator, site, request_of(site)) == TOO_MANY


# --- a new node key


def make_next_key(site: Member) -> None:
    """What `kohort-site rotate node` does."""
    path = site.state.next_node_key
    create_node_key(path, path.with_suffix(".pub"), site.name)


def test_a_site_changes_its_node_key_and_the_old_one_counts_until_the_new_one_was_seen(
    operator: Operator, site: Member
) -> None:
    old_key = site.state.node_key.read_bytes()
    old_certificate = site.state.certificate.read_bytes()
    make_next_key(site)
    assert "new node key" in site.renew()
    # the daemon still works with the old pair
    assert site.state.node_key.read_bytes() == old_key
    assert operator.let_in(site)
    assert len(operator.registry.get(site.name).node_keys) == 2
    # between two messages the new one takes over; the old one still counts, as nobody saw the new
    assert take_over(site.state, site.name)
    assert site.state.node_key.read_bytes() != old_key
    assert operator.let_in(site)
    operator.registry.end_rotation(site.name)
    assert operator.let_in(site)
    new_key, new_certificate = site.state.node_key.read_bytes(), site.state.certificate.read_bytes()
    site.state.node_key.write_bytes(old_key)
    site.state.certificate.write_bytes(old_certificate)
    assert not operator.let_in(site)
    site.state.node_key.write_bytes(new_key)
    site.state.certificate.write_bytes(new_certificate)
    # its request file names the new key, so that the operator can send a join file again
    site.take_join_file()
    assert operator.let_in(site)


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_killed_between_two_writes_the_next_start_has_a_pair_that_fits(
    operator: Operator, site: Member, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_next_key(site)
    site.renew()
    real, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        take_over(site.state, site.name)
    monkeypatch.undo()
    mend_rotation(site.state, site.name)
    assert operator.let_in(site)
    key = read_node_key(site.state.node_key).public_key()
    assert site.present.public_key() == key
    # begun: the new pair; not begun: the old one, until the daemon rests
    assert site.state.next_certificate.is_file() == (moves < 2)


def test_a_key_of_another_site_or_an_old_one_is_not_certified(
    operator: Operator, site: Member, other: Member
) -> None:
    body = request_of(site, read_node_key(other.state.node_key))
    assert ask(operator, site, body) == WAITING
    assert operator.issue() == [f"{site.name}: renewal refused, E-ENROL-KEY"]
    assert operator.registry.get(site.name).node_keys == (
        operator.registry.get(site.name).node_key,
    )
    assert operator.issue() == []


# --- a new signing key


def make_next_sign_key(site: Member) -> str:
    """What `kohort-site rotate signing` does; the new line."""
    key = signing.new_key()
    signing.save_private(site.state.next_sign_key, key)
    return signing.public_text(key.public_key())


def test_a_signing_key_hands_over_and_what_it_signed_stays_verifiable(
    operator: Operator, site: Member
) -> None:
    old = operator.registry.get(site.name).sign_key
    operator.registry.note_head(site.name, "1" * 64)
    before = seal(HEADER, b"", site.state.signing_key())
    operator.clock.pass_days(1)
    new = make_next_sign_key(site)
    assert "the operator knows the new signing key" in site.renew()
    assert operator.registry.get(site.name).sign_keys == (new, old)
    # the old one signs until the daemon rests
    assert signing.public_text(site.state.signing_key().public_key()) == old
    assert take_over(site.state, site.name)
    assert signing.public_text(site.state.signing_key().public_key()) == new
    found = operator.registry.get(site.name)
    after = seal(HEADER, b"", site.state.signing_key())
    assert [signer_of(one, found) for one in (before, after)] == [old, new]
    foreign = seal(HEADER, b"", signing.new_key())
    assert signer_of(foreign, found) == new
    # a folder that is put back meets the heads of before: they go on under the first key
    assert operator.registry.heads(site.name) == ("1" * 64,)
    # and the site can be enrolled again with the request that it has now
    site.take_join_file()
    assert operator.let_in(site)


HANDOVERS = ["of another site", "from another key", "to a key of another site", "altered"]


@pytest.mark.parametrize("attack", HANDOVERS)
def test_a_hand_over_that_the_present_key_did_not_sign_changes_nothing(
    operator: Operator, site: Member, other: Member, attack: str
) -> None:
    new, mine = signing.new_key(), site.state.signing_key()
    text = {
        "of another site": write_handover("site", other.name, other.state.signing_key(), new),
        "from another key": write_handover("site", site.name, signing.new_key(), new),
        "to a key of another site": write_handover(
            "site", site.name, mine, other.state.signing_key()
        ),
        "altered": write_handover("site", site.name, mine, new).replace(b'"site"', b'"operator"'),
    }[attack]
    key = read_node_key(site.state.node_key)
    body = renewal.write_request(site.name, site.present, key, key, text.decode())
    before = {name: one.sign_keys for name, one in operator.registry.sites().items()}
    assert ask(operator, site, body) in (WAITING, NOT_ASKED)
    operator.issue()
    assert {name: one.sign_keys for name, one in operator.registry.sites().items()} == before


# --- the authority's key on another machine


def test_where_the_key_is_elsewhere_the_request_waits_and_the_next_one_gets_it(
    operator: Operator, site: Member, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("ca.key", "ca.crt"):
        (disk / name).write_bytes((operator.state.authority / name).read_bytes())
    (operator.state.authority / "ca.key").unlink()
    operator.clock.pass_days(16)
    assert site.renew() == ""
    assert operator.said == []
    [waits] = waiting_requests(operator.state, operator.registry)
    assert waits.site == site.name
    # where the key lies
    authority = load_authority(disk, now=operator.clock.now)
    kept = operator.state.renewal_file(site.name)
    text, name = certify_renewal(authority, kept, operator.clock.now)
    assert name == site.name
    (tmp_path / "a.crt").write_bytes(text)
    # on the server again, and at the site's next request
    now = operator.clock.now
    assert import_issued(operator.state, operator.registry, tmp_path / "a.crt", now)[0] == name
    assert site.renew().startswith("certificate renewed")
    with pytest.raises(RefusedError, match="answers no request"):
        import_issued(operator.state, operator.registry, tmp_path / "a.crt", now)


def test_a_server_that_lies_gets_no_certificate_of_the_other_machine(
    operator: Operator, site: Member, tmp_path: Path
) -> None:
    """It has the registry and the mailbox in its hand, and no site's key."""
    authority = load_authority(operator.state.authority, now=operator.clock.now)
    mine = ec.generate_private_key(ec.SECP256R1())
    foreign = create_authority(tmp_path / "foreign")
    line = renewal.key_line(mine.public_key())
    issue_site_certificate(foreign, site.name, line, site.state.certificate)
    body = renewal.write_request(site.name, site.present, mine, mine)
    Mailbox(operator.state)._keep(site.name, body, operator.clock.now)
    kept = operator.state.renewal_file(site.name)
    assert read_kept(kept) is not None
    with pytest.raises(RefusedError, match="another authority"):
        certify_renewal(authority, kept, operator.clock.now)


# --- a new authority


def test_the_authority_is_replaced_without_a_pause(
    operator: Operator, site: Member, other: Member
) -> None:
    old = (operator.state.authority / "ca.crt").read_bytes()
    with pytest.raises(PolicyError, match="no authority is being replaced"):
        authorities.finish(operator.state, operator.registry, operator.key)
    authorities.begin(operator.state, "demo", operator.key, now=operator.clock.now)
    missing = ["hospital-a", "hospital-b"]
    assert authorities.missing_sites(operator.state, operator.registry) == missing
    operator.clock.pass_days(16)
    site.renew()
    # both go on: one with the new authority, one with the old
    for member in (site, other):
        assert operator.let_in(member)
        assert operator.trusts_server(member)
    assert authorities.missing_sites(operator.state, operator.registry) == ["hospital-b"]
    with pytest.raises(PolicyError, match="hospital-b"):
        authorities.finish(operator.state, operator.registry, operator.key)
    other.renew()
    assert operator.let_in(other)
    authorities.finish(operator.state, operator.registry, operator.key)
    operator.renew_server()
    for member in (site, other):
        assert operator.let_in(member)
        assert operator.trusts_server(member)
    # at the next renewal the old one is forgotten
    operator.clock.pass_days(16)
    assert old in site.settings.ca_file.read_bytes()
    site.renew()
    assert old not in site.settings.ca_file.read_bytes()
    assert operator.trusts_server(site)


def test_a_site_takes_no_older_statement_and_none_of_another_key(
    operator: Operator, site: Member, tmp_path: Path
) -> None:
    authorities.begin(operator.state, "demo", operator.key, now=operator.clock.now)
    first = authorities.statement_text(operator.state)
    operator.clock.pass_days(16)
    site.renew()
    operator.let_in(site)
    authorities.finish(operator.state, operator.registry, operator.key)
    operator.renew_server()
    operator.clock.pass_days(16)
    site.renew()
    trusted = site.settings.ca_file.read_bytes()
    operator.clock.pass_days(16)
    path = operator.state.authority / authorities.STATEMENT
    path.write_text(first)
    with pytest.raises(RefusedError, match="an older one"):
        site.renew()
    foreign = tmp_path / "x" / "ca.crt"
    create_authority(tmp_path / "x")
    path.write_bytes(sign_authorities(9, foreign.read_text(), signing.new_key()))
    with pytest.raises(RefusedError, match="not signed by this site's operator"):
        site.renew()
    assert site.settings.ca_file.read_bytes() == trusted
    # a server that lost its statement
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="not the statement"):
        authorities._number(operator.state)
