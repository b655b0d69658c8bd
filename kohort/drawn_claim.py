"""What holds of pictures that a reader draws from a release's models, from its privacy statement.

In: a verified release.
Out: a `DrawnClaim`.
Guarantees: epsilon, delta and adjacency are those of the statement's claim on the updates, and are
the manifest's. A release without that claim is refused. Nothing is claimed of k.
Not covered: whether the statement is true (docs/promises).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.frozen import FrozenModel
from kohort.layout import SUMS, TEXT_CAP_BYTES, parse_sums
from kohort.manifest import Manifest
from kohort.models import read_signed

STATEMENT = "privacy_statement.json"
UPDATES = "updates"  # the claim that what training sent makes, and all that is computed from it
SENTENCE = (
    "Every picture was drawn by a user of the release, from a model that learned of the sites' "
    "patients through noised updates alone. Drawing is post-processing. So one epsilon covers the "
    "pictures, however many are drawn, together with {covers}: ({epsilon:g}, {delta:g})-"
    "differential privacy for each {unit} of a site (adjacency: {adjacency})."
)
EVERY_SITE = (
    "For a {unit} of all {sites} sites it is the sum: ({epsilon:g}, {delta:g})-differential "
    "privacy."
)
NO_K = (
    "k-anonymity is not claimed: what the release says of k holds for the release's own images "
    "alone."
)


class _Section(BaseModel):
    """A part of the statement of which only some keys are read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Claim(FrozenModel):
    """One row of the statement's table of claims."""

    kind: str
    epsilon: float | None = Field(default=None, gt=0)
    delta: float | None = Field(default=None, ge=0, lt=1)
    unit: str = Field(max_length=200)
    adjacency: str = Field(max_length=200)
    covers: str = Field(max_length=2000)
    given: tuple[str, ...]
    mechanism: str


class EverySite(FrozenModel):
    """The promise to a patient of all sites."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0)
    sites: int = Field(ge=1)


class _Consortium(_Section):
    patient_of_every_site: EverySite


class _Updates(_Section):
    consortium: _Consortium


class _Statement(_Section):
    format: Literal["kohort-privacy-statement/1"]
    claims: tuple[Claim, ...]
    updates: _Updates


class DrawnClaim(FrozenModel):
    """The claim of drawn pictures. `k` is always None."""

    epsilon: float
    delta: float
    unit: str
    adjacency: str
    sentence: str
    given: tuple[str, ...]
    k: None = None


def claim_of_drawn(release: Path, manifest: Manifest) -> DrawnClaim:
    """Return what holds of pictures drawn from the models of a verified release.

    Raises RefusedError where its statement makes no claim on the updates, or one of another epsilon
    or delta than its manifest.
    """
    statement = _read_statement(release)
    found = [claim for claim in statement.claims if claim.kind == UPDATES]
    if len(found) != 1 or (found[0].epsilon, found[0].delta) != (manifest.epsilon, manifest.delta):
        raise RefusedError(
            f"{STATEMENT}: expected one claim on the updates, of the manifest's "
            f"({manifest.epsilon:g}, {manifest.delta:g})",
            hint="without it nothing can be said of what is drawn from its models",
        )
    claim = found[0]
    every = statement.updates.consortium.patient_of_every_site
    sentences = [
        SENTENCE.format(
            covers=claim.covers,
            epsilon=manifest.epsilon,
            delta=manifest.delta,
            unit=claim.unit,
            adjacency=claim.adjacency,
        ),
        EVERY_SITE.format(
            unit=claim.unit, sites=every.sites, epsilon=every.epsilon, delta=every.delta
        ),
        NO_K,
    ]
    return DrawnClaim(
        epsilon=manifest.epsilon,
        delta=manifest.delta,
        unit=claim.unit,
        adjacency=claim.adjacency,
        sentence=" ".join(sentences),
        given=claim.given,
    )


def _read_statement(release: Path) -> _Statement:
    """The parts of privacy_statement.json that say what holds of drawn pictures."""
    digests = parse_sums(read_capped(release / SUMS, TEXT_CAP_BYTES))
    data = read_signed(release, digests, STATEMENT, TEXT_CAP_BYTES)
    try:
        return _Statement.model_validate_json(data)
    except ValidationError as error:
        raise RefusedError(
            f"{STATEMENT}: {error.error_count()} fields are not as a release has them",
            hint="a newer kohort may know this format",
        ) from error
