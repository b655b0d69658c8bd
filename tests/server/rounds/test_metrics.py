"""The server's metrics: every one of the list, from the same standing that `status` shows."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.monitoring.export import exporting
from common.monitoring.names import of_side
from common.monitoring.settings import MetricsSettings
from common.storage.heartbeat import Heartbeat
from server.front import rules
from server.operator.certificates import create_authority
from server.operator.config import ServerConfig
from server.operator.quota import note_releases, releases_folder
from server.operator.refusals import write_refusals
from server.rounds.loop import train_round
from server.rounds.metrics import ServerMetrics
from tests.federation import Federation, failed

CONFIG = ServerConfig(name="test", url="https://127.0.0.1:9443")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    found = Federation.create(tmp_path)
    create_authority(found.state.authority)
    return found


def test_a_running_server_shows_every_metric_of_the_list(federation: Federation) -> None:
    silent = {"hospital-b": [failed(1000, "E-PLAN-UNKNOWN")]}
    run = federation.open()
    train_round(run, federation.grid(silent), "gan", 0)
    closed = {"accepted": [], "refused": {}, "missing": ["hospital-b"], "weights": ""}
    now = datetime.now(UTC).isoformat()
    run.record.journal.append(run.record.place("train", "gan", 1), "closed", closed | {"time": now})
    root = federation.state.root
    plan = federation.study.hash()
    federation.open().registry.quarantine("hospital-c", "E-GATE-07")
    with federation.state.open_log() as log:
        log.note("release-proposed", plan=plan, release="r")
    write_refusals(root, dict.fromkeys(rules.REFUSALS, 0) | {rules.TOO_MANY: 3})
    out = root.parent / "out"
    out.mkdir()
    (out / "picture").write_bytes(bytes(100))
    note_releases(root, out)
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
    assert {metric.name for metric in of_side("server")} == shown
    assert f'study_rounds_closed{{plan="{plan[:12]}",study="small"}} 2.0' in text
    assert 'kohort_server_front_refusals{status="429"} 3.0' in text
    assert 'kohort_server_quota_used_bytes{folder="releases"} 100.0' in text
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


def test_a_folder_of_releases_that_is_gone_or_unreadable_is_left_out(tmp_path: Path) -> None:
    assert releases_folder(tmp_path) is None
    (tmp_path / "releases-folder").write_bytes(b"a\0b")
    assert releases_folder(tmp_path) is None
    note_releases(tmp_path, tmp_path / "gone")
    assert releases_folder(tmp_path) is None
