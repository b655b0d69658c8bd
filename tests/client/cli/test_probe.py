"""`kohort-site probe`: 0 for a daemon that is well, 1 for any other, as health checks want it."""

from __future__ import annotations

from pathlib import Path

from common.monitoring.health import answering
from common.process import free_port
from tests.client.cli.typing_commands import Cli


def test_a_probe_says_yes_or_no_and_names_a_missing_key(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    code, _, err = cli("probe", "--state", state)
    assert code == 2
    assert "health.listen: not set" in err
    address = f"127.0.0.1:{free_port()}"
    file = state / "site.yaml"
    text = file.read_text()
    assert text.endswith("listen: null  # " + text.rpartition("listen: null  # ")[2])
    file.write_text(f"listen: {address}  # ".join(text.rsplit("listen: null  # ", 1)))
    assert cli("probe", "--state", state)[:2] == (1, "not serving; kohort-site status says why\n")
    with answering(address, {"kohort.site": lambda: True}):
        assert cli("probe", "--state", state)[:2] == (0, "serving\n")
    with answering(address, {"kohort.site": lambda: False}):
        assert cli("probe", "--state", state)[0] == 1
