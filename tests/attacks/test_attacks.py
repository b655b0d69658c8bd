"""The short mode: a part of every table in every run; `make attacks` plays all of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from server.front import rules
from server.rounds.loop import run_study
from tests.attacks import below_http, hostile_servers, hostile_sites, load
from tests.attacks.certificates import Caller
from tests.attacks.knocks import flower_paths, knocks
from tests.attacks.outsiders import attempt, is_success, local_user, visit
from tests.attacks.rows import Row, count_line
from tests.attacks.server import running_server
from tests.attacks.site_nodes import HARMLESS
from tests.federation import Federation
from tests.server.front.conftest import Door, door

__all__ = ["door"]

pytestmark = pytest.mark.timeout(600)
EVERY = 10  # of the cases in the short mode
EVERY_KNOCK = 60
EVERY_MEMBERS_KNOCK = 3
LEAST_CASES = {"sites": 90, "servers": 90}
KNOCKS = 200


def check(rows: Iterable[Row]) -> None:
    """Every row must have held."""
    ways = [row for row in rows if not row.held]
    assert not ways, ways


def test_the_tables_are_long_enough() -> None:
    assert len(hostile_sites.CASES) >= LEAST_CASES["sites"]
    assert len(hostile_servers.CASES) >= LEAST_CASES["servers"]
    for cases in (hostile_sites.CASES, hostile_servers.CASES):
        names = [case.attack for case in cases]
        assert len(set(names)) == len(names)


def test_one_hostile_site_of_three_does_not_end_the_study() -> None:
    check(hostile_sites.rows(hostile_sites.CASES[::EVERY]))


def test_the_same_answer_many_times_is_no_fault(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    run_study(run, federation.grid(HARMLESS.prepare(federation)))
    assert {site.state for site in run.registry.sites().values()} == {"registered"}


def test_a_hostile_server_gets_codes_and_nothing_else() -> None:
    check(hostile_servers.rows(hostile_servers.CASES[::EVERY]))


def test_a_server_that_drips_its_head_does_not_hold_the_client() -> None:
    check(below_http.rows(("a head of a byte now and then", "interim answers without end")))


@pytest.mark.slow
def test_outsiders_and_a_laptop_at_a_running_server() -> None:
    with running_server("embedded", round_deadline_s=3600.0, **load.PLAN) as target:
        check(visit(target, EVERY_KNOCK))
        check(local_user(target))
        target.gate.set()
        for name, commands in list(load.loads(target, load.SHORT))[2:5]:
            figures = load.measure(target, name, commands)
            assert figures.held, figures


def test_flowers_own_paths_are_all_tried() -> None:
    paths = flower_paths()
    assert set(rules.FLEET_CALLS) < set(paths)
    for room in ("fleet", "control", "runtime"):
        assert sum(path.startswith(f"/v1/{room}/") for path in paths) >= len(rules.FLEET_CALLS)
    assert len(list(knocks("key", Path("marker")))) >= KNOCKS


def test_of_all_that_a_member_can_send_only_the_eight_calls_reach_the_superlink(
    door: Door, tmp_path: Path
) -> None:
    """Against a stand-in for the SuperLink that keeps what reaches it."""
    member = door.member("clinic-a")
    caller = Caller("a member", member.certificate, member.key, member.header)
    ca = door.state.authority / "ca.crt"
    for knock in list(knocks(caller.header, tmp_path / "marker"))[::EVERY_MEMBERS_KNOCK]:
        door.upstream.seen.clear()
        outcome = attempt(door.port, ca, caller, knock.data)
        reached = [path for path, _, _ in door.upstream.seen]
        assert len(reached) <= 1, (knock.name, reached)
        assert set(reached) <= set(rules.FLEET_CALLS), knock.name
        if not knock.open_to_members:
            assert not is_success(outcome) or reached == ["/v1/fleet/pull-messages"], (
                knock,
                outcome,
            )


def test_a_way_in_is_told_and_counted() -> None:
    rows = [Row("a", "b", "c", "d", True, 3), Row("a", "b", "c", "d", False)]
    assert count_line(rows) == "attacks: 2 cases, 4 attempts, 1 ways in"
    assert is_success("404 200")
    assert not is_success("closed")
    with pytest.raises(AssertionError):
        check(rows)
