"""A wall clock that jumps while a site runs: no loop ends, and all is well once it is right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from client.fleet import failures, health, messages, session
from server.operator.certificates import ServerFiles
from tests.client.fleet.running import Running
from tests.fleet_server import FleetServer, instruction
from tests.transport import until

DAY_S = 86_400.0


class Clock:
    """The module `time` with a wall clock that is off."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def time(self) -> float:
        return time.time() + self.off_s

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@pytest.mark.parametrize("off_s", [-DAY_S, DAY_S], ids=["back", "forward"])
def test_a_jump_of_a_day_stops_nothing(
    off_s: float,
    server: FleetServer,
    files: ServerFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    for module in (failures, health, messages):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.05)
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    clock.off_s = off_s
    server.queue(instruction())
    if off_s > 0:
        # it looks as if nobody waited for the answer any more, and a person can see why
        until(lambda: site.code("message") == "MESSAGE-EXPIRED" and not site.waiting())
        assert site.seen == []
    else:
        until(lambda: server.pushed and not site.waiting())
    beats = server.names().count("send-node-heartbeat")
    until(lambda: server.names().count("send-node-heartbeat") > beats + 2)
    assert site.code() == "CONNECTED"
    # the clock is right again
    clock.off_s = 0.0
    replies = len(server.replies())
    server.queue(instruction())
    until(lambda: len(server.replies()) == replies + 1 and not site.waiting())
    until(lambda: site.code("message") == "")
    site.end()


def test_an_expired_message_goes_at_the_next_start(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction(ttl=2.0))
    until(lambda: "push-messages" in server.names())
    site.end()
    assert len(site.waiting()) == 1
    time.sleep(2.1)
    # before there is a connection
    server.instead["send-node-heartbeat"] = lambda request: (503, {}, b"")
    again = Running(server, files, tmp_path)
    until(lambda: again.code() == "SERVER-BUSY")
    assert again.waiting() == []
    again.end()


def test_a_reply_that_expires_while_it_waits_is_dropped_and_said(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction(ttl=1.0))
    until(lambda: site.code("message") == "MESSAGE-EXPIRED" and not site.waiting(), 20.0)
    site.end()
    assert "push-object" not in server.names()
