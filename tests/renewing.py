"""An operator and sites in memory for tests of certificates: the product's functions, no sockets.

`Operator` enrols, issues and answers as the front does; `Member` is a site's state folder with the
product's own `Renewal`. Time is what a test says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from client.fleet.connection import FleetSettings, create_node_key
from client.fleet.failures import CallFailed
from client.fleet.health import FORBIDDEN, SERVER_BUSY
from client.fleet.own_certificate import check_own_certificate
from client.fleet.renewal import Renewal
from client.state.folder import State
from client.state.request import write_request_file
from common.wire import signing
from server.front.sites import Sites
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    load_authority,
)
from server.operator.config import new_config
from server.operator.enrolment import enrol
from server.operator.issued import open_issued
from server.operator.renewals import Mailbox, issue_waiting
from server.operator.sites import Registry
from server.operator.state import ServerState

URL = "https://127.0.0.1:4433"


class Clock:
    """The time of a test."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def pass_days(self, days: float) -> None:
        """Let time go by."""
        self.now += timedelta(days=days)


class Operator:
    """The operator's state folder, with what `kohort-server run` does beside a study."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.clock = clock
        self.state = ServerState(root)
        self.key = signing.new_key()
        signing.save_private(self.state.operator_key, self.key)
        public = signing.public_text(self.key.public_key(), "demo")
        self.state.operator_key.with_suffix(".pub").write_text(public + "\n")
        self.config = new_config("demo", URL, self.state.config)
        authority = create_authority(self.state.authority, now=clock.now)
        issue_server_certificate(authority, self.state.tls, now=clock.now)
        self.registry = Registry(self.state.sites)
        self.sites = Sites(self.state.sites)
        self.away = False

    def close(self) -> None:
        self.registry.close()
        self.sites.close()

    def admit(self, request: Path, join: Path) -> None:
        """Enrol a request file; write the join file."""
        line = signing.public_text(self.key.public_key())
        text = enrol(request, self.state, self.config, line, now=self.clock.now)
        join.write_bytes(text)

    def answer(self, settings: FleetSettings, body: bytes) -> tuple[int, bytes]:
        """What the front does: TLS, the registry, the mailbox; then `run` issues what waits."""
        if self.away:
            raise CallFailed(SERVER_BUSY)
        der = self.handshake(settings)
        visitor = self.sites.visitor(der, self.clock.now)
        if visitor is None:
            raise CallFailed(FORBIDDEN, slow=True)
        box, key = Mailbox(self.state), self.sites.sign_key(visitor.name)
        status, text = box.answer(visitor.name, der, body, key, self.clock.now)
        self.said = self.issue()
        return status, text

    def issue(self) -> list[str]:
        """What `kohort-server run` does every few seconds."""
        return list(issue_waiting(self.state, self.registry, self.clock.now))

    def handshake(self, settings: FleetSettings) -> bytes:
        """The certificate (DER) that the front sees; TLS would refuse any other."""
        assert settings.client_certificate is not None
        check_own_certificate(settings, self.clock.now)
        found = x509.load_pem_x509_certificate(settings.client_certificate.read_bytes())
        trusted = x509.load_pem_x509_certificates((self.state.tls / "ca.crt").read_bytes())
        assert any(signed(one, found) for one in trusted), "the front does not trust it"
        return found.public_bytes(serialization.Encoding.DER)

    def let_in(self, member: Member) -> bool:
        """Whether a request of a site passes the front now."""
        der = self.handshake(member.settings)
        return self.sites.visitor(der, self.clock.now) is not None

    def trusts_server(self, member: Member) -> bool:
        """Whether a site takes the server's certificate."""
        server = x509.load_pem_x509_certificate((self.state.tls / "server.crt").read_bytes())
        trusted = x509.load_pem_x509_certificates(member.settings.ca_file.read_bytes())
        return any(signed(one, server) for one in trusted)

    def issued_to(self, name: str) -> int:
        """How many certificates a site was given."""
        with open_issued(self.state.root) as issued:
            return len(issued.of(name))

    def renew_server(self) -> None:
        """`kohort-server renew`."""
        authority = load_authority(self.state.authority, now=self.clock.now)
        issue_server_certificate(authority, self.state.tls, now=self.clock.now)


def signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:
        return False
    return True


@dataclass
class Member:
    """A hospital's state folder, as far as its connection goes."""

    name: str
    state: State
    operator: Operator

    @classmethod
    def join(cls, name: str, root: Path, operator: Operator) -> Member:
        """A site with keys that has joined."""
        member = cls(name, State(root), operator)
        create_node_key(member.state.node_key, root / "keys" / "node.pub", name)
        signing.save_private(member.state.sign_key, signing.new_key())
        member.take_join_file()
        return member

    def take_join_file(self) -> None:
        """Ask the operator for a join file, and do what `kohort-site join` does."""
        request = write_request_file(self.state, self.name)
        join = self.state.root / "join.json"
        self.operator.admit(request, join)
        fields = json.loads(join.read_text())
        join.replace(self.state.membership)
        self.settings.ca_file.write_text(fields["ca"])
        self.state.certificate.write_text(fields["client_certificate"])

    @property
    def settings(self) -> FleetSettings:
        root = self.state.root
        return FleetSettings(
            URL, root / "ca.crt", self.state.node_key, root / "fleet", self.state.certificate
        )

    @property
    def ends(self) -> datetime:
        return self.present.not_valid_after_utc

    @property
    def present(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.state.certificate.read_bytes())

    def renewal(self) -> Renewal:
        return Renewal(self.state, self.settings, self.name, self.operator.answer)

    def renew(self) -> str:
        """Two looks of the daemon, a minute apart: it asks, and takes what was issued."""
        renewal = self.renewal()
        return renewal.turn(self.operator.clock.now) or renewal.turn(self.operator.clock.now)
