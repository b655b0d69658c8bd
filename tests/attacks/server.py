"""A real `kohort-server run` with three honest sites, behind either front, and its insides.

In: which front. Out: a `Target`: the port, its processes, its memory, what it has stored.
The sites' answers can be held back, so that a round stays open for as long as an attack lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from flwr.app import Context, Message

from common.process import free_port
from common.study.bundle import write_bundle
from common.study.plan import Study
from common.wire import signing
from common.wire.app_bundle import fab_hash
from server.front.nginx import config_path, nginx_conf
from server.front.sockets import FRONT, SOCKETS
from server.operator.certificates import create_authority, issue_server_certificate
from server.operator.config import load_config, new_config
from server.operator.state import ServerState
from server.rounds.record import StudyRecord
from tests.attacks.certificates import Caller, callers
from tests.e2e.test_server_restart import site_client, start
from tests.e2e.test_transport import listening_ports
from tests.federation import Fate, ToySite, tiny_plan

FRONTS = ("embedded", "nginx")
START_S = 240.0
LOGS = (".log", "-wal", "-shm")
# what the server itself writes over and over, of one length but for its numbers
OWN = ("heartbeat.json", "front-refusals.json")
OWN_BYTES = 4096
LONG_S = 86_400.0
SETTLE_S = 2.0


def nginx() -> str | None:
    """Return the program nginx, or None."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclasses.dataclass
class Target:
    """One running server: what an attacker sees of it, and what only we see."""

    front: str
    state: ServerState
    study: Study
    port: int
    process: subprocess.Popen[bytes]
    doorman: subprocess.Popen[bytes] | None
    toys: list[WireToy]
    callers: list[Caller]
    gate: threading.Event
    log: Path

    @property
    def ca(self) -> Path:
        """The CA file, which every join file holds."""
        return self.state.authority / "ca.crt"

    def processes(self) -> dict[int, str]:
        """Every process of the server and of its front, by id, with its program."""
        roots = [self.process.pid]
        if self.doorman is not None:
            roots.append(self.doorman.pid)
        found: dict[int, str] = {}
        for root in roots:
            for pid in descendants(root):
                found[pid] = command_of(pid)
        return found

    def memory_mb(self, program: str) -> float:
        """Resident memory of the processes whose command holds this word."""
        total = 0.0
        for pid, command in self.processes().items():
            if program in command:
                total += resident_mb(pid)
        return total

    def ports(self) -> set[int]:
        """The TCP ports on which the server's processes listen."""
        return listening_ports(set(self.processes()))

    def stored(self) -> dict[str, int]:
        """The rows of every table of the SuperLink, and the size of every other file but logs.

        Of what the server writes over and over: whether it is larger than it may be.
        """
        found = {f"table {name}": count for name, count in table_sizes(self.database).items()}
        for path in sorted(self.state.root.rglob("*")):
            is_ours = path.suffix in (".sqlite", ".db") or path.name.endswith(LOGS)
            if path.is_file() and not is_ours and ".log" not in path.name:
                with contextlib.suppress(FileNotFoundError):
                    size = path.stat().st_size
                    if path.name in OWN:
                        size //= OWN_BYTES
                    found[str(path.relative_to(self.state.root))] = size
        return found

    @property
    def database(self) -> Path:
        """The SuperLink's database."""
        return self.state.superlink / "state.db"

    def settle(self) -> dict[str, int]:
        """Return what is stored, once the honest sites have fetched what was sent to them."""
        before = self.stored()
        while True:
            time.sleep(SETTLE_S)
            now = self.stored()
            if now == before and not now["table objects"]:
                return now
            before = now

    def rounds(self) -> int:
        """How many rounds are closed."""
        record = StudyRecord(self.state.study(self.study.hash()), self.study)
        done = record.progress().done
        record.close()
        return done

    def wait(self, condition: Callable[[], Any], timeout_s: float = START_S) -> None:
        """Wait while the server lives."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            late = time.monotonic() > deadline
            if self.process.poll() is not None or late:
                raise AssertionError(self.log.read_text()[-3000:])
            time.sleep(0.1)


class WireToy(ToySite):
    """A toy site whose node may answer with something else than it made."""

    fate: Fate | None = None

    def app(self) -> Any:
        """The site's app behind its node."""
        honest = super().app()

        def answer(message: Message, context: Context) -> Message:
            if self.fate is None:
                return honest(message, context)
            return self.fate(message, lambda: honest(message, context))[0][1]

        return answer


@contextmanager
def running_server(front: str, **changes: Any) -> Iterator[Target]:
    """Yield a server whose three sites are online and have been asked; `changes` of the plan."""
    with ExitStack() as stack:
        # a socket's path must be short, also behind nginx
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="k-"))
        folder = Path(name)
        target = _prepare(front, folder, changes)
        pin = fab_hash((folder / "bundle" / "study.yaml").read_bytes())
        target.process = start(target.state, folder / "bundle", target.log)
        stack.callback(_end, target.process)
        if front == "nginx":
            target.doorman = stack.enter_context(_nginx(target))
        stack.callback(target.gate.set)
        for toy in target.toys:
            place = folder / "sites" / toy.name
            stack.enter_context(site_client(toy, place, target.state, target.port, pin))
        target.wait(lambda: all(toy.asked for toy in target.toys))
        yield target


def _prepare(front: str, folder: Path, changes: dict[str, Any]) -> Target:
    """State folder, plan, toys and callers; nothing runs yet."""
    state = ServerState(folder / "server")
    key = signing.new_key()
    signing.save_private(state.operator_key, key)
    issue_server_certificate(create_authority(state.authority), state.tls, [])
    port = free_port()
    config = new_config("demo", f"https://127.0.0.1:{port}", state.config)
    config = config.model_copy(
        update={
            "listen": config.listen.model_copy(update={"front": front}),
            "limits": config.limits.model_copy(update={"reask_s": LONG_S}),
        }
    )
    state.config.write_text(yaml.safe_dump(config.model_dump()))
    plan = tiny_plan(folder / "plan", **changes)
    study = write_bundle(plan, key, folder / "bundle")
    gate = threading.Event()
    toys = []
    for seed, site in enumerate(study.sites):
        toy = WireToy(site.name, study, key.public_key(), seed)
        toy.forge = lambda fields, arrays: gate.wait(LONG_S) and None
        toys.append(toy)
    found = list(callers(state, folder / "callers"))
    none: Any = None
    return Target(front, state, study, port, none, None, toys, found, gate, folder / "server.log")


@contextmanager
def _nginx(target: Target) -> Iterator[subprocess.Popen[bytes]]:
    """nginx as `kohort-server front` configures it, once the server's own part is there."""
    program = nginx()
    assert program is not None
    path = config_path(target.state)
    path.parent.mkdir(parents=True)
    path.write_text(nginx_conf(target.state, load_config(target.state.config)))
    target.wait((target.state.superlink / SOCKETS / FRONT).exists)
    command = [program, "-p", str(path.parent), "-c", str(path), "-g", "daemon off; user root;"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        # children of other threads stand elsewhere
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                text += " " + (task / "children").read_text()
    except OSError:
        return found
    for child in text.split():
        found += descendants(int(child))
    return found


def command_of(pid: int) -> str:
    """The command line of a process; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(row.split()[1]) for row in rows if row.startswith("VmRSS")) / 1024


def table_sizes(database: Path) -> dict[str, int]:
    """The number of rows of every table."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for (name,) in names
        }
    finally:
        connection.close()
