"""The page listens on this machine alone, and its socket opens for its owner's group."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from common.errors import ConfigurationError, EnvironmentFault
from server.page import listening
from server.page.app import build_app
from tests.server.page.overviews import overview


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's may have no more than a hundred bytes."""
    made = Path(tempfile.mkdtemp(prefix="kp-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def test_a_port_is_of_the_loopback_interface_and_taken_once() -> None:
    with listening.open_port(0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(EnvironmentFault, match=f"port {port} of this machine"):
            listening.open_port(port)


def test_a_socket_is_for_its_owner_and_its_group(folder: Path) -> None:
    path = folder / "page.sock"
    with listening.open_socket(path):
        assert oct(path.stat().st_mode & 0o777) == "0o660"
        with pytest.raises(ConfigurationError, match="a page is served there already"):
            listening.open_socket(path)
    # its server is gone
    with listening.open_socket(path):
        pass


def test_what_is_no_socket_is_not_removed(folder: Path) -> None:
    file = folder / "server.yaml"
    file.write_text("kept")
    with pytest.raises(ConfigurationError, match="something else than a socket"):
        listening.open_socket(file)
    assert file.read_text() == "kept"
    with pytest.raises(ConfigurationError, match="at most 100 bytes"):
        listening.open_socket(folder / ("x" * 120))
    with pytest.raises(EnvironmentFault, match="cannot listen on"):
        listening.open_socket(folder / "nowhere" / "page.sock")


def test_it_answers_over_the_socket_and_names_no_software(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[uvicorn.Server] = []

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            made.append(self)

    monkeypatch.setattr(listening.uvicorn, "Server", Kept)
    path = folder / "page.sock"
    listener = listening.open_socket(path)
    thread = threading.Thread(target=listening.serve, args=(build_app(overview), listener))
    thread.start()
    try:
        answer = asyncio.run(ask(path))
    finally:
        while not made:
            pass
        made[0].should_exit = True
        thread.join()
    assert answer.status_code == 200
    assert "eye-consortium" in answer.text
    assert "server" not in answer.headers
    with pytest.raises(OSError), socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))


async def ask(path: Path) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, timeout=30) as client:
        return await client.get("http://localhost/")
