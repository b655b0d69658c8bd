"""Theorems about the ledger (docs/promises/1-model-updates.md)."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from client.state.ledger import Ledger, Reservation
from common.errors import EnvironmentFault, KohortError, PolicyError, RefusedError
from common.privacy.accounting import epsilon_pld, epsilon_rdp
from common.privacy.latent_mechanisms import LatentLaplace
from common.privacy.mechanisms import SubsampledGaussian

EVENT = SubsampledGaussian(0.1, 2.0, 20, 1000, "gan")
PLAN, LATER = "a" * 64, "b" * 64
ARTEFACT = "c" * 64


def opened(tmp_path: Path, cap: float = 10.0, **options: object) -> Ledger:
    """The ledger of one test."""
    return Ledger.open(
        tmp_path / "ledger.sqlite", cap_epsilon=cap, delta=1e-5, cohort="fp", **options
    )  # type: ignore[arg-type]


def test_nothing_is_reserved_beyond_the_sites_own_cap(tmp_path: Path) -> None:
    cap = epsilon_pld([EVENT] * 2, 1e-5) + 1e-6
    ledger = opened(tmp_path, cap)
    for _ in range(2):
        ledger.reserve(EVENT, PLAN)
    before = ledger.head
    with pytest.raises(PolicyError) as refusal:
        ledger.reserve(EVENT, PLAN)
    assert refusal.value.code == "E-CAP"
    assert ledger.head == before  # a refusal changes nothing


def test_a_second_plan_must_pass_the_renyi_filter(tmp_path: Path) -> None:
    """PLD alone has no proof where a later plan depends on an earlier release."""
    pld, rdp = epsilon_pld([EVENT] * 2, 1e-5), epsilon_rdp([EVENT] * 2, 1e-5, order=4.0)
    assert pld < rdp
    ledger = opened(tmp_path, (pld + rdp) / 2)
    ledger.reserve(EVENT, PLAN)
    with pytest.raises(PolicyError) as refusal:
        ledger.reserve(EVENT, LATER)
    assert refusal.value.code == "E-FILTER"
    ledger.reserve(EVENT, PLAN)  # the same plan, fixed beforehand, still fits


def test_models_rounds_runs_and_studies_compose_in_one_budget(tmp_path: Path) -> None:
    """Each `opened` is a new run of the daemon.

    The second study's wgan meets what the first study's models left.
    """
    flow, pairs = (
        SubsampledGaussian(0.05, 3.0, 50, 9, "glow"),
        SubsampledGaussian(0.2, 4.0, 30, 9, "wgan"),
    )
    laplace = LatentLaplace("box", 1.0, 1, 1, "random", 8.0)  # pure epsilon 0.25
    spent: list[SubsampledGaussian | LatentLaplace] = []
    for event, plan in (
        (EVENT, PLAN),
        (EVENT, PLAN),
        (flow, PLAN),
        (laplace, PLAN),
        (pairs, LATER),
    ):
        opened(tmp_path).reserve(event, plan)
        spent.append(event)
    report = opened(tmp_path).report(prv=False)
    assert report.spent.pld == pytest.approx(epsilon_pld(spent, 1e-5), abs=1e-9)
    pld, rdp = epsilon_pld([*spent, pairs], 1e-5), epsilon_rdp([*spent, pairs], 1e-5, order=4.0)
    assert pld < rdp and pld > epsilon_pld([pairs, pairs], 1e-5) + 0.5
    for cap, code in ((pld - 1e-6, "E-CAP"), (rdp - 1e-6, "E-FILTER")):
        with pytest.raises(PolicyError) as refusal:
            opened(tmp_path, cap).reserve(pairs, LATER)
        assert refusal.value.code == code
    opened(tmp_path, rdp + 1e-6).reserve(pairs, LATER)


REFUSALS = {
    "an epsilon that nobody can reach": (LatentLaplace("box", 3.0, 64, 5, "random", 0.5), "E-CAP"),
    "groups by similarity": (LatentLaplace("box", 3.0, 64, 5, "similar", 100.0), "E-DECLARE"),
    "too many draws for the sampler": (SubsampledGaussian(0.001, 2.0, 1000, 10**12), "E-SAMPLER"),
    "a tenth of delta for the sampler": (SubsampledGaussian(0.001, 2.0, 1000, 10**11), "E-SAMPLER"),
    "an unknown mechanism": ('{"mechanism":"none"}', "E-MECHANISM"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_mechanism_leaves_no_trace(tmp_path: Path, case: str) -> None:
    event, code = REFUSALS[case]
    ledger = opened(tmp_path)
    with pytest.raises(KohortError) as refusal:
        ledger.reserve(event, PLAN)
    assert refusal.value.code == code
    assert len(ledger.rows()) == 1


def test_a_crash_between_reserve_and_commit_counts_as_spent(tmp_path: Path) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from client.state.ledger import Ledger
        from common.privacy.mechanisms import mechanism_from
        path = Path({str(tmp_path / "ledger.sqlite")!r})
        ledger = Ledger.open(path, cap_epsilon=10, delta=1e-5, cohort="fp")
        ledger.reserve('{EVENT.event()}', {PLAN!r}).take()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    report = opened(tmp_path).report(prv=False)
    assert (report.reserved, report.committed) == (1, 0)
    assert report.spent.pld == pytest.approx(epsilon_pld([EVENT], 1e-5))


def test_rows_can_be_neither_updated_nor_deleted(tmp_path: Path) -> None:
    opened(tmp_path).reserve(EVENT, PLAN)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    for statement in (
        "UPDATE entries SET body='{}'",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE seq=2",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def written(tmp_path: Path) -> Ledger:
    """A ledger of five entries of every kind."""
    ledger = opened(tmp_path)
    ledger.commit(ledger.reserve(EVENT, PLAN), ARTEFACT)
    ledger.declare(LatentLaplace("box", 3.0, 64, 5, "similar", 1.0), PLAN)
    ledger.reserve(EVENT, PLAN)
    return ledger


def test_one_changed_byte_in_any_row_is_found_and_named(tmp_path: Path) -> None:
    """Every byte of every stored text, flipped in the file itself."""
    ledger = written(tmp_path)
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT kind || body || prev_hash || hash FROM entries ORDER BY seq"
    ).fetchall()
    connection.close()
    intact = path.read_bytes()
    flipped = 0
    for number, (text,) in enumerate(rows, 1):
        at = intact.index(text.encode())
        for offset in range(0, len(text), 1 if number == 3 else 11):
            damaged = bytearray(intact)
            damaged[at + offset] ^= 1 << (offset % 8)
            path.write_bytes(bytes(damaged))
            with pytest.raises(RefusedError, match=f"entry {number}") as refusal:
                ledger.verify()
            assert refusal.value.code == "E-LEDGER"
            flipped += 1
    assert flipped > 300
    path.write_bytes(intact)
    ledger.verify()


MUTATIONS = {
    "a row is cut from the end": ("DELETE FROM entries WHERE seq=5", 5),
    "a row is cut from the middle": ("DELETE FROM entries WHERE seq=3", 3),
    "a row is renumbered": ("UPDATE entries SET seq=9 WHERE seq=5", 5),
    "a row becomes a number": ("UPDATE entries SET body=CAST(7 AS BLOB) WHERE seq=2", 2),
    "two rows change places": ("UPDATE entries SET seq=-seq WHERE seq IN (2, 3)", 1),
    "a row is added by hand": (
        "INSERT INTO entries SELECT 6, kind, body, hash, hash FROM entries WHERE seq=5",
        6,
    ),
    "the steps shrink": (
        "UPDATE entries SET body=replace(body, '\"steps\":20', '\"steps\":02') WHERE seq=2",
        2,
    ),
    "everything is gone": ("DELETE FROM entries", 1),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_an_edited_ledger_is_refused(tmp_path: Path, case: str) -> None:
    statement, number = MUTATIONS[case]
    ledger = written(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {statement};")
    connection.close()
    for use in (
        ledger.verify,
        lambda: ledger.reserve(EVENT, PLAN),
        lambda: ledger.report(prv=False),
        lambda: opened(tmp_path),
    ):
        with pytest.raises(RefusedError, match=f"entry {number}"):
            use()


OPENINGS = {
    "another pseudonym key": {"cohort": "other"},
    "another delta": {"delta": 1e-4},
    "another order": {"filter_order": 8.0},
}


@pytest.mark.parametrize("case", OPENINGS)
def test_a_ledger_belongs_to_one_pseudonym_key_and_delta(tmp_path: Path, case: str) -> None:
    opened(tmp_path)
    options = {"cap_epsilon": 10.0, "delta": 1e-5, "cohort": "fp", **OPENINGS[case]}
    with pytest.raises(PolicyError) as refusal:
        Ledger.open(tmp_path / "ledger.sqlite", **options)  # type: ignore[arg-type]
    assert refusal.value.code == "E-COHORT"


def test_the_cap_is_the_sites_policy_and_may_change_between_openings(tmp_path: Path) -> None:
    opened(tmp_path, 10.0).reserve(EVENT, PLAN)
    with pytest.raises(PolicyError):
        opened(tmp_path, 0.5).reserve(EVENT, PLAN)
    assert opened(tmp_path, 0.5).report(prv=False).remaining == 0.0


def test_a_reservation_leads_to_one_artefact(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    reservation = ledger.reserve(EVENT, PLAN)
    ledger.commit(reservation, ARTEFACT)
    head = ledger.head
    ledger.commit(reservation, ARTEFACT)  # a retry after a crash
    assert ledger.head == head
    stranger = Reservation(99, 20, EVENT)
    swapped = Reservation(reservation.id, 20, SubsampledGaussian(0.1, 3.0, 20))
    for bad, artefact in ((reservation, "d" * 64), (stranger, ARTEFACT), (swapped, ARTEFACT)):
        with pytest.raises(PolicyError) as refusal:
            ledger.commit(bad, artefact)
        assert refusal.value.code == "E-COMMIT"


def test_a_locked_ledger_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.state.ledger_file.LOCK_WAIT_S", 0.05)
    ledger = opened(tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(EnvironmentFault) as fault:
        ledger.reserve(EVENT, PLAN)
    other.close()
    assert fault.value.code == "E-LEDGER-LOCKED"


def test_a_full_disk_spends_nothing_and_says_so(tmp_path: Path) -> None:
    """The file may not grow: the child process's own limit stands in for the disk."""
    opened(tmp_path)
    path = tmp_path / "ledger.sqlite"
    event = LatentLaplace("box", 1.0, 1, 5, "random", 1000.0).event()
    program = f"""
        import resource, sys
        from pathlib import Path
        from client.state.ledger import Ledger
        from common.errors import EnvironmentFault
        ledger = Ledger.open(Path({str(path)!r}), cap_epsilon=1e5, delta=1e-5, cohort="fp")
        resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size},) * 2)
        try:
            for spent in range(1000):
                ledger.reserve('{event}', {PLAN!r})
        except EnvironmentFault as fault:
            print(spent, fault.code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    spent, code = done.stdout.split()
    assert code in ("E-ENVIRONMENT", "E-DISK-FULL")
    ledger = Ledger.open(path, cap_epsilon=1e5, delta=1e-5, cohort="fp")
    assert len(ledger.rows()) == int(spent) + 1


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 50, b"SQLite format 3\x00" + b"\xff" * 2000]
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(RefusedError) as refusal:
        opened(tmp_path)
    assert refusal.value.code == "E-LEDGER"


def test_a_ledger_without_its_folder_is_an_environment_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        Ledger.open(tmp_path / "absent" / "ledger.sqlite", cap_epsilon=1.0, delta=1e-5)


def test_a_commit_is_fully_synced_before_it_returns(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with ledger._transaction() as (connection, _):
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 3  # EXTRA
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == b"delete"


def test_rows_hold_public_constants_alone(tmp_path: Path) -> None:
    keys = {key for row in written(tmp_path).rows() for key in row.data}
    assert keys == {
        "format",
        "cohort",
        "delta",
        "order",
        "event",
        "plan",
        "cap",
        "accountant",
        "weights",
        "reservation",
        "artefact",
    }
    assert os.stat(tmp_path / "ledger.sqlite").st_mode & 0o077 == 0
