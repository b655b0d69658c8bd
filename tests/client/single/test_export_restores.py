"""Exports have no server at hand: the stored heads and receipts decide alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.daemon.site import Site
from client.single.request import Outcome
from common.errors import PolicyError
from common.storage.journal import Journal
from common.wire import tensors
from common.wire.messages import Header, Sealed
from tests.client.single.test_single import (
    ALLOWED,
    entries,
    hospital,
    inbox,
    made,
    run,
)
from tests.sites import Hospital, scripted

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


COUNTERSIGNED = ALLOWED | {"single_images": "countersigned"}


def test_an_export_waits_for_the_receipt_of_its_own_charge_where_the_policy_says_so(
    hospital: Hospital, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    weights = tensors.loads(start_weights(hospital), max_bytes=1 << 24)
    ask = {"model": "gan", "weights": weights}
    first = hospital.site(**COUNTERSIGNED).answer(hospital.ask("train", **ask))
    shutil.copytree(hospital.root, tmp_path / "copy")

    def export(out: str) -> Outcome:
        site = hospital.site(**COUNTERSIGNED)
        return run(site, hospital, inbox, tmp_path / out, export=True)

    def wait(out: str) -> None:
        with pytest.raises(PolicyError) as waiting:
            export(out)
        assert waiting.value.code == "E-RECEIPT-WAITING"
        assert not (tmp_path / out).exists()

    # it is drawn and charged once, and waits: a receipt for an earlier head is not enough
    wait("one")
    charged = entries(hospital.site())
    asked = hospital.ask("train", round=1, heads=(commitment(first),), **ask)
    second = hospital.site(**COUNTERSIGNED).answer(asked)
    wait("one")
    again = hospital.ask("train", round=1, heads=(commitment(second),), **ask)
    hospital.site(**COUNTERSIGNED).answer(again)
    assert (export("one").written, entries(hospital.site())) == (4, charged + 1)
    # the whole folder from before the export, without a server: nothing is handed over ...
    shutil.rmtree(hospital.root)
    shutil.copytree(tmp_path / "copy", hospital.root)
    wait("two")
    # ... and the server's next instruction finds it out
    refused(lambda: hospital.site(**COUNTERSIGNED).answer(again))
    refused(lambda: export("two"))


def start_weights(hospital: Hospital) -> bytes:
    """The payload of an instruction to the plan's GAN."""
    return hospital.ask("train", model="gan").payload


def commitment(sealed: Sealed) -> str:
    return str(Header.model_validate_json(sealed.header).statement["head_commitment"])
