"""Who an image is of: header and labels file together, as pseudonyms.

In: the raw id and issuer of a header, the file's names, the labels file. Out: a `Sighting`. Guaranteed: raw ids go into the HMAC
and stay nowhere else; an image of nobody is refused. Not covered: whether an id is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.ingest.labels import Labels
from client.ingest.persons import Sighting, is_placeholder, keyed_hash, normalised_id, pseudonym
from client.ingest.quarantine import Reason, Unusable
from common.study.intake import Intake


@dataclass(frozen=True)
class Owner:
    """What a header says of the person: raw id and issuer, side 0 unknown, 1 left, 2 right."""

    patient_id: str
    issuer: str
    laterality: int = 0


class Identities:
    """Makes sightings. `said`: pseudonyms of ids that some file or row gives in just this form, with its issuer or without."""

    def __init__(self, key: bytes, labels: Labels, intake: Intake) -> None:
        self.key = key
        self.labels = labels
        self.intake = intake
        self.said: set[str] = set()

    def sighting(
        self, position: int, owner: Owner, names: Sequence[str], digest: bytes
    ) -> Sighting:
        """Return who and what this is; `names`: the files' paths below the source. Raises Unusable when it is nobody."""
        refusal = None
        row = None
        label = -1
        try:
            row = self.labels.row_of_files(names)
        except Unusable as ambiguous:
            refusal = ambiguous.reason
        given = [
            (normalised_id(owner.issuer), normalised_id(owner.patient_id)),
            ("", row.patient if row else ""),
        ]
        known = [
            (issuer, identifier) for issuer, identifier in given if not is_placeholder(identifier)
        ]
        if not known:
            raise Unusable(refusal or Reason.NO_PATIENT)
        try:
            row = row or self.labels.row_of_patient(owner.patient_id, owner.laterality)
            label = self.labels.index(row)
        except Unusable as unlabelled:
            refusal = refusal or unlabelled.reason
        laterality = owner.laterality or (row.laterality if row else 0)
        if self.intake.stratify_laterality and not laterality:
            refusal = refusal or Reason.NO_LATERALITY
        pseudonyms = [pseudonym(self.key, issuer, identifier) for issuer, identifier in known]
        self.said.update(pseudonyms)
        pseudonyms += [
            pseudonym(self.key, "", identifier) for _, identifier in known
        ]  # joins only if also said
        keyed = keyed_hash(self.key, "pixels", digest.hex())
        return Sighting(
            position, tuple(dict.fromkeys(pseudonyms)), label, laterality, keyed, refusal
        )
