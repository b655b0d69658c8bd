"""`kohort-site run`, as typed."""

from __future__ import annotations

from pathlib import Path

from common.storage.lock import FolderLock
from tests.client.cli.typing_commands import Cli


def test_a_second_daemon_on_one_state_folder_is_refused(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    with FolderLock(state / "lock", "kohort-site run"):
        code, _, err = cli("run", "--state", state)
    assert code == 5
    assert "stop it first" in err
