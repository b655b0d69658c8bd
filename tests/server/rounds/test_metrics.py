"""The server's metrics: every one of the list, from the same standing that `status` shows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.monitoring.export import exporting
from common.monitoring.names import of_side
from common.monitoring.settings import MetricsSettings
from common.storage.heartbeat import Heartbeat
from server.operator.certificates import create_authority
from server.operator.config import ServerConfig
from server.rounds.loop import train_round
from server.rounds.metrics import ServerMetrics
from tests.federation import Federation

CONFIG = ServerConfig(name="test", url="https://127.0.0.1:9443")
# they take a refused site, a fault, a release, or the front's own process
ABSENT = {
    "kohort_server_site_code",
    "kohort_server_study_site_missing",
    "kohort_server_release_state",
    "kohort_server_release_sign_offs",
    "kohort_server_front_refusals",
}


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    found = Federation.create(tmp_path)
    create_authority(found.state.authority)
    return found


def test_a_running_server_shows_every_metric_of_the_list(federation: Federation) -> None:
    train_round(federation.open(), federation.grid(), "gan", 0)
    heart = Heartbeat(federation.state.root, "a test")
    try:
        heart.note(seen={"hospital-a": time.time()})
        heart.enter("running")
        metrics = ServerMetrics(federation.state, CONFIG)
        assert metrics.is_well()
        text = metrics.collect().text().decode()
    finally:
        heart.close()
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {metric.name for metric in of_side("server")} - shown == ABSENT
    plan = federation.study.hash()[:12]
    assert f'study_rounds_closed{{plan="{plan}",study="small"}} 1.0' in text
    assert 'kohort_server_site_state{site="hospital-a",state="registered"} 1.0' in text
    assert 'state="running"' in text
    assert not metrics.is_well()


def test_a_site_in_quarantine_and_a_release_are_shown(federation: Federation) -> None:
    federation.open().registry.quarantine("hospital-a", "E-GATE-07")
    plan = federation.study.hash()
    with federation.state.open_log() as log:
        log.note("release-proposed", plan=plan, release="r")
        log.note("release-signed-off", plan=plan, release="r", by="x")
        log.note("release-published", plan=plan, release="r")
    text = ServerMetrics(federation.state, CONFIG).collect().text().decode()
    assert 'kohort_server_site_code{code="E-GATE-07",site="hospital-a"} 1.0' in text
    assert 'state="published"' in text
    assert "kohort_server_release_sign_offs" in text


def test_the_file_for_node_exporter_is_the_servers(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kohort.prom"
    written: list[bytes] = []
    monkeypatch.setattr(
        "common.monitoring.export.atomic_write", lambda _, text, mode: written.append(text)
    )
    metrics = ServerMetrics(federation.state, CONFIG)
    with exporting(MetricsSettings(textfile=str(path)), metrics.collect):
        while not written:
            time.sleep(0.01)
    assert written[0].startswith(b"# HELP kohort_server_version_info")
