"""The operator's calls: what is refused, and Flower's answers as values."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import PeerError, RefusedError
from common.wire.app_bundle import write_app
from server.flower.calls import RunStatus
from server.flower.superlink import SuperLink
from tests.server.flower.processes import answer


def test_a_bundle_with_code_in_it_is_not_submitted(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    write_app(tmp_path / "app", b"a: 1\n")
    (tmp_path / "app" / "server.py").write_text("import os")
    with pytest.raises(RefusedError) as refused:
        link.calls.submit(tmp_path / "app")
    assert refused.value.code == "E-BUNDLE-CODE"
    assert not (programs / "flwr.args").exists()


def test_a_run_whose_hash_differs_from_what_sites_pin_is_stopped(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    link.state_dir.mkdir()
    write_app(tmp_path / "app", b"a: 1\n")
    answer(programs, success=True, **{"run-id": "7", "fab-hash": "00000000"})
    with pytest.raises(PeerError) as wrong:
        link.calls.submit(tmp_path / "app")
    assert wrong.value.code == "E-BUNDLE-HASH"
    assert "stop 7" in (programs / "flwr.args").read_text()


def test_a_revoked_key_is_named_as_such(link: SuperLink, programs: Path, tmp_path: Path) -> None:
    link.state_dir.mkdir()
    (tmp_path / "node.pub").write_text("ecdsa-sha2-nistp384 AAAA site\n")
    answer(programs, success=False, **{"error-message": "[code: 23] Public key already in use."})
    with pytest.raises(RefusedError) as refused:
        link.calls.register(tmp_path / "node.pub", "a")
    assert refused.value.code == "E-KEY-REVOKED"


def test_a_run_status_is_read_from_flowers_words(link: SuperLink, programs: Path) -> None:
    link.state_dir.mkdir()
    row = {"run-id": "9", "status": "finished:completed", "status-details": "", "fab-hash": "aa"}
    answer(programs, success=True, runs=[row])
    assert link.calls.run_status(9) == RunStatus(9, "finished", "completed", "", "aa")
    assert link.calls.run_status(9).completed
    answer(programs, success=True, runs=[{**row, "status": "running"}])
    assert not link.calls.run_status(9).finished
