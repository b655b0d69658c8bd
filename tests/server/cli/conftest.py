"""Runs `kohort-server` commands, and a state folder that one of them has set up."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohort.console import run_typer
from server.cli import main as cli
from tests.server.cli.reports import Kohort


@pytest.fixture
def kohort(capsys: pytest.CaptureFixture[str]) -> Kohort:
    """Run a command; returns exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        typed = [str(argument) for argument in arguments]
        code = run_typer("kohort-server", lambda: cli.app(typed, standalone_mode=False))
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def state(tmp_path: Path, kohort: Kohort) -> Path:
    folder = tmp_path / "server"
    assert (
        kohort("init", "--state", folder, "--name", "demo", "--url", "https://localhost:9443")[0]
        == 0
    )
    return folder
