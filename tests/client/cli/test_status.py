"""What is true of a site now, and the shape in which `status --json` says it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.cli.serve import note_refusal
from client.daemon.standing import SiteStanding, site_standing
from client.fleet import health as states
from client.fleet.health import Health
from client.state.folder import State
from common.errors import PolicyError
from common.storage.heartbeat import Heartbeat
from docs.generator.status import SITE
from tests.client.cli.typing_commands import Cli
from tests.sites import Hospital, make_hospital

PATIENTS = 16  # of tests.sites


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    made = make_hospital(tmp_path)
    place = State(made.root)
    place.membership.write_text(made.site().membership.model_dump_json())
    return made


@pytest.fixture
def heart(hospital: Hospital) -> Iterator[Heartbeat]:
    """The heartbeat of a daemon that is connected."""
    health = Health()
    health.set(states.CONNECTED)
    health.record_heartbeat()
    with closing(Heartbeat(hospital.root, "kohort-site run")) as found:
        found.note_later(**health.to_dict())
        found.enter("running")
        yield found


def codes(found: SiteStanding) -> list[str]:
    return [alert.code for alert in found.alerts()]


def test_a_running_daemon_says_since_when_its_last_contact_and_what_it_sees(
    hospital: Hospital, heart: Heartbeat
) -> None:
    found = site_standing(hospital.root)
    assert found.daemon.state == "running"
    assert found.contact is not None
    assert datetime.now(UTC) - found.contact < timedelta(minutes=5)
    assert [one.state for one in found.connection] == [states.CONNECTED]
    assert codes(found) == []


def test_after_kill_9_status_does_not_say_connected(
    hospital: Hospital, heart: Heartbeat, cli: Cli
) -> None:
    # the kernel frees the lock of a dead process, and its last words stay
    heart._lock.release()
    code, said, _ = cli("status", "--state", hospital.root)
    assert code == 0
    assert "CONNECTED" not in said and "connected to the server" not in said
    assert "daemon not running: it was killed or crashed; its last sign of life is of" in said
    assert "last contact with the server" in said
    assert codes(site_standing(hospital.root)) == ["NOT-RUNNING"]
    code, said, _ = cli("status", "--state", hospital.root, "--monitor")
    assert code == 1 and said.startswith("WARNING: NOT-RUNNING")


def test_a_daemon_that_hangs_is_told_from_one_that_runs(
    hospital: Hospital, heart: Heartbeat
) -> None:
    found = site_standing(hospital.root, datetime.now(UTC) + timedelta(seconds=70))
    assert found.daemon.state == "hung"
    assert codes(found) == ["UNRESPONSIVE"]
    assert "no sign of life since" in found.alerts()[0].text


def test_the_cohort_is_summed_up_for_the_screen_and_nothing_of_it_stands_without_counts(
    hospital: Hospital, heart: Heartbeat
) -> None:
    cohort = site_standing(hospital.root).plans[0].cohort
    assert cohort is not None
    assert (cohort.people, cohort.images, sum(cohort.by_label.values())) == (PATIENTS,) * 3
    assert cohort.words().startswith("16 people, 16 images (")
    assert site_standing(hospital.root, counts=False).plans[0].cohort is None


def test_the_last_error_stays_with_its_meaning_and_its_fix_also_after_the_daemon_ended(
    hospital: Hospital, heart: Heartbeat
) -> None:
    health = Health(lambda: heart.note(**health.to_dict()))
    note_refusal(health, PolicyError("no", hint="ask", code="E-POLICY-CAP"))
    note_refusal(health, None)  # the next instruction was answered
    heart.close()
    error = site_standing(hospital.root).last_error
    assert error is not None and error.advice.code == "E-POLICY-CAP"
    assert "policy.max_epsilon" in error.advice.line
    assert abs(error.time.timestamp() - time.time()) < 300


# the shape that monitoring systems read, and that docs/reference/status.md promises
SITE_KEYS = {place: set(keys) for place, keys in SITE.items()}


def keys_at(facts: Any, place: str) -> set[str]:
    """The keys of the object at a place; of a list, its first object."""
    for name in filter(None, place.split(".")):
        facts = facts[name]
        facts = facts[0] if isinstance(facts, list) else facts
    return set(facts)


def test_the_json_of_status_keeps_its_shape(hospital: Hospital, heart: Heartbeat, cli: Cli) -> None:
    heart.note(**{states.LAST_ERROR: {"code": "E-CAP", "time": time.time()}})
    facts = json.loads(cli("status", "--state", hospital.root, "--json")[1])
    assert facts["format"] == "kohort-site-status/1"
    assert {place: keys_at(facts, place) for place in SITE_KEYS} == SITE_KEYS
