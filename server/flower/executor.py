"""Takes tasks from the SuperLink and runs the installed ServerApp for the pinned plan alone.

`python -m server.flower.executor FOLDER PIN APP` (PIN: hash of the plan's app bundle; APP: the
installed ServerApp as module:attribute).
Procedure:
  1 ask for a task, with the secret that the SuperLink shares with this process
  2 compare the bundle's hash with the pin; a foreign run fails (E-APP-UNPINNED), not a byte of its
    bundle is fetched
  3 store the claim, fetch the input, forget the bundle unopened
  4 run the ServerApp in a child, with a heartbeat for the task
Guarantees: no code from the network runs; after `kill -9` a task whose input was stored goes on,
and one whose input was not fails at once.
Not covered: what the ServerApp computes (server/app.py).
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from common import passphrase
from common.errors import RefusedError
from common.logs import log_as_told
from common.process import keep_private
from common.storage.files import read_capped
from server.flower.link_process import SECRET_CAP_BYTES, SECRET_FILE
from server.flower.logs import cap_log
from server.flower.tasks import Claim, ClaimFile
from server.flower.wire import (
    TASK_TYPES,
    RuntimeHttpClient,
    executor_client,
    runtime_pb2,
    task_client,
)
from server.front.sockets import SOCKETS, SocketFolder
from server.operator.foreign import note_foreign_run

POLL_S = 0.3
HEARTBEAT_S = 5.0  # the SuperLink takes a task back 60 s after the last one
CLAIM_FILE = "claim.json"
CHILD_LOG = "serverapp.log"
UNPINNED = "E-APP-UNPINNED"
CRASHED = "E-SERVERAPP"
UNAUTHORIZED = 401
FAULTS = (httpx.HTTPError, ValueError)
log = logging.getLogger("kohort.executor")


@dataclass
class Executor:
    """The executor of one SuperLink, for one plan."""

    folder: Path
    pin: str
    app: str
    _sockets: SocketFolder = field(init=False)

    def __post_init__(self) -> None:
        self._sockets = SocketFolder(self.folder / SOCKETS)
        secret = read_capped(self.folder / SECRET_FILE, SECRET_CAP_BYTES).strip()
        self._runtime = executor_client(self._sockets, secret)
        self._claims = ClaimFile(self.folder / CLAIM_FILE, self.pin)

    def run(self) -> None:
        """Take tasks for ever; a SuperLink that does not answer is asked again."""
        while True:
            try:
                claim = self._claims.read() or self._acquire()
            except FAULTS as error:
                log.info("no task: %s", type(error).__name__)
                claim = None
            if claim is None:
                time.sleep(POLL_S)
            else:
                self._work(claim)

    def _acquire(self) -> Claim | None:
        """The next task if it is of the pinned plan; a foreign one fails (steps 1 to 3)."""
        # (1) ask for a task
        request = runtime_pb2.AcquireTaskRequest(supported_task_types=TASK_TYPES)
        found = self._runtime.AcquireTask(request)
        if not found.HasField("task") or not found.token:
            return None
        # (2) compare the hash of its bundle
        if found.task.fab_hash != self.pin:
            self._refuse(found.token, found.task.run_id, found.task.fab_hash)
            return None
        # (3) store the claim, fetch the input
        task = found.task
        claim = Claim(self.pin, found.token, task.task_id, task.run_id, b"")
        self._claims.write(claim)
        return self._with_input(claim)

    def _with_input(self, claim: Claim) -> Claim | None:
        """The claim with its input, the bundle checked and forgotten unopened."""
        client = task_client(self._sockets, claim.token)
        answer = client.PullTaskInput(runtime_pb2.PullTaskInputRequest())
        if hashlib.sha256(answer.fab.content).hexdigest() != self.pin:
            self._claims.drop()
            self._refuse(claim.token, claim.run_id, answer.fab.hash_str)
            return None
        answer.ClearField("fab")
        whole = replace(claim, answer=answer.SerializeToString())
        try:
            self._claims.write(whole)
        except RefusedError as error:
            log.warning("%s: %s", error.code, error)
            self._claims.drop()
            self._push_failure(claim.token, error.code)
            return None
        return whole

    def _refuse(self, token: str, run_id: int, fab_hash: str) -> None:
        """Fail a run that is not of the pinned plan, and note it for the operator."""
        log.warning("run %d is not of the pinned plan: %s", run_id, UNPINNED)
        note_foreign_run(self.folder, run_id, fab_hash)
        self._push_failure(token, UNPINNED)

    def _push_failure(self, token: str, code: str) -> None:
        """Tell the SuperLink that a task failed; it learns by itself if this call fails."""
        request = runtime_pb2.PushTaskOutputRequest(sub_status="failed", details=code)
        try:
            task_client(self._sockets, token).PushTaskOutput(request)
        except FAULTS as error:
            log.info("task output: %s", type(error).__name__)

    def _work(self, claim: Claim) -> None:
        """Run the task in a child until it ends or the SuperLink takes it back (step 4)."""
        if not claim.answer:
            # a crash between claim and input: its time to fetch the input may be over
            try:
                whole = self._with_input(claim)
            except FAULTS:
                self._push_failure(claim.token, CRASHED)
                self._claims.drop()
                return
            if whole is None:
                return
            claim = whole
        child = self._start(claim)
        try:
            ours = self._attend(claim, child)
        finally:
            _end(child)
        if ours and child.returncode != 0:
            self._push_failure(claim.token, CRASHED)
        self._claims.drop()

    def _start(self, claim: Claim) -> subprocess.Popen[bytes]:
        """The child; the claim goes through its standard input, which stays open."""
        command = [sys.executable, "-P", "-m", "server.flower.app_process", str(self.folder)]
        with (self.folder / CHILD_LOG).open("ab") as output:
            child = subprocess.Popen(
                [*command, self.app],
                pass_fds=passphrase.descriptors(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        assert child.stdin is not None
        try:
            child.stdin.write(claim.to_json() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass
        return child

    def _attend(self, claim: Claim, child: subprocess.Popen[bytes]) -> bool:
        """Send heartbeats until the child ends (True) or the task is no longer ours (False)."""
        client = task_client(self._sockets, claim.token)
        next_beat = 0.0
        while child.poll() is None:
            cap_log(self.folder / CHILD_LOG)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + HEARTBEAT_S
                if not _beat(client):
                    return False
            time.sleep(POLL_S)
        return True


def _beat(client: RuntimeHttpClient) -> bool:
    """Send a heartbeat; False when the SuperLink has taken the task back."""
    try:
        client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())
    except httpx.HTTPStatusError as error:
        return error.response.status_code != UNAUTHORIZED
    except FAULTS as error:
        log.info("heartbeat: %s", type(error).__name__)
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """Make sure that the child is gone."""
    if child.poll() is None:
        child.kill()
    child.wait()


def main() -> None:
    """Run an executor as the command line says."""
    keep_private()
    log_as_told()
    folder, pin, app = sys.argv[1:]
    Executor(Path(folder), pin, app).run()


if __name__ == "__main__":
    main()
