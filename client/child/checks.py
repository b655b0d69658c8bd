"""What every image of a batch must pass before it is proposed to leave.

Guarantees: where epsilon holds per patient, patients' images do not choose among noised ones. With
`random` groups a privatized image that is too near to a patient's stops the whole batch; in mode
`anchors` nearness drops no image. The cohort is compared once: what was found of an image goes
along with it.
Not covered: the checks themselves (client/egress/audit.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from client.child.inputs import Batch
from client.egress.audit import AuditReport, Code, Nearest, audit
from client.egress.left_out import CHOSEN_BY_IMAGES
from client.egress.membership import gives_away_members
from client.state.group_store import Group
from common.arrays import Images
from common.errors import Bug, PolicyError

# the audit's codes that compare with patients' images; the others look at what leaves alone
BY_PATIENTS = ("A-COPY", "A-NEAR")


@dataclass(frozen=True)
class Finding:
    """What the audit says of one image: its code, and the nearest real image."""

    code: Code
    nearest: Nearest


@dataclass(frozen=True)
class Candidate:
    """One image that may leave: pixels, its group, and whether it is privatized.

    `finding`: what the audit says of it, once it was asked.
    """

    image: Images
    group: Group
    privatized: bool
    finding: Finding | None = field(default=None, compare=False)


def drop_failed(batch: Batch, candidates: list[Candidate]) -> list[Candidate]:
    """Return the images that pass the audit against every image of the cohort, in their order.

    Each carries its finding. Whoever is dropped is no duplicate of one that stays, so the findings
    hold for what is left, in any order.
    Raises PolicyError: E-NO-IMAGES where there is none; E-AUDIT when none passes, when the batch
    gives away who is in a group, or when a privatized average of a `random` group is too near to a
    patient's image. Its epsilon per patient would not survive a choice by patients' images.
    """
    if not candidates:
        raise PolicyError("no group could be made into an image", code="E-NO-IMAGES")
    report = audit_candidates(batch, candidates)
    codes = deciding_codes(batch, report.codes)
    found = map(Finding, report.codes, report.nearest)
    # each image on its own
    passed: list[Candidate] = []
    for plain, code, finding in zip(candidates, codes, found, strict=True):
        candidate = replace(plain, finding=finding)
        near = candidate.privatized and code in BY_PATIENTS
        if near and batch.synthesis.grouping == "random":
            raise PolicyError(
                "a privatized image is too near to a patient's; with `random` groups the batch "
                "stops",
                code="E-AUDIT",
            )
        if code == "A-PASS":
            passed.append(candidate)
    if not passed:
        raise PolicyError("every image failed the audit", code="E-AUDIT")
    # the batch as a whole, where the images chose the groups
    if batch.synthesis.grouping in CHOSEN_BY_IMAGES and reveals_members(batch, passed):
        raise PolicyError(
            "the batch gives away who is in a group",
            hint="agree on a study with a larger k, or grouping random",
            code="E-AUDIT",
        )
    return passed


def audit_candidates(batch: Batch, candidates: Sequence[Candidate]) -> AuditReport:
    """Return the audit's report of the images against every image of the cohort."""
    images = np.stack([candidate.image for candidate in candidates])
    return audit(images, batch.cohort.images, batch.cohort.patient_of)


def report_of(candidates: Sequence[Candidate]) -> AuditReport:
    """Return what the audit found of images that passed; raises Bug for one it never saw."""
    findings: list[Finding] = []
    for candidate in candidates:
        if candidate.finding is None:
            raise Bug("an image is to be written that was never audited")
        findings.append(candidate.finding)
    codes = tuple(finding.code for finding in findings)
    return AuditReport(codes, tuple(finding.nearest for finding in findings))


def deciding_codes(batch: Batch, codes: Sequence[Code]) -> tuple[Code, ...]:
    """Return the audit codes that decide what leaves.

    In mode `anchors` nearness to a patient's image decides nothing: to drop an image for it would
    tell what the noise hides. It stays on the sheet, and in child.log as a fault to report.
    """
    if not batch.synthesis.anchors:
        return tuple(codes)
    if any(code in BY_PATIENTS for code in codes):
        sys.stderr.write(
            "anchors: an image is nearer to a patient's than noise should let it be: report this\n"
        )
    deciding: list[Code] = []
    for code in codes:
        if code in BY_PATIENTS:
            code = "A-PASS"
        deciding.append(code)
    return tuple(deciding)


def reveals_members(batch: Batch, candidates: Sequence[Candidate]) -> bool:
    """Return whether the images tell the patients in their groups from the cohort's others."""
    # whose name, or an alias of it, is in a group
    grouped: set[str] = set()
    for candidate in candidates:
        grouped.update(candidate.group.members)
    inside: list[bool] = []
    for name, aliases in zip(batch.cohort.pseudonyms, batch.cohort.aliases, strict=True):
        inside.append(not grouped.isdisjoint((name, *aliases)))
    owner = np.asarray(batch.cohort.patient_of)
    images = np.stack([candidate.image for candidate in candidates])
    member = np.array(inside, np.bool_)[owner]
    return bool(gives_away_members(images, batch.cohort.images, owner, member))
