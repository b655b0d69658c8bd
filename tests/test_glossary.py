"""The glossary defines every term once, and every term that a release explains."""

import re
from pathlib import Path

from server.release.glossary import TERMS

TEXT = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", TEXT, re.MULTILINE)
ELSEWHERE = {  # a release's term: the heading that covers it
    "Unit of protection": "Unit of privacy",
    "Add or remove one patient": "Add-or-remove adjacency",
    "PLD": "Accountant",
    "Privatized image": "Privatize",
    "Real against real": "Floor",
    "Precision": "Precision and recall",
    "DSC": "Dice",
}


def test_every_term_is_defined_once() -> None:
    assert len(HEADINGS) == len({heading.lower() for heading in HEADINGS})


def test_every_term_has_a_definition() -> None:
    for part in TEXT.split("\n### ")[1:]:
        heading, _, definition = part.partition("\n")
        assert len(definition.split("\n## ")[0].split()) >= 5, heading


def test_every_term_that_a_release_explains_is_in_the_glossary() -> None:
    known = {heading.lower() for heading in HEADINGS}
    for term in TERMS:
        name = term.name.removeprefix("Grouping: ")
        first = re.split(r"[,;]", name)[0]
        heading = ELSEWHERE.get(first, name if name.lower() in known else first)
        assert any(
            one == heading.lower() or one.split(", ")[0] == heading.lower() for one in known
        ), f"{term.name}: no heading {heading!r} in docs/glossary.md"


def test_every_sentence_is_short() -> None:
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", TEXT)
    for paragraph in plain.split("\n\n"):
        if paragraph.startswith("#"):
            paragraph = paragraph.partition("\n")[2]
        for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph):
            assert len(sentence.split()) <= 30, sentence
