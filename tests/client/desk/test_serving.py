"""Where the desk listens, and that it answers there."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client.cli.main import run_command_line
from client.desk.serving import bind_file, bind_loopback
from client.state.folder import State
from common.errors import ConfigurationError, EnvironmentFault
from tests.sites import Hospital

ELSEWHERE = ["0.0.0.0", "::", "192.168.0.1", "localhost", "", "127.0.0.1:80", "127.0.0.1.example"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, for socket files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_no_address_that_others_reach_is_listened_on(host: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        bind_loopback(host, 0)
    assert refused.value.code == "E-DESK-ADDRESS"


def test_a_port_that_is_taken_is_named() -> None:
    with bind_loopback("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=f"{port}: the desk cannot listen there"):
            bind_loopback("127.0.0.1", port)


def test_a_socket_file_is_this_accounts_alone(short: Path) -> None:
    path = short / "new" / "desk.sock"
    with bind_file(path):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigurationError, match="something lies there"):
            bind_file(path)
    # the file of a desk that has ended is in nobody's way
    bind_file(path).close()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o777])
def test_a_socket_file_in_an_open_folder_is_refused(short: Path, mode: int) -> None:
    short.chmod(mode)
    with pytest.raises(ConfigurationError) as refused:
        bind_file(short / "desk.sock")
    assert refused.value.code == "E-DESK-SOCKET"
    assert not (short / "desk.sock").exists()


def test_a_file_that_is_no_socket_stays(short: Path) -> None:
    (short / "desk.sock").write_text("something else")
    with pytest.raises(ConfigurationError, match="something lies there"):
        bind_file(short / "desk.sock")
    assert (short / "desk.sock").read_text() == "something else"


def test_a_path_that_is_too_long_for_a_socket_is_named(short: Path) -> None:
    with pytest.raises(ConfigurationError, match="longer than 100 bytes"):
        bind_file(short / ("a" * 100))


@pytest.fixture
def joined(hospital: Hospital) -> Hospital:
    """The hospital with its operator's join file."""
    State(hospital.root).membership.write_text(hospital.site().membership.model_dump_json())
    return hospital


@pytest.mark.parametrize("where", ["a port", "a socket file"])
def test_the_command_shows_a_link_that_opens_the_desk(
    joined: Hospital, short: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """In this process: a thread opens the link, then asks the process to stop as Ctrl-C does."""
    arguments = ["desk", "--state", str(joined.root)]
    file = short / "desk.sock"
    if where == "a socket file":
        arguments += ["--socket", str(file)]
    found: dict[str, object] = {}

    def visit(link: str) -> None:
        transport = None if where == "a port" else httpx.HTTPTransport(uds=str(file))
        try:
            with httpx.Client(transport=transport, follow_redirects=True, timeout=20) as browser:
                found["page"] = browser.get(link).text
                found["server"] = browser.get(link).headers.get("server")
                found["again"] = browser.get(link).status_code
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []

        def write(line: str) -> None:
            written.append(line)
            link = re.match(r"open (http://\S+)", line)
            if link and len(written) < 4:
                threading.Thread(target=visit, args=(link.group(1),), daemon=True).start()

        patch.setattr("client.cli.desk.write_line", write)
        assert run_command_line(arguments) == 0
    assert "Images that may leave" in str(found["page"])
    assert (found["again"], found["server"]) == (401, None)
    assert written[-2] == "opened; another person opens"
    assert capsys.readouterr().err == ""


def test_a_port_and_a_socket_file_are_not_taken_together(
    joined: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["desk", "--state", str(joined.root), "--port", "0", "--socket", "/tmp/x/y"]
    assert run_command_line(arguments) == 2
    assert "--port or --socket" in capsys.readouterr().err


def test_a_loopback_socket_is_no_other(joined: Hospital) -> None:
    with bind_loopback("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"
