"""Counts the persons of an intake: which records are of one person, and what of each enters.

In: the records of a source, the ids that they state, the site's persons file.
Out: each person's pseudonyms and entering images; a line for every join, for the site's own screen.
Guarantees:
  - what makes persons doubtful stops the intake before anything is kept (doubts.py)
  - a person's decisions in persons.csv count before all that files show
  - what is found of persons is kept in the persons file before anything is written
  - every record that does not enter has a reason
Not covered: who is one person (joins.py) and which image is chosen (persons.py), as rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.ingest.decisions import Decided, read_decisions, resolve_decisions
from client.ingest.doubts import doubt_decisions, doubt_ids, doubt_persons, doubt_rows, settle
from client.ingest.eyes import Eyes, Switch, compare_eyes, may_show_eyes
from client.ingest.identify import Identities
from client.ingest.joins import Join, Joined, join_persons
from client.ingest.persons import ImageRecord, aliases, choose_images
from client.ingest.quarantine import Reason
from client.ingest.sources import Progress, Source
from client.state.people import People, PeopleFile
from common.study.intake import Intake

Persons = Sequence[tuple[tuple[str, ...], list[tuple[ImageRecord, int]]]]  # pseudonyms, images

CAUSES = {
    "file": "header and labels file of one file",
    "issuer": "one id with and without its issuer",
    "spelling": "one id in two spellings",
    "picture": "the same picture",
    "eye": "the same eye, photographed twice",
    "study": "one StudyInstanceUID",
    "earlier": "one person in an earlier intake",
}


@dataclass(frozen=True)
class SiteWord:
    """What the site says itself: persons.csv (decisions.py), and doubts that it accepts.

    `same_eye`: what becomes of photographs that show one eye (eyes.py).
    """

    persons_csv: Path | None = None
    accept: tuple[str, ...] = ()
    same_eye: Switch = "off"


class Census:
    """Steps 5 and 6 of an intake.

    After `take`, for a person's screen: `joins`, `warnings`, and what `eyes` shows.
    """

    def __init__(
        self,
        intake: Intake,
        identities: Identities,
        source: Source,
        people: PeopleFile | None,
        word: SiteWord,
    ) -> None:
        self.intake = intake
        self.identities = identities
        self.source = source
        self.people = people
        self.word = word
        self.joins: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.eyes = Eyes()

    def take(self, progress: Progress, eyes: Progress) -> Persons:
        """Return each person's pseudonyms, and the entering images with their rows of the spool.

        In the cohort's order. `progress` and `eyes` count the images that were compared. Raises
        ConfigurationError for doubts (E-WHO) and for a persons.csv that cannot be followed
        (E-PERSONS-FILE).
        """
        known = People()
        if self.people is not None:
            known = self.people.read()
        decided = self._decide(known)
        known = known.decide(decided.same, decided.different)
        near = list(self.source.alike(progress))
        stated = self.identities.stated | known.names
        records = keep_stated(self.source.records, stated)
        joined = self._join(records, near, known)
        self.eyes = self._compare_eyes(joined, known, eyes)
        if self.eyes.same:
            joined = self._join(records, near, known)
        accepted = self._settle_doubts(joined, decided)
        known = self._keep(joined, known, decided)
        self.joins = tuple(describe_joins(joined.joins, self.identities))
        self.warnings = (*accepted, *_warn(joined))
        persons = []
        for person in joined.persons:
            names = aliases(person, known)
            entering = self._choose(person, joined.disputed, self._has_withdrawn(person, known))
            # a person of whom nothing enters is not in the cohort
            if entering:
                rows = self.source.rows(sorted(entering, key=lambda record: record.digest))
                persons.append((names, rows))
        return sorted(persons, key=lambda person: person[0])

    def _join(
        self, records: Sequence[ImageRecord], near: Sequence[tuple[int, int]], known: People
    ) -> Joined:
        """Who is one person, by all that was found so far."""
        spellings = self.identities.spellings
        dummies = self.identities.dummies
        return join_persons(records, near, known, spellings, dummies, self.eyes.same)

    def _compare_eyes(self, joined: Joined, known: People, progress: Progress) -> Eyes:
        """Which of the persons are one by their eyes; nothing is searched where it is off."""
        if self.word.same_eye == "off" or not may_show_eyes(self.intake):
            return Eyes()
        spool = self.source.spool
        return compare_eyes(spool, joined.persons, known, self.word.same_eye, progress)

    def _choose(
        self, person: Sequence[ImageRecord], disputed: frozenset[int], withdrawn: bool
    ) -> list[ImageRecord]:
        """The images of one person that enter; every other has a reason."""
        if withdrawn:
            for record in person:
                self.source.refuse(record.position, Reason.WITHDRAWN)
            return []
        own = []
        for record in person:
            if record.position in disputed and not record.refusal:
                record = replace(record, refusal=Reason.DISPUTED)
            own.append(record)
        outcomes = choose_images(
            own, ordinal=self.intake.ordinal_labels, one_eye=self.intake.stratify_laterality
        )
        entering: list[ImageRecord] = []
        for position, outcome in outcomes.items():
            if isinstance(outcome, Reason):
                self.source.refuse(position, outcome)
            else:
                entering.append(outcome)
        return entering

    def _decide(self, known: People) -> Decided:
        """The decisions in persons.csv, as pairs of names."""
        path = self.word.persons_csv
        if path is None:
            return Decided()
        names = known.names | known.forms.keys()
        said = self.identities.said
        return resolve_decisions(path, read_decisions(path), said, self.identities.key, names)

    def _settle_doubts(self, joined: Joined, decided: Decided) -> list[str]:
        """Return warnings of doubts that the site accepts; raise ConfigurationError for others."""
        counts = self.identities.counts
        same = {frozenset(pair) for pair in decided.same}
        doubts = [
            *doubt_ids(counts),
            *doubt_rows(counts.both, self.identities.spellings, same),
            *doubt_persons(joined.persons, self.identities.stated),
            *doubt_decisions(joined.still_one),
        ]
        return settle(doubts, self.word.accept)

    def _keep(self, joined: Joined, known: People, decided: Decided) -> People:
        """Write down who is one person, for good; return all that is known then."""
        if self.people is None:
            return known
        self.people.decide(decided.same, decided.different)
        # what joins names, and not whole persons: a later decision can part two of three
        stated = [join.names for join in joined.joins]
        for person in joined.persons:
            stated += [record.pseudonyms for record in person]
        return self.people.state(stated, self.identities.plain, self.identities.spellings)

    def _has_withdrawn(self, person: Sequence[ImageRecord], known: People) -> bool:
        """Whether a person withdrew under any id of these images, with its issuer or without."""
        names = set(aliases(person))
        for record in person:
            names.update(self.source.records[record.position].pseudonyms)
        return known.has_withdrawn(names)


def keep_stated(records: Sequence[ImageRecord], stated: Collection[str]) -> list[ImageRecord]:
    """Return records with the pseudonyms of ids that were stated in that form alone."""
    # An id under an issuer joins the same id without one: to count one person as two would be the
    # unsafe mistake.
    found = []
    for record in records:
        names = tuple(name for name in record.pseudonyms if name in stated)
        found.append(replace(record, pseudonyms=names))
    return found


def _warn(joined: Joined) -> Iterator[str]:
    """Yield what a person should look into; counts alone."""
    if joined.crowded:
        yield (
            f"{len(joined.crowded)} StudyInstanceUIDs stand in files of several persons each, up "
            f"to {max(joined.crowded)}, and join nobody: an anonymiser gave many files one UID, or "
            "a dummy; let it keep studies apart, or say who is one person in persons.csv"
        )


def describe_joins(joins: Sequence[Join], identities: Identities) -> list[str]:
    """Return a line for the ids that something joined, sorted; names without an id are left out."""
    causes: dict[tuple[str, ...], set[str]] = {}
    for join in joins:
        ids = sorted({identities.shown[name] for name in join.names if name in identities.shown})
        if len(ids) < 2:
            continue
        cause: str = join.cause
        if cause == "file" and _differ_in_issuer(join.names, identities):
            cause = "issuer"
        causes.setdefault(tuple(ids), set()).add(CAUSES[cause])
    return sorted(f"{' = '.join(ids)}: {', '.join(sorted(why))}" for ids, why in causes.items())


def _differ_in_issuer(names: Sequence[str], identities: Identities) -> bool:
    """Whether names are one id, with an issuer and without."""
    plain = {identities.plain.get(name, name) for name in names}
    return len(plain) == 1
