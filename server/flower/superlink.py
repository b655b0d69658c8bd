"""Flower's SuperLink and our executor as supervised child processes.

In: a state folder, the hash of the plan's app bundle. Out: a running server on two unix sockets.
Guarantees, whatever the options:
  no port is opened; node authentication; a database on disk; the executor's secret;
  no telemetry, no update check, no dependency installed at run time;
  one server a folder, which only its owner enters;
  children end with this process, even after `kill -9`.
Not covered: the one port that sites reach (server/front).
No flwr import here: only our own programs, which lie beside this one.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from common import passphrase
from common.errors import EnvironmentFault, disk_faults_named
from common.storage.files import atomic_write
from common.storage.lock import FolderLock
from common.wire.app_bundle import SERVER_APP
from server.flower.calls import OperatorCalls
from server.flower.child import Child
from server.flower.link_process import SECRET_FILE
from server.front.port import BETWEEN, FrontDoor
from server.front.sockets import OPERATOR, SOCKETS, SocketFolder

START_TIMEOUT_S = 300.0  # it needs seconds of CPU; on a busy machine that takes long
START_FAILURES = 3
WATCH_S = 0.3
POLL_S = 0.1
FRONT_NAME = "front"
SECRET_BYTES = 48
INBOX_GIB = 20
ANSWER_S = 2.0
HEALTH = b"GET /health HTTP/1.1\r\nhost: superlink\r\nconnection: close\r\n\r\n"
TEXT_END = 400  # characters of a log that an error repeats
FIXED_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


def program(module: str, *arguments: str) -> list[str]:
    """Return the command of one of our programs; it imports installed code alone (-P)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def front_child(door: FrontDoor, folder: Path, *, between: bool = False) -> Child:
    """Return the front as a program; its last words go to `folder`.

    It inherits its listening socket, so none is lost in a restart. `between`: no SuperLink runs.
    """
    arguments = [str(door.state), door.where, str(door.pushed_bytes)]
    if between:
        arguments.append(BETWEEN)
    inherited = (*door.descriptors, *passphrase.descriptors())
    command = program("server.front.process", *arguments)
    return Child(FRONT_NAME, command, folder / "front-errors.log", inherited)


def make_private(*folders: Path) -> None:
    """Make folders that only their owner enters."""
    for folder in folders:
        with disk_faults_named("prepare", folder):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)


class SuperLink:
    """One Flower server in `state_dir`, with the operator's `calls` on it.

    `start`, `wait_ready`, `stop`; as a context manager it does all three.
    """

    def __init__(
        self,
        state_dir: Path,
        pin: str,
        *,
        app: str = SERVER_APP,
        front: FrontDoor | None = None,
        environment: Mapping[str, str] | None = None,
        inbox_gib: int = INBOX_GIB,
    ) -> None:
        """`pin`: hash of the one app bundle that runs. `app`: the installed ServerApp.

        `front`: the embedded front, unless another program stands there. `environment` reaches
        every child, and through the executor the ServerApp's process. `inbox_gib`: the most that
        Flower's database holds.
        """
        self.state_dir = state_dir.resolve()
        self._pin = pin
        self._app = app
        self._front = front
        self._inbox_gib = inbox_gib
        self._extra = dict(environment or {})
        self._lock: FolderLock | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._children: tuple[Child, ...] = ()
        self.sockets = SocketFolder(self.state_dir / SOCKETS)
        self.calls = OperatorCalls(self.sockets)

    # --- start and stop

    def start(self) -> None:
        """Take the folder, write the secret, start the programs and keep them running."""
        # Nothing is written or started before this folder is ours.
        lock = FolderLock(self.state_dir / "lock", "a SuperLink")
        try:
            self._prepare()
            self._children = (self._superlink(), self._executor(), *self._doors())
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._stopping.clear()
        # The kernel ends the children with the thread that starts them, so one thread keeps them.
        self._watcher = threading.Thread(target=self._watch, name="superlink-watch", daemon=True)
        self._watcher.start()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the server answers on its socket.

        Raises EnvironmentFault (E-SUPERLINK-START) with the end of its log if it does not.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._children[0].failures < START_FAILURES:
            if self._answers():
                return
            time.sleep(POLL_S)
        raise EnvironmentFault(
            f"the SuperLink in {self.state_dir} does not answer (waited at most {timeout_s:g} s): "
            f"{self._log_end()}",
            hint=f"read {self.state_dir / 'superlink.log'}",
            code="E-SUPERLINK-START",
        )

    def stop(self) -> None:
        """End every child and what it started, then give the folder back.

        Harmless when nothing runs.
        """
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        self.calls.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def reload_front(self) -> None:
        """Let the front read the server's certificate again."""
        for child in self._children:
            if child.name == FRONT_NAME:
                child.hang_up()

    def __enter__(self) -> SuperLink:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- the two programs

    def _superlink(self) -> Child:
        """Flower's own application on the sockets."""
        folder, inbox = str(self.state_dir), str(self._inbox_gib)
        command = program("server.flower.link_process", folder, inbox)
        return Child("superlink", command, self.state_dir / "superlink.log")

    def _executor(self) -> Child:
        """The executor, which starts the ServerApp's process."""
        command = program("server.flower.executor", str(self.state_dir), self._pin, self._app)
        # the ServerApp's process opens the operator's key
        inherited = passphrase.descriptors()
        return Child("executor", command, self.state_dir / "executor.log", inherited)

    def _doors(self) -> tuple[Child, ...]:
        """The embedded front; it inherits its listening socket, so none is lost in a restart."""
        if self._front is None:
            return ()
        return (front_child(self._front, self.state_dir),)

    def _watch(self) -> None:
        """Start the children, restart the dead, end them all on stop.

        The kernel ends the children when this thread ends.
        """
        while not self._stopping.wait(WATCH_S if self._children[0].groups else 0.0):
            for child in self._children:
                child.keep(self._environment(), self.state_dir)
        for child in reversed(self._children):
            child.end()

    # --- what they need

    def _prepare(self) -> None:
        """The folders and the secret."""
        home = self.state_dir / "flwr"
        make_private(self.state_dir, home)
        secret = self.state_dir / SECRET_FILE
        if not secret.exists():
            atomic_write(secret, secrets.token_urlsafe(SECRET_BYTES).encode(), mode=0o600)

    def _environment(self) -> dict[str, str]:
        """Ours, without foreign Flower settings."""
        inherited = {}
        for name, value in os.environ.items():
            if not name.startswith("FLWR_"):
                inherited[name] = value
        home = str(self.state_dir / "flwr")
        return {**inherited, **FIXED_ENVIRONMENT, "FLWR_HOME": home, **self._extra}

    def _answers(self) -> bool:
        """Whether our own SuperLink answers."""
        if not self._children or not self._children[0].runs:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(ANSWER_S)
            try:
                probe.connect(self.sockets.path(OPERATOR))
                probe.sendall(HEALTH)
                return probe.recv(64).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    def _log_end(self) -> str:
        """The last words of the SuperLink."""
        path = self.state_dir / "superlink.log"
        if not path.exists():
            return "no log"
        return path.read_text(errors="replace")[-TEXT_END:].strip().replace("\n", " | ")
