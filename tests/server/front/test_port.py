"""The one port: what it takes, and what a refusal says."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from common.errors import EnvironmentFault
from server.flower.superlink import SuperLink
from server.front import port, rules
from server.front.nginx import nginx_conf
from server.front.port import open_door, open_port, spell, wildcard
from server.operator.config import Listen, ServerConfig
from server.operator.state import ServerState


def test_every_interface_takes_ipv4_and_ipv6() -> None:
    with open_port("::", 0) as listener:
        number = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, number), 5).close()


def test_a_kernel_without_ipv6_takes_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert (wildcard("::"), wildcard("127.0.0.1")) == ("0.0.0.0", "127.0.0.1")
    with open_port("::", 0) as listener:
        assert listener.family == socket.AF_INET
    config = ServerConfig(name="demo", url="https://x:9443", listen=Listen())
    assert "listen 0.0.0.0:9443 ssl;" in nginx_conf(ServerState(Path("/srv/k")), config)


def test_a_port_that_needs_a_capability_is_named_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: Any) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(port, "_listen", refused)
    with pytest.raises(EnvironmentFault) as error, open_port("::", 443):
        pass
    assert (str(error.value), error.value.code) == ("[::]:443: Permission denied", "E-PORT")
    assert "CAP_NET_BIND_SERVICE" in error.value.hint


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "WAIT_S", 0.1)
    with open_port("127.0.0.1", 0) as first:
        number = first.getsockname()[1]
        words = rf"127\.0\.0\.1:{number}: Address already in use$"
        with (
            pytest.raises(EnvironmentFault, match=words) as error,
            open_port("127.0.0.1", number),
        ):
            pass
    assert "server.yaml (listen)" in error.value.hint


def test_the_port_of_a_server_that_is_just_ending_is_waited_for() -> None:
    with open_port("127.0.0.1", 0) as first:
        number = first.getsockname()[1]
        threading.Timer(0.5, first.close).start()
        with open_port("127.0.0.1", number) as second:
            assert second.getsockname()[1] == number


@pytest.mark.parametrize(
    ("host", "spelled"),
    [("::", "[::]:9443"), ("192.0.2.1", "192.0.2.1:9443"), ("2001:db8::1", "[2001:db8::1]:9443")],
)
def test_an_address_is_spelled_as_people_write_it(host: str, spelled: str) -> None:
    assert spell(host, 9443) == spelled


@pytest.mark.parametrize("front", ["embedded", "nginx"])
def test_the_front_is_told_what_a_site_of_this_plan_may_push(front: str, tmp_path: Path) -> None:
    listen = Listen.model_validate({"front": front, "host": "127.0.0.1"})
    config = ServerConfig(name="demo", url="https://x:9443", listen=listen)
    for reply_bytes, pushed_bytes in ((48 << 20, 96 << 20), (1 << 40, rules.PUSHED_BYTES)):
        with open_door(tmp_path, config, 0, reply_bytes) as door:
            (child,) = SuperLink(tmp_path, "pin", front=door)._doors()
            assert child.command[-3:] == [str(tmp_path), door.where, str(pushed_bytes)]
