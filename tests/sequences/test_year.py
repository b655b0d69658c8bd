"""A year of a consortium, day by day: the product's own functions and a clock that a test sets.

Certificates renew at every site without a person; a site is revoked; keys and the authority change;
old folders are taken over; a restored backup is refused; nothing is spent twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from client.daemon.certificates import take_over
from client.fleet.connection import create_node_key
from client.fleet.expiry import ending_certificates
from client.fleet.failures import CallFailed
from client.fleet.renewal import known_number
from client.state.membership import read_membership
from client.state.operators import take_handover
from client.state.upgrade import check_state, upgrade
from common.errors import KohortError, PolicyError
from common.wire import signing
from common.wire.messages import Header
from server.front.sites import Sites
from server.operator import authorities, hand_over
from server.operator.certificates import load_authority, site_certificate
from server.operator.expiry import ending_certificates as ending_of_all
from server.operator.issued import open_issued
from server.operator.revoked import write_revoked
from tests.client.state.test_upgrade import write_old
from tests.renewing import Clock, Member, Operator
from tests.sites import Hospital, make_hospital, scripted

pytestmark = pytest.mark.slow

YEAR = 365
LEFT = timedelta(days=14)


class Consortium:
    """An operator and four sites; `day` is one day of all daemons and of the server."""

    def __init__(self, root: Path) -> None:
        self.clock = Clock()
        self.operator = Operator(root / "server", self.clock)
        names = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
        self.sites = {name: Member.join(name, root / name, self.operator) for name in names}
        self.revoked: set[str] = set()
        self.asleep: set[str] = set()

    @property
    def members(self) -> Iterator[Member]:
        """The sites that take part."""
        return (one for name, one in self.sites.items() if name not in self.revoked)

    def day(self) -> None:
        """Every daemon that runs looks after its certificate, and talks to the server."""
        self.clock.pass_days(1)
        for member in self.members:
            if member.name in self.asleep:
                continue
            member.renew()
            take_over(member.state, member.name)
            assert self.operator.let_in(member), member.name
            assert self.operator.trusts_server(member), member.name
            assert member.ends - self.clock.now > LEFT, member.name
            assert ending_certificates(member.settings, self.clock.now) == []
            self._coordinate(member.name)

    def _coordinate(self, name: str) -> None:
        """What the coordinator does once the front has seen a new node key."""
        site = self.operator.registry.get(name)
        with open_issued(self.operator.state.root) as issued:
            seen = issued.seen(name)
        if seen is not None and site.next_node_key == seen.key:
            self.operator.registry.end_rotation(name)

    def days(self, count: int) -> None:
        """So many of them."""
        for _ in range(count):
            self.day()


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    found = Consortium(tmp_path)
    yield found
    found.operator.close()


def rotate_node(member: Member) -> None:
    """What `kohort-site rotate node` does."""
    path = member.state.next_node_key
    create_node_key(path, path.with_suffix(".pub"), member.name)


def test_a_year_of_certificates(consortium: Consortium, tmp_path: Path) -> None:
    operator, clock, sites = consortium.operator, consortium.clock, consortium.sites
    a, b, c, d = sites.values()

    # a site of the version before: a certificate of 397 days, which it exchanges at once
    authority = load_authority(operator.state.authority, now=clock.now)
    line = (d.state.root / "keys" / "node.pub").read_text()
    text = site_certificate(authority, d.name, line, days=397, now=clock.now)
    d.state.certificate.write_bytes(text)
    operator.state.site_certificate(d.name).write_bytes(d.state.certificate.read_bytes())

    # January and February: nobody does anything
    consortium.days(60)
    assert all(operator.issued_to(name) in (4, 5) for name in sites), "one in 15 days"

    # a site changes its node key; one is away for twelve days and comes back
    rotate_node(a)
    old_pair = a.state.node_key.read_bytes(), a.state.certificate.read_bytes()
    consortium.asleep.add(b.name)
    consortium.days(12)
    consortium.asleep.clear()
    consortium.days(1)
    assert a.state.node_key.read_bytes() != old_pair[0]
    assert len(operator.registry.get(a.name).node_keys) == 1

    # a site is revoked: its next request and its renewal are refused, and it is on the list
    operator.registry.revoke(c.name)
    consortium.revoked.add(c.name)
    assert not operator.let_in(c)
    clock.pass_days(16)
    with pytest.raises(CallFailed, match="FORBIDDEN"):
        c.renew()
    listed = write_revoked(operator.state, operator.registry, clock.now)
    assert listed is not None
    revocations = x509.load_pem_x509_crl(listed.read_bytes())
    assert revocations.get_revoked_certificate_by_serial_number(c.present.serial_number)
    assert not revocations.get_revoked_certificate_by_serial_number(a.present.serial_number)
    for member in consortium.members:
        member.renew()
    consortium.days(30)

    # the authority is replaced, and the old one dropped once every site has come with the new
    old_ca = (operator.state.authority / "ca.crt").read_text()
    authorities.begin(operator.state, "demo", operator.key, now=clock.now)
    with pytest.raises(PolicyError, match="hospital-a, hospital-b, hospital-d"):
        authorities.finish(operator.state, operator.registry, operator.key)
    consortium.days(30)
    authorities.finish(operator.state, operator.registry, operator.key)
    operator.renew_server()
    consortium.days(30)
    assert not any(old_ca in one.settings.ca_file.read_text() for one in consortium.members)

    # the server is away for ten days, and starts again from its disk
    operator.away = True
    for _ in range(10):
        clock.pass_days(1)
        for member in consortium.members:
            with pytest.raises(CallFailed):
                member.renewal().call(member.settings, b"")
    operator.away = False
    operator.sites.close()
    operator.sites = Sites(operator.state.sites)

    # the operator's key hands over; what it states from then on is believed
    text = hand_over.begin(operator.state, "demo")
    for member in consortium.members:
        take_handover(member.state, read_membership(member.state.membership), text)
    operator.key = hand_over.finish(operator.state, "demo")
    authorities.state_again(operator.state, operator.key)
    number = authorities.check_statement(operator.state, operator.key.public_key())

    # the rest of the year: one more node key, and a signing key
    rotate_node(b)
    signing.save_private(d.state.next_sign_key, signing.new_key())
    consortium.days(YEAR - 60 - 13 - 16 - 30 - 60 - 10)
    assert len(operator.registry.get(b.name).node_keys) == 1
    registered = operator.registry.get(d.name)
    assert len(registered.sign_keys) == 2
    assert signing.public_text(d.state.signing_key().public_key()) == registered.sign_key
    assert {known_number(one.state) for one in consortium.members} == {number}
    assert ending_of_all(operator.state, operator.registry.sites(), clock.now) == []
    # nothing was issued for nothing: a new one each 15 days, and for each new key
    for member in consortium.members:
        assert 22 <= operator.issued_to(member.name) <= 28


def test_a_year_of_spending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the certificates: what is spent is spent once, through upgrades and a restore."""
    # a folder of version 0.1 is taken over once, and holds
    old = write_old(tmp_path / "old")
    assert upgrade(old) is not None
    assert upgrade(old) is None
    check_state(old)

    # January: a round is answered; the same question gets the same bytes and costs nothing
    hospital = make_hospital(tmp_path / "hospital")
    children = scripted(monkeypatch, hospital.study)
    first = hospital.ask("train")
    answer = start(hospital).answer(first)
    assert start(hospital).answer(first) == answer
    assert (children.runs, spent(hospital)) == (1, 1)
    # a backup is made, and the year goes on
    backup = tmp_path / "backup"
    shutil.copytree(hospital.root, backup)
    second = start(hospital).answer(hospital.ask("train", round=1))
    receipt = Header.model_validate_json(second.header).digest
    assert spent(hospital) == 2
    # the folder of before the join file had a field more is the same folder
    assert upgrade(start(hospital).state) is None

    # December: the ledger of January is put back; nothing is spent from it
    newest = tmp_path / "newest"
    shutil.copytree(hospital.root, newest)
    put_back(backup, hospital.root, "ledger.sqlite")
    asked = hospital.ask("train", model="glow")
    assert refused(lambda: start(hospital).answer(asked)) == "E-ROLLBACK"
    assert children.runs == 2
    # all of January is put back: the operator's receipt for what came later gives it away
    shutil.rmtree(hospital.root)
    shutil.copytree(backup, hospital.root)
    late = hospital.ask("train", model="glow", receipts=(receipt,))
    assert refused(lambda: start(hospital).answer(late)) == "E-ROLLBACK"
    assert (children.runs, spent(hospital)) == (2, 1)
    # with the newest copy it goes on
    shutil.rmtree(hospital.root)
    shutil.copytree(newest, hospital.root)
    start(hospital).answer(asked)
    assert (children.runs, spent(hospital)) == (3, 3)
    assert start(hospital).answer(first) == answer
    assert len(children.reservations) == len(set(children.reservations)) == 3


def start(hospital: Hospital):  # type: ignore[no-untyped-def]
    """A daemon that has just started."""
    return hospital.site(review="none")


def spent(hospital: Hospital) -> int:
    """How many reservations the ledger holds."""
    return sum(row.kind == "reserve" for row in start(hospital).ledger().rows())


def put_back(source: Path, target: Path, name: str) -> None:
    """A file of a backup, with what SQLite keeps beside it."""
    for path in target.glob(f"{name}*"):
        path.unlink()
    for path in source.glob(f"{name}*"):
        shutil.copy2(path, target / path.name)


def refused(call: Callable[[], object]) -> str:
    """The code of a refusal."""
    with pytest.raises(KohortError) as error:
        call()
    return error.value.code
