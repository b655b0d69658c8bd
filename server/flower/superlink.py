"""Flower's stock SuperLink and SuperExec as supervised child processes, and the operator's commands on them.

In: a state folder, a port, the server's certificate files. Out: a running server; node ids, run ids, run states.
Guaranteed: process isolation with a secret, node authentication, TLS and a database on disk, always; telemetry, update
check and run-time dependency installation off; listens on the loopback interface unless told otherwise; one server per
folder; children end with this process, even after `kill -9`; an app bundle with code in it is refused before submission.
Not covered: who may reach the port (nginx exposes the Fleet API alone, see deploy/); what a run computes (`server/app.py`).

No flwr import here: only the programs that lie beside this interpreter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import httpx

from common.errors import EnvironmentFault, PeerError, RefusedError, disk_faults_named
from common.process import end_with_parent
from common.storage.files import atomic_write, read_capped
from common.storage.lock import FolderLock
from common.wire.app_bundle import CLIENT_APP, SERVER_APP, check_app
from server.flower.calls import FlowerCli
from server.operator.certificates import ServerFiles, check_certificate, read_certificate

CONNECTION = "kohort"
CLI_TIMEOUT_S = 90.0
START_TIMEOUT_S = 300.0  # it needs seconds of CPU; on a busy machine that takes long, and dying is noticed at once
START_FAILURES = 3
STOP_TIMEOUT_S = 10.0
STOP_GRACE_S = 1.0
WATCH_S = 0.3
RESTART_DELAYS_S = (0.5, 1.0, 2.0, 5.0, 15.0)
FIXED_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "MALLOC_ARENA_MAX": "2",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A site as Flower sees it; `status` is online, offline, registered or unregistered."""

    node_id: int
    name: str
    status: str


@dataclass(frozen=True)
class RunStatus:
    """Where a run is: `status` pending, starting, running or finished; then `outcome` completed, failed or stopped."""

    run_id: int
    status: str
    outcome: str
    details: str
    fab_hash: str

    @property
    def finished(self) -> bool:
        """The run has ended, well or not."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """The run has ended well."""
        return self.finished and self.outcome == "completed"


@dataclass
class _Child:
    """A program that must run, and its present process."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    next_start: float = 0.0
    groups: list[int] = field(default_factory=list)


class SuperLink:
    """One Flower server in `state_dir`. `start`, `wait_ready`, `stop`; also a context manager that does all three."""

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
        self._host, self._port = host, port
        self._reach = (
            "127.0.0.1" if host in ("0.0.0.0", "localhost") else host
        )  # how this machine reaches it
        self._files = files
        self._extra = dict(environment or {})
        self._lock: FolderLock | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._children: tuple[_Child, ...] = ()
        self._cli = FlowerCli(_program("flwr"), self._environment(), self.state_dir, CLI_TIMEOUT_S)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take the folder, write what the programs read, start them and keep them running."""
        check_certificate(self._files.certificate, read_certificate(self._files.ca))
        lock = FolderLock(self.state_dir / "lock", "a SuperLink")
        try:
            self._check_port()
            self._prepare()
            self._children = self._programs()
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._stopping.clear()
        self._watcher = threading.Thread(target=self._watch, name="superlink-watch", daemon=True)
        self._watcher.start()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the server answers over TLS; raises EnvironmentFault with the end of its log if it does not."""
        context = ssl.create_default_context(cafile=str(self._files.ca))
        deadline = time.monotonic() + timeout_s
        with httpx.Client(verify=context, trust_env=False, timeout=2.0) as client:
            while time.monotonic() < deadline and self._children[0].failures < START_FAILURES:
                if self._answers(client):
                    return
                time.sleep(0.1)
        raise EnvironmentFault(
            f"SuperLink at {self.address} does not answer (waited at most {timeout_s:g} s): {self._log_end()}",
            hint=f"read {self.state_dir / 'superlink.log'}",
            code="E-SUPERLINK-START",
        )

    def stop(self) -> None:
        """End every child and its children, then give the folder back; harmless when nothing runs."""
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

    # --- sites --------------------------------------------------------------------------------------------------------

    def register(self, public_key: Path, name: str) -> int:
        """Return the node id of the site with this public key file; a key registered before keeps its id.

        Raises RefusedError for a key that was revoked (Flower never takes it back) or that is not an EC key.
        """
        digest = hashlib.sha256(b" ".join(read_capped(public_key, 65_536).split()[:2])).hexdigest()
        known = self._known()
        for node in self.nodes() if digest in known.values() else ():
            if known.get(str(node.node_id)) == digest and node.status != "unregistered":
                return node.node_id
        answer = self._flwr(
            "supernode", "register", str(public_key.resolve()), CONNECTION, "--name", name
        )
        node_id = int(answer["node-id"])
        self._remember(node_id, name, digest)
        return node_id

    def unregister(self, node_id: int) -> None:
        """Revoke a site for good: its key is refused from now on and can never be registered again."""
        self._flwr("supernode", "unregister", str(node_id), CONNECTION)

    def nodes(self) -> tuple[Node, ...]:
        """Every site that was ever registered here."""
        names = self._names()
        answer = self._flwr("supernode", "list", CONNECTION, "--verbose")
        rows = [(str(row["node-id"]), str(row["status"])) for row in answer["nodes"]]
        return tuple(Node(int(node_id), names.get(node_id, ""), status) for node_id, status in rows)

    # --- runs ---------------------------------------------------------------------------------------------------------

    def submit(
        self, app: Path, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
    ) -> int:
        """Return the id of a new run of the app bundle in folder `app`; a bundle with code in it is refused."""
        expected = check_app(app, server_app=server_app, client_app=client_app)
        answer = self._flwr("run", str(app.resolve()), CONNECTION)
        run_id = int(answer["run-id"])
        if not expected.startswith(str(answer["fab-hash"])):
            self.stop_run(run_id)
            raise PeerError(
                f"Flower packed {app} as {answer['fab-hash']}…, expected {expected[:8]}…",
                hint="flwr and kohort disagree about the bundle format: no site would accept this run",
                code="E-BUNDLE-HASH",
            )
        return run_id

    def run_status(self, run_id: int) -> RunStatus:
        """Where the run is."""
        row = self._flwr("list", CONNECTION, "--run-id", str(run_id))["runs"][0]
        status, _, outcome = str(row["status"]).partition(":")
        return RunStatus(
            run_id, status, outcome, str(row.get("status-details", "")), str(row["fab-hash"])
        )

    def stop_run(self, run_id: int) -> None:
        """Ask Flower to end the run."""
        self._flwr("stop", str(run_id), CONNECTION)

    def run_log(self, run_id: int) -> str:
        """What the ServerApp of this run has printed."""
        return self._cli.run(["log", str(run_id), CONNECTION, "--show"]).text

    # --- inside -------------------------------------------------------------------------------------------------------

    def _programs(self) -> tuple[_Child, ...]:
        """The two programs and their fixed flags."""
        ca = str(self._files.ca.resolve())
        secret = str(self.state_dir / "superexec.secret")
        superlink = [
            *(_program("flower-superlink"), "--host", self._host, "--port", str(self._port)),
            *("--ssl-certfile", str(self._files.certificate.resolve())),
            *("--ssl-keyfile", str(self._files.key.resolve()), "--ssl-ca-certfile", ca),
            *("--enable-supernode-auth", "--database", str(self.state_dir / "state.db")),
            *("--disable-runtime-dependency-installation", "--isolation", "process"),
            *("--superexec-auth-secret-file", secret),
        ]
        superexec = [
            *(_program("flower-superexec"), "--runtime-api-address", f"{self._reach}:{self._port}"),
            *(
                "--root-certificates",
                ca,
                "--superexec-auth-secret-file",
                secret,
                "--parent-pid",
                str(os.getpid()),
            ),
        ]
        return (
            _Child("flower-superlink", superlink, self.state_dir / "superlink.log"),
            _Child("flower-superexec", superexec, self.state_dir / "superexec.log"),
        )

    def _prepare(self) -> None:
        """The folders, the secret and the file in which Flower's command line finds the server."""
        home = self.state_dir / "flwr"
        with disk_faults_named("prepare", self.state_dir):
            for folder in (self.state_dir, home):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o700)
            shutil.rmtree(
                home / "apps", ignore_errors=True
            )  # Flower would reuse an unpacked app without checking it
        secret = self.state_dir / "superexec.secret"
        if not secret.exists():
            atomic_write(secret, secrets.token_urlsafe(48).encode(), mode=0o600)
        entry = {
            "address": f"{self._reach}:{self._port}",
            "root-certificates": str(self._files.ca.resolve()),
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        text = "\n".join(
            [
                "[superlink]",
                f'default = "{CONNECTION}"',
                "",
                f"[superlink.{CONNECTION}]",
                *lines,
                "",
            ]
        )
        atomic_write(home / "config.toml", text.encode(), mode=0o600)

    def _environment(self) -> dict[str, str]:
        """Ours, without foreign Flower settings, with the interpreter's own programs first on the path."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("FLWR_")
        }
        path = os.pathsep.join(
            [str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
        )
        return {
            **inherited,
            **FIXED_ENVIRONMENT,
            "PATH": path,
            "FLWR_HOME": str(self.state_dir / "flwr"),
            **self._extra,
        }

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

    def _watch(self) -> None:
        """Start the children, restart the dead, and end them all on stop. Its thread is the parent the kernel watches."""
        while not self._stopping.wait(WATCH_S if self._children[0].groups else 0.0):
            for child in self._children:
                self._keep(child)
        for child in reversed(self._children):
            _end(child)

    def _keep(self, child: _Child) -> None:
        """Start `child` if it does not run and its pause is over."""
        process = child.process
        if process is not None and process.poll() is None:
            return
        if process is not None:
            delay = RESTART_DELAYS_S[min(child.failures, len(RESTART_DELAYS_S) - 1)]
            log.warning("%s ended with %s; restart in %g s", child.name, process.returncode, delay)
            child.failures, child.next_start, child.process = (
                child.failures + 1,
                time.monotonic() + delay,
                None,
            )
        if time.monotonic() < child.next_start:
            return
        try:
            with child.log.open("ab") as output:
                child.process = _spawn(child.command, self._environment(), self.state_dir, output)
            child.groups.append(child.process.pid)
        except OSError as error:
            log.error("%s does not start: %s", child.name, error.strerror)
            child.next_start = time.monotonic() + RESTART_DELAYS_S[-1]

    def _answers(self, client: httpx.Client) -> bool:
        """Whether our own SuperLink, not another program on its port, answers."""
        process = self._children[0].process if self._children else None
        if process is None or process.poll() is not None:
            return False
        try:
            return client.get(f"https://{self._reach}:{self._port}/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _log_end(self) -> str:
        """The last words of the SuperLink."""
        path = self.state_dir / "superlink.log"
        return (
            path.read_text(errors="replace")[-400:].strip().replace("\n", " | ")
            if path.exists()
            else "no log"
        )

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """The answer of one command of Flower's command line; raises with Flower's own words if it fails."""
        done = self._cli.run([*arguments, "--format", "json"])
        answer = _json_in(done.text)
        if done.code == 0 and answer is not None and answer.get("success", True):
            return answer
        words = str((answer or {}).get("error-message", "")) or done.text[-400:].strip()
        what = f"flwr {' '.join(arguments[:2])}: {words}"
        if "[code: 23]" in words:
            raise RefusedError(
                what,
                hint="this key was revoked: the site must make a new one",
                code="E-KEY-REVOKED",
            )
        raise PeerError(what, code="E-FLOWER")

    def _known(self) -> dict[str, str]:
        """Node id → digest of its public key, of every site registered here."""
        return {node_id: entry["key"] for node_id, entry in self._registry().items()}

    def _names(self) -> dict[str, str]:
        """Node id → name."""
        return {node_id: entry["name"] for node_id, entry in self._registry().items()}

    def _registry(self) -> dict[str, dict[str, str]]:
        """Our own note of who was registered: Flower's command line does not tell names."""
        path = self.state_dir / "nodes.json"
        entries: dict[str, dict[str, str]] = (
            json.loads(read_capped(path, 1 << 20)) if path.exists() else {}
        )
        return entries

    def _remember(self, node_id: int, name: str, digest: str) -> None:
        """Add a site to the note."""
        entries = {**self._registry(), str(node_id): {"name": name, "key": digest}}
        atomic_write(
            self.state_dir / "nodes.json", json.dumps(entries, indent=1).encode(), mode=0o600
        )


def _program(name: str) -> str:
    """The program of this name beside the interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise EnvironmentFault(
            f"{path}: no such program", hint="install kohort's requirements into this environment"
        )
    return str(path)


def _spawn(
    command: list[str], environment: dict[str, str], folder: Path, output: BinaryIO
) -> subprocess.Popen[bytes]:
    """A child in its own process group that gets SIGTERM when the thread that started it ends."""
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _end(child: _Child) -> None:
    """SIGTERM to everything the child ever started; SIGKILL to what is left when the child's time is over."""
    for group in child.groups:
        _signal_group(group, signal.SIGTERM)
    if child.process is not None:
        try:
            child.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("%s does not stop: killed", child.name)
    deadline = (
        time.monotonic() + STOP_GRACE_S
    )  # for its children; short, as a dead one may wait long to be reaped
    while any(_signal_group(group, 0) for group in child.groups) and time.monotonic() < deadline:
        time.sleep(0.02)
    for group in child.groups:
        _signal_group(group, signal.SIGKILL)
    if child.process is not None:
        child.process.wait()
        child.process = None


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; False if it is gone."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _json_in(text: str) -> dict[str, Any] | None:
    """The JSON object in what a command printed."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        answer = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
