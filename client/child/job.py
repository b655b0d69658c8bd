"""The confined child process: `python -m client.child.job FOLDER` does one job.

In: a job folder (client/state/jobs.py); the grouping secret, as one line on standard input.
Out: out.safetensors, written last and whole; or `error` with a code.
Guarantees: no signing key and no network is used here; noise is fresh from the operating system;
the process ends with its parent.
Not covered: whether the output may leave: the daemon decides, by its gate.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from client.child.batch import synthesize
from client.child.inputs import Batch
from client.ingest.cohort import Cohort
from client.learn import train_gan, train_glow, train_wgan
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
from client.state.ledger import Reservation
from common.errors import ConfigurationError, KohortError
from common.privacy.canaries import Canaries, Secret
from common.privacy.noise import NoiseSource
from common.process import end_with_input, end_with_parent
from common.storage.files import atomic_write
from common.study.plan import Study, load_study
from common.wire.tensors import Arrays, dumps, read, write

ORPHANED = 70  # exit code when the parent is gone


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the job in the folder on the command line; returns 0, or the refusal's exit code."""
    folder = Path((arguments or sys.argv[1:])[0])
    secret = bytes.fromhex(sys.stdin.readline().strip())
    # no work without the parent
    end_with_parent(signal.SIGKILL)
    end_with_input(ORPHANED)
    try:
        job = Job.read(folder)
        confine(job)
        work(job, folder, secret)
    except KohortError as error:
        atomic_write(folder / ERROR, error.code.encode(), mode=0o600)
        sys.stderr.write(f"{error.code}: {error}\n")  # child.log, which stays in the job folder
        return error.exit_code
    return 0


def confine(job: Job) -> None:
    """Apply the job's limits on threads and memory."""
    torch.set_num_threads(job.threads or os.cpu_count() or 1)
    if job.memory_gib:
        size_bytes = int(job.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, size_bytes))


def work(job: Job, folder: Path, secret: bytes) -> None:
    """Train or synthesize, and write the output."""
    study = load_study(Path(job.plan) / "study.yaml")
    cohort = Cohort.open(Path(job.cohort))
    weights = read(folder / WEIGHTS, max_bytes=WEIGHTS_CAP_BYTES)
    if job.kind == "train":
        write(folder / OUTPUT, train(job, study, cohort, weights, folder), mode=0o600)
    else:
        synthesize(Batch(study, cohort, weights, Path(job.plan), folder, secret, job.reservation))


def train(job: Job, study: Study, cohort: Cohort, weights: Arrays, folder: Path) -> Arrays:
    """Return the float32 deltas of one round of the job's model, under its reservation."""
    trainers = {"gan": train_gan.train, "glow": train_glow.train, "wgan": train_wgan.train}
    if job.model not in trainers:
        raise ConfigurationError(f"no trainer for model {job.model!r}", code="E-MODEL-UNKNOWN")
    reservation = Reservation.from_json(job.reservation)
    canaries = read_canaries(folder)
    # every private step takes one step of the reservation
    deltas = trainers[job.model](
        cohort,
        study,
        weights,
        reservation,
        NoiseSource(),
        lambda done, total: write_progress(folder, done, total),
        canaries,
    )
    if canaries is not None:
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
