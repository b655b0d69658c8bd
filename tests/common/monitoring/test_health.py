"""The standard health service: what a probe hears of a daemon that is well, ill, or not there."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from common.monitoring.health import answering, probe
from common.process import free_port


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    # the kernel takes a hundred bytes, which a test's own folder may have
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def broken() -> bool:
    raise OSError("gone")


def test_a_probe_hears_of_each_service_on_a_socket(socket_folder: Path) -> None:
    address = f"unix:{socket_folder}/health.sock"
    services = {"": lambda: True, "kohort.site": lambda: False, "kohort.server": broken}
    with answering(address, services):
        assert probe(address)
        assert not probe(address, "kohort.site")
        assert not probe(address, "kohort.server")
        assert not probe(address, "unknown")
    assert not probe(address)


def test_the_answer_follows_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.monitoring.health.LOOK_S", 0.01)
    address = f"127.0.0.1:{free_port()}"
    well = threading.Event()
    asked = threading.Semaphore(0)

    def is_well() -> bool:
        asked.release()
        return well.is_set()

    with answering(address, {"": is_well}):
        assert not probe(address)
        well.set()
        # the second question after this one has seen the change and its answer is noted
        for _ in range(asked._value + 3):
            asked.acquire()
        assert probe(address)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EnvironmentFault, match=address) as caught, answering(address, {}):
            pass
        assert caught.value.code == "E-LISTEN"


MANY = """
import subprocess, sys, {first}
from common.monitoring.health import answering
with answering(sys.argv[1], {{"": lambda: True}}):
    for _ in range(150):
        subprocess.run(["true"], check=True, preexec_fn=lambda: None)
"""


@pytest.mark.parametrize("first", ["client.fleet.client", "server.flower.superlink"])
def test_children_start_beside_the_service(first: str, socket_folder: Path) -> None:
    """A daemon that has imported Flower, and so gRPC, forks while gRPC's threads run."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", MANY.format(first=first), f"unix:{socket_folder}/health.sock"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
