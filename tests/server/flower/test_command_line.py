"""Flower's command line in one resident child: loaded once, started anew when it dies or hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import PeerError
from server.flower.calls import find_json
from server.flower.command_line import FlowerCli
from server.flower.superlink import SuperLink
from tests.server.flower.processes import alive, answer


def test_flowers_command_line_is_loaded_once_and_survives_its_own_death(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    answer(programs, success=True)
    cli = FlowerCli(str(programs / "flwr"), dict(os.environ), tmp_path, 1.0)
    first = cli.run(["list"])
    assert (first.code, find_json(first.text)) == (0, {"success": True})
    assert cli._child is not None
    pid = cli._child.pid
    assert cli.run(["fail"]).code == 2
    assert cli._child.pid == pid
    with pytest.raises(PeerError, match="without an answer"):
        cli.run(["crash"])
    assert cli.run(["list"]).code == 0
    with pytest.raises(PeerError, match="no answer within"):
        cli.run(["hang"])
    assert cli.run(["list"]).code == 0
    last = cli._child.pid
    cli.close()
    assert not alive(last)
