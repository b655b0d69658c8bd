"""Identifies the person of an image from the header and the labels file, as pseudonyms.

In: the raw id and issuer of a header, the file's names, the labels file.
Out: an `ImageRecord`.
Guarantees: raw ids enter the HMAC and are stored nowhere; an image of nobody is refused.
Not covered: whether an id is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.ingest.labels import Labels, Row
from client.ingest.persons import ImageRecord, is_placeholder, keyed_hash, normalise_id, pseudonym
from client.ingest.quarantine import Reason, Unusable
from common.study.intake import Intake


@dataclass(frozen=True)
class Owner:
    """The person as a header names it: raw id, issuer, and side (0 unknown, 1 left, 2 right)."""

    patient_id: str
    issuer: str
    laterality: int = 0


class Identities:
    """Makes image records.

    `stated`: pseudonyms of the ids that some file or row gives in exactly this form: with this
    issuer, or without one. `plain`: for the pseudonym of an id under an issuer, that of the same id
    without one.
    """

    def __init__(self, key: bytes, labels: Labels, intake: Intake) -> None:
        self.key = key
        self.labels = labels
        self.intake = intake
        self.stated: set[str] = set()
        self.plain: dict[str, str] = {}

    def make_record(
        self, position: int, owner: Owner, names: Sequence[str], digest: bytes
    ) -> ImageRecord:
        """Return the record of an image whose files have the paths `names` below the source.

        Raises Unusable when no id names a person.
        """
        # the row of the labels file that names the image's files
        refusal = None
        row = None
        label = -1
        try:
            row = self.labels.row_of_files(names)
        except Unusable as ambiguous:
            refusal = ambiguous.reason

        # the ids that the header and that row give; without any, nobody could be protected
        known = _known_ids(owner, row)
        if not known:
            self.labels.match.note_image(labelled=row is not None)
            raise Unusable(refusal or Reason.NO_PATIENT)

        # label and side; without them the image cannot enter, and still tells who is one person
        try:
            row = row or self.labels.row_of_patient(owner.patient_id, owner.laterality)
            label = self.labels.index(row)
        except Unusable as unlabelled:
            refusal = refusal or unlabelled.reason
        self.labels.match.note_image(labelled=refusal is not Reason.NO_LABEL)
        laterality = owner.laterality
        if not laterality and row:
            laterality = row.laterality
        if self.intake.stratify_laterality and not laterality:
            refusal = refusal or Reason.NO_LATERALITY

        # pseudonyms: each id with its issuer as stated, and each id without one
        pseudonyms: list[str] = []
        for issuer, identifier in known:
            pseudonyms.append(self._state(issuer, identifier))
        # the id without its issuer joins two people only where some file states it in that form
        pseudonyms += [pseudonym(self.key, "", identifier) for _, identifier in known]
        keyed = keyed_hash(self.key, "pixels", digest.hex())
        return ImageRecord(
            position, tuple(dict.fromkeys(pseudonyms)), label, laterality, keyed, refusal
        )

    def _state(self, issuer: str, identifier: str) -> str:
        """The pseudonym of an id as stated, which is noted."""
        name = pseudonym(self.key, issuer, identifier)
        self.stated.add(name)
        if issuer:
            self.plain[name] = pseudonym(self.key, "", identifier)
        return name


def _known_ids(owner: Owner, row: Row | None) -> list[tuple[str, str]]:
    """The (issuer, id) that header and labels file give, normalised; placeholders are none."""
    known = []
    if not is_placeholder(normalise_id(owner.patient_id)):
        known.append((normalise_id(owner.issuer), normalise_id(owner.patient_id)))
    if row and not is_placeholder(row.patient):
        known.append(("", row.patient))
    return known
