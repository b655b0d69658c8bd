"""A release says which head of the operator's log its sites countersigned, and the log has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.privacy.boundary import OPERATOR_LOG
from kohort.statements import open_statement
from kohort.verification import verify
from server.release.statement import LOG_CLAIM, NO_LOG
from tests.federation import Federation, failed
from tests.server.cli.conftest import kohort
from tests.server.cli.reports import Kohort

__all__ = ["kohort"]


def release(federation: Federation, kohort: Kohort, out: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a release, and what its statement says of the log."""
    bundle = federation.state.root.parent / "bundle"
    code, _, errors = kohort("release", bundle, "--state", federation.state.root, "--out", out)
    assert code == 0, errors
    (folder,) = out.iterdir()
    return folder, json.loads((folder / "privacy_statement.json").read_text())["operator_log"]


def test_the_head_in_a_release_is_what_its_sites_signed_and_the_log_finds_it(
    tmp_path: Path, kohort: Kohort
) -> None:
    federation = Federation.create(tmp_path)
    federation.run().registry.close()
    folder, said = release(federation, kohort, tmp_path / "out")
    verify(folder)
    ((head, sites),) = said["heads"].items()
    assert (said["claim"], sites) == (LOG_CLAIM, list(federation.sites))
    for site in sites:
        path = folder / "statements" / f"{site}.json"
        assert open_statement(path.read_bytes(), path.name)[1].statement[OPERATOR_LOG] == head
    assert f"- `{head}`: hospital-a" in (folder / "privacy_statement.md").read_text()
    # the operator's folder knows it
    log = ("log", "--state", federation.state.root, "verify")
    assert f"the head {head[:16]} covers the first 6 of them" in kohort(*log, "--head", head)[1]
    assert json.loads(kohort(*log, "--head", head, "--json")[1])["found"] == 6
    code, _, errors = kohort(*log, "--head", head[:-1] + "x")
    assert code == 3 and "was never of this log" in errors
    assert kohort(*log[:-1], "--head", head)[0] == 2


def test_entries_after_the_study_change_no_byte_of_a_release(
    tmp_path: Path, kohort: Kohort
) -> None:
    federation = Federation.create(tmp_path)
    federation.run().registry.close()
    first, _ = release(federation, kohort, tmp_path / "one")
    # building it was an entry of its own
    second, said = release(federation, kohort, tmp_path / "two")
    assert (first / "SHA256SUMS").read_bytes() == (second / "SHA256SUMS").read_bytes()
    with federation.state.open_log() as log:
        assert log.head not in said["heads"]


def test_a_site_without_the_log_is_not_named_beside_a_head(tmp_path: Path, kohort: Kohort) -> None:
    federation = Federation.create(tmp_path)
    federation.run({"hospital-b": [failed(1000, "E-STATEMENT")]}).registry.close()
    _, said = release(federation, kohort, tmp_path / "out")
    assert list(said["heads"].values()) == [["hospital-a", "hospital-c"]]


def test_a_release_of_sites_without_the_log_says_so(tmp_path: Path, kohort: Kohort) -> None:
    federation = Federation.create(tmp_path)
    refusals = {name: [failed(1000, "E-STATEMENT")] for name in federation.sites}
    federation.run(refusals).registry.close()
    folder, said = release(federation, kohort, tmp_path / "out")
    assert said == {"claim": NO_LOG, "heads": {}}
    verify(folder)
