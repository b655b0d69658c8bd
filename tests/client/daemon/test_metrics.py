"""The site's metrics: nothing of a patient in them, and what a person must know is there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from client.daemon.metrics import FRESH_S, SiteMetrics
from client.fleet import health as states
from client.fleet.health import Health
from client.fleet.settings import fleet_settings
from client.state.folder import State
from client.state.price import price_of_plan, site_report, spent_of_plan
from common.errors import PolicyError
from common.monitoring import names
from common.monitoring.names import of_side
from common.storage import heartbeat
from server.operator.certificates import create_authority
from tests.sites import Hospital, make_hospital, scripted, write_cohort

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A certificate."""
    folder = tmp_path_factory.mktemp("authority")
    create_authority(folder)
    return (folder / "ca.crt").read_bytes()


def metrics_of(hospital: Hospital, certificate: bytes = b"") -> SiteMetrics:
    """The metrics of a daemon at one moment."""
    for name in ("ca.crt", "node.crt"):
        (hospital.root / name).write_bytes(certificate)
    health = Health()
    health.set(states.CONNECTED)
    alive = hospital.root / heartbeat.FILE
    alive.write_text("{}")
    os.utime(alive, (NOW, NOW))
    site = hospital.site()
    settings = fleet_settings(site.state, site.config, site.membership)
    return SiteMetrics(site, health, settings, alive, started=NOW)


def play(
    root: Path, monkeypatch: pytest.MonkeyPatch, patients: int, certificate: bytes
) -> SiteMetrics:
    """The metrics of a site that trained, and waits for a person with its images."""
    hospital = make_hospital(root)
    place = State(hospital.root).cohort(hospital.study.intake)
    place.rename(place.with_name("other"))
    write_cohort(place, hospital.study, patients)
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.answer(hospital.ask("train"))
    site.stop.set()
    with pytest.raises(Exception, match="wait for review"):
        site.answer(hospital.ask("synthesize"))
    return metrics_of(hospital, certificate)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.mark.usefixtures("frozen")
def test_one_more_patient_changes_no_byte_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes
) -> None:
    texts = []
    for patients in (16, 17):
        with monkeypatch.context() as patched:
            metrics = play(tmp_path / str(patients), patched, patients, authority)
            texts.append(metrics.collect().text())
    # the plan of each site was signed anew, its hash is its own
    first, second = (text.split(b"\n") for text in texts)
    assert [_without_hash(line) for line in first] == [_without_hash(line) for line in second]
    assert b"kohort_site_review_waiting" in texts[0]
    assert b"kohort_site_epsilon_spent{" in texts[0]


def _without_hash(line: bytes) -> bytes:
    before, _, rest = line.partition(b'plan="')
    return before + rest[12:]


@pytest.mark.usefixtures("frozen")
def test_a_site_at_work_shows_every_metric_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes
) -> None:
    metrics = play(tmp_path, monkeypatch, 16, authority)
    # heard by the server, with a problem and a fault besides
    metrics.health.record_heartbeat()
    metrics.health.set(states.WORK_FAILED)

    def is_older(state: State) -> None:
        raise PolicyError("older than what left of it", code="E-ROLLBACK")

    monkeypatch.setattr("client.daemon.metrics.check_state", is_older)
    text = metrics.collect().text().decode()
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {metric.name for metric in of_side("site")} == shown
    assert 'rounds_answered{model="gan"' in text.replace("kohort_site_", "")
    assert 'kohort_site_connection_state{code="CONNECTED",severity="info"} 1.0' in text


@pytest.mark.usefixtures("frozen")
def test_a_plans_epsilon_is_what_the_commands_call_planned_promised_and_spent_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: bytes
) -> None:
    metrics = play(tmp_path, monkeypatch, 16, authority)
    records = metrics.site.records
    ((plan, study),) = metrics.site.plans.valid().items()
    report, price = site_report(records), price_of_plan(records, study)
    expected = {
        names.SITE_EPSILON_PLANNED: price.planned,
        names.SITE_EPSILON_PROMISED: price.promised,
        names.SITE_EPSILON_SPENT: spent_of_plan(records, report, study),
    }
    text = metrics.collect().text().decode()
    labels = f'{{plan="{plan[:12]}",study="{study.name}"}}'
    for metric, value in expected.items():
        assert f"{metric.name}{labels} {value}" in text
    assert 0 < expected[names.SITE_EPSILON_SPENT] < price.planned <= price.promised
    assert f"{names.SITE_EPSILON_ALL.name} {report.price.spent}" in text


def test_a_fault_of_the_state_folder_is_a_code(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path)
    metrics = metrics_of(hospital)
    (hospital.root / "ledger.sqlite").write_bytes(b"patient 4711")
    metrics.health.set(states.WORK_FAILED, "patient 4711")
    text = metrics.collect().text()
    assert b'kohort_site_state_fault{code="E-LEDGER"} 1.0' in text
    assert b'kohort_site_problem{code="WORK-FAILED",severity="error"} 1.0' in text
    assert b"4711" not in text
    # what can be read is shown
    assert b"kohort_site_rounds_planned" in text


def test_a_daemon_is_well_while_it_lives_and_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = metrics_of(make_hospital(tmp_path))
    now = NOW + 1
    monkeypatch.setattr(time, "time", lambda: now)
    assert metrics.is_well()
    metrics.health.set(states.DISK_FULL)
    assert not metrics.is_well()
    metrics.health.clear(states.DISK)
    metrics.health.set(states.SERVER_BUSY)
    assert not metrics.is_well()
    metrics.health.set(states.CONNECTED)
    assert metrics.is_well()
    now = NOW + FRESH_S
    assert not metrics.is_well()
