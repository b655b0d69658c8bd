"""Metrics on the loopback interface and in a file; a bad scraper disturbs nobody."""

import socket
import stat
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import Bug, EnvironmentFault
from common.monitoring import export
from common.monitoring.export import exporting
from common.monitoring.names import SITE_CERTIFICATE, SITE_REVIEW, SITE_START, Metric
from common.monitoring.scrape import Scrape
from common.monitoring.settings import HealthSettings, MetricsSettings
from common.process import free_port


def one_scrape() -> Scrape:
    scrape = Scrape()
    scrape.set(SITE_CERTIFICATE, 3.0, "site")
    scrape.set(SITE_START, 1.5)
    scrape.set(SITE_REVIEW, None, "study", "plan")
    return scrape


TEXT = b"""\
# HELP kohort_site_start_seconds when the daemon started
# TYPE kohort_site_start_seconds gauge
kohort_site_start_seconds 1.5
# HELP kohort_site_certificate_end_seconds when a certificate ends: the site's own (`site`) or the \
authority's (`authority`)
# TYPE kohort_site_certificate_end_seconds gauge
kohort_site_certificate_end_seconds{of="site"} 3.0
"""


def get(port: int, path: str = "/metrics") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return bytes(answer.read())


def listening(port: int) -> MetricsSettings:
    return MetricsSettings(listen=f"127.0.0.1:{port}")


def test_a_scraper_reads_the_values_and_nothing_of_the_process() -> None:
    port = free_port()
    with exporting(listening(port), one_scrape):
        assert get(port) == TEXT


def test_nothing_else_is_served() -> None:
    port = free_port()
    with exporting(listening(port), one_scrape):
        for path in ("/", "/metrics/../secret", "/metrics?x"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(port, path)
            assert caught.value.code == 404
            caught.value.close()


def test_a_fault_while_reading_is_no_end_of_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    faults: list[Exception] = [ValueError("patient 4711"), EnvironmentFault("x", code="E-X")]

    def collect() -> Scrape:
        if faults:
            raise faults.pop(0)
        return one_scrape()

    with exporting(listening(port), collect):
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(port)
            assert caught.value.code == 503
            assert b"4711" not in caught.value.read()
            caught.value.close()
        assert get(port) == TEXT
    assert "4711" not in caplog.text
    assert "E-X" in caplog.text


def test_silent_scrapers_take_a_bounded_number_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SCRAPERS", 2)
    port = free_port()
    with exporting(listening(port), one_scrape):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for one in silent:
            one.sendall(b"GET ")
        # the third is closed at once
        with socket.create_connection(("127.0.0.1", port), timeout=10) as third:
            assert third.recv(1) == b""
        for one in silent:
            one.close()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = listening(other.getsockname()[1])
        refused = pytest.raises(EnvironmentFault, match=r"metrics\.listen")
        with refused as caught, exporting(settings, one_scrape):
            pass
        assert caught.value.code == "E-LISTEN"


def test_the_file_is_whole_readable_for_others_and_goes_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EVERY_S", 0.001)
    path = tmp_path / "kohort.prom"
    seen: list[tuple[bytes, int]] = []
    twice = threading.Event()

    def collect() -> Scrape:
        if path.exists():
            seen.append((path.read_bytes(), stat.S_IMODE(path.stat().st_mode)))
            twice.set()
        return one_scrape()

    with exporting(MetricsSettings(textfile=str(path)), collect):
        assert twice.wait(30)
    assert seen[0] == (TEXT, 0o644)
    assert not path.exists()


def test_a_metric_outside_the_list_is_a_bug() -> None:
    with pytest.raises(Bug, match="not in the list"):
        Scrape().set(Metric("kohort_site_patients", "how many"), 1.0)
    with pytest.raises(Bug, match="other labels"):
        Scrape().set(SITE_START, 1.0, "of")


@pytest.mark.parametrize(
    "listen",
    ["0.0.0.0:9100", "9100", "[::]:9100", "localhost:9100", "127.0.0.1:0", "127.0.0.1:65536", ""],
)
def test_metrics_and_health_stay_on_this_machine(listen: str) -> None:
    for settings in (MetricsSettings, HealthSettings):
        with pytest.raises(ValidationError, match="this machine alone"):
            settings.model_validate({"listen": listen})


def test_a_socket_of_health_has_a_short_whole_path() -> None:
    for path in ("unix:x.sock", "unix:/" + "x" * 100, "unix:"):
        with pytest.raises(ValidationError, match="unix:/PATH"):
            HealthSettings(listen=path)
