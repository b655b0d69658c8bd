"""The desk's words: states, what the audit found, what a plan claims of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from client.egress.audit import LEAD
from client.egress.facts import Finding
from client.egress.review import Batch
from common.privacy.claims import Claim, claims_of, describe_groups
from common.privacy.price import at_most
from common.study.plan import Study

ALIKE = 0.9  # from this lead on, the next patient is about as near

STATES: Mapping[str, str] = {
    "waiting": "waits for a person",
    "approved": "approved",
    "rejected": "rejected: it stays here",
    "reduced": "images were left out: the rest is a batch of its own",
    "unsigned": "approved before decisions were signed; it waits again once the daemon starts",
}
CODES: Mapping[str, str] = {
    "A-CONSTANT": "The image is black or one colour.",
    "A-DUPLICATE": "The image is the same as another one of this batch.",
    "A-COPY": "The image is a real image, pixel for pixel. Report this.",
    "A-NEAR": "Near to one patient's. Noise covers this image, and chance does that to a few. "
    "Where many are near, report it.",
}


def state_words(batch: Batch, reviewers: int) -> str:
    """Return the state of a batch in words."""
    if batch.state == "waiting" and batch.decided:
        return f"waits for another person: {len(batch.decided)} of {reviewers} approved"
    return STATES.get(batch.state, batch.state)


def finding_words(finding: Finding) -> tuple[str, str]:
    """Return what the audit found in a sentence, and its tone: "calm", "look" or "alarm"."""
    if finding.code != "A-PASS":
        tone = "look" if finding.code == "A-NEAR" else "alarm"
        return CODES.get(finding.code, f"The audit says {finding.code}."), tone
    if finding.lead >= ALIKE:
        return "No copy found: the next patient is about as near.", "calm"
    if finding.lead >= LEAD:
        return "No copy found: somewhat nearer to this patient than to the next.", "calm"
    return "No copy found, but much nearer to this patient than to others. Look closely.", "look"


def image_claims(study: Study) -> Iterator[str]:
    """Yield what the plan claims of its images, a sentence each."""
    for claim in claims_of(study):
        if claim.kind != "updates":
            yield _claim_words(claim)
    if study.synthesis is not None:
        yield describe_groups(study.synthesis)


def _claim_words(claim: Claim) -> str:
    """One claim in a sentence."""
    covers = claim.covers[:1].upper() + claim.covers[1:]
    if claim.epsilon is None:
        return f"{covers}. No epsilon is claimed for that."
    return (
        f"{covers}: epsilon {at_most(claim.epsilon)}, delta {claim.delta:.4g} for one {claim.unit} "
        f"({claim.adjacency})."
    )
