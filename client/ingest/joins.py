"""Decides who is one person: rules over values, without files.

In: `ImageRecord`s, pairs of nearly identical images (likeness.py), the spellings of ids, and what
the site knows of its persons (client/state/people.py).
Out: records grouped by person, and every join of two ids with its cause.
Guarantees:
  - ids are one person that share a file, a picture, a study or a spelling (spelling.py); a third id
    joins through any of them; ids that were one person before stay one
  - a study that more than two persons share, or whose UID is a dummy, joins nobody: an anonymiser
    gave many files one UID
  - two ids that a person called different are joined by nothing that speaks of these two alone
  - the outcome does not depend on the order of the files
Not covered: photographs of the two eyes of one person under two ids that nothing links.

  1. file: a record is of every id that its header and its row of the labels file give
  2. spelling: ids that differ in spelling alone
  3. picture: identical or nearly identical pixels, one exposure (exposure.py), or crops of one
     (crops.py); eye: two photographs of one eye (same_eye.py)
  4. earlier: what was one person before, and what a person decided
  5. study: MOST_PERSONS_A_STUDY persons by (1) to (4) share one StudyInstanceUID
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from client.ingest.persons import ImageRecord
from client.ingest.spelling import same_ids
from client.state.people import Links, Member, People, Spelling

Cause = Literal["file", "spelling", "picture", "eye", "earlier", "study"]

# A study is one visit of one person. Two ids in it are one record that was corrected or merged. An
# anonymiser that gives one UID to many files gives it to many persons, and they must stay apart.
MOST_PERSONS_A_STUDY = 2


@dataclass(frozen=True)
class Join:
    """Names that one thing makes one person, sorted."""

    cause: Cause
    names: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """Who is one person.

    `persons`: records by person. `joins`: why names are one. `crowded`: for each study that joins
    nobody, how many persons share it. `disputed`: positions of records with a picture that stands
    under two ids which a person called different. `still_one`: how many pairs are one person
    through further ids although a person called them different.
    """

    persons: list[list[ImageRecord]]
    joins: tuple[Join, ...]
    crowded: tuple[int, ...]
    disputed: frozenset[int]
    still_one: int


def group_by_person(
    records: Sequence[ImageRecord],
    near: Iterable[tuple[int, int]],
    known: People | None = None,
    spellings: Mapping[str, Spelling] | None = None,
) -> list[list[ImageRecord]]:
    """Return records by person, as `join_persons` does."""
    return join_persons(records, near, known or People(), spellings or {}).persons


def join_persons(
    records: Sequence[ImageRecord],
    near: Iterable[tuple[int, int]],
    known: People,
    spellings: Mapping[str, Spelling],
    dummies: Collection[str] = (),
    eyes: Iterable[tuple[int, int]] = (),
) -> Joined:
    """Return who is one person, and why.

    `near`, `eyes`: pairs of places in `records`, with one picture and with one eye. `spellings`: by
    name, of the ids that files state. `dummies`: studies that name none.
    """
    # names and places of records are nodes of one forest: a tree is a person
    links = Links()
    joins: list[Join] = []

    def join(cause: Cause, members: Sequence[Member]) -> None:
        known.join(links, members)
        names = {name for _, own in members for name in own}
        if len(names) > 1:
            joins.append(Join(cause, tuple(sorted(names))))

    # (1) file, (4) earlier
    for index, record in enumerate(records):
        links.join((index, *record.pseudonyms))
        if len(record.pseudonyms) > 1:
            joins.append(Join("file", tuple(sorted(record.pseudonyms))))
        earlier = known.name_person(record.pseudonyms)
        if len(earlier) > len(set(record.pseudonyms)):
            join("earlier", [(name, (name,)) for name in earlier])
    # (2) spelling
    for names in same_ids({**known.forms, **spellings}):
        join("spelling", [(name, (name,)) for name in names])
    # (3) picture, eye
    disputed: set[int] = set()
    for places in _same_pictures(records, near):
        join("picture", [(place, records[place].pseudonyms) for place in places])
        disputed.update(_find_disputed(records, places, known))
    for pair in eyes:
        join("eye", [(place, records[place].pseudonyms) for place in pair])
    # (5) study
    shared = []
    crowded = []
    for study, places in _by_study(records).items():
        persons_of_it = len({links.root(place) for place in places})
        if persons_of_it > (1 if study in dummies else MOST_PERSONS_A_STUDY):
            crowded.append(persons_of_it)
        elif study not in dummies:
            shared.append(places)
    for places in shared:
        join("study", [(place, records[place].pseudonyms) for place in places])

    # a tree is a person
    persons: dict[object, list[ImageRecord]] = {}
    for index, record in enumerate(records):
        persons.setdefault(links.root(index), []).append(record)
    still_one = sum(links.root(one) == links.root(other) for one, other in known.parted)
    return Joined(
        list(persons.values()),
        tuple(dict.fromkeys(_in_one_tree(joins, links))),
        tuple(crowded),
        frozenset(disputed),
        still_one,
    )


def _in_one_tree(joins: Iterable[Join], links: Links) -> Iterator[Join]:
    """Joins of those names that are one person: a person's word can have parted others."""
    for join in joins:
        trees: dict[object, list[str]] = {}
        for name in join.names:
            trees.setdefault(links.root(name), []).append(name)
        for names in trees.values():
            if len(names) > 1:
                yield Join(join.cause, tuple(names))


def _same_pictures(
    records: Sequence[ImageRecord], near: Iterable[tuple[int, int]]
) -> list[list[int]]:
    """The places of records that show one picture; a picture that stands once is left out."""
    links = Links()
    for place, record in enumerate(records):
        links.join((place, ("pixels", record.digest)))
    for pair in near:
        links.join(pair)
    pictures: dict[object, list[int]] = {}
    for place in range(len(records)):
        pictures.setdefault(links.root(place), []).append(place)
    return [places for places in pictures.values() if len(places) > 1]


def _find_disputed(
    records: Sequence[ImageRecord], places: Sequence[int], known: People
) -> list[int]:
    """The positions of records with one picture, where two of their ids are apart."""
    names = sorted({name for place in places for name in records[place].pseudonyms})
    if not known.are_apart(names, names):
        return []
    return [records[place].position for place in places]


def _by_study(records: Sequence[ImageRecord]) -> dict[str, list[int]]:
    """The places of the records of each study that holds several."""
    studies: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        for study in record.studies:
            studies.setdefault(study, []).append(place)
    return {study: places for study, places in studies.items() if len(places) > 1}
