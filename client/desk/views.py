"""What the desk's pages show, as values: batches, pictures, and what people decided.

In: a batch, what is noted of it, a session's marks. Out: values that the templates fill in.
Guarantees: nothing is read or written here.
Not covered: escaping, which the templates do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from client.desk.words import finding_words, state_words
from client.egress.decisions import REASONS, Decision
from client.egress.facts import Facts
from client.egress.review import Batch
from common.study.plan import Study

PAGE_PICTURES = 60
KINDS: Mapping[str, str] = {
    "approved": "approved the batch",
    "rejected": "rejected the batch",
    "reduced": "left images out",
}


@dataclass(frozen=True)
class Row:
    """A batch in the list."""

    digest: str
    name: str
    plan: str
    state: str
    words: str
    images: str
    people: str

    @classmethod
    def of(cls, batch: Batch, facts: Facts | None, study: Study | None, reviewers: int) -> Row:
        """Return the row of a batch; `study` is None for a plan that is not here any more."""
        return cls(
            batch.digest,
            batch.digest[:16],
            batch.study[:12] if study is None else study.name,
            batch.state,
            state_words(batch, reviewers),
            "" if facts is None else str(len(facts.images)),
            batch.reviewer,
        )


@dataclass(frozen=True)
class Picture:
    """One image of a batch beside its nearest real one."""

    number: int
    label: str
    persons: int
    privatized: bool
    words: str
    tone: str
    with_it: str
    marked: bool


@dataclass(frozen=True)
class Step:
    """One decision, in words."""

    reviewer: str
    what: str
    why: str
    note: str
    at: str
    signed: bool


@dataclass(frozen=True)
class Pages:
    """Which page of how many; pages count from 1."""

    page: int
    count: int

    @classmethod
    def of(cls, asked: int, images: int) -> Pages:
        """Return the page that is asked for, or the nearest one that there is."""
        count = max(1, -(-images // PAGE_PICTURES))
        return cls(min(max(asked, 1), count), count)

    @property
    def numbers(self) -> range:
        """The numbers of all pages."""
        return range(1, self.count + 1)

    def shown(self, images: int) -> range:
        """Return the numbers of the images of this page."""
        first = (self.page - 1) * PAGE_PICTURES + 1
        return range(first, min(first + PAGE_PICTURES, images + 1))


def pictures(facts: Facts, numbers: Sequence[int], marks: Set[int]) -> list[Picture]:
    """Return these images of a batch, by their numbers from 1."""
    groups: dict[int, list[int]] = {}
    for number, image in enumerate(facts.images, 1):
        groups.setdefault(image.group, []).append(number)
    shown: list[Picture] = []
    for number in numbers:
        image = facts.images[number - 1]
        words, tone = finding_words(image.finding)
        others = [other for other in groups[image.group] if other != number]
        with_it = ", ".join(map(str, others))
        shown.append(
            Picture(
                number,
                image.label,
                image.persons,
                image.privatized,
                words,
                tone,
                with_it,
                number in marks,
            )
        )
    return shown


def steps(decided: Sequence[Decision]) -> list[Step]:
    """Return the decisions on a batch, in order."""
    found: list[Step] = []
    for one in decided:
        what = KINDS.get(one.kind, one.kind)
        if one.left_out:
            what += ": " + ", ".join(map(str, one.left_out))
        at = one.at.replace("T", " ").replace("Z", " UTC")
        why = REASONS.get(one.reason, one.reason)
        found.append(Step(one.reviewer, what, why, one.note, at, one.signed))
    return found
