"""One child process for one reservation: its job folder, its start, its end.

In: `Reserved`. Out: `Output`, or how the child ended without one.
Guarantees: the child has no key, a bare environment and one secret, sent over a pipe; it ends with
this process; what it prints stays in the folder.
Not covered: its work (client/child), what may leave (client/egress/gate.py).
"""

from __future__ import annotations

import hmac
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from client.daemon.rounds import Output, Reserved
from client.egress.frozen import NO_GROUPS, frozen_groups
from client.state.folder import State
from client.state.jobs import (
    LOG,
    LOST,
    Job,
    Progress,
    Stopped,
    is_finished,
    read_error,
    read_progress,
)
from client.state.records import Records
from common.errors import disk_faults_named
from common.privacy.mechanisms import SubsampledGaussian
from common.process import usable_cores
from common.wire.tensors import dumps

POLL_S = 0.1
# read once, when a library is loaded: a later call holds for the thread that makes it alone
THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
KILL_WAIT_S = 5.0
PROGRAM = ("-P", "-m", "client.child.job")
# what a child inherits of the environment
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "TZ",
)


@dataclass(frozen=True)
class Ending:
    """How a child ended: finished, refused with a code of ours, or crashed (code "").

    `again`: another try may end otherwise. It may not after an error of the program itself.
    """

    finished: bool
    code: str = ""
    again: bool = True


def compute(
    reserved: Reserved, records: Records, stop: threading.Event, progress: Progress
) -> Output | Ending:
    """Return the output of a reserved round, or how its child ended without one.

    A finished output is returned as it is. Raises Stopped, with the child killed, on `stop`.
    """
    output = Output(reserved.round, reserved.event, reserved.reservation, reserved.folder)
    if reserved.finished:
        return output
    # write the job folder, then the journal, then start the child
    job = _job(reserved, records)
    frozen, stored = NO_GROUPS
    if job.kind == "synthesize":
        frozen, stored = frozen_groups(records, reserved.round.study)
    canaries = _canaries(reserved, records)
    job.write(reserved.folder, reserved.round.weights, frozen, canaries, stored)
    record = {"folder": reserved.folder.name, "reservation": job.reservation}
    records.state.journal.append(reserved.round.header.key, "started", record)
    secret = group_key(records.state)
    ending = run_child(reserved.folder, job.threads_each, secret, stop, progress)
    if ending.finished:
        return output
    return ending


def _job(reserved: Reserved, records: Records) -> Job:
    """The job of one round."""
    header = reserved.round.header
    study = reserved.round.study
    limits = records.config.limits
    reservation = ""
    if reserved.reservation is not None:
        reservation = reserved.reservation.to_json()
    return Job(
        kind="train" if header.kind == "train" else "synthesize",
        model=header.model,
        plan=str(records.plans.folder(study.hash()).resolve()),
        cohort=str(records.state.cohort(study.intake).resolve()),
        reservation=reservation,
        threads=limits.threads,
        memory_gib=limits.child_memory_gib,
        people=records.people().digest,
        ways=str(records.state.ways.resolve()),
        compute=records.config.compute.shared,
        processes=records.config.compute.processes,
    )


def _canaries(reserved: Reserved, records: Records) -> bytes:
    """Which canaries take part and where, for a child that trains; empty without canaries."""
    event = reserved.event
    study = reserved.round.study
    if not isinstance(event, SubsampledGaussian) or not study.privacy.canaries:
        return b""
    file = records.canaries(study, reserved.round.header.model)
    return dumps(file.secret(event.dimension - study.privacy.canaries).arrays())


def group_key(state: State) -> bytes:
    """Return the secret that orders patients in groupings.

    It does not give the pseudonym key away.
    """
    return hmac.digest(state.pseudonym_bytes(), b"kohort-group-key", "sha256")


def run_child(
    folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
) -> Ending:
    """Run `python -m client.child.job FOLDER` and wait for it.

    Raises Stopped, with the child killed, when `stop` is set. `secret` goes through the child's
    standard input, which stays open: the child ends when it closes.
    """
    child = _start(folder, threads)
    try:
        _send_secret(child, secret)
        _wait(child, folder, stop, progress)
    finally:
        _end(child)
    if child.returncode == 0 and is_finished(folder):
        return Ending(True)
    # a signal ended it, such as the kernel's for want of memory, or one of its ranks was lost
    again = child.returncode < 0 or child.returncode == LOST
    return Ending(False, read_error(folder), again)


def _start(folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own; its output goes to the job folder."""
    command = [sys.executable, *PROGRAM, str(folder)]
    with (
        disk_faults_named("cannot start the child in", folder),
        open(folder / LOG, "wb") as log,
    ):
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment(threads),
            start_new_session=True,
        )


def environment(threads: int) -> dict[str, str]:
    """Return what a child inherits: no key, no proxy, and of our settings what must be set early.

    The number of threads holds for every thread that the child starts. cuBLAS is deterministic
    with a workspace of fixed size alone.
    """
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    count = dict.fromkeys(THREAD_COUNTS, str(threads or usable_cores()))
    return kept | count | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def _send_secret(child: subprocess.Popen[bytes], secret: bytes) -> None:
    """Send the secret as one line of hex; the wait finds a child that has ended already."""
    assert child.stdin is not None
    try:
        child.stdin.write(secret.hex().encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass


def _wait(
    child: subprocess.Popen[bytes], folder: Path, stop: threading.Event, progress: Progress
) -> None:
    """Wait for the end and report progress; raises Stopped."""
    while child.poll() is None:
        progress(*read_progress(folder))
        # the child is killed by the caller
        if stop.wait(POLL_S):
            raise Stopped("stopped while a child was at work; what it had reserved stays spent")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Make sure that the child is gone."""
    # ask it to end, then kill it
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()
    # closing the pipe flushes what the child never read
    if child.stdin is not None:
        try:
            child.stdin.close()
        except BrokenPipeError:
            pass
