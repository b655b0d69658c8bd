"""The short mode: a few histories in every run; `python -m tests.sequences` plays thousands."""

from __future__ import annotations

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from tests.sequences import machine
from tests.sequences.machine import Histories
from tests.sequences.play import history_settings, lacking

pytestmark = pytest.mark.slow

HISTORIES = 25
STEPS = 12
MOST_SEEDS = 4
# what these histories must have seen, so that they are no proof by refusal
SEEN = {"update": 60, "images": 15, "plain": 50, "covered": 2, "again": 15}


def test_no_history_breaks_what_is_promised() -> None:
    machine.seen.clear()
    limits = history_settings(HISTORIES, STEPS)
    # the histories of a seed depend on the modules that are loaded: more, until enough is seen
    for number in range(MOST_SEEDS):
        seed(number)(run_state_machine_as_test)(Histories, settings=limits)
        if not lacking(machine.seen, SEEN):
            break
    assert not lacking(machine.seen, SEEN), dict(machine.seen)
