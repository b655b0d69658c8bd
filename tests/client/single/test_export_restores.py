"""Exports have no server at hand: the stored heads and receipts decide alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.daemon.site import Site
from common.errors import PolicyError
from common.storage.journal import Journal
from tests.client.single.test_single import (
    ALLOWED,
    entries,
    hospital,
    inbox,
    made,
    run,
)
from tests.sites import Hospital

__all__ = ["hospital", "inbox", "made"]


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(PolicyError) as error:
        call()
    assert error.value.code == "E-ROLLBACK"
    assert "newest copy" in error.value.hint and "--after-loss" in error.value.hint


def lose(site: Site, name: str) -> None:
    for path in site.state.root.glob(f"{name}*"):
        path.unlink()


@pytest.mark.parametrize("name", ["ledger.sqlite", "journal.sqlite", "heads.sqlite"])
def test_an_export_spends_nothing_from_a_state_that_lost_a_part(
    hospital: Hospital,
    inbox: Path,
    tmp_path: Path,
    name: str,
) -> None:
    site = hospital.site(**ALLOWED)
    run(site, hospital, inbox, tmp_path / "one", export=True)
    lose(site, name)
    shutil.rmtree(site.state.root / "exports")
    if name == "journal.sqlite":
        hospital.site().plans.approve(hospital.bundle)
    refused(lambda: run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "two", export=True))
    assert not (tmp_path / "two").exists()
    assert not (site.state.root / "exports").exists()


def test_an_export_from_an_old_ledger_is_refused(
    hospital: Hospital,
    inbox: Path,
    tmp_path: Path,
) -> None:
    site = hospital.site(**ALLOWED)
    before = entries(site)
    backup = site.state.ledger.read_bytes()
    run(site, hospital, inbox, tmp_path / "one", export=True)
    site.state.ledger.write_bytes(backup)
    shutil.rmtree(site.state.root / "exports")
    refused(lambda: run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "two", export=True))
    assert entries(hospital.site()) == before
    assert not (tmp_path / "two").exists()


def test_an_export_checks_the_stored_receipts(
    hospital: Hospital,
    inbox: Path,
    tmp_path: Path,
) -> None:
    """The receipt came in an earlier instruction; no server is asked now."""
    site = hospital.site(**ALLOWED)
    Journal(site.state.receipts).append("1" * 64, "receipt")
    refused(lambda: run(hospital.site(**ALLOWED), hospital, inbox, tmp_path / "one", export=True))
    assert entries(site) == 0


def test_the_head_is_on_disk_before_a_file_is_written(
    hospital: Hospital,
    inbox: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dies(BaseException):
        """The process ends before it writes the first file."""

    def die(*_: object) -> None:
        raise Dies

    monkeypatch.setattr("client.single.export.write_images", die)
    site = hospital.site(**ALLOWED)
    with pytest.raises(Dies):
        run(site, hospital, inbox, tmp_path / "one", export=True)
    (head,) = Journal(site.state.heads).entries("export/")
    count, _ = head.data["head"]["ledger"]
    assert count == len(site.ledger().rows())
    assert not (tmp_path / "one").exists()
