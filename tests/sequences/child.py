"""The child process, in this process: `client/child/job.py` with cheap numerics.

In: a job folder. Out: what the child's own code leaves there.
Guarantees: rosters, groups, reservations and files are the product's. A covered study is computed a
second time over an empty store, and the two groupings are compared.
"""

from __future__ import annotations

import shutil
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from client.child.job import work
from client.daemon.jobs import Ending
from client.egress.evidence import Evidence
from client.ingest.cohort import Cohort
from client.state.jobs import ERROR, EVIDENCE, GROUPS, OUTPUT, STORED, Job
from common.errors import KohortError
from common.privacy.events import charged_image_event
from common.storage.files import atomic_write
from common.study.plan import Study, load_study
from tests.sequences.faults import Faults
from tests.sequences.numerics import Numerics

NO_GROUPS = Evidence((), (), ()).to_json()


class Child:
    """Replaces `run_child`. `script`: how the next children end; then they finish."""

    def __init__(self, numerics: Numerics, faults: Faults) -> None:
        self.numerics = numerics
        self.faults = faults
        self.script: deque[str] = deque()
        self.runs = 0

    def __call__(
        self, folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Any
    ) -> Ending:
        self.runs += 1
        end = self.script.popleft() if self.script else "finish"
        if end == "crash before":
            return Ending(False)
        job = Job.read(folder)
        study = load_study(Path(job.plan) / "study.yaml")
        code = self._work(job, study, folder, secret)
        if code:
            atomic_write(folder / ERROR, code.encode())
            return Ending(False, code)
        if end == "crash after":
            (folder / OUTPUT).unlink()
            return Ending(False)
        return Ending(True)

    def _work(self, job: Job, study: Study, folder: Path, secret: bytes) -> str:
        """Do the job, and a covered one again over an empty store; return the code of a refusal."""
        self.numerics.begin(study, np.asarray(Cohort.open(Path(job.cohort)).images))
        code = try_work(job, folder, secret)
        if job.kind == "synthesize" and charged_image_event(study) is not None:
            here = code or self._formed(study, folder)
            elsewhere = self._over_an_empty_store(job, study, folder, secret)
            self.numerics.oracle.note_groups(study.name, here, elsewhere)
        return code

    def _over_an_empty_store(self, job: Job, study: Study, folder: Path, secret: bytes) -> object:
        """The groups of the same job at a site that released nothing before."""
        other = folder.with_name(f"{folder.name}-again")
        self.numerics.muted = True
        try:
            with self.faults.paused():
                return self._work_again(job, study, folder, other, secret)
        finally:
            self.numerics.muted = False
            shutil.rmtree(other, ignore_errors=True)

    def _work_again(
        self, job: Job, study: Study, folder: Path, other: Path, secret: bytes
    ) -> object:
        """The outcome of a job in another folder, without frozen groups."""
        shutil.copytree(folder, other)
        (other / GROUPS).write_bytes(NO_GROUPS)
        for name in (OUTPUT, EVIDENCE, STORED):
            (other / name).unlink(missing_ok=True)
        return try_work(job, other, secret) or self._formed(study, other)

    def _formed(self, study: Study, folder: Path) -> object:
        """Who took part, and in which groups."""
        if study.synthesis is not None and study.synthesis.anchors is not None:
            return sorted(self.numerics.roster)
        groups = Evidence.read(folder / EVIDENCE).groups
        return sorted(group.members for group in groups)


def try_work(job: Job, folder: Path, secret: bytes) -> str:
    """Do a job; return the code with which the child refused, or ""."""
    try:
        work(job, folder, secret)
    except KohortError as error:
        return error.code
    return ""
