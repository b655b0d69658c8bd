"""All findings on a release, measured on public data alone.

In: released images, public reference images, and what was measured elsewhere.
Out: findings.
Guarantees: no number comes from a hospital's patients; what was not measured reads "not evaluated".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from common.arrays import Images, Labels
from common.privacy.price import at_most
from server.evaluate.comparison import DISTANCES, GROUP_SIZE, compare
from server.evaluate.extractors import Extractor, Pretrained
from server.evaluate.findings import ATTACKS, DOWNSTREAM, Finding, missing

if TYPE_CHECKING:
    from server.evaluate.canary_rehearsal import ModelAudit

LEAST_IMAGES = 4
LEAST_REFERENCES = 8


def evaluate(
    images: Images,
    labels: Labels,
    names: tuple[str, ...],
    reference: Images | None,
    *,
    patient_of: Labels | None = None,
    extractor: Extractor | None = None,
    group_size: int = GROUP_SIZE,
    downstream: Sequence[Finding] = (),
    attacks: Sequence[Finding] = (),
) -> list[Finding]:
    """Return the findings on uint8 images [N, H, W, C] with label indices [N].

    `reference` is uint8 [M, H, W, C]; `patient_of` [M] keeps a person in one half of it. Distances
    are those of `extractor`, by default the pretrained network of the package; `group_size` is the
    k of k-Same-Pixel beside them.
    `downstream` and `attacks` were measured elsewhere. An attack of `ATTACKS` of which they hold
    no finding reads "not evaluated".
    """
    # count, then compare with public images
    findings = _counts(images, labels, names)
    if reference is None:
        findings += [missing(name, "no public reference images were given") for name in DISTANCES]
    elif len(reference) < LEAST_REFERENCES or len(images) < LEAST_IMAGES:
        why = (
            f"{len(images)} images and {len(reference)} of the reference: "
            f"at least {LEAST_IMAGES} and {LEAST_REFERENCES} are compared"
        )
        findings += [missing(name, why) for name in DISTANCES]
    else:
        seeing = extractor or Pretrained()
        findings += compare(images, reference, seeing, patient_of, group_size)

    # add what was measured elsewhere, and say what was not measured
    findings += downstream or [missing(DOWNSTREAM)]
    findings += attacks
    for attack in ATTACKS:
        if not any(found.name.startswith(attack) for found in attacks):
            findings.append(missing(attack))
    return findings


def _counts(images: Images, labels: Labels, names: tuple[str, ...]) -> list[Finding]:
    """Images, exact duplicates, and how many images each label yielded."""
    distinct = {hashlib.sha256(image.tobytes()).digest() for image in images}
    duplicates = len(images) - len(distinct)
    findings = [
        Finding("images", len(images), "images", "counted in the release"),
        Finding("exact duplicates", duplicates, "images", "bytes compared"),
    ]
    for i, name in enumerate(names):
        count = int((labels == i).sum())
        share = round(count / max(len(labels), 1), 4)
        findings.append(
            Finding(f"images of label {name}", count, "images", "counted in the release")
        )
        findings.append(Finding(f"share of label {name}", share, "share", "counted in the release"))
    return findings


def canary_findings(audits: Mapping[str, ModelAudit]) -> list[Finding]:
    """Return the lower bounds on epsilon by model; no patient took part in them."""
    if not audits:
        return [missing("canary lower bound", "no rehearsal of this plan was audited")]
    return [_canary_finding(name, found) for name, found in audits.items()]


def _canary_finding(name: str, found: ModelAudit) -> Finding:
    """The lower bound of one model, beside the accountant's upper bound."""
    return Finding(
        f"canary lower bound, {name}",
        round(found.lower_bound, 2),
        f"epsilon at {found.confidence:.0%} confidence; "
        f"PLD says at most {at_most(found.upper_bound)}",
        f"{found.correct} of {found.guesses} guesses right in the private steps of a rehearsal "
        f"with {found.canaries} canaries",
    )
