"""Below the quorum a study pauses, goes on, is extended or abandoned; the quorum stays."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import PolicyError
from common.wire.messages import Sealed
from server.rounds import gathering, orders
from server.rounds.loop import run_study, train_round
from server.rounds.record import Progress
from server.rounds.study_run import StudyRun
from tests.federation import Federation, LocalGrid, dropped

DEADLINE_S = 0.4
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _quick_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "REGISTRY_S", 0.05)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path, round_deadline_s=DEADLINE_S)


class Served:
    """A study that runs in a thread, as the ServerApp's process does."""

    def __init__(self, federation: Federation, offline: tuple[str, ...] = ()) -> None:
        self.run: StudyRun = federation.open()
        self.grid: LocalGrid = federation.grid()
        for name in offline:
            self.turn(name, on=False)
        self.thread = threading.Thread(target=run_study, args=(self.run, self.grid), daemon=True)
        self.thread.start()

    def turn(self, name: str, *, on: bool) -> None:
        node = self.run.registry.get(name).node_id
        assert node is not None
        if on:
            self.grid.online.add(node)
        else:
            self.grid.online.discard(node)

    def until(self, holds: Callable[[Progress], bool]) -> Progress:
        """Wait for a state of the journal, as another process reads it."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            progress = self.run.record.progress()
            if holds(progress):
                return progress
            time.sleep(0.02)
        raise AssertionError(self.run.record.progress())

    def end(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def paused(progress: Progress) -> bool:
    return progress.code == "E-QUORUM"


def test_below_the_quorum_a_study_pauses_and_says_since_when(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kohort.server")
    served = Served(federation, offline=("hospital-b", "hospital-c"))
    found = served.until(paused)
    # the log says it once, whatever the number of turns
    time.sleep(0.3)
    text = "gan round 1 of 2: paused, E-QUORUM: waiting for hospital-b, hospital-c"
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.endswith(text) for line in said) == 1
    assert found.waiting == "waiting for hospital-b, hospital-c" and found.since.endswith("+00:00")
    assert found.done == 0 and served.thread.is_alive()
    # it goes on by itself when enough have answered, with no word of the operator
    served.turn("hospital-b", on=True)
    served.end()
    record = served.run.record
    assert record.complete() and record.progress().code == ""
    closed = record.closing_entry("train", "gan", 0)
    assert closed is not None and closed.data["accepted"] == ["hospital-a", "hospital-b"]


def test_a_study_whose_sites_are_too_few_pauses_at_once(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, round_deadline_s=3600)
    registry = federation.open().registry
    registry.revoke("hospital-b")
    registry.quarantine("hospital-c", "E-GATE-09")
    served = Served(federation)
    served.until(paused)
    text = "has 1 of the 2 answers that it needs"
    served.until(lambda progress: paused(progress) and progress.waiting == text)
    registry.release("hospital-c")
    served.end()
    assert served.run.record.complete()


def test_a_silent_a_hostile_and_an_honest_site_pause_a_study_until_one_is_back(
    federation: Federation,
) -> None:
    """Silent rounds, quarantine and quorum together: nobody closes a round alone."""
    run, grid = federation.open(), federation.grid()
    node = run.registry.get("hospital-c").node_id
    train_round(run, grid, "gan", 0)
    grid.online.discard(node)
    train_round(run, grid, "gan", 1)
    site = federation.sites["hospital-b"]
    site.spoil = lambda sealed: Sealed(sealed.header, sealed.payload + b"x", sealed.signature)
    served = Served(federation, offline=("hospital-c",))
    found = served.until(paused)
    assert run.registry.get("hospital-b").state == "quarantined"
    assert found.phase == "train glow round 1 of 1"
    served.turn("hospital-c", on=True)
    served.end()
    closed = served.run.record.closing_entry("train", "glow", 0)
    assert closed is not None and closed.data["accepted"] == ["hospital-a", "hospital-c"]
    assert closed.data["refused"] == {"hospital-b": "E-DIGEST"}


def test_a_pause_keeps_its_beginning_over_a_restart_of_the_server(federation: Federation) -> None:
    first = federation.open()
    first.record.note_paused("here", "E-QUORUM", "waiting for hospital-b")
    since = first.record.progress().since
    time.sleep(1.1)
    again = federation.open()
    again.record.note_paused("here", "E-QUORUM", "waiting for hospital-b, hospital-c")
    assert again.record.progress().since == since
    again.record.note_paused("elsewhere", "E-QUORUM", "waiting for hospital-b")
    assert again.record.progress().since != since


def test_an_extension_ends_the_pause_and_lowers_nothing(federation: Federation) -> None:
    served = Served(federation, offline=("hospital-b", "hospital-c"))
    served.until(paused)
    other = federation.open().record  # another process
    assert orders.extend(other, 3600) == "train gan round 1 of 2"
    orders.extend(other, 3600)
    served.until(lambda progress: not paused(progress))
    served.turn("hospital-b", on=True)
    served.until(lambda progress: progress.waiting == "waiting for hospital-c")
    # a quorum has answered, but the deadline is new: the third is waited for
    assert served.run.record.progress().done == 0
    served.turn("hospital-c", on=True)
    served.end()
    closed = served.run.record.closing_entry("train", "gan", 0)
    assert closed is not None and closed.data["missing"] == []


def test_an_extension_counts_for_a_server_that_starts_later(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, round_deadline_s=DEADLINE_S)
    orders.extend(federation.open().record, 3600)
    served = Served(federation, offline=("hospital-c",))
    served.until(lambda progress: progress.waiting == "waiting for hospital-c")
    time.sleep(2 * DEADLINE_S)
    assert served.run.record.progress().done == 0
    orders.abandon(federation.open().record)
    served.end()


def test_an_abandoned_study_ends_while_it_runs_and_its_sites_are_told(
    federation: Federation,
) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    served = Served(federation, offline=("hospital-b", "hospital-c"))
    served.until(paused)
    assert orders.abandon(federation.open().record) is True
    assert orders.abandon(federation.open().record) is False
    served.turn("hospital-b", on=True)
    served.end()
    record = federation.open().record
    assert record.ended() and record.abandoned() and not record.complete()
    progress = record.progress()
    assert progress.abandoned and progress.code == "" and progress.done == 1
    newest = federation.sites["hospital-a"].asked[-1]
    assert (newest.statement, newest.round) == ({"done": True}, 1)  # it has answered round 1
    assert not any("done" in header.statement for header in federation.sites["hospital-c"].asked)
    # once more: nobody is asked anything
    before = len(federation.sites["hospital-a"].asked)
    run_study(federation.open(), federation.grid())
    assert len(federation.sites["hospital-a"].asked) == before


def test_a_study_that_was_abandoned_while_the_server_stood_still_tells_its_sites(
    federation: Federation,
) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    weights = run.record.weights_file("gan", 1).read_bytes()
    orders.abandon(run.record)
    assert not run.record.ended()
    run_study(federation.open(), federation.grid())
    assert federation.open().record.ended()
    for site in federation.sites.values():
        # about the round that it has answered, so that it computes nothing
        last = site.asked[-1]
        assert (last.statement, last.model, last.round) == ({"done": True}, "gan", 0)
        assert len(site.stored) == 1
    assert run.record.weights_file("gan", 1).read_bytes() == weights


def test_a_stop_waits_a_bounded_time_for_a_site_that_is_gone(federation: Federation) -> None:
    run = federation.open()
    orders.abandon(run.record)
    began = time.monotonic()
    run_study(run, federation.grid({"hospital-c": [dropped] * 100}))
    assert time.monotonic() - began < WAIT_S
    assert run.record.ended()


def test_a_study_at_its_end_takes_no_order(federation: Federation) -> None:
    run = federation.run()
    for order in (orders.abandon, lambda record: orders.extend(record, 60)):
        with pytest.raises(PolicyError, match="complete already") as refused:
            order(run.record)
        assert refused.value.code == "E-STUDY-ENDED"
    assert run.record.complete()


@pytest.mark.parametrize("seconds", [0.0, -1.0, 31 * 86400.0, float("nan"), float("inf")])
def test_an_extension_without_a_sensible_time_is_refused(
    federation: Federation, seconds: float
) -> None:
    with pytest.raises(PolicyError) as refused:
        orders.extend(federation.open().record, seconds)
    assert refused.value.code == "E-STUDY-EXTEND"


def test_an_abandoned_study_is_not_extended(federation: Federation) -> None:
    record = federation.open().record
    orders.abandon(record)
    with pytest.raises(PolicyError, match="abandoned already"):
        orders.extend(record, 60)
