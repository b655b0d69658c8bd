"""The short mode: a fixed stride through the points of every scenario, and one of each fault."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.state.jobs import PROGRESS
from tests.faults import connection
from tests.faults.__main__ import all_scenarios, markdown, stage_folder, summary
from tests.faults.certificates import certificate_cases
from tests.faults.disk import Point
from tests.faults.lives import kill
from tests.faults.runs import (
    Outcome,
    Stage,
    clock_jumps,
    disks,
    kills,
    power_cuts,
    restores,
    suspensions,
    torn_tails,
)

pytestmark = pytest.mark.slow

STRIDE = 97  # prime: it meets other kinds of events in other scenarios
ONE = 1 << 20  # one point alone
SCENARIOS = all_scenarios()


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    folder = stage_folder()
    logging.disable(logging.CRITICAL)
    yield Stage(request.param, folder)
    logging.disable(logging.NOTSET)
    shutil.rmtree(folder, ignore_errors=True)


def wrong(outcomes: Iterator[Outcome]) -> list[Outcome]:
    """The outcomes that are not allowed, of at least one."""
    found = list(outcomes)
    assert found
    return [outcome for outcome in found if outcome.wrong]


def only(*names: str) -> list[Any]:
    """Some scenarios."""
    return [scenario for scenario in SCENARIOS if scenario.name in names]


@pytest.mark.parametrize("stage", SCENARIOS, ids=lambda one: one.name, indirect=True)
def test_what_is_killed_completes_with_the_same_bytes(stage: Stage) -> None:
    # how far a child is, is not synced: a progress file that a power cut empties says nothing
    assert {Path(name).name for name in stage.whole.unsynced} <= {PROGRESS}
    events = len(stage.whole.events)
    first = sum(stage.scenario.name.encode()) % min(STRIDE, 2 * events)
    assert not wrong(kills(stage, STRIDE, first))
    others = [*power_cuts(stage, ONE, events // 8), *disks(stage, ONE, events // 2)]
    if stage.scenario.name == "init, sign, enrol":
        others += clock_jumps(stage, ONE, 20)
    assert not [outcome for outcome in others if outcome.wrong]


@pytest.mark.parametrize("stage", only("similar images"), ids=["site"], indirect=True)
def test_clocks_jump_and_processes_sleep(stage: Stage) -> None:
    assert not wrong(suspensions(stage, ONE, 20))
    assert not wrong(clock_jumps(stage, ONE, 20))


@pytest.mark.parametrize("stage", only("similar images"), ids=["site"], indirect=True)
def test_a_damaged_or_old_state_is_refused_or_completes(stage: Stage) -> None:
    assert not wrong(torn_tails(stage, 11, 1))
    assert not wrong(restores(stage, 3))


@pytest.mark.parametrize("stage", connection.scenarios(), ids=["inbox"], indirect=True)
def test_every_question_is_answered_in_any_weather(stage: Stage) -> None:
    assert not wrong(connection.storms(stage, 5))


def test_a_certificate_counts_as_it_is_now(tmp_path: Path) -> None:
    assert not wrong(certificate_cases(tmp_path))


@pytest.mark.parametrize("stage", only("rounds"), ids=["site"], indirect=True)
def test_other_bytes_and_a_lost_entry_are_noticed(stage: Stage) -> None:
    """The comparison is no formality: each of its parts fails where it should."""
    scenario, log = stage.scenario, stage.folders.log
    log.note("sent", key=log.read("sent")[0]["key"], digest="other")
    assert "other bytes" in "; ".join(scenario.faults(stage.folders))
    stage.run()
    log.note("ran", reservation=log.read("ran")[0]["reservation"])
    assert "drawn 2 times" in "; ".join(scenario.faults(stage.folders))
    stage.run()
    log.note("spent", losses=[["gaussian", 9.0, 1.0, 1, 0.0]])
    assert "the ledger lacks" in "; ".join(scenario.faults(stage.folders))


@pytest.mark.parametrize("stage", only("registry"), ids=["server"], indirect=True)
def test_a_point_that_is_not_met_is_told(stage: Stage) -> None:
    assert stage.run(Point(1, "after", kill)).end == "killed"
    assert stage.run(Point(999, "after", kill)).end == "complete"


def test_the_table_counts_what_is_wrong() -> None:
    good = Outcome("kill -9", "rounds", "before 1", "complete")
    bad = Outcome("full disk", "rounds", "from 1", "broken", "broken")
    text = markdown([good, good, bad], 1.0)
    assert "| kill -9 | rounds | 2 | 2 complete |" in text
    assert summary([good, bad]) == "2 points, 1 of them kills; 1 allowed, 1 wrong"
