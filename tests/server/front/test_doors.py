"""Both fronts over real TLS, one table of requests: what passes, and what an attacker can cost."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from client.fleet.connection import FleetSettings, read_node_key
from client.fleet.failures import CallFailed
from client.fleet.renewal import SOON_S, Renewal
from client.state.folder import State
from common.wire.renewal import read_answer, write_request
from server.front import rules
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
    read_certificate,
    site_certificate,
)
from server.operator.issued import open_issued
from server.operator.refusals import read_refusals
from server.operator.renewals import ISSUED, WAITING, issue_waiting
from server.operator.sites import Registry
from tests.processes import descendants
from tests.server.front.conftest import PROTOBUF, PULL, PUSH, Door, Member
from tests.transport import until

pytestmark = pytest.mark.timeout(300)


def ask(door: Door, member: Member | None, path: str = PULL, **changes: object) -> int:
    """The status of one request; `key` names the member whose key the header holds."""
    headers = {**PROTOBUF, "flwr-public-key": member.header if member else "none"}
    headers |= changes.pop("headers", {})  # type: ignore[arg-type]
    method = str(changes.pop("method", "POST"))
    content = changes.pop("content", b"x")
    with door.client(member) as client:
        answer = client.request(method, path, content=content, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 200 or door.kind == "nginx" or answer.content == b""
    return answer.status_code


def test_the_eight_calls_of_an_enrolled_site_pass_and_nothing_else_is_told(door: Door) -> None:
    site = door.member("clinic-a")
    door.upstream.seen.clear()
    with door.client(site) as client:
        for path in rules.FLEET_CALLS:
            headers = {**PROTOBUF, "flwr-public-key": site.header, "x-other": "1", "cookie": "2"}
            answer = client.post(path, content=b"abc", headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"size": 3})
            assert "date" in answer.headers
            assert "x-inside" not in answer.headers
    assert [path for path, _, _ in door.upstream.seen] == list(rules.FLEET_CALLS)
    assert set(until(lambda: read_refusals(door.state.root), 30)) == set(rules.REFUSALS)
    for _, seen, _ in door.upstream.seen:
        assert seen["flwr-public-key"] == site.header
        assert not {"x-other", "cookie"} & seen.keys()


REFUSED_PATHS = [
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/deactivate-node",
    "/v1/fleet/get-fab",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet//pull-messages",
    "/v1/fleet/../fleet/pull-messages",
    "/v1/fleet/pull-messages?x=1",
    "/docs",
    "/openapi.json",
    "/health",
    "/",
]


@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_every_other_path_is_unknown_to_a_member_and_closed_to_a_stranger(
    door: Door, path: str
) -> None:
    door.upstream.seen.clear()
    assert raw(door, door.member("clinic-a"), path) == rules.UNKNOWN_PATH
    assert raw(door, None, path) == rules.NO_CERTIFICATE
    assert door.upstream.seen == []


def raw(door: Door, member: Member | None, path: str) -> int:
    """The status of a request whose path is sent as it is spelled."""
    key = member.header if member else ""
    text = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {key}\r\ncontent-length: 1\r\n\r\nx"
    )
    return int(exchange(door, member, text.encode()).split()[1])


def exchange(door: Door, member: Member | None, data: bytes) -> bytes:
    """What the front answers to these bytes."""
    with (
        socket.create_connection(("127.0.0.1", door.port)) as plain,
        door.context(member).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        secured.settimeout(20)
        secured.sendall(data)
        return secured.recv(4096)


def test_certificate_key_and_name_belong_together(door: Door) -> None:
    own = door.member("clinic-a")
    other = door.member("clinic-b")
    assert ask(door, own) == 200
    assert ask(door, own, headers={"flwr-public-key": other.header}) == rules.NOT_ENROLLED
    # a certificate of the CA for a name that was never enrolled
    assert ask(door, door.member("stranger", enrolled=False)) == rules.NOT_ENROLLED


def test_a_certificate_of_an_enrolled_name_on_another_key_is_refused(door: Door) -> None:
    door.member("clinic-a")
    false = door.member("false-name", enrolled=False)
    authority = load_authority(door.state.authority)
    public = false.key.with_suffix(".pub").read_text()
    issue_site_certificate(authority, "clinic-a", public, false.certificate)
    assert ask(door, false) == rules.NOT_ENROLLED


def test_a_revoked_site_is_refused_at_its_next_request(door: Door) -> None:
    site = door.member("clinic-c")
    headers = {**PROTOBUF, "flwr-public-key": site.header}
    with door.client(site) as client:
        assert client.post(PULL, content=b"x", headers=headers).status_code == 200
        registry = Registry(door.state.sites)
        registry.revoke("clinic-c")
        registry.close()
        answer = client.post(PULL, content=b"x", headers=headers)
        assert answer.status_code == rules.NOT_ENROLLED


def test_an_expired_or_foreign_certificate_gets_no_further_than_tls(
    door: Door, tmp_path: Path
) -> None:
    late = door.member("late")
    public = late.key.with_suffix(".pub").read_text()
    authority = load_authority(door.state.authority)
    issue_site_certificate(authority, "late", public, late.certificate, days=-1)
    assert refused(door, late)
    issue_site_certificate(create_authority(tmp_path / "ca"), "late", public, late.certificate)
    assert refused(door, late)


def refused(door: Door, member: Member) -> bool:
    """Whether a certificate got no further than TLS, or got nginx's 400."""
    try:
        return ask(door, member) == rules.NO_CERTIFICATE
    except httpx.TransportError:
        return True


def test_only_tls_1_3_is_spoken(door: Door) -> None:
    context = door.context(door.member("clinic-a"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", door.port)) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


HEADS = [
    ({"content-type": "text/plain"}, rules.WRONG_TYPE),
    ({"expect": "100-continue"}, rules.BAD_REQUEST),
    ({"content-encoding": "gzip"}, rules.BAD_REQUEST),
]


@pytest.mark.parametrize(("headers", "status"), HEADS)
def test_a_wrong_head_is_refused(door: Door, headers: dict[str, str], status: int) -> None:
    assert ask(door, door.member("clinic-a"), headers=headers) == status


def test_methods_lengths_and_chunks_are_refused(door: Door) -> None:
    site = door.member("clinic-a")
    assert ask(door, site, method="GET") == rules.WRONG_METHOD
    assert ask(door, site, content=b"x" * (rules.CALLS[PULL] + 1)) == rules.TOO_LARGE
    assert ask(door, site, content=iter([b"x"])) == rules.BAD_REQUEST


@pytest.mark.parametrize("doubled", ["content-length: 1", "flwr-public-key: abc"])
def test_a_header_that_stands_twice_is_refused(door: Door, doubled: str) -> None:
    site = door.member("clinic-a")
    text = (
        f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: 1\r\n{doubled}\r\n\r\nx"
    )
    assert exchange(door, site, text.encode()).split()[1] == b"400"


def test_a_header_without_end_costs_sixteen_kibibytes(door: Door) -> None:
    site = door.member("clinic-a")
    text = f"POST {PULL} HTTP/1.1\r\nx: ".encode() + b"y" * (rules.HEADER_CAP_BYTES + 1)
    try:
        seen = exchange(door, site, text)
    except (ssl.SSLError, ConnectionError):
        seen = b""
    assert seen == b"" or seen.split()[1] == b"400"


def test_a_whole_object_passes_and_a_byte_more_does_not(door: Door) -> None:
    site = door.member("clinic-a")
    assert ask(door, site, PUSH, content=b"x" * rules.CALLS[PUSH]) == 200
    assert ask(door, site, PUSH, content=b"x" * (rules.CALLS[PUSH] + 1)) == rules.TOO_LARGE


def test_a_gibibyte_is_refused_from_its_head_and_costs_no_memory(door: Door) -> None:
    before = door.memory_mb()
    for member in (door.member("clinic-a"), None):
        key = member.header if member else ""
        head = (
            f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
            f"flwr-public-key: {key}\r\ncontent-length: {1 << 30}\r\n\r\n"
        )
        seen = exchange(door, member, head.encode() + b"x" * (1 << 20))
        assert seen.split()[1] in (b"413", b"400")
    assert door.memory_mb() - before < 50


def test_half_open_connections_do_not_keep_an_honest_site_out(door: Door) -> None:
    site = door.member("clinic-a")
    idle = []
    try:
        for _ in range(900):
            one = socket.create_connection(("127.0.0.1", door.port))
            idle.append(one)
        for one in idle[::3]:
            one.sendall(b"\x16\x03\x01")
        begun = time.monotonic()
        assert ask(door, site) == 200
        assert time.monotonic() - begun < 10
    finally:
        for one in idle:
            one.close()


def test_a_silent_connection_and_half_a_header_end(door: Door) -> None:
    """Nothing, half of the first header, half of the second behind an answer: one wait for all."""
    site = door.member("clinic-a")
    context = door.context(site)
    head = (
        f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: 1\r\n\r\nx"
    )
    assert ask(door, site) == 200
    begun = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", door.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as half,
        socket.create_connection(("127.0.0.1", door.port)) as another,
        context.wrap_socket(another, server_hostname="127.0.0.1") as second,
        socket.create_connection(("127.0.0.1", door.port)) as third,
        context.wrap_socket(third, server_hostname="127.0.0.1") as silent,
    ):
        silent.settimeout(rules.HEADER_S + 10)
        half.settimeout(rules.HEADER_S + 10)
        half.sendall(b"POST /v1/")
        second.settimeout(rules.HEADER_S + 10)
        door.upstream.wait_s = 0.5
        try:
            second.sendall(f"{head}POST {PULL} HTTP/1.1\r\nx: ".encode() + b"y" * 100)
            assert until_closed(silent) == until_closed(half) == b""
            assert until_closed(second).count(b"HTTP/1.1 200") <= 1
        finally:
            door.upstream.wait_s = 0.0
    assert time.monotonic() - begun < rules.HEADER_S + 8


def until_closed(one: ssl.SSLSocket) -> bytes:
    """All that the front sends until it ends the connection."""
    seen = b""
    try:
        while piece := one.recv(4096):
            seen += piece
    except (ssl.SSLError, ConnectionError):
        pass
    return seen


def test_a_site_holds_a_bounded_number_of_connections(door: Door) -> None:
    if door.kind == "nginx":
        pytest.skip("nginx counts requests at work, not connections")
    site = door.member("clinic-d")
    headers = {**PROTOBUF, "flwr-public-key": site.header}
    clients = [door.client(site) for _ in range(rules.CONNECTIONS_EACH + 2)]
    served = 0
    try:
        for client in clients:
            try:
                served += client.post(PULL, content=b"x", headers=headers).status_code == 200
            except httpx.TransportError:
                pass
    finally:
        for client in clients:
            client.close()
    assert served == rules.CONNECTIONS_EACH


def test_an_upstream_that_is_away_is_a_502_and_comes_back(door: Door) -> None:
    site = door.member("clinic-e")
    door.upstream.away = True
    try:
        assert ask(door, site) == rules.UPSTREAM
    finally:
        door.upstream.away = False
    assert ask(door, site) == 200


def test_sighup_reads_the_certificate_again(door: Door) -> None:
    site = door.member("clinic-f")

    def served() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", door.port)) as plain,
            door.context(site).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            return secured.getpeercert(True) or b""

    workers = set(descendants(door.process.pid)) - {door.process.pid}
    before = served()
    issue_server_certificate(load_authority(door.state.authority), door.state.tls)
    door.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while served() == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # nginx's workers of before end each connection after its answer, until they are gone
    while workers & set(descendants(door.process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_log_has_a_line_a_request_and_no_content(door: Door) -> None:
    site = door.member("clinic-g")
    marker = "marker-of-a-body"
    assert ask(door, site, content=marker.encode()) == 200
    text = (door.state.root / "front.log").read_text()
    assert f"clinic-g pull-messages 200 {len(marker)}" in text
    assert marker not in text
    assert site.header not in text


def test_a_key_of_another_certificate_is_not_taken_on_sighup(door: Door) -> None:
    """A renewal that was cut in its middle: the old pair serves on until all is there."""
    if door.kind == "nginx":
        pytest.skip("nginx compares the pair itself")
    site = door.member("clinic-h")
    key = door.state.tls / "server.key"
    whole = key.read_bytes()
    key.write_bytes(site.key.read_bytes())
    try:
        door.process.send_signal(signal.SIGHUP)
        log = door.state.root / "front.log"
        deadline = time.monotonic() + 20
        while "do not belong together" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert ask(door, site) == 200
    finally:
        key.write_bytes(whole)
        door.process.send_signal(signal.SIGHUP)


def test_strangers_together_hold_a_bounded_number_of_connections(door: Door) -> None:
    """TLS without a certificate costs a place; beyond the cap the newest gets none."""
    if door.kind == "nginx":
        pytest.skip("nginx ends a request without a certificate by itself")
    site = door.member("clinic-i")
    strangers: list[ssl.SSLSocket] = []
    closed = 0
    try:
        for _ in range(rules.CONNECTIONS_NAMELESS + 20):
            plain = socket.create_connection(("127.0.0.1", door.port), timeout=20)
            one = door.context(None).wrap_socket(plain, server_hostname="127.0.0.1")
            one.settimeout(0.03)
            strangers.append(one)
        time.sleep(0.5)
        for one in strangers:
            try:
                closed += one.recv(1) == b""
            except TimeoutError:
                continue
            except (ssl.SSLError, ConnectionError):
                closed += 1
        assert closed == 20
        assert ask(door, site) == 200
    finally:
        for one in strangers:
            one.close()


def test_a_peer_that_dribbles_its_first_record_costs_no_processor_and_ends(door: Door) -> None:
    """One byte of a TLS record lies unread: waiting for the rest must not spin."""
    if door.kind == "nginx":
        pytest.skip("nginx reads what comes")
    # the front is up, its imports are done
    assert ask(door, door.member("clinic-a")) == 200
    before = busy_s(door)
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", door.port)) as slow:
        slow.sendall(b"\x16\x03")
        slow.settimeout(rules.HELLO_S + 20)
        try:
            assert slow.recv(1) == b""
        except ConnectionError:
            pass
    assert time.monotonic() - begun > rules.HELLO_S - 1
    assert busy_s(door) - before < 0.3


def busy_s(door: Door) -> float:
    """The processor's seconds that the front has used."""
    words = Path(f"/proc/{door.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_second_request_whose_header_waits_is_answered_after_the_first(door: Door) -> None:
    """Pipelined: the second header arrives, half of it, while the first answer is not there yet."""
    site = door.member("clinic-j")
    head = (
        f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: 1\r\n\r\nx"
    ).encode()
    door.upstream.seen.clear()
    door.upstream.wait_s = 1.0
    try:
        with (
            socket.create_connection(("127.0.0.1", door.port)) as plain,
            door.context(site).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.settimeout(30)
            secured.sendall(head + head[:40])
            time.sleep(0.3)
            secured.sendall(head[40:])
            seen = b""
            while seen.count(b"HTTP/1.1 200") < 2:
                piece = secured.recv(4096)
                assert piece, seen
                seen += piece
    finally:
        door.upstream.wait_s = 0.0
    assert [path for path, _, _ in door.upstream.seen] == [PULL, PULL]


@pytest.mark.parametrize("size", [4 << 20, 64 << 20])
def test_a_second_header_without_end_behind_an_answer_ends_the_connection(
    door: Door, size: int
) -> None:
    """Its beginning may come with the first request, or all of it before the first answer."""
    site = door.member("clinic-j")
    head = (
        f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: 1\r\n\r\nx"
    ).encode()
    assert ask(door, site) == 200
    before = door.memory_mb()
    endless = f"POST {PULL} HTTP/1.1\r\nx: ".encode() + b"y" * size
    seen = b""
    begun = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", door.port)) as plain,
        door.context(site).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        secured.settimeout(rules.HEADER_S + 10)
        door.upstream.wait_s = 0.5
        try:
            secured.sendall(head + endless)
            while piece := secured.recv(4096):
                seen += piece
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            door.upstream.wait_s = 0.0
    assert seen.count(b"HTTP/1.1 200") <= 1
    assert time.monotonic() - begun < rules.HEADER_S + 8
    assert door.memory_mb() - before < 20


def test_what_strangers_and_sites_send_writes_nothing_into_nginxs_own_log(door: Door) -> None:
    """Its log has no cap; the front's own, behind it, has one."""
    if door.kind != "nginx":
        pytest.skip("the embedded front has one log, which is rotated")
    site = door.member("clinic-k")
    log = door.state.root / "front" / "error.log"
    before = log.stat().st_size
    head = (
        f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: {1 << 40}\r\n\r\n"
    )
    for _ in range(5):
        assert b" 413 " in exchange(door, site, head.encode())
        assert raw(door, None, PULL) == rules.NO_CERTIFICATE
        with socket.create_connection(("127.0.0.1", door.port)) as plain:
            plain.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
    assert ask(door, site) == 200
    assert log.stat().st_size == before


def test_many_requests_behind_one_that_is_not_answered_end_the_connection(door: Door) -> None:
    if door.kind == "nginx":
        pytest.skip("nginx reads no request before it has answered the one before")
    site = door.member("clinic-j")
    head = (
        f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
        f"flwr-public-key: {site.header}\r\ncontent-length: 1\r\n\r\nx"
    ).encode()
    assert ask(door, site) == 200
    door.upstream.seen.clear()
    door.upstream.wait_s = 1.0
    try:
        with (
            socket.create_connection(("127.0.0.1", door.port)) as plain,
            door.context(site).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.settimeout(20)
            secured.sendall(head * 20)
            assert b"200" not in secured.recv(4096)
    except (ssl.SSLError, ConnectionError):
        pass
    finally:
        door.upstream.wait_s = 0.0
    assert len(door.upstream.seen) <= 1


def test_a_site_renews_its_certificate_through_the_front_and_nobody_else(door: Door) -> None:
    """The same call at both fronts, down to the files; the SuperLink sees none of it."""
    site, other = door.member("clinic-m"), door.member("clinic-n")
    soon = datetime.now(UTC) - timedelta(days=16)
    for member in (site, other):
        authority = load_authority(door.state.authority)
        line = member.key.with_suffix(".pub").read_text()
        member.certificate.write_bytes(site_certificate(authority, member.name, line, now=soon))
    door.upstream.seen.clear()
    # somebody else's request, a stranger, and what is no request
    assert renew(door, site, request_of(other)) == (rules.NOT_ENROLLED, b"")
    assert raw(door, None, rules.RENEW) == rules.NO_CERTIFICATE
    assert renew(door, site, b"{}") == (rules.BAD_REQUEST, b"")
    size = rules.CALLS[rules.RENEW] + 1
    assert renew(door, site, b"x" * size)[0] == rules.TOO_LARGE
    assert ask(door, site, rules.RENEW) == rules.WRONG_TYPE
    # it waits until somebody has signed, and then it is there
    body = request_of(site)
    assert renew(door, site, body)[0] == WAITING
    registry = Registry(door.state.sites)
    assert len(list(issue_waiting(door.state, registry))) == 1
    status, answer = renew(door, site, body)
    assert status == ISSUED
    site.certificate.write_text(read_answer(answer).certificate)
    assert ask(door, site) == 200
    with open_issued(door.state.root) as issued:
        seen = issued.seen(site.name)
        assert seen is not None
        assert seen.serial == issued.of(site.name)[-1].serial
    # a revoked site gets none
    registry.revoke(other.name)
    assert renew(door, other, request_of(other)) == (rules.NOT_ENROLLED, b"")
    registry.close()
    assert {path for path, _, _ in door.upstream.seen} == {PULL}


def test_the_daemons_own_renewal_passes_both_fronts(door: Door, tmp_path: Path) -> None:
    """What `kohort-site run` does, over TLS: asked, signed, taken, and seen at the front."""
    site = door.member("clinic-p")
    soon = datetime.now(UTC) - timedelta(days=16)
    line = site.key.with_suffix(".pub").read_text()
    authority = load_authority(door.state.authority)
    site.certificate.write_bytes(site_certificate(authority, site.name, line, now=soon))
    settings = FleetSettings(
        f"https://127.0.0.1:{door.port}",
        door.state.authority / "ca.crt",
        site.key,
        tmp_path,
        site.certificate,
    )
    renewal = Renewal(State(tmp_path), settings, site.name)
    before = site.certificate.read_bytes()
    assert renewal.turn() == ""
    assert renewal.wait_s() == SOON_S
    registry = Registry(door.state.sites)
    assert len(list(issue_waiting(door.state, registry))) == 1
    assert renewal.turn().startswith("certificate renewed")
    assert site.certificate.read_bytes() != before
    assert ask(door, site) == 200
    # a revoked site learns a declared state, and keeps what it has
    site.certificate.write_bytes(before)
    registry.revoke(site.name)
    registry.close()
    with pytest.raises(CallFailed, match="FORBIDDEN"):
        renewal.turn()
    assert site.certificate.read_bytes() == before


def test_a_site_that_asks_for_its_certificate_all_the_time_is_told_to_wait(door: Door) -> None:
    site = door.member("clinic-o")
    seen = [renew(door, site, b"{}")[0] for _ in range(rules.RENEWALS_BURST + 5)]
    assert seen == [rules.BAD_REQUEST] * rules.RENEWALS_BURST + [rules.TOO_MANY] * 5
    # its other calls go on
    assert ask(door, site) == 200


def request_of(member: Member) -> bytes:
    """A site's request for its next certificate."""
    key = read_node_key(member.key)
    certificate = read_certificate(member.certificate)
    return write_request(member.name, certificate, key, key)


def renew(door: Door, member: Member, body: bytes) -> tuple[int, bytes]:
    """Status and body of one request for a certificate."""
    headers = {"content-type": "application/json", "flwr-public-key": member.header}
    with door.client(member) as client:
        answer = client.post(rules.RENEW, content=body, headers=headers)
    return answer.status_code, answer.content if answer.status_code < 300 else b""
