"""An operator under faults: plan, enrolment, rounds, closing, registry, executor's claim, release.

In: the side's own steps over a folder. Out: `Scenario`s, each life of which does every step again.
Guarantees: the loop, the intake, the record, the registry and the release are the product's; the
sites answer from memory of their own, which the server's death does not touch.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx

from client.cli.joining import init as init_site
from common.storage.files import file_digest
from common.study.bundle import open_bundle
from common.study.plan import load_study
from common.wire import signing
from common.wire.messages import Header, Sealed
from common.wire.tensors import dumps, read
from kohort.verification import verify
from server.cli.setup import init as init_server
from server.cli.sites import enrol as enrol_site
from server.cli.state_folder import load_operator_key
from server.flower.executor import CLAIM_FILE, UNAUTHORIZED, Executor
from server.flower.tasks import Claim, ClaimFile
from server.operator.plan import report, sign
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.release.build import build_release
from server.rounds.loop import run_study
from server.rounds.record import StudyRecord
from tests.faults.hospital import resent
from tests.faults.lives import Folders, Log
from tests.federation import Federation, ToySite
from tests.releases import release_inputs
from tests.sites import write_plan

SITES = ("hospital-a", "hospital-b")
CAP_BYTES = 1 << 24
CONTENT = b"the plan's own bundle"
PIN = hashlib.sha256(CONTENT).hexdigest()


class LastingSite(ToySite):
    """A toy site with a disk of its own, which logs what it was asked."""

    memory: Path
    log: Log

    def answer(self, sealed: Sealed) -> Sealed:
        """The stored answer of a place, in any life of the server."""
        header = Header.model_validate_json(sealed.header)
        self.log.note("sent", key=f"{self.name}/{header.key}", digest=header.digest)
        number = 0 if header.phase == "synthesize" else header.round
        place = f"{header.phase}/{header.model}/{number}/{header.part}"
        path = self.memory / f"{hashlib.sha256(place.encode()).hexdigest()}.sealed"
        if path.exists():
            fields = read(path, max_bytes=CAP_BYTES)
            self.stored[place] = Sealed(*(fields[name].tobytes() for name in Sealed._fields))
        reply = super().answer(sealed)
        self._keep(path, reply)
        return reply

    def _keep(self, path: Path, reply: Sealed) -> None:
        """Store an answer whole."""
        import numpy as np

        fields = {name: np.frombuffer(value, np.uint8) for name, value in reply._asdict().items()}
        part = path.with_suffix(f".{threading.get_ident()}")
        part.write_bytes(dumps(fields))
        os.replace(part, path)


@dataclass
class Rounds:
    """A whole study: training, images, closing."""

    name: str = "rounds, images and closing"
    side: str = "server"
    watched: Sequence[str] = ("server",)
    _end: dict[str, str] = field(default_factory=dict)

    def prepare(self, folders: Folders) -> None:
        """Make the federation."""
        self.federation = Federation.create(folders.home)
        for name, site in self.federation.sites.items():
            lasting = LastingSite(name, site.study, site.operator, site.seed, key=site.key)
            lasting.memory = folders.home / "sites" / name
            lasting.memory.mkdir(parents=True)
            lasting.log = folders.log
            self.federation.sites[name] = lasting

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """One life of the study's process."""
        study_run = self.federation.open()
        run_study(study_run, self.federation.grid())
        study_run.registry.close()
        study_run.record.journal.close()

    def faults(self, folders: Folders) -> list[str]:
        """What differs from a run without faults."""
        found = resent(folders.log)
        end = self._read_end()
        if not self._end:
            self._end = end
        if end != self._end:
            found.append(f"ends otherwise: {sorted(set(end.items()) ^ set(self._end.items()))}")
        return found

    def _read_end(self) -> dict[str, str]:
        """The final weights, the batches and the sites' states."""
        study, state = self.federation.study, self.federation.state
        record = StudyRecord(state.study(study.hash()), study)
        registry = Registry(state.sites)
        end = {"complete": str(record.complete())}
        for model, path in record.final_weights().items():
            end[model] = file_digest(path)
        for batch in record.batches():
            payloads = b"".join(part.payload for part in batch.parts)
            end[batch.site] = hashlib.sha256(payloads).hexdigest()
        for name, site in registry.sites().items():
            end[f"{name} is"] = site.state
        registry.close()
        record.journal.close()
        return end


@dataclass
class SetUp:
    """`init`, `sign` and `enrol`: typed again after a kill."""

    name: str = "init, sign, enrol"
    side: str = "server"
    watched: Sequence[str] = ("server", "bundle", "joins")

    def prepare(self, folders: Folders) -> None:
        """Write the plan, and the requests of two hospitals."""
        home = folders.home
        for name in ("plan", "data", "joins"):
            (home / name).mkdir()
        self.plan = write_plan(home / "plan")
        with quiet():
            for name in SITES:
                init_site(home / name, name, home / "data")
            # the accountants answer once, before the first fork
            self.report = report(load_study(self.plan), home / "plan")

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """One evening of the operator."""
        state = home / "server"
        with quiet():
            if not ServerState(state).config.exists():
                init_server(state, "demo", "https://localhost:9443")
            with patch("server.operator.plan.report", lambda *_: self.report):
                sign(self.plan, load_operator_key(ServerState(state)), home / "bundle")
            for name in SITES:
                request = home / name / f"{name}.request.json"
                enrol_site(request, state, home / "joins" / f"{name}.join.json")

    def faults(self, folders: Folders) -> list[str]:
        """What is not there."""
        home, place = folders.home, ServerState(folders.home / "server")
        key = load_operator_key(place)
        study = open_bundle(home / "bundle", key.public_key())
        registry = Registry(place.sites)
        names = sorted(registry.sites())
        registry.close()
        found = [] if names == list(SITES) else [f"enrolled: {names}"]
        found += [] if study.name else ["no plan"]
        keys = {file_digest(path) for path in place.operator_key.parent.glob("*.key")}
        return found if len(keys) == 1 else [*found, "not one operator's key"]


@dataclass
class Publishing:
    """The release of a complete study."""

    name: str = "release"
    side: str = "server"
    watched: Sequence[str] = ("releases",)
    _sums: bytes = b""

    def prepare(self, folders: Folders) -> None:
        """Make batches, and the plan."""
        self.operator = signing.new_key()
        self.inputs = release_inputs(folders.home, self.operator)
        # what is imported and computed once, before the first fork
        build_release(self.inputs, folders.home / "scratch", self.operator)

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """Build it."""
        build_release(self.inputs, home / "releases", self.operator)

    def faults(self, folders: Folders) -> list[str]:
        """What is left over, or differs from a build without faults."""
        (release,) = sorted((folders.home / "releases").glob("[!.]*"))
        verify(release)
        sums = (release / "SHA256SUMS").read_bytes()
        self._sums = self._sums or sums
        found = [] if sums == self._sums else ["other bytes"]
        left = [path.name for path in (folders.home / "releases").glob(".*")]
        return [*found, f"left over: {left}"] if left else found


@dataclass
class Claiming:
    """The executor's claim: one task runs, whatever dies."""

    name: str = "executor's claim"
    side: str = "server"
    watched: Sequence[str] = ("superlink",)

    def prepare(self, folders: Folders) -> None:
        """Make the folder of a SuperLink."""
        (folders.home / "superlink").mkdir()
        (folders.home / "superlink" / "executor.secret").write_text("secret")

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """Take the task, unless an earlier life finished it, and work."""
        server = Tasks(log)
        with patch("server.flower.executor.executor_client", lambda *_: server):
            executor = Executor(home / "superlink", PIN, "no:app")
        with (
            patch("server.flower.executor.task_client", lambda *_: server),
            patch.object(Executor, "_start", lambda _, claim: server.start(claim)),
            patch("server.flower.executor.POLL_S", 0.001),
        ):
            claim = executor._claims.read()
            while claim is not None or not server.completed:
                claim = claim or executor._acquire()
                if claim is not None:
                    executor._work(claim)
                claim = executor._claims.read()

    def faults(self, folders: Folders) -> list[str]:
        """A claim that is left, or another task's input."""
        left = ClaimFile(folders.home / "superlink" / CLAIM_FILE, PIN).read()
        return resent(folders.log) + (["a claim is left"] if left else [])


@dataclass
class Tasks:
    """The SuperLink's answers about one task of the pinned plan, and the child that runs it."""

    log: Log

    @property
    def completed(self) -> bool:
        """Whether a child finished the task."""
        return bool(self.log.read("done"))

    def AcquireTask(self, request: Any) -> Any:
        """The task, once; then a task that timed out comes again."""
        from server.flower.wire import runtime_pb2

        answer = runtime_pb2.AcquireTaskResponse(token="token")
        answer.task.fab_hash = PIN
        answer.task.task_id = answer.task.run_id = 3
        return answer

    def PullTaskInput(self, request: Any) -> Any:
        """Its input."""
        from server.flower.wire import runtime_pb2

        answer = runtime_pb2.PullTaskInputResponse()
        answer.fab.content = CONTENT
        answer.run.run_id = 3
        return answer

    def PushTaskOutput(self, request: Any) -> None:
        """What a task came to."""

    def SendTaskHeartbeat(self, request: Any) -> None:
        """The task is still ours; one that is finished has no token any more."""
        if self.completed:
            refused = httpx.Response(UNAUTHORIZED, request=httpx.Request("POST", "http://link"))
            raise httpx.HTTPStatusError("unknown token", request=refused.request, response=refused)

    def start(self, claim: Claim) -> Any:
        """A child that ends at once; of a finished task, one that waits for answers."""
        if self.completed:
            ends: list[int] = []
            return SimpleNamespace(
                poll=lambda: ends[0] if ends else None,
                kill=lambda: ends.append(-9),
                wait=lambda: ends[0],
                returncode=-9,
            )
        self.log.note("sent", key="input", digest=hashlib.sha256(claim.answer).hexdigest())
        self.log.note("done")
        return SimpleNamespace(poll=lambda: 0, wait=lambda: 0, kill=lambda: None, returncode=0)


@dataclass
class Registering:
    """The registry: registered, in quarantine, released, revoked."""

    name: str = "registry"
    side: str = "server"
    watched: Sequence[str] = ("server",)

    def prepare(self, folders: Folders) -> None:
        """Enrol the sites."""
        self.federation = Federation.create(folders.home)

    def play_before(self, home: Path, log: Log) -> None:
        """Nothing."""

    def play(self, home: Path, log: Log) -> None:
        """One evening of the operator; a step that was done is not done again."""
        registry = Registry(self.federation.state.sites)
        first, second, third = sorted(self.federation.sites)
        registry.note_head(first, "a" * 64)
        if registry.get(second).state == "registered":
            registry.quarantine(second, "E-INTAKE-BUG")
        if registry.get(second).state == "quarantined":
            registry.release(second)
        if registry.get(third).state != "revoked":
            registry.revoke(third)
        registry.close()

    def faults(self, folders: Folders) -> list[str]:
        """What the registry says otherwise."""
        registry = Registry(self.federation.state.sites)
        states = [site.state for site in registry.sites().values()]
        head = registry.heads(sorted(self.federation.sites)[0])
        registry.close()
        expected = ["registered", "registered", "revoked"]
        return [] if (states, head) == (expected, ("a" * 64,)) else [f"says {states}"]


def quiet() -> ExitStack:
    """Return a context in which no command prints."""
    stack = ExitStack()
    for name in ("setup.write", "sites.write", "plans.write"):
        stack.enter_context(patch(f"server.cli.{name}", lambda _: None))
    stack.enter_context(patch("client.cli.joining.write_line", lambda _: None))
    return stack


def scenarios() -> list[Any]:
    """Return all of them."""
    return [SetUp(), Rounds(), Registering(), Claiming(), Publishing()]
