"""A disk that becomes full while a round is at work: the round is recorded and answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.daemon import jobs
from client.daemon.jobs import Ending
from client.state.jobs import Progress
from client.state.ledger_file import append, transaction
from common.errors import EnvironmentFault
from common.storage import reserve
from common.storage.reserve import hold_reserve
from tests.client.egress.test_outbox import cleared
from tests.full_disks import fill, small_disk
from tests.sites import Hospital, make_hospital, scripted


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    with small_disk(tmp_path / "disk") as folder:
        yield make_hospital(folder / "hospital")


def fill_after_work(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the child has left its output."""
    scripted(monkeypatch, hospital.study)
    work = jobs.run_child

    def run(
        folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
    ) -> Ending:
        ending = work(folder, threads, secret, stop, progress)
        fill(hospital.root)
        return ending

    monkeypatch.setattr(jobs, "run_child", run)


def test_a_round_is_recorded_and_answered_from_the_reserve(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_after_work(hospital, monkeypatch)
    site = hospital.site()
    assert hold_reserve(hospital.root)
    reply = site.answer(hospital.ask("train"))
    assert not (hospital.root / reserve.NAME).exists()
    # all of it is on disk: a new daemon gives the same bytes
    again = hospital.site()
    again.ledger().verify()
    assert again.answer(hospital.ask("train")) == reply


def test_without_a_reserve_the_round_ends_with_a_code(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_after_work(hospital, monkeypatch)
    with pytest.raises(EnvironmentFault) as refused:
        hospital.site().answer(hospital.ask("train"))
    assert refused.value.code == "E-DISK-FULL"
    # with room again, the output that is there is sent: nothing is spent twice
    (hospital.root / "filler").unlink()
    site = hospital.site()
    site.answer(hospital.ask("train"))
    assert site.ledger().report(prv=False).reserved == 1


def test_a_ledger_reserves_on_a_full_disk(hospital: Hospital) -> None:
    assert hold_reserve(hospital.root)
    fill(hospital.root)
    with transaction(hospital.root / "ledger.sqlite") as (connection, entries):
        append(connection, entries, "open", {"text": "x" * 100_000})
    with transaction(hospital.root / "ledger.sqlite") as (_, entries):
        assert len(entries) == 1


def test_a_message_is_stored_on_a_full_disk(hospital: Hospital) -> None:
    site = hospital.site()
    message = cleared(bytes(4 << 20))
    assert hold_reserve(hospital.root)
    fill(hospital.root)
    stored = site.outbox.store(message, site.state.signing_key())
    assert site.outbox.get(message.header.key) == stored
