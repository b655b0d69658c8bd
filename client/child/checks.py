"""What every image of a batch must pass before it is proposed to leave.

Guarantees: where epsilon per patient covers every image, patients' images decide nothing: nearness
neither drops a noised image nor stops the batch, for noise brings an image near to somebody's by
chance. A copy of every pixel stops the batch: no noise makes one, so it tells of a fault alone. The
cohort is compared once: what was found of an image goes along with it.
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
from common.privacy.events import covers_every_image

NEAR_BY_CHANCE = (
    "a noised image is near to a patient's. Chance can do that, and epsilon covers it: it stops "
    "nothing. Where many images of a batch are, report it.\n"
)


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
    gives away who is in a group, or when an image that noise should cover is a patient's own.
    """
    if not candidates:
        raise PolicyError("no group could be made into an image", code="E-NO-IMAGES")
    report = audit_candidates(batch, candidates)
    codes = deciding_codes(batch, report.codes)
    if "A-NEAR" in report.codes and "A-NEAR" not in codes:
        sys.stderr.write(NEAR_BY_CHANCE)
    found = map(Finding, report.codes, report.nearest)
    # each image on its own
    if covers_every_image(batch.study) and "A-COPY" in codes:
        raise PolicyError(
            "an image that noise should cover is a patient's, pixel for pixel",
            hint="no noise does that: report this to the project, and send nothing",
            code="E-AUDIT",
        )
    passed: list[Candidate] = []
    for plain, code, finding in zip(candidates, codes, found, strict=True):
        if code == "A-PASS":
            passed.append(replace(plain, finding=finding))
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

    Where epsilon per patient covers every image (`anchors`, and `random` groups that are all
    privatized) nearness decides nothing: to drop an image for it, or to stop the batch, would tell
    what the noise hides. It stays on the sheet and in child.log.
    """
    if not covers_every_image(batch.study):
        return tuple(codes)
    return tuple("A-PASS" if code == "A-NEAR" else code for code in codes)


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
