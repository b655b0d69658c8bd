"""Targets: requests for a next certificate, the answers, and what the operator states."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives import serialization

from client.fleet.connection import read_node_key
from client.fleet.renewal import known_number
from client.state.folder import State
from client.state.operators import is_handover
from client.state.operators import read_handovers as taken
from common.errors import KohortError
from common.wire import renewal, signing
from common.wire.authority import open_authorities, sign_authorities
from common.wire.handover import open_handover, write_handover
from common.wire.messages import canonical
from server.operator import authorities
from server.operator.hand_over import read_handovers as given
from server.operator.renewals import Mailbox, read_kept
from server.operator.state import ServerState
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import damage, damaged, exchanged, revalued
from tests.renewing import Clock, Member, Operator

ODD = (b'"kohort-renewal/1"', b'"issued"', b'"waiting"', b'""', b'"hospital-b"', b"1e9")


def _member(folder: Path) -> Member:
    """A site whose certificate is in its last days."""
    clock = Clock()
    clock.now -= timedelta(days=16)
    member = Member.join("hospital-a", folder / "a", Operator(folder / "server", clock))
    clock.now = datetime.now(UTC)
    return member


def _request(member: Member) -> bytes:
    key = read_node_key(member.state.node_key)
    return renewal.write_request(member.name, member.present, key, key)


def _requests(folder: Path) -> Parser:
    """Bodies at the front, and the same in the mailbox: nothing is issued for a changed one."""
    member = _member(folder)
    operator = member.operator
    seed = _request(member)
    honest = renewal.read_request(seed)[0].signed_bytes()
    der = member.present.public_bytes(serialization.Encoding.DER)
    path = operator.state.renewal_file(member.name)
    sign_key = operator.sites.sign_key(member.name)

    def call(data: bytes) -> None:
        box = Mailbox(operator.state)
        status, _ = box.answer(member.name, der, data, sign_key, operator.clock.now)
        if status in (200, 202):
            assert renewal.read_request(data)[0].signed_bytes() == honest
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        read_kept(path)
        assert operator.issue() == []
        path.unlink()

    return Parser(call, (revalued(seed, odd=ODD), exchanged(seed, odd=ODD), damaged(seed)))


def _answers(folder: Path) -> Parser:
    """What a server may answer: a site takes a certificate that it can use, or nothing."""
    member = _member(folder)
    operator = member.operator
    ca = (operator.state.authority / "ca.crt").read_text()
    text = member.state.certificate.read_text()
    stated = sign_authorities(1, ca, operator.key)
    seeds = (
        renewal.write_answer("issued", text, stated.decode()),
        renewal.write_answer("issued", text),
        renewal.write_answer("waiting"),
    )
    turn = member.renewal()
    key = read_node_key(member.state.node_key)
    before = {path: path.read_bytes() for path in (member.state.certificate, turn.settings.ca_file)}

    def call(data: bytes) -> None:
        try:
            turn.take(renewal.read_answer(data), key, operator.clock.now)
            assert member.present.public_key() == key.public_key()
        finally:
            for path, whole in before.items():
                path.write_bytes(whole)
            member.state.authority.unlink(missing_ok=True)

    return Parser(call, (revalued(*seeds, odd=ODD), exchanged(*seeds, odd=ODD), damaged(*seeds)))


def _handovers(folder: Path) -> Parser:
    """Statements that one signing key takes over from another."""
    old, new = signing.new_key(), signing.new_key()
    seed = write_handover("site", "hospital-a", old, new)

    place = State(folder)
    server = ServerState(folder / "server")
    server.operator_key.parent.mkdir(parents=True)

    def call(data: bytes) -> None:
        (folder / "operators.json").write_bytes(data)
        server.operator_key.with_name("handovers.json").write_bytes(data)
        is_handover(data)
        for read in (lambda: taken(place), lambda: given(server)):
            with contextlib.suppress(KohortError):
                assert read() == []
        found = open_handover(data, "site")
        assert found == open_handover(seed, "site")

    rows = canonical({"handovers": [seed.decode()]})
    changed = (revalued(seed, rows, odd=ODD), exchanged(seed, rows), damaged(seed, rows))

    def whole_or_damaged(rng: Random) -> bytes:
        # any change ends the signatures, so one in ten is as it was written
        return seed if rng.random() < 0.1 else damage(rng, seed)

    return Parser(call, (*changed, whole_or_damaged))


def _statements(folder: Path) -> Parser:
    """The operator's statement, at a site and in the operator's own restored folder."""
    member = _member(folder)
    operator = member.operator
    ca = (operator.state.authority / "ca.crt").read_text()
    seed = sign_authorities(3, ca, operator.key)
    path = operator.state.authority / authorities.STATEMENT

    def call(data: bytes) -> None:
        for file in (path, member.state.authority):
            file.write_bytes(data)
        for read in (
            lambda: known_number(member.state),
            lambda: authorities._number(operator.state),
            lambda: authorities.check_statement(operator.state, operator.key.public_key()),
        ):
            try:
                read()
            except KohortError:
                continue
        found = open_authorities(data, operator.key.public_key())
        assert (found.number, found.ca) == (3, ca)

    return Parser(call, (revalued(seed), exchanged(seed), damaged(seed)))


TARGETS = (
    Target(
        "renewal-request",
        (
            "common.wire.renewal:read_request",
            "common.wire.renewal:read_pem",
            "common.wire.renewal:parse_line",
            "common.wire.renewal:_verify",
            "server.operator.renewals:read_kept",
        ),
        _requests,
        few=300,
    ),
    Target(
        "renewal-answer",
        (
            "common.wire.renewal:read_answer",
            "client.fleet.renewal:Renewal",
        ),
        _answers,
        few=300,
    ),
    Target(
        "handover",
        (
            "common.wire.handover:open_handover",
            "client.state.operators:read_handovers",
            "client.state.operators:is_handover",
            "server.operator.hand_over:read_handovers",
        ),
        _handovers,
        few=300,
    ),
    Target(
        "authority-statement",
        (
            "common.wire.authority:open_authorities",
            "client.fleet.renewal:known_number",
            "server.operator.authorities:statement_text",
            "server.operator.authorities:_number",
        ),
        _statements,
        few=300,
    ),
)
