"""How a site gets and stays online at the server."""

from __future__ import annotations

from pathlib import Path

from server.operator.certificates import (
    ServerFiles,
)
from tests.client.fleet.running import Running
from tests.fleet_server import NODE_ID, FleetServer
from tests.transport import until


def test_a_restart_begins_with_a_heartbeat_for_the_remembered_node_id(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    first = Running(server, files, tmp_path)
    until(lambda: first.code() == "CONNECTED")
    first.end()
    server.calls.clear()
    second = Running(server, files, tmp_path)
    until(lambda: second.code() == "CONNECTED")
    assert second.client.node_id == NODE_ID
    second.end()
    assert server.names()[0] == "send-node-heartbeat"
    assert "activate-node" not in server.names()


def test_a_node_id_that_the_server_does_not_know_is_replaced(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "node-id").write_text("12\n")
    server.instead["send-node-heartbeat"] = lambda request: (
        (401, {}, b"") if request.node.node_id == 12 else None
    )
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    site.end()
    assert (tmp_path / "fleet" / "node-id").read_text() == f"{NODE_ID}\n"
