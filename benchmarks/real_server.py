"""A real `kohort-server run` on this machine with simulated sites, and its insides by the second.

In: how many sites, how large an update, how many rounds. Out: when each round closed, and the
memory, processor time, disk and requests of the server's processes.
The server is set up by the operator's own commands: init, pin, plan, sign, run. Sites enrol by the
code of `kohort-server enrol`. The front is the embedded one, with TLS, on the loopback interface.
The sites' own files lie in memory where the machine has /dev/shm: they stand for other machines.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from client.fleet.connection import create_node_key
from common.process import free_port
from common.storage.files import atomic_write
from common.study.bundle import copy_bundle
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study, load_study
from common.study.planned import planned_shapes
from common.wire import signing, tensors
from common.wire.app_bundle import fab_hash
from common.wire.messages import canonical
from server.operator import enrolment
from server.operator.config import load_config
from server.operator.quota import folder_bytes
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.record import StudyRecord

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
SAMPLE_S = 0.2
START_S = 300.0
ROLES = {
    "link_process": "SuperLink",
    "app_process": "ServerApp",
    "front.process": "front",
    "flower.executor": "executor",
    "kohort-server": "coordinator",
}
PLAN: dict[str, Any] = {
    "format": "kohort-study/1",
    "name": "many-sites",
    "title": "Many simulated sites",
    "modality": "vessels",
    "intake": {
        "dicom_modalities": ["MR"],
        "size_px": 32,
        "channels": 1,
        "labels": ["vessels"],
        "volumes": {"patches_per_patient": 4},
    },
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "planned_patients": 100, "accept_infeasible": True},
    "release": {"date": "2026-11-21", "min_images": 4},
}
WGAN: dict[str, Any] = {
    "local_steps": 2,
    "learning_rate": 0.0001,
    "generator_learning_rate": 0.0001,
    "noise_multiplier": 400.0,
    "patients_per_step": 16,
    "clip": 1.0,
    "max_update_norm": 10.0,
    "latent": 16,
    "critic_steps": 1,
    "items_per_patient": 2,
    "released_pairs": 12,
}


@dataclass(frozen=True)
class Case:
    """What is run. `fates`: of some sites, by number; the others are honest.

    `before`: rounds that the journal holds already, of `rounds` in all.
    """

    sites: int
    mib: float
    rounds: int
    before: int = 0
    deadline_s: float = 900.0
    spread_s: float = 0.0
    fates: Mapping[int, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The sites' names."""
        return [f"hospital-{number:02d}" for number in range(self.sites)]


@dataclass
class Round:
    """One closed round: its end, in seconds of the run, and the sites that were averaged."""

    number: int
    closed_s: float
    accepted: list[str]
    missing: list[str]


@dataclass
class Found:
    """What a run showed. `samples`: time, replies accepted so far, MiB by role and on disk."""

    update_mib: float
    rounds: list[Round] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    pushed_mib: float = 0.0
    states: dict[str, str] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    ended: int | None = None

    def seconds(self) -> list[float]:
        """Return how long every round but the first took."""
        ends = [one.closed_s for one in self.rounds]
        return [round(after - before, 3) for before, after in itertools.pairwise(ends)]

    def peak(self, what: str, start_s: float, end_s: float) -> float:
        """Return the largest sample of a column between two times."""
        return max((s.get(what, 0.0) for s in self.samples if start_s < s["s"] <= end_s), default=0)


# --- setting up -----------------------------------------------------------------------------------


def sizes_near(mib: float) -> tuple[int, int]:
    """Return the widths of critic and generator whose update is nearest to so many MiB."""
    best = (math.inf, 0, 0)
    for width in (8, 16, 32, 64, 96, 128, 160, 192, 256):
        for generator in (8, 16, 32, 64, 96, 128, 160, 192, 256):
            size = 4 * count_numbers(shapes_of(width, generator)) / MIB
            best = min(best, (abs(size - mib), width, generator))
    return best[1:]


def shapes_of(width: int, generator: int) -> Shapes:
    """The tensors of the plan's model at these widths."""
    sites = [{"name": f"hospital-{number}"} for number in range(2)]
    return planned_shapes(
        Study.model_validate(plan_of(sites, 1, width, generator, 60.0)), FAMILIES["wgan"]
    )


def count_numbers(shapes: Shapes) -> int:
    """How many numbers these tensors hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def plan_of(
    sites: Sequence[Mapping[str, Any]], rounds: int, width: int, generator: int, deadline_s: float
) -> dict[str, Any]:
    """Return a plan as plain data."""
    wgan = {**WGAN, "rounds": rounds, "width": width, "generator_width": generator}
    quorum = max(2, len(sites) // 2)
    return {
        **PLAN,
        "sites": list(sites),
        "quorum": quorum,
        "round_deadline_s": deadline_s,
        "models": {"wgan": wgan},
    }


@dataclass
class Consortium:
    """An operator's folder with a signed plan and enrolled sites, and the sites' folders."""

    case: Case
    folder: Path
    sites: Path
    state: ServerState
    port: int
    study: Study

    @property
    def bundle(self) -> Path:
        """The signed bundle."""
        return self.folder / "bundle"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"


def operate(*arguments: object) -> None:
    """Run one of the operator's commands."""
    command = [*program(), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[3:])}: {done.stderr[-2000:]}")


def program() -> list[str]:
    """`kohort-server` of this environment."""
    return [str(Path(sys.executable).parent / "kohort-server")]


@contextmanager
def consortium(case: Case) -> Iterator[Consortium]:
    """Yield a server that is set up, and forget it."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="k-") as folder,
        tempfile.TemporaryDirectory(prefix="k-", dir=memory) as sites,
    ):
        yield set_up(case, Path(folder), Path(sites))


def set_up(case: Case, folder: Path, sites: Path) -> Consortium:
    """Set the server up by the operator's commands, and enrol the sites."""
    state = ServerState(folder / "server")
    port = free_port()
    url = f"https://127.0.0.1:{port}"
    operate("init", "--state", state.root, "--name", "bench", "--url", url)
    if case.limits:
        config = load_config(state.config).model_dump()
        config["limits"].update(case.limits)
        state.config.write_text(yaml.safe_dump(config))
    # the plan and its checkpoint
    draft = folder / "plan" / "study.yaml"
    width, generator = sizes_near(case.mib)
    plan = plan_of(
        [{"name": n} for n in case.names], case.rounds, width, generator, case.deadline_s
    )
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in shapes_of(width, generator).items():
        weights[name] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
    tensors.write(draft.parent / "wgan.safetensors", weights)
    start = {"file": "wgan.safetensors", "sha256": "0" * 64}
    plan["models"]["wgan"]["start"] = start
    draft.write_text(yaml.safe_dump(plan))
    operate("pin", draft)
    operate("plan", draft, "--state", state.root)
    operate("sign", draft, "--state", state.root, "--out", folder / "bundle")
    found = Consortium(case, folder, sites, state, port, load_study(folder / "bundle/study.yaml"))
    enrol(found, url)
    return found


def enrol(found: Consortium, url: str) -> None:
    """Make every site's keys and request, enrol it, and write what the sites' process reads."""
    key = signing.load_private(found.state.operator_key)
    config = load_config(found.state.config)
    line = signing.public_text(key.public_key(), config.name)
    fates = {}
    for number, name in enumerate(found.case.names):
        place = found.sites / name
        place.mkdir()
        create_node_key(place / "node.key", place / "node.pub", name)
        own = signing.new_key()
        signing.save_private(place / "sign.key", own)
        request = {
            "format": "kohort-request/1",
            "site": name,
            "node_key": (place / "node.pub").read_text().strip(),
            "sign_key": signing.public_text(own.public_key(), name),
        }
        signature = signing.sign(own, signing.REQUEST, canonical(request))
        request["signature"] = signature.decode()
        atomic_write(place / "request.json", json.dumps(request).encode())
        join = json.loads(enrolment.enrol(place / "request.json", found.state, config, line))
        (place / "node.crt").write_text(join["client_certificate"])
        fates[name] = found.case.fates.get(number, "honest")
    spec = {
        "url": url,
        "ca": str(found.state.authority / "ca.crt"),
        "pin": fab_hash((found.bundle / "study.yaml").read_bytes()),
        "bundle": str(found.bundle),
        "operator": line,
        "spread_s": found.case.spread_s,
        "sites": fates,
    }
    (found.sites / "sites.json").write_text(json.dumps(spec))


def open_record(found: Consortium) -> StudyRecord:
    """Open the study's record; its folder is made as `run` makes it."""
    root = found.state.study(found.study.hash())
    key = signing.load_private(found.state.operator_key)
    if not (root / "bundle" / "study.sig").is_file():
        copy_bundle(found.bundle, key.public_key(), root / "bundle")
    return StudyRecord(root, found.study)


# --- running --------------------------------------------------------------------------------------


def run(found: Consortium, until: Callable[[Found], bool], most_s: float) -> Found:
    """Run server and sites until `until` says so, the study is complete, or the time is over."""
    with found.log.open("ab") as output:
        command = [*program(), "run", str(found.bundle), "--state", str(found.state.root)]
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
    sites = None
    watch = Watch(found, server.pid)
    try:
        wait(lambda: len(registered(found)) == found.case.sites, server, found.log)
        sites = start_sites(found)
        watch.start()
        end = time.monotonic() + most_s
        while time.monotonic() < end and server.poll() is None and not until(watch.found):
            time.sleep(0.1)
        watch.stop()
        watch.found.ended = server.poll()
        watch.found.states = {n: s for n, s in states(found).items() if s != "registered "}
    finally:
        watch.stop()
        for process in (sites, server):
            stop(process)
    watch.read_log()
    watch.found.left = left_on_disk(found)
    return watch.found


def start_sites(found: Consortium) -> subprocess.Popen[bytes]:
    """Start the process of all sites."""
    command = [sys.executable, "-m", "benchmarks.simulated_sites", str(found.sites)]
    with (found.folder / "sites.log").open("ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def stop(process: subprocess.Popen[bytes] | None) -> None:
    """End a process and wait for it."""
    if process is None:
        return
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    if process.poll() is None:
        process.kill()
        process.wait()


def wait(condition: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a condition while the server lives."""
    end = time.monotonic() + START_S
    while not condition():
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text()[-3000:])
        time.sleep(0.2)


def registered(found: Consortium) -> list[str]:
    """The sites that Flower knows."""
    return [name for name, text in states(found).items() if text.startswith("registered")]


def states(found: Consortium) -> dict[str, str]:
    """Every site's state and code."""
    registry = Registry(found.state.sites)
    try:
        return {name: f"{site.state} {site.code}" for name, site in registry.sites().items()}
    finally:
        registry.close()


def left_on_disk(found: Consortium) -> dict[str, float]:
    """MiB of the database, of its log and of the study's folder, when all is over."""
    place = found.state.superlink
    sizes = {name: size(place / name) for name in ("state.db", "state.db-wal")}
    return {**sizes, "studies": round(folder_bytes(found.state.root / "studies") / MIB, 1)}


def size(path: Path) -> float:
    """MiB of a file; 0 where there is none."""
    return round(path.stat().st_size / MIB, 1) if path.exists() else 0.0


# --- watching -------------------------------------------------------------------------------------


class Watch:
    """Looks at the server from outside, by the second, without a call to it."""

    def __init__(self, found: Consortium, pid: int) -> None:
        numbers = count_numbers(planned_shapes(found.study, FAMILIES["wgan"]))
        self.found = Found(round(4 * numbers / MIB, 2))
        self._consortium = found
        self._pid = pid
        self._journal: sqlite3.Connection | None = None
        self._seen = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()

    def start(self) -> None:
        """Begin to look; time starts here."""
        self._began = time.monotonic()
        self._seen = self._newest()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        if self._thread.is_alive():
            self._end.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_S):
            self._look_at_journal()
            self._look_at_processes()
        self._look_at_journal()

    def _look_at_journal(self) -> None:
        """Note what was closed and accepted since the last look."""
        now = time.monotonic() - self._began
        rows = self._rows(
            "SELECT seq, key, state, data FROM entry WHERE seq > ? ORDER BY seq", self._seen
        )
        for number, key, state, data in rows:
            self._seen = number
            if state == "accepted":
                self.found.accepted_s.append(round(now, 2))
            if state == "closed":
                facts = json.loads(data)
                closed = int(key.rpartition("/")[2])
                one = Round(closed, round(now, 2), facts["accepted"], facts["missing"])
                self.found.rounds.append(one)

    def _newest(self) -> int:
        """The number of the newest entry."""
        rows = self._rows("SELECT max(seq) FROM entry WHERE seq > ?", -1)
        return int(rows[0][0] or 0)

    def _rows(self, query: str, value: int) -> list[Any]:
        """Rows of the study's journal."""
        if self._journal is None:
            study = self._consortium.study
            path = self._consortium.state.study(study.hash()) / "journal.sqlite"
            self._journal = sqlite3.connect(
                f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=20
            )
        return self._journal.execute(query, (value,)).fetchall()

    def _look_at_processes(self) -> None:
        """Note memory and disk."""
        sample: dict[str, float] = Counter()
        for pid in descendants(self._pid):
            role = role_of(pid)
            mib = resident_mib(pid)
            sample[role] += mib
            sample["all"] += mib
            self.found.cpu_s[f"{role} {pid}"] = cpu_s(pid)
        place = self._consortium.state.superlink
        sample["database"] = size(place / "state.db") + size(place / "state.db-wal")
        sample["accepted"] = len(self.found.accepted_s)
        sample["s"] = round(time.monotonic() - self._began, 2)
        self.found.samples.append(dict(sample))

    def read_log(self) -> None:
        """Count the calls of the sites and the bytes that they pushed, from the front's own log."""
        calls: Counter[str] = Counter()
        pushed = 0
        for path in self._consortium.state.root.glob("front.log*"):
            for line in path.read_text().splitlines():
                row = re.search(r"hospital-\d+ ([a-z-]+) (\d+) (\d+)", line)
                if row:
                    calls[f"{row[1]} {row[2]}"] += 1
                    pushed += int(row[3])
        self.found.calls = dict(calls)
        self.found.pushed_mib = round(pushed / MIB, 1)


def descendants(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def role_of(pid: int) -> str:
    """What a process of the server is."""
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        for word, role in ROLES.items():
            if word in command:
                return role
    return "other"


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 when it has gone."""
    with contextlib.suppress(OSError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    return 0.0


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
