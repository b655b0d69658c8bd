"""Batches with a true contact sheet: a hospital of forty patients, whose child shows its images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.egress.audit import AuditReport, Nearest
from client.egress.contact_sheet import contact_sheet
from client.egress.evidence import Evidence
from client.egress.facts import findings_text
from client.state.folder import State
from client.state.group_store import Group, Stratum
from client.state.jobs import EVIDENCE, FINDINGS, Job
from common.arrays import Images
from common.wire import tensors
from tests.sites import (
    Children,
    Hospital,
    make_hospital,
    pseudonym,
    scripted,
    write_cohort,
)

PATIENTS = 40
EACH = 5  # patients a group


@dataclass
class ShowingChildren(Children):
    """Writes one image of each group of five patients, with its sheet and findings."""

    groups: int = PATIENTS // EACH

    def _images(self, folder: Path) -> tensors.Arrays:
        real = np.load(Path(Job.read(folder).cohort) / "images.npy")
        images = averages(real[: self.groups * EACH])
        labels = [first * 2 // PATIENTS for first in range(0, self.groups * EACH, EACH)]
        groups = [
            Group(tuple(pseudonym(p) for p in range(first, first + EACH)), Stratum(label, 2), EACH)
            for first, label in zip(range(0, self.groups * EACH, EACH), labels, strict=True)
        ]
        found = [
            Nearest(row * EACH, (1.2, 1.3, 1.1), (0.97, 0.91, 0.95)) for row in range(self.groups)
        ]
        report = AuditReport(("A-PASS",) * self.groups, tuple(found))
        (folder / "contact_sheet.png").write_bytes(contact_sheet(images, real, report))
        (folder / FINDINGS).write_bytes(findings_text(report))
        evidence = Evidence(tuple(groups), tuple(range(self.groups)), ())
        (folder / EVIDENCE).write_bytes(self.evidence(evidence).to_json())
        privatized = np.zeros(self.groups, np.uint8)
        return {"images": images, "labels": np.array(labels), "privatized": privatized}


def averages(real: Images) -> Images:
    """The mean image of each five patients."""
    grouped = real.reshape(-1, EACH, *real.shape[1:])
    means: Images = grouped.mean(axis=1).round().astype(np.uint8)
    return means


def showing_hospital(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Hospital:
    """A hospital whose child makes eight images of forty patients; `changes` go into the plan."""
    hospital = make_hospital(root, **changes)
    cohort = State(hospital.root).cohort(hospital.study.intake)
    shutil.rmtree(cohort)
    write_cohort(cohort, hospital.study, PATIENTS)
    scripted(monkeypatch, hospital.study)
    monkeypatch.setattr("client.daemon.jobs.run_child", ShowingChildren(hospital.study))
    return hospital
