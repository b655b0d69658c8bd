"""`kohort-site` as typed, from `init` to `check`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.state.folder import State
from server.operator.certificates import issue_server_certificate, load_authority
from server.operator.state import ServerState
from tests.client.cli.typing_commands import Cli
from tests.fleet_server import FleetServer


def test_a_site_is_set_up_by_typing_and_everything_it_needs_is_checked(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "no plan is approved" in err
    code, out, _ = cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")
    assert code == 0
    assert "the average of at least 5 distinct patients" in out
    code, out, _ = cli("ingest", "--state", state)
    assert code == 0
    assert "12 files of 12 patients" in out
    assert "is there already" in cli("ingest", "--state", state)[1]
    assert cli("check", "--state", state, "--offline")[0] == 0
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "nothing answers" in err
    code, out, _ = cli("status", "--state", state, "--json")
    facts = json.loads(out)
    assert facts["plans"][0]["rounds"] == {"gan": [0, 2], "glow": [0, 1]}
    assert facts["plans"][0]["images"] == "not made yet"
    assert cli("review", "--state", state)[1] == "no images have been made yet\n"


def test_usage_errors_end_with_2(cli: Cli, tmp_path: Path) -> None:
    assert cli("no-such-command")[0] == 2
    assert cli("status", "--state", tmp_path / "nowhere")[0] == 2


@pytest.fixture
def answering(joined: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, FleetServer]]:
    """A site whose server answers by a script."""
    state = joined[0]
    authority = load_authority(ServerState(tmp_path / "server").authority)
    server = FleetServer(issue_server_certificate(authority, tmp_path / "tls"))
    membership = State(state).membership
    membership.write_text(membership.read_text().replace("https://127.0.0.1:4433", server.url))
    (state / "fleet").mkdir()
    (state / "fleet" / "node-id").write_text("77\n")
    yield state, server
    server.close()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (403, {}, "the server forbids the request"),
        (400, {}, "refused this site's client certificate"),
        (401, {}, "no longer knows this site's key"),
        (404, {}, "something else answers"),
        (502, {}, "busy or restarting"),
    ],
)
def test_check_names_why_the_server_would_refuse_the_daemon(
    status: int,
    headers: dict[str, str],
    words: str,
    answering: tuple[Path, FleetServer],
    cli: Cli,
) -> None:
    state, server = answering
    assert "server: ok" in cli("check", "--state", state)[1]
    server.instead["send-node-heartbeat"] = lambda request: (status, headers, b"")
    code, out, err = cli("check", "--state", state)
    assert (code, "server: 1 to repair" in out) == (2, True)
    assert words in err


def test_check_is_content_with_a_site_that_has_never_run(
    answering: tuple[Path, FleetServer], cli: Cli
) -> None:
    state, server = answering
    (state / "fleet" / "node-id").unlink()
    server.instead["send-node-heartbeat"] = lambda request: (401, {}, b"")
    assert "server: ok" in cli("check", "--state", state)[1]
    server.instead["send-node-heartbeat"] = lambda request: (403, {}, b"")
    assert "server: 1 to repair" in cli("check", "--state", state)[1]


def test_the_commands_load_neither_flower_nor_torch_nor_a_web_framework() -> None:
    code = (
        "import sys, client.cli.main; "
        "print(*sorted({'flwr', 'torch', 'fastapi', 'uvicorn', 'pydicom'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
