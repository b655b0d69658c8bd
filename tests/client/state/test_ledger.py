"""The ledger's reservations, declarations and report."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from client.state.ledger import Ledger, PracticeReservation, Reservation
from client.state.ledger_file import GENESIS, _digest, _verify_row, append, transaction
from common.errors import ConfigurationError, EnvironmentFault, PolicyError, RefusedError
from common.privacy.accounting import epsilon_pld
from common.privacy.latent_mechanisms import LatentLaplace
from common.privacy.mechanisms import SubsampledGaussian

EVENT = SubsampledGaussian(0.1, 2.0, 3, 1000, "gan")
SIMILAR = LatentLaplace("box", 3.0, 64, 5, "similar", 1.0)
RANDOM = LatentLaplace("box", 1.0, 1, 5, "random", 2.0)


def opened(tmp_path: Path) -> Ledger:
    """The ledger of one test."""
    return Ledger.open(tmp_path / "ledger.sqlite", cap_epsilon=10.0, delta=1e-5)


def test_a_reservation_hands_out_its_steps_and_then_raises() -> None:
    for reservation in (Reservation(2, 3, EVENT), PracticeReservation(EVENT)):
        for _ in range(3):
            reservation.take()
        with pytest.raises(PolicyError) as refusal:
            reservation.take()
        assert refusal.value.code == "E-EXHAUSTED"


def test_a_reservation_crosses_to_the_child_with_what_is_left() -> None:
    reservation = Reservation(7, 3, EVENT)
    reservation.take()
    child = Reservation.from_json(reservation.to_json())
    assert (child.id, child.steps, child.event) == (7, 2, EVENT)


def test_a_ledger_that_cannot_be_made_on_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", no_space)
    with pytest.raises(EnvironmentFault) as found, transaction(tmp_path / "ledger.sqlite"):
        pass
    assert found.value.code == "E-DISK-FULL"
    assert "free some space there" in str(found.value.hint)


GOOD = Reservation(7, 3, EVENT).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        GOOD.replace('"id":7,"steps":3', '"id":7,"steps":4'),
        GOOD.replace('"id":7', '"id":"7"'),
        GOOD.replace('"id":7', '"id":7,"x":1'),
        GOOD.replace("subsampled_gaussian", "none"),
        GOOD.replace('"id":7', '"id":' + "7" * 5000),
        "[" * 100_000,
    ],
)
def test_a_reservation_that_the_ledger_did_not_write_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        Reservation.from_json(text)


def test_the_report_composes_what_was_reserved_and_lists_what_was_declared(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.commit(ledger.reserve(EVENT, "p"), "c" * 64)
    ledger.reserve(EVENT.event(), "p")
    ledger.reserve(RANDOM, "p")
    ledger.declare(SIMILAR, "p")
    report = ledger.report(prv=False)
    assert report.mechanisms == (SubsampledGaussian(0.1, 2.0, 6, 1000, "gan"), RANDOM)
    assert report.declared == (SIMILAR,)
    assert (report.reserved, report.committed) == (3, 1)
    assert report.spent.pld == pytest.approx(epsilon_pld([EVENT, EVENT, RANDOM], 1e-5))
    assert report.remaining == pytest.approx(10.0 - report.spent.pld)
    for words in (
        "3 reserved, 1 committed",
        "gan: subsampled gaussian",
        "spent so far",
        "(policy.max_epsilon)",
        "recorded, not composed: laplace box",
    ):
        assert words in report.to_text()


@pytest.mark.filterwarnings("ignore")
def test_the_report_adds_opacus_when_asked(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.reserve(EVENT, "p")
    report = ledger.report()
    assert report.spent.prv == pytest.approx(report.spent.pld, abs=0.03)
    assert ", PRV " in report.to_text()
    # it knows no Laplace: then it is not printed as if it covered that too
    ledger.reserve(RANDOM, "p")
    assert "PRV" not in ledger.report().to_text()


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    report = opened(tmp_path).report(prv=False)
    assert report.spent.pld == report.spent.rdp == 0.0
    assert report.remaining == 10.0


@pytest.mark.parametrize("plan", ["", "p"])
@pytest.mark.parametrize("event", [EVENT, RANDOM])
def test_what_claims_epsilon_per_patient_is_never_just_declared(
    tmp_path: Path, event: SubsampledGaussian | LatentLaplace, plan: str
) -> None:
    with pytest.raises(PolicyError) as refusal:
        opened(tmp_path).declare(event, plan)
    assert refusal.value.code == "E-RESERVE"


def test_the_head_moves_with_every_entry_and_reopening_changes_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    first = ledger.head
    ledger.reserve(EVENT, "p")
    assert first.startswith("1:")
    assert ledger.head.startswith("2:")
    assert opened(tmp_path).head == ledger.head
    assert [row.kind for row in ledger.rows()] == ["open", "reserve"]


def test_a_commit_wants_a_sha256(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(ConfigurationError):
        ledger.commit(ledger.reserve(EVENT, "p"), "short")


@pytest.mark.parametrize(
    ("cap", "delta", "order"),
    [(0.0, 1e-5, 4.0), (1.0, 0.0, 4.0), (1.0, 1.0, 4.0), (1.0, 1e-5, 1.0)],
)
def test_a_ledger_without_a_meaning_is_refused(
    tmp_path: Path, cap: float, delta: float, order: float
) -> None:
    with pytest.raises(ConfigurationError):
        Ledger.open(tmp_path / "ledger.sqlite", cap_epsilon=cap, delta=delta, filter_order=order)
    assert not list(tmp_path.iterdir())


def test_a_ledger_whose_first_commit_was_cut_short_is_read_and_begins_later(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch(mode=0o600)
    with transaction(path) as (_, entries):
        assert entries == []
    ledger = opened(tmp_path)
    ledger.verify()
    assert [row.kind for row in ledger.rows()] == ["open"]


def test_a_damaged_file_is_damage_even_where_sqlites_own_message_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with transaction(path) as (connection, entries):
        append(connection, entries, "opening", {"format": "f"})
    whole = path.read_bytes()
    for at in range(0, len(whole), 64):
        path.write_bytes(whole[:at] + bytes([0xE9] * 32) + whole[at + 32 :])
        with contextlib.suppress(RefusedError, EnvironmentFault), transaction(path):
            pass


def test_a_row_with_a_right_hash_and_no_json_is_damage() -> None:
    for body in (b"{", b"[" * 100_000, b"\xff", b"9" * 5000):
        row = (
            1,
            b"opening",
            body,
            GENESIS.encode(),
            _digest(GENESIS, 1, b"opening", body).encode(),
        )
        with pytest.raises(RefusedError) as caught:
            _verify_row(1, row, GENESIS)
        assert caught.value.code == "E-LEDGER"
