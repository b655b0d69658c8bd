"""A scripted server and a client that is connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.operator.certificates import (
    ServerFiles,
    create_authority,
    issue_server_certificate,
)
from tests.client.fleet.running import Running
from tests.fleet_server import FleetServer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    folder = tmp_path_factory.mktemp("tls")
    return issue_server_certificate(create_authority(folder / "ca"), folder / "server")


@pytest.fixture
def server(files: ServerFiles) -> Iterator[FleetServer]:
    fake = FleetServer(files)
    yield fake
    fake.close()


@pytest.fixture
def site(server: FleetServer, files: ServerFiles, tmp_path: Path) -> Iterator[Running]:
    running = Running(server, files, tmp_path)
    yield running
    running.end()
