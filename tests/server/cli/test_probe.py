"""`kohort-server probe`: 0 for a server that is well, 1 for any other."""

from __future__ import annotations

from pathlib import Path

from common.monitoring.health import answering
from common.process import free_port
from server.operator.state import ServerState
from tests.server.cli.reports import Kohort


def test_a_probe_says_yes_or_no_and_names_a_missing_key(state: Path, kohort: Kohort) -> None:
    code, _, errors = kohort("probe", "--state", state)
    assert code == 2 and "health.listen: not set" in errors
    address = f"127.0.0.1:{free_port()}"
    with ServerState(state).config.open("a") as file:
        file.write("\n")
    text = ServerState(state).config.read_text()
    place = text.index("listen: null", text.index("\nhealth:"))
    changed = text[:place] + f"listen: {address}" + text[place + len("listen: null") :]
    ServerState(state).config.write_text(changed)
    assert kohort("probe", "--state", state)[0] == 1
    with answering(address, {"kohort.server": lambda: True}):
        assert kohort("probe", "--state", state)[:2] == (0, "serving\n")
