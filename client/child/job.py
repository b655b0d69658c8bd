"""The confined child process: `python -m client.child.job FOLDER [RANK]` does one job.

In: a job folder (client/state/jobs.py); the grouping secret, as one line on standard input.
Out: out.safetensors, written last and whole; or `error` with a code.
Guarantees: no signing key is used here, and no network but the loopback interface between the
processes of one training; noise is fresh from the operating system;
the process ends with its parent. A device that is not there is refused before the work begins.
What a rehearsal makes is marked, with noise that is NOT PRIVATE (practice.py).
Not covered: whether the output may leave: the daemon decides, by its gate.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from client.child.batch import synthesize
from client.child.domain import look_at_domain
from client.child.inputs import Batch
from client.child.practice import draw_pairs, mark, practice_noise
from client.child.ranks import together
from client.ingest.cohort import Cohort
from client.learn import train_gan, train_glow, train_wgan
from client.learn.fast.ways import CHOICES
from client.learn.machine import machine_on
from client.state.canaries import TALLY_CAP_BYTES
from client.state.jobs import (
    CANARIES,
    ERROR,
    OUTPUT,
    TALLY,
    WEIGHTS,
    WEIGHTS_CAP_BYTES,
    Job,
    write_progress,
)
from client.state.ledger import PracticeReservation, Reservation
from common.devices import is_out_of_memory, resolve, settle
from common.errors import ConfigurationError, EnvironmentFault, KohortError
from common.privacy.canaries import Canaries, Secret
from common.privacy.noise import Noise, NoiseSource
from common.process import end_with_input, end_with_parent
from common.storage.files import atomic_write
from common.study.plan import Study, load_study
from common.wire.tensors import Arrays, dumps, read, write

ORPHANED = 70  # exit code when the parent is gone
NO_MEMORY = "E-DEVICE-MEMORY"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the job in the folder on the command line; returns 0, or the refusal's exit code."""
    given = arguments or sys.argv[1:]
    folder = Path(given[0])
    rank = int(given[1]) if len(given) > 1 else 0
    secret = bytes.fromhex(sys.stdin.readline().strip())
    # no work without the parent
    end_with_parent(signal.SIGKILL)
    end_with_input(ORPHANED)
    try:
        job = Job.read(folder)
        confine(job)
        with device_memory_named():
            work(job, folder, secret, rank)
    except KohortError as error:
        atomic_write(folder / ERROR, error.code.encode(), mode=0o600)
        sys.stderr.write(f"{error.code}: {error}\n")  # child.log, which stays in the job folder
        return error.exit_code
    return 0


def confine(job: Job) -> None:
    """Apply the job's limits on threads and memory, and its precision.

    Raises ConfigurationError (E-DEVICE) for a device that is not there.
    """
    torch.set_num_threads(job.threads_each)
    if job.memory_gib:
        # what one child may take, shared out among the processes that train together
        size_bytes = int(job.memory_gib * 2**30) // job.process_count
        resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, size_bytes))
    settle(job.compute, resolve(job.compute))


@contextmanager
def device_memory_named() -> Iterator[None]:
    """Turn a full device into a refusal, so that the round is not tried and spent again."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EnvironmentFault(
            "the device has too little memory for this phase",
            hint="end what else uses it, or raise compute.memory_gib (GPU) or "
            "limits.child_memory_gib (processor) where it is set",
            code=NO_MEMORY,
        ) from error


def work(job: Job, folder: Path, secret: bytes, rank: int = 0) -> None:
    """Train or synthesize, and write the output; the other ranks of a training write nothing."""
    study = load_study(Path(job.plan) / "study.yaml")
    cohort = Cohort.open(Path(job.cohort))
    weights = read(folder / WEIGHTS, max_bytes=WEIGHTS_CAP_BYTES)
    if job.kind == "train":
        deltas = train(job, study, cohort, weights, folder, rank)
        if rank == 0:
            write(folder / OUTPUT, mark(deltas) if job.practice else deltas, mode=0o600)
    elif job.kind == "pairs":
        draw_pairs(study, weights, folder)
    else:
        device = resolve(job.compute)[0]
        plan = Path(job.plan)
        batch = Batch(
            study, cohort, weights, plan, folder, secret, job.reservation, device, job.practice
        )
        if job.kind == "domain":
            look_at_domain(batch)
        else:
            synthesize(batch)


def train(
    job: Job, study: Study, cohort: Cohort, weights: Arrays, folder: Path, rank: int = 0
) -> Arrays:
    """Return the float32 deltas of one round of the job's model, under its reservation."""
    trainers = {"gan": train_gan.train, "glow": train_glow.train, "wgan": train_wgan.train}
    if job.model not in trainers:
        raise ConfigurationError(f"no trainer for model {job.model!r}", code="E-MODEL-UNKNOWN")
    reservation: Reservation | PracticeReservation
    if job.practice:
        reservation = PracticeReservation.from_event(job.reservation)
    else:
        reservation = Reservation.from_json(job.reservation)
    canaries = read_canaries(folder)
    if job.ways:
        CHOICES.keep_in(Path(job.ways))

    def show(done: int, total: int) -> None:
        if rank == 0:
            write_progress(folder, done, total, job.model)

    # one process a device, or several on the processor
    devices = resolve(job.compute)
    if len(devices) < job.process_count:
        devices *= job.process_count
    with together(folder, rank, devices) as workers:
        machine = machine_on(devices[rank], job.compute, workers)
        noise: Noise
        if job.practice:
            noise = practice_noise(threads=torch.get_num_threads())
        else:
            noise = NoiseSource(threads=torch.get_num_threads())
        # every private step takes one step of the reservation
        deltas = trainers[job.model](
            cohort, study, weights, reservation, noise, show, canaries, machine
        )
    if canaries is not None and rank == 0:
        atomic_write(folder / TALLY, dumps(canaries.tally().arrays()), mode=0o600)
    return dict(deltas)


def read_canaries(folder: Path) -> Canaries | None:
    """Return the canaries of a job folder, or None where the plan has none."""
    path = folder / CANARIES
    if not path.is_file():
        return None
    return Canaries(Secret.from_arrays(read(path, max_bytes=TALLY_CAP_BYTES)))


if __name__ == "__main__":
    sys.exit(main())
