"""A child that is killed in the middle of the inversion, and the child of the next try."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from client.child.batch import bind_inversion, invert_cohort, synthesize
from client.child.inputs import Batch
from client.child.job import work
from client.ingest.cohort import Cohort
from client.state.jobs import WEIGHTS, WEIGHTS_CAP_BYTES, Job
from client.state.spool import Spool, spool_of
from client.synthesize import invert as inversion
from client.synthesize.reference import InversionPlan, Reference
from common.errors import EnvironmentFault, PolicyError
from common.models.encoder import load_encoder
from common.study.plan import load_study
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital


def small_batches() -> Any:
    """Batches of four images."""
    return patch("client.child.batch.InversionPlan", partial(InversionPlan, batch=4))


def open_batch(folder: Path) -> Batch:
    """The batch of a job folder, as the child opens it."""
    job = Job.read(folder)
    study = load_study(Path(job.plan) / "study.yaml")
    cohort = Cohort.open(Path(job.cohort))
    weights = tensors.read(folder / WEIGHTS, max_bytes=WEIGHTS_CAP_BYTES)
    return Batch(study, cohort, weights, Path(job.plan), folder, SECRET, job.reservation)


def run_child(folder: Path, kill_at: int) -> tuple[int, int]:
    """Invert the cohort in a process of its own; returns its status and how many batches it did.

    It kills itself before batch number `kill_at`; its inversion is left in found.npz.
    """
    with warnings.catch_warnings():
        # no other thread of a test holds a lock that the child needs
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            _invert(folder, kill_at)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), len((folder / "batches").read_bytes())


def _invert(folder: Path, kill_at: int) -> None:
    """The whole life of the forked process."""
    torch.set_num_threads(1)
    alone = inversion._invert_batch

    def watched(*given: Any) -> inversion.Inversion:
        with open(folder / "batches", "ab") as file:
            file.write(b".")
        if (folder / "batches").stat().st_size == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return alone(*given)

    with (
        patch.object(inversion, "BLOCK_ROWS", 4),
        patch.object(inversion, "_invert_batch", watched),
        small_batches(),
    ):
        _, found = invert_cohort(open_batch(folder), torch.Generator())
    np.savez(folder / "found.npz", **vars(found))
    os._exit(0)


@pytest.fixture
def tries(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> tuple[Path, Path]:
    """The job folders of two tries of one round."""
    sent = weights["gan"] | weights["glow"]
    first, second = (
        job_folder(hospital, tmp_path / f"round-{number}", "synthesize", "", sent, NO_GROUPS)
        for number in range(2)
    )
    return first, second


def test_a_kill_in_the_middle_costs_one_block_and_the_result_is_the_same(
    tries: tuple[Path, Path],
) -> None:
    first, second = tries
    # killed in the third batch: two blocks are finished
    assert run_child(first, 3) == (-signal.SIGKILL, 3)
    batch = open_batch(second)
    total = -(-len(batch.cohort.images) // 4)
    assert total >= 4
    assert run_child(second, 0) == (0, total - 2)
    # as one uninterrupted run with the same encoder and reference
    constants = InversionPlan(
        steps=batch.synthesis.inversion_steps,
        iterations=batch.study.models.encoder.iterations,  # type: ignore[union-attr]
        batch=4,
    )
    spool = Spool.open(spool_of(second), bind_inversion(batch, constants))
    assert spool.count == len(batch.cohort.images)
    known = Reference.from_arrays(spool.kept("reference") or {})
    trained = spool.kept("encoder") or {}
    width = batch.study.models.encoder.width  # type: ignore[union-attr]
    encoder = load_encoder(trained, width, batch.study.models.gan.latent, 32, 3)  # type: ignore[union-attr]
    whole = inversion.invert(batch.cohort.images, batch.generator(), encoder, constants, known)
    with np.load(second / "found.npz", allow_pickle=False) as found:
        for name, rows in vars(whole).items():
            np.testing.assert_array_equal(found[name], rows)


def test_a_spool_is_bound_to_weights_plan_cohort_and_constants(
    tries: tuple[Path, Path],
) -> None:
    batch = open_batch(tries[0])
    plan = InversionPlan()
    assert bind_inversion(open_batch(tries[1]), plan) == bind_inversion(batch, plan)
    cohort = batch.cohort
    people = cohort.patient_of.copy()
    people[0] += 1
    others = [
        # somebody withdrew, two patients are one person, or the images are others
        replace(batch, cohort=replace(cohort, aliases=cohort.aliases[1:])),
        replace(batch, cohort=replace(cohort, patient_of=people)),
        replace(batch, cohort=replace(cohort, digest="1" * 64)),
        replace(batch, study=batch.study.model_copy(update={"name": "another"})),
    ]
    bindings = [bind_inversion(other, plan) for other in others]
    bindings += [bind_inversion(batch, plan), bind_inversion(batch, InversionPlan(batch=1))]
    # other weights
    (tries[0] / WEIGHTS).write_bytes((tries[0] / WEIGHTS).read_bytes() + b" ")
    bindings.append(bind_inversion(batch, plan))
    assert len(set(bindings)) == len(bindings)


ENDINGS = {
    "the batch is written": (None, False),
    "nothing may leave": (PolicyError("no", code="E-AUDIT"), False),
    "the disk is full": (EnvironmentFault("full", code="E-DISK-FULL"), True),
    "a crash": (MemoryError(), True),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_spool_goes_with_its_job_and_stays_for_another_try(
    name: str, tries: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, stays = ENDINGS[name]
    batch = open_batch(tries[0])
    spool = Spool.open(spool_of(batch.folder), "binding")

    def end(_: Batch) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("client.child.batch.make_batch", end)
    with contextlib.suppress(PolicyError, EnvironmentFault, MemoryError):
        synthesize(batch)
    assert spool.folder.exists() is stays


def test_a_whole_job_leaves_no_spool(
    tries: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.reference.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    work(Job.read(tries[0]), tries[0], SECRET)
    assert (tries[0] / "out.safetensors").is_file()
    assert not spool_of(tries[0]).exists()
