"""`kohort-server enrol` and `sites`: join files, states, revocation."""

from __future__ import annotations

import json
from pathlib import Path

from server.operator.sites import Registry
from server.operator.state import ServerState
from tests.server.cli.reports import Kohort
from tests.server.operator.test_sites import request


def test_enrol_writes_the_join_file_and_sites_lists_it(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    path = request(tmp_path / "hospital-a.request.json")
    code, output, _ = kohort("enrol", path, "--state", state, "--out", tmp_path / "a.join.json")
    join = json.loads((tmp_path / "a.join.json").read_text())
    registry = Registry(ServerState(state).sites)
    assert (
        code == 0
        and join["site"] == "hospital-a"
        and registry.get("hospital-a").fingerprint in output
    )
    registry.note_registered("hospital-a", 5)
    registry.quarantine("hospital-a", "E-GATE-07")
    assert "quarantined  E-GATE-07" in kohort("sites", "--state", state)[1]
    assert "registered" in kohort("sites", "--state", state, "release", "hospital-a")[1]
    assert "revoked" in kohort("sites", "--state", state, "revoke", "hospital-a")[1]
    code, _, errors = kohort("sites", "--state", state, "remove", "hospital-a")
    assert code == 2 and "revoke NAME" in errors
