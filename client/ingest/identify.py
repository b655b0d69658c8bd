"""Identifies the person of an image from the header and the labels file, as pseudonyms.

In: the raw id and issuer of a header, the file's names, the labels file.
Out: an `ImageRecord`.
Guarantees: raw ids enter the HMAC, are kept in memory for the site's own screen, and are stored
nowhere; an image of nobody is refused.
Not covered: whether an id is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.ingest.decisions import Stated
from client.ingest.doubts import IdCounts
from client.ingest.labels import Labels, Row
from client.ingest.persons import (
    ImageRecord,
    is_mangled,
    is_placeholder,
    keyed_hash,
    normalise_id,
    pseudonym,
)
from client.ingest.quarantine import Reason, Unusable
from client.ingest.spelling import is_dummy_uid, spell
from client.state.people import Spelling
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
    without one. `spellings`: the keyed forms of each id as stated. `shown`: that id, for the site's
    own screen. `dummies`: the keyed studies whose UID names none. `counts`: of what is odd in ids.
    `said`: the same names by what a person can call them.
    """

    def __init__(self, key: bytes, labels: Labels, intake: Intake) -> None:
        self.key = key
        self.labels = labels
        self.intake = intake
        self.stated: set[str] = set()
        self.plain: dict[str, str] = {}
        self.spellings: dict[str, Spelling] = {}
        self.shown: dict[str, str] = {}
        self.dummies: set[str] = set()
        self.counts = IdCounts()
        self.said = Stated()

    def make_record(
        self,
        position: int,
        owner: Owner,
        names: Sequence[str],
        digest: bytes,
        studies: Iterable[str] = (),
    ) -> ImageRecord:
        """Return the record of an image whose files have the paths `names` below the source.

        `studies`: the UIDs of the studies that the header names; "" for none. Raises Unusable when
        no id names a person.
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
        self._count(owner, row, known)
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
        self.said.add_files(names, pseudonyms)
        if len(known) > 1:
            self.counts.both.append((pseudonyms[0], pseudonyms[1]))
        # the id without its issuer joins two people only where some file states it in that form
        pseudonyms += [pseudonym(self.key, "", identifier) for _, identifier in known]
        keyed = keyed_hash(self.key, "pixels", digest.hex())
        return ImageRecord(
            position,
            tuple(dict.fromkeys(pseudonyms)),
            label,
            laterality,
            keyed,
            refusal,
            self._name_studies(studies),
        )

    def _count(self, owner: Owner, row: Row | None, known: Sequence[tuple[str, str]]) -> None:
        """Count the ids of one image that are mangled, or stand for nobody."""
        texts = [normalise_id(owner.patient_id), row.patient if row else ""]
        self.counts.files += 1
        if any(map(is_mangled, texts)):
            self.counts.mangled += 1
        elif not known and any(texts):
            self.counts.placeholders += 1

    def _name_studies(self, studies: Iterable[str]) -> tuple[str, ...]:
        """The keyed hashes of study UIDs; an empty one names no study."""
        uids = sorted({uid.strip(" \0") for uid in studies} - {""})
        found = []
        for uid in uids:
            found.append(keyed_hash(self.key, "study", uid))
            if is_dummy_uid(uid):
                self.dummies.add(found[-1])
        return tuple(found)

    def _state(self, issuer: str, identifier: str) -> str:
        """The pseudonym of an id as stated, which is noted."""
        name = pseudonym(self.key, issuer, identifier)
        if name not in self.stated:
            self.spellings[name] = hide_spelling(self.key, issuer, identifier)
            self.shown[name] = f"{identifier} (issuer {issuer})" if issuer else identifier
            self.said.add(issuer, identifier, name)
        self.stated.add(name)
        if issuer:
            self.plain[name] = pseudonym(self.key, "", identifier)
        return name


def hide_spelling(key: bytes, issuer: str, identifier: str) -> Spelling:
    """Return the keyed forms of an id under its issuer (spelling.py)."""
    return spell(issuer, identifier).keyed(lambda form: keyed_hash(key, "form", form))


def _known_ids(owner: Owner, row: Row | None) -> list[tuple[str, str]]:
    """The (issuer, id) that header and labels file give, normalised; placeholders are none."""
    known = []
    if not is_placeholder(normalise_id(owner.patient_id)):
        known.append((normalise_id(owner.issuer), normalise_id(owner.patient_id)))
    if row and not is_placeholder(row.patient):
        known.append(("", row.patient))
    return known
