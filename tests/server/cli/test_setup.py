"""`kohort-server init`: everything a new operator needs, and nothing replaced."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.operator.certificates import load_authority
from server.operator.state import ServerState
from tests.server.cli.reports import Kohort


def test_init_makes_everything_and_replaces_nothing(state: Path, kohort: Kohort) -> None:
    place = ServerState(state)
    for path in (
        place.config,
        place.operator_key,
        place.authority / "ca.crt",
        place.tls / "server.crt",
    ):
        assert path.is_file()
    assert place.operator_key.stat().st_mode & 0o77 == 0
    code, _, errors = kohort(
        "init", "--state", state, "--name", "demo", "--url", "https://localhost:9443"
    )
    assert code == 2 and "set up here already" in errors


@pytest.mark.parametrize("url", ["http://localhost:1", "https://localhost", "localhost:1"])
def test_init_refuses_a_url_that_no_site_could_use(
    url: str, tmp_path: Path, kohort: Kohort
) -> None:
    code, _, errors = kohort("init", "--state", tmp_path / "s", "--name", "demo", "--url", url)
    assert code == 2 and "https://HOST:PORT" in errors and not (tmp_path / "s").exists()


def test_every_command_on_an_empty_folder_says_init(tmp_path: Path, kohort: Kohort) -> None:
    for command in (["sites"], ["status"]):
        code, _, errors = kohort(*command, "--state", tmp_path)
        assert code == 2 and "hint: `kohort-server init`" in errors


def test_no_command_but_run_pays_for_importing_flower() -> None:
    script = "import server.cli.main, sys; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


CUT_SHORT = {
    "before the authority's certificate": ["ca/ca.crt", "tls", "keys", "server.yaml"],
    "before the server's certificate": ["tls", "keys", "server.yaml"],
    "before the key that signs": ["keys", "server.yaml"],
    "before server.yaml": ["server.yaml"],
}


@pytest.mark.parametrize("when", CUT_SHORT)
def test_an_init_that_was_cut_short_is_completed_with_the_keys_that_it_made(
    when: str, state: Path, kohort: Kohort
) -> None:
    place = ServerState(state)
    kept = [path for path in (place.authority / "ca.crt", place.operator_key)]
    for name in CUT_SHORT[when]:
        path = state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path: path.read_bytes() for path in kept if path.exists()}
    url = "https://localhost:9443"
    assert kohort("init", "--state", state, "--name", "demo", "--url", url)[0] == 0
    load_authority(place.authority)
    assert {path: path.read_bytes() for path in before} == before
    assert place.config.is_file() and place.operator_key.is_file()
