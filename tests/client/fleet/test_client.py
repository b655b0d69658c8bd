"""The Fleet client against a scripted server: its steps, what leaves, and long work."""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from client.fleet import session
from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings
from client.fleet.health import Health
from common.errors import ConfigurationError, EnvironmentFault, PolicyError
from server.operator.certificates import (
    ServerFiles,
)
from tests.client.fleet.running import MARKER, Running, admit_all, error_of
from tests.fleet_server import PIN, FleetServer, instruction
from tests.transport import until


def test_a_message_is_answered_and_its_steps_come_in_order(
    server: FleetServer, site: Running
) -> None:
    on_disk: list[bool] = []
    server.on_confirm = lambda message_id: on_disk.append(
        (site.folder / "fleet/inbox" / message_id / "objects").exists()
    )
    message_id, objects = server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    names = [
        name for name in server.names() if name not in ("pull-messages", "send-node-heartbeat")
    ]
    # the reply may overtake the confirmation: they travel on two connections
    assert names[:2] == ["activate-node", "get-run"]
    assert names[2 : 2 + len(objects)] == ["pull-object"] * len(objects)
    assert "push-messages" in names
    assert on_disk == [True]
    assert not {"get-fab", "register-node", "unregister-node"} & set(names)
    message, context = site.seen[0]
    assert message.metadata.message_id == message_id
    assert (context.run_config, context.node_config, dict(context.state)) == ({}, {}, {})
    assert server.replies()[0].metadata.reply_to_message_id == message_id


def test_the_run_time_on_the_wire_is_zero(server: FleetServer, site: Running) -> None:
    server.queue(instruction())
    until(lambda: server.pushed)
    pushed = [request for name, request, _ in server.calls if name == "push-messages"]
    assert list(pushed[0].clientapp_runtime_list) == [0.0]


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RuntimeError(MARKER), "E-BUG"),
        (PolicyError(MARKER, hint=MARKER, code="E-CAP"), "E-CAP"),
        (PolicyError(MARKER, code=f"E-{MARKER} {MARKER}"), "E-BUG"),
    ],
)
def test_an_exception_crosses_the_line_as_a_code_alone(
    raised: Exception,
    code: str,
    server: FleetServer,
    files: ServerFiles,
    tmp_path: Path,
    caplog: Any,
) -> None:
    def handle(message: Message, context: Context) -> Message:
        raise raised

    with caplog.at_level(logging.DEBUG, "client"):
        site = Running(server, files, tmp_path, handle)
        server.queue(instruction())
        assert error_of(server) == (2, code)
        until(lambda: not site.waiting())
        site.end()
    assert not any(MARKER.encode() in data for _, _, data in server.calls)
    assert MARKER not in caplog.text


def test_a_stored_reply_is_sent_again_with_the_same_bytes(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction())
    until(lambda: server.names().count("push-messages") >= 2)
    site.end()
    assert len(site.waiting()) == 1
    server.instead.clear()
    again = Running(server, files, tmp_path)
    until(lambda: server.pushed and not again.waiting())
    again.end()
    pushes = {data for name, _, data in server.calls if name == "push-messages"}
    assert len(pushes) == 1
    assert again.seen == []
    assert all(
        hashlib.sha256(content).hexdigest() == object_id
        for object_id, content in server.pushed.items()
    )


def test_one_failed_object_is_tried_again_and_not_the_whole_reply(
    server: FleetServer, site: Running
) -> None:
    failures = iter([(502, {}, b""), (502, {}, b"")])
    server.instead["push-object"] = lambda request: next(failures, None)
    server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    assert server.names().count("push-messages") == 1
    assert set(server.pushed) == {object_id for object_id in server.pushed if len(object_id) == 64}


def test_a_run_that_ended_drops_the_message(server: FleetServer, site: Running) -> None:
    server.instead["push-messages"] = lambda request: (403, {}, b'{"code": 2007, "detail": "x"}')
    server.queue(instruction())
    until(lambda: "push-messages" in server.names() and not site.waiting())
    assert server.pushed == {}


def test_an_expired_message_is_not_handled(server: FleetServer, site: Running) -> None:
    server.queue(instruction(ttl=-1.0))
    until(lambda: "confirm-message-received" in server.names() and not site.waiting())
    assert site.seen == []


def test_pulling_and_heartbeats_go_on_while_a_handler_works(
    server: FleetServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.05)
    release, running = threading.Event(), []

    def handle(message: Message, context: Context) -> Message:
        running.append(message)
        assert len(running) == 1  # handlers are never concurrent
        release.wait(20)
        running.pop()
        return Running.echo(message, context)

    site = Running(server, files, tmp_path, handle)
    first, _ = server.queue(instruction())
    until(lambda: running)
    second, _ = server.queue(instruction(np.ones(5, np.uint8)))
    until(lambda: server.names().count("confirm-message-received") == 2)
    before = len(server.calls)
    until(lambda: server.names()[before:].count("send-node-heartbeat") >= 3)
    assert server.replies() == []
    release.set()
    until(lambda: len(server.replies()) == 2)
    assert [reply.metadata.reply_to_message_id for reply in server.replies()] == [first, second]
    site.end()


def test_work_interrupted_by_stop_is_done_at_the_next_start(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    started = threading.Event()

    def interrupted(message: Message, context: Context) -> Message:
        started.set()
        site.stop.wait(20)
        raise RuntimeError("stopped")

    site = Running(server, files, tmp_path, interrupted)
    message_id, _ = server.queue(instruction())
    assert started.wait(20)
    site.end()
    assert server.replies() == []
    again = Running(server, files, tmp_path)
    until(lambda: server.replies())
    assert server.replies()[0].metadata.reply_to_message_id == message_id
    assert not server.replies()[0].HasField("error")
    again.end()


def test_no_reply_now_drops_the_message(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, lambda message, context: None)
    server.queue(instruction())
    until(lambda: site.seen and not site.waiting())
    assert server.replies() == []
    site.end()


def test_a_second_client_on_the_same_folder_is_refused(server: FleetServer, site: Running) -> None:
    until(lambda: site.code() == "CONNECTED")
    other = FleetClient(site.settings, set, Running.echo, Health(), admit=admit_all)
    with pytest.raises(EnvironmentFault) as refused:
        other.run(threading.Event())
    assert refused.value.code == "E-LOCKED"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "127.0.0.1:1", "https://host/path", "https://"]
)
def test_an_address_without_tls_or_with_a_path_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        FleetClient(
            FleetSettings(url, tmp_path, tmp_path, tmp_path),
            set,
            Running.echo,
            Health(),
            admit=admit_all,
        )


def test_no_error_of_our_own_ends_the_loop(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    asked: list[int] = []

    def broken() -> set[str]:
        asked.append(1)
        raise OSError("the store of plans")

    site.client._pins = broken
    server.queue(instruction())
    until(lambda: asked)
    site.client._pins = lambda: {PIN}
    server.queue(instruction())
    until(lambda: server.replies())
    assert site.thread.is_alive()
    site.end()


def test_what_a_disk_damaged_is_dropped_and_the_loops_go_on(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction())
    until(lambda: server.names().count("push-messages") >= 1)
    site.end()
    (stored,) = site.waiting()
    whole = (stored / "reply").read_bytes()
    for name, damaged in (
        ("reply", whole[:-3]),
        ("reply", b""),
        ("reply.objects", b"x" * 72),
        ("message", b"\xff"),
    ):
        copy = tmp_path / "copy" / name / str(len(damaged))
        shutil.copytree(tmp_path / "fleet", copy / "fleet")
        for key in ("node.key", "node.pub"):
            shutil.copy(tmp_path / key, copy / key)
        place = copy / "fleet" / "inbox" / stored.name
        (place / name).write_bytes(damaged)
        if name == "message":
            (place / "reply").unlink()
        again = Running(server, files, copy)
        until(lambda again=again: not again.waiting())
        assert again.thread.is_alive()
        again.end()


def test_a_client_that_waits_to_try_again_still_feeds_the_watchdog(tmp_path: Path) -> None:
    turns: list[int] = []
    settings = FleetSettings("https://127.0.0.1:1", tmp_path, tmp_path, tmp_path)
    client = FleetClient(
        settings, set, Running.echo, Health(), lambda: turns.append(1), admit=admit_all
    )
    assert not client._wait(0.1)
    assert turns
