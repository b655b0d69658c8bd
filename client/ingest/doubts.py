"""Says what an intake must not go on with: ids that spoil who is one person. Rules over values.

In: counts of ids, and who is one person (joins.py).
Out: `Doubt`s, each with its counts, the likely cause and the fix; they hold no id and no path.
Guarantees: a doubt stops the intake before anything is frozen or kept, unless site.yaml accepts it
by its name; what is accepted is told.
Not covered: mistakes in a few ids.

  mangled-ids     ids in scientific notation: a spreadsheet made one number of many
  placeholders    most files carry a word such as ANONYMIZED PATIENT instead of an id
  contradictions  files whose header names one patient and whose row names another who is here too
  many-ids        one person under more ids than anybody has
  large-share     one person with an improbable share of the images
  undone-joins    persons.csv parts ids that something else still joins
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from client.ingest.persons import ImageRecord
from client.state.people import Spelling
from common.errors import ConfigurationError

Kind = Literal[
    "mangled-ids", "placeholders", "contradictions", "many-ids", "large-share", "undone-joins"
]

UNDONE: Kind = "undone-joins"  # the only one that site.yaml cannot accept
CODE = "E-WHO"
# A few files may be wrong in any archive: they get a reason, or a join that the screen shows. A
# fault of a whole table or of an anonymiser hits more than a few.
FEW_FILES = 3
# Nobody has more ids at one hospital. Rows that are shifted by one chain everybody together.
MOST_IDS = 10
# A useful study has at least five people (k), and each gives a fifth of the images at the mean. A
# quarter is more, and twenty pictures are more than chance and a long follow-up of a small study.
MOST_SHARE = 0.25
LEAST_PICTURES = 20


@dataclass(frozen=True)
class Doubt:
    """What must be looked at before anything is frozen; `text` counts and quotes nothing."""

    kind: Kind
    text: str
    fix: str


@dataclass
class IdCounts:
    """What is counted of ids while files are identified.

    `files`: of them, how many carry a `mangled` id, or `placeholders` instead of an id. `both`: the
    names by header and by row of each file that has both.
    """

    files: int = 0
    mangled: int = 0
    placeholders: int = 0
    both: list[tuple[str, str]] = field(default_factory=list)


def doubt_ids(counts: IdCounts) -> Iterator[Doubt]:
    """Yield what is wrong with the ids themselves."""
    if counts.mangled > FEW_FILES or 0 < counts.mangled == counts.files:
        yield Doubt(
            "mangled-ids",
            f"{counts.mangled} of {counts.files} files have an id in scientific notation (as "
            "1.23E+05): a spreadsheet made one number of many ids",
            "export the ids as text: format the column as text before the table is opened",
        )
    if counts.placeholders > FEW_FILES and 2 * counts.placeholders > counts.files:
        yield Doubt(
            "placeholders",
            f"{counts.placeholders} of {counts.files} files carry a placeholder instead of an id "
            "(as ANONYMIZED PATIENT): an anonymiser replaced the ids",
            "let it write one pseudonym a patient, or name the patients in the labels file",
        )


def doubt_rows(
    both: Sequence[tuple[str, str]],
    spellings: Mapping[str, Spelling],
    same: Collection[frozenset[str]],
) -> Iterator[Doubt]:
    """Yield whether rows of the labels file name other patients than the headers do.

    A row may call a patient by another id, as a study's own code does. It contradicts the header
    where that id is the header's of another file. `same`: pairs that a person called one.
    """
    owners: dict[str, set[str]] = {}
    for header, _ in both:
        for form in spellings[header].owns:
            owners.setdefault(form, set()).add(header)
    contradictions = 0
    for header, row in both:
        if spellings[header].is_like(spellings[row]) or frozenset((header, row)) in same:
            continue
        if any(owners.get(form, set()) - {header} for form in spellings[row].owns):
            contradictions += 1
    if contradictions > FEW_FILES:
        yield Doubt(
            "contradictions",
            f"in {contradictions} of {len(both)} files the header names one patient, and the row "
            "of the labels file another whose files are here too: rows may be shifted, or sorted "
            "apart",
            "compare the columns file and patient of the labels file with the export, or leave the "
            "column patient out",
        )


def doubt_persons(
    persons: Sequence[Sequence[ImageRecord]], stated: Collection[str]
) -> Iterator[Doubt]:
    """Yield whether one person has too many ids, or too many of the images."""
    most_ids = 0
    pictures = []
    for person in persons:
        names = {name for record in person for name in record.pseudonyms if name in stated}
        most_ids = max(most_ids, len(names))
        pictures.append(len({record.digest for record in person}))
    if most_ids > MOST_IDS:
        yield Doubt(
            "many-ids",
            f"one person has {most_ids} ids, expected at most {MOST_IDS}: rows of the labels file "
            "may be shifted, or one picture (a logo, a test chart) stands under many ids",
            "compare labels file and headers, remove pictures that show no patient, or say in "
            "persons.csv who is different",
        )
    most = max(pictures, default=0)
    if most >= LEAST_PICTURES and most > MOST_SHARE * sum(pictures):
        yield Doubt(
            "large-share",
            f"one of {len(persons)} persons has {most} of {sum(pictures)} pictures: one id may "
            "stand for many patients, as a constant that an anonymiser or a spreadsheet wrote",
            "look at the ids of the export; an id must be of one patient",
        )


def doubt_decisions(still_one: int) -> Iterator[Doubt]:
    """Yield whether pairs that persons.csv calls different are one person through a further id."""
    if still_one:
        yield Doubt(
            UNDONE,
            f"{still_one} pairs that persons.csv calls different are still one person: one file "
            "carries both ids, or a further id is one with each of them",
            "say in persons.csv from which of the two the further id differs, and let header and "
            "labels file of each file name one patient",
        )


def settle(doubts: Sequence[Doubt], accept: Collection[str]) -> list[str]:
    """Return a warning for each accepted doubt; raise ConfigurationError (E-WHO) for the others."""
    open_ones = [doubt for doubt in doubts if doubt.kind not in accept]
    if open_ones:
        problems = [f"{doubt.text}. Fix: {doubt.fix}" for doubt in open_ones]
        kinds = ", ".join(doubt.kind for doubt in open_ones if doubt.kind != UNDONE)
        hint = "nothing was frozen; mend the export and ingest again"
        if kinds:
            hint += f". Where it is right as it is, site.yaml can say so: data.accept: [{kinds}]"
        raise ConfigurationError(
            "\n".join(problems),
            problems=problems,
            hint=hint,
            code=CODE,
        )
    return [f"{doubt.text} (data.accept of site.yaml: {doubt.kind})" for doubt in doubts]
