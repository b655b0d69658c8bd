"""`kohort-site` as typed, from `init` to `check`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.client.cli.typing_commands import Cli


def test_a_site_is_set_up_by_typing_and_everything_it_needs_is_checked(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "no plan is approved" in err
    code, out, _ = cli("approve", "--state", state, bundle, "--yes")
    assert code == 0
    assert "each of at least 5 distinct patients" in out
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
