"""Flower's stock SuperLink and SuperExec as supervised child processes.

In: a state folder, a port, the server's certificate files. Out: a running server.
Guarantees, whatever the options:
  process isolation with a secret, node authentication, TLS, a database on disk;
  no telemetry, no update check, no dependency installed at run time;
  the loopback interface unless told otherwise; one server a folder;
  children end with this process, even after `kill -9`.
Not covered: who may reach the port (a proxy in front of it exposes the Fleet API alone).
No flwr import here: only the programs that lie beside this interpreter.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

from common.errors import EnvironmentFault, disk_faults_named
from common.storage.files import atomic_write
from common.storage.lock import FolderLock
from server.flower.calls import CONNECTION, TEXT_END, OperatorCalls
from server.flower.child import Child, program_path
from server.flower.command_line import FlowerCli
from server.operator.certificates import ServerFiles, check_certificate, read_certificate

CLI_TIMEOUT_S = 90.0
START_TIMEOUT_S = 300.0  # it needs seconds of CPU; on a busy machine that takes long
START_FAILURES = 3
WATCH_S = 0.3
POLL_S = 0.1
SECRET_BYTES = 48
FIXED_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "MALLOC_ARENA_MAX": "2",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",
}


class SuperLink:
    """One Flower server in `state_dir`, with the operator's `calls` on it.

    `start`, `wait_ready`, `stop`; as a context manager it does all three.
    """

    def __init__(
        self,
        state_dir: Path,
        port: int,
        files: ServerFiles,
        *,
        host: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` reaches every child, and through SuperExec the ServerApp process."""
        self.state_dir = state_dir.resolve()
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._local_address = f"{_local_host(host)}:{port}"
        self._files = files
        self._extra = dict(environment or {})
        self._lock: FolderLock | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._children: tuple[Child, ...] = ()
        flwr = program_path("flwr")
        self._cli = FlowerCli(flwr, self._environment(), self.state_dir, CLI_TIMEOUT_S)
        self.calls = OperatorCalls(self._cli, self.state_dir)

    # --- start and stop

    def start(self) -> None:
        """Take the folder, write what the programs read, start them and keep them running."""
        check_certificate(self._files.certificate, read_certificate(self._files.ca))
        # Nothing is written or started before this folder is ours.
        lock = FolderLock(self.state_dir / "lock", "a SuperLink")
        try:
            self._check_port()
            self._prepare()
            self._children = (self._superlink(), self._superexec())
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._stopping.clear()
        # The kernel ends the children with the thread that starts them, so one thread keeps them.
        self._watcher = threading.Thread(target=self._watch, name="superlink-watch", daemon=True)
        self._watcher.start()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the server answers over TLS.

        Raises EnvironmentFault (E-SUPERLINK-START) with the end of its log if it does not.
        """
        context = ssl.create_default_context(cafile=str(self._files.ca))
        deadline = time.monotonic() + timeout_s
        with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
            while time.monotonic() < deadline and self._children[0].failures < START_FAILURES:
                if self._answers(client):
                    return
                time.sleep(POLL_S)
        raise EnvironmentFault(
            f"SuperLink at {self.address} does not answer (waited at most {timeout_s:g} s): "
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
        self._cli.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

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
        """The SuperLink with its fixed flags."""
        command = [
            *(program_path("flower-superlink"), "--host", self._host, "--port", str(self._port)),
            *("--ssl-certfile", str(self._files.certificate.resolve())),
            *("--ssl-keyfile", str(self._files.key.resolve())),
            *("--ssl-ca-certfile", str(self._files.ca.resolve())),
            *("--enable-supernode-auth", "--database", str(self.state_dir / "state.db")),
            *("--disable-runtime-dependency-installation", "--isolation", "process"),
            *("--superexec-auth-secret-file", str(self._secret_file)),
        ]
        return Child("flower-superlink", command, self.state_dir / "superlink.log")

    def _superexec(self) -> Child:
        """The SuperExec, which starts the ServerApp process."""
        command = [
            *(program_path("flower-superexec"), "--runtime-api-address", self._local_address),
            *("--root-certificates", str(self._files.ca.resolve())),
            *("--superexec-auth-secret-file", str(self._secret_file)),
            *("--parent-pid", str(os.getpid())),
        ]
        return Child("flower-superexec", command, self.state_dir / "superexec.log")

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

    @property
    def _secret_file(self) -> Path:
        """The secret that SuperLink and SuperExec share."""
        return self.state_dir / "superexec.secret"

    def _prepare(self) -> None:
        """The folders, the secret, and the file in which Flower's command line finds the server."""
        home = self.state_dir / "flwr"
        with disk_faults_named("prepare", self.state_dir):
            for folder in (self.state_dir, home):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
            # Flower would reuse an unpacked app without checking it.
            shutil.rmtree(home / "apps", ignore_errors=True)
        if not self._secret_file.exists():
            secret = secrets.token_urlsafe(SECRET_BYTES)
            atomic_write(self._secret_file, secret.encode(), mode=0o600)
        certificates = str(self._files.ca.resolve())
        lines = [
            "[superlink]",
            f'default = "{CONNECTION}"',
            "",
            f"[superlink.{CONNECTION}]",
            f"address = {json.dumps(self._local_address)}",
            f"root-certificates = {json.dumps(certificates)}",
            "",
        ]
        atomic_write(home / "config.toml", "\n".join(lines).encode(), mode=0o600)

    def _environment(self) -> dict[str, str]:
        """Ours, without foreign Flower settings, with the interpreter's own programs first."""
        inherited = {}
        for name, value in os.environ.items():
            if not name.startswith("FLWR_"):
                inherited[name] = value
        own_programs = str(Path(sys.executable).parent)
        path = os.pathsep.join([own_programs, inherited.get("PATH", os.defpath)])
        home = str(self.state_dir / "flwr")
        ours = {**FIXED_ENVIRONMENT, "PATH": path, "FLWR_HOME": home}
        return {**inherited, **ours, **self._extra}

    def _check_port(self) -> None:
        """Refuse a port on which something already listens."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise EnvironmentFault(
                    f"{self.address}: {error.strerror}", hint="choose a free port", code="E-PORT"
                ) from error

    def _answers(self, client: httpx.Client) -> bool:
        """Whether our own SuperLink, not another program on its port, answers."""
        if not self._children or not self._children[0].runs:
            return False
        try:
            return client.get(f"https://{self._local_address}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _log_end(self) -> str:
        """The last words of the SuperLink."""
        path = self.state_dir / "superlink.log"
        if not path.exists():
            return "no log"
        return path.read_text(errors="replace")[-TEXT_END:].strip().replace("\n", " | ")


def _local_host(host: str) -> str:
    """How this machine itself reaches a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "localhost") else host
