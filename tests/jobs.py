"""Job folders as the daemon writes them, and audits that say what a test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.egress.audit import AuditReport, Code, Nearest
from client.egress.evidence import Evidence
from client.state.folder import State
from client.state.jobs import Job
from client.state.ledger import Reservation
from common.privacy.events import round_event
from common.wire import tensors
from tests.sites import Hospital

SECRET = bytes(32)


NO_GROUPS = Evidence((), (), ()).to_json()


def job_folder(
    hospital: Hospital, folder: Path, kind: str, model: str, inputs: tensors.Arrays, groups: bytes
) -> Path:
    """A job as the daemon writes it, with a reservation of one round."""
    event = round_event(hospital.study, model, 2**20) if model else None
    job = Job(
        kind="train" if kind == "train" else "synthesize",
        model=model,
        plan=str(hospital.root / "plans" / hospital.study.hash()),
        cohort=str(State(hospital.root).cohort(hospital.study.intake)),
        reservation=Reservation(2, event.steps, event).to_json() if event else "",
        threads=1,
        memory_gib=0,
    )
    job.write(folder, tensors.dumps(inputs), groups)
    return folder


def verdict(*codes: Code) -> Callable[..., AuditReport]:
    """An audit that says these codes of two images, whatever they show, and A-PASS of fewer."""
    found = Nearest(0, (2.0,) * 3, (1.0,) * 3)

    def audit(released: np.ndarray, *_: object) -> AuditReport:
        fine: Code = "A-PASS"
        return AuditReport(
            codes if len(released) == len(codes) else (fine,) * len(released),
            (found,) * len(released),
        )

    return audit
