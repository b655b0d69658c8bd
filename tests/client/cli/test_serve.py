"""`kohort-site run`: as typed, and what its two threads do when one of them ends."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from pathlib import Path

import pytest

from client.cli import serve
from client.daemon.site import Site
from common.errors import EnvironmentFault
from common.storage.heartbeat import Heartbeat
from common.storage.lock import FolderLock
from tests.client.cli.typing_commands import Cli
from tests.sites import Hospital, make_hospital


def test_a_second_daemon_on_one_state_folder_is_refused(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    with FolderLock(state / "lock", "kohort-site run"):
        code, _, err = cli("run", "--state", state)
    assert code == 5
    assert "stop it first" in err


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_the_transport_ends_before_the_lock_is_free(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second daemon could start beside it, on the same ledger."""
    ended = threading.Event()

    class Client:
        """The fleet client."""

        settings = None

        def run(self, stop: threading.Event) -> None:
            stop.wait()
            ended.set()

    class Watch:
        """What looks after the certificate: another thread."""

        def rest(self) -> None: ...

        def start(self) -> None: ...

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of this thread")

    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    monkeypatch.setattr(serve, "_fleet_client", lambda *_: Client())
    monkeypatch.setattr(serve, "_wait", fail)
    monkeypatch.setattr(serve, "Renewal", lambda *_: None)
    monkeypatch.setattr(serve, "CertificateWatch", lambda *_: Watch())
    with (
        closing(Heartbeat(hospital.root, "kohort-site run")) as heart,
        pytest.raises(RuntimeError, match="of this thread"),
    ):
        serve._serve(hospital.site(), heart, until_done=False)
    assert ended.is_set()


def test_what_cannot_be_read_of_the_work_is_a_code_in_the_log(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site: Site = hospital.site()

    def fail(_: object) -> None:
        raise EnvironmentFault("/data/of/a/patient: gone", code="E-DISK-FULL")

    monkeypatch.setattr(type(site.plans), "valid", fail)
    with caplog.at_level(logging.INFO):
        serve._log_work(site)
    assert "E-DISK-FULL" in caplog.text
    assert "patient" not in caplog.text
