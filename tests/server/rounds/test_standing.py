"""What is true of the consortium now, from files alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.storage.heartbeat import Heartbeat
from docs.generator.status import SERVER
from server.operator.foreign import note_foreign_run
from server.operator.sites import Registry
from server.rounds.loop import train_round
from server.rounds.record import StudyRecord
from server.rounds.standing import (
    BETWEEN,
    SEEN,
    SILENT,
    SiteStanding,
    Standing,
    read_standing,
)
from tests.federation import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


@pytest.fixture
def record(federation: Federation) -> Iterator[StudyRecord]:
    found = federation.open().record
    yield found
    found.close()


@pytest.fixture
def heart(federation: Federation) -> Iterator[Heartbeat]:
    """The heartbeat of a server that runs."""
    with closing(Heartbeat(federation.state.root, "a kohort server")) as found:
        found.enter("running")
        yield found


def codes(found: Standing) -> list[str]:
    return [alert.code for alert in found.alerts()]


def site(found: Standing, name: str) -> SiteStanding:
    return next(one for one in found.sites if one.name == name)


def test_a_study_that_waits_for_a_server_that_does_not_run_is_an_alert(
    federation: Federation, record: StudyRecord
) -> None:
    found = read_standing(federation.state)
    assert found.server.state == "never"
    assert codes(found) == ["SERVER-NOT-RUNNING"]
    record.journal.append(federation.study.hash(), "complete")
    assert codes(read_standing(federation.state)) == []


def test_a_live_site_is_connected_and_a_dead_one_silent_since_a_time(
    federation: Federation, record: StudyRecord, heart: Heartbeat
) -> None:
    now = datetime.now(UTC)
    gone = now - SILENT - timedelta(seconds=5)
    heart.note(**{SEEN: {"hospital-a": now.timestamp() - 4, "hospital-b": gone.timestamp()}})
    found = read_standing(federation.state, now)
    assert site(found, "hospital-a").words() == "registered, connected"
    assert "silent since" in site(found, "hospital-b").words()
    assert site(found, "hospital-b").seen == gone
    assert site(found, "hospital-c").words() == "registered, never seen"
    (alert,) = found.alerts()
    assert alert.code == "SITE-SILENT" and "hospital-b" in alert.text and "small" in alert.text
    # who was never seen is missed once the server has run for as long
    heart._started -= SILENT.total_seconds() + 10
    heart.enter("running")
    silent = read_standing(federation.state, now).alerts()
    assert [alert.text.partition(":")[0] for alert in silent] == ["hospital-b", "hospital-c"]


def test_a_server_between_studies_misses_no_site_and_an_open_study_misses_the_server(
    federation: Federation, record: StudyRecord, heart: Heartbeat
) -> None:
    now = datetime.now(UTC)
    gone = now - SILENT - timedelta(seconds=5)
    heart.note(**{SEEN: {"hospital-b": gone.timestamp()}, BETWEEN: True})
    found = read_standing(federation.state, now)
    assert found.server_words().endswith("between studies")
    assert codes(found) == ["SERVER-NOT-RUNNING"]
    record.journal.append(federation.study.hash(), "complete")
    assert codes(read_standing(federation.state, now)) == []


def test_nobody_is_connected_to_a_server_that_does_not_run(
    federation: Federation, record: StudyRecord
) -> None:
    now = datetime.now(UTC)
    with closing(Heartbeat(federation.state.root, "a kohort server")) as heart:
        heart.note(**{SEEN: {"hospital-a": now.timestamp()}})
    found = site(read_standing(federation.state, now), "hospital-a")
    assert not found.connected and found.seen is not None


def test_a_site_in_quarantine_is_named_with_what_its_code_means_and_the_fix(
    federation: Federation, record: StudyRecord, heart: Heartbeat
) -> None:
    with closing(Registry(federation.state.sites)) as registry:
        registry.quarantine("hospital-c", "E-POLICY-CAP")
    found = read_standing(federation.state)
    declared = site(found, "hospital-c").declared
    assert declared is not None
    assert "policy.max_epsilon" in declared.words()
    assert codes(found) == ["E-POLICY-CAP"]
    assert site(found, "hospital-c").to_dict()["code"] == "E-POLICY-CAP"


def test_a_paused_study_is_critical_and_names_its_ways_out(
    federation: Federation, record: StudyRecord, heart: Heartbeat
) -> None:
    record.note_paused(record.place("train", "gan", 0), "E-QUORUM", "waiting for hospital-b")
    (alert,) = read_standing(federation.state).alerts()
    assert (alert.severity, alert.code) == ("error", "E-QUORUM")
    assert "study extend small" in alert.fix


def test_who_is_missing_is_told_with_the_rounds_and_since_when(
    federation: Federation,
) -> None:
    run = federation.open()
    before = datetime.now(UTC).replace(microsecond=0)
    for number in range(2):
        closed = {"accepted": [], "refused": {}, "missing": ["hospital-c"], "weights": ""}
        run.record.journal.append(
            run.record.place("train", "gan", number),
            "closed",
            closed | {"time": (before + timedelta(hours=number)).isoformat()},
        )
    run.record.close()
    (study,) = read_standing(federation.state).studies
    (missing,) = study.missing
    assert (missing.site, missing.rounds) == ("hospital-c", 2)
    assert missing.since == before.isoformat()


def test_a_closed_round_notes_its_time(federation: Federation) -> None:
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    entry = run.record.closing_entry("train", "gan", 0)
    assert entry is not None
    assert datetime.fromisoformat(entry.data["time"]).tzinfo is not None
    run.record.close()


def test_a_foreign_run_is_an_alert_for_a_week(
    federation: Federation, record: StudyRecord, heart: Heartbeat
) -> None:
    note_foreign_run(federation.state.superlink, 9, "ab" * 32)
    assert codes(read_standing(federation.state)) == ["E-APP-UNPINNED"]
    later = datetime.now(UTC) + timedelta(days=8)
    assert "E-APP-UNPINNED" not in codes(read_standing(federation.state, later))


def test_everything_is_json(federation: Federation, record: StudyRecord) -> None:
    facts = read_standing(federation.state).to_dict()
    assert json.loads(json.dumps(facts)) == facts


# the shape that monitoring systems read, and that docs/reference/status.md promises
SERVER_KEYS = {place: set(keys) for place, keys in SERVER.items()}


def test_the_json_of_status_keeps_its_shape(federation: Federation, record: StudyRecord) -> None:
    facts = read_standing(federation.state).to_dict()
    assert facts["format"] == "kohort-server-status/1"
    found = {}
    for place in SERVER_KEYS:
        one = facts[place] if place else facts
        found[place] = set(one[0] if isinstance(one, list) else one)
    assert found == SERVER_KEYS
