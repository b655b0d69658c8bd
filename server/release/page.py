"""The pages of a release: an index, and galleries of 200 pictures each.

In: the plan, what is said of the release, its pictures. Out: `index.html` and `pages/NNNN.html`.
Guarantees: no script; no page loads anything, for its small pictures stand inside it; the pictures
of one page are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.study.plan import Study
from server.public_data.pictures import pair_uris, thumbnail_uri
from server.release.datasheet import NOT_FOR, rehearsal_sentence
from server.release.glossary import terms_in
from server.release.items import Items
from server.release.limits import count_sentence
from server.release.pictures import SHOWN_PAIRS, file_name
from server.release.statement import audit_lines
from server.release.templating import render

PAGE_PICTURES = 200
FOLDER = "pages"


@dataclass(frozen=True)
class Picture:
    """A small picture as a `data:` address, and the file that it leads to."""

    address: str
    file: str
    privatized: bool = False


@dataclass(frozen=True)
class Page:
    """A page of one label: its file below pages/, and which of the label's pictures it has."""

    name: str
    first: int
    last: int
    rows: Sequence[int]


@dataclass(frozen=True)
class Section:
    """A label: how many pictures it has, the first of them, and its pages."""

    label: str
    count: int
    pictures: Sequence[Picture]
    pages: Sequence[Page] = ()


def write_pages(
    part: Path,
    study: Study,
    statement: Mapping[str, Any],
    report: Mapping[str, Any],
    items: Items,
    vouching: Mapping[str, Any],
) -> None:
    """Write the index and every page below `part`; `vouching` says who signs the release."""
    sections = _sections(study, items)
    page = html(study, statement, report, items, sections, vouching)
    (part / "index.html").write_text(page, encoding="utf-8")
    for name, text in _galleries(study, statement, items, sections):
        path = part / FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def html(
    study: Study,
    statement: Mapping[str, Any],
    report: Mapping[str, Any],
    items: Items,
    sections: Sequence[Section],
    vouching: Mapping[str, Any],
) -> str:
    """Return the index."""
    values = {
        "study": study,
        "statement": statement,
        "audit": audit_lines(statement),
        "report": report,
        "rehearsed": rehearsal_sentence(report),
        "counts": count_sentence(study),
        "count": len(items.images),
        "privatized": int(items.privatized.sum()),
        "not_for": NOT_FOR,
        **vouching,
    }
    # terms are looked up in the words alone: encoded pictures hold any sequence of letters
    words = render("index.html.j2", gallery=[], glossary=[], **values)
    glossary = terms_in(words)
    return render("index.html.j2", gallery=sections, glossary=glossary, **values)


def _sections(study: Study, items: Items) -> list[Section]:
    """Every label with its first pictures; of pairs the first few, each with mask and overlay."""
    labels = study.strata()
    if items.masks is not None:
        shown = pair_uris(items.images[:SHOWN_PAIRS], items.masks[:SHOWN_PAIRS])
        pictures = [Picture(uri, file_name(row, labels[0])) for row, uri in enumerate(shown)]
        return [Section(labels[0], len(items.images), pictures)]
    most = max(1, PAGE_PICTURES // len(labels))
    sections: list[Section] = []
    pages = 0
    for index, label in enumerate(labels):
        rows = np.flatnonzero(items.labels == index).tolist()
        pictures = _pictures(items, rows[:most], label)
        numbered = _pages(rows, pages) if len(rows) > most else []
        pages += len(numbered)
        sections.append(Section(label, len(rows), pictures, numbered))
    return sections


def _pages(rows: Sequence[int], before: int) -> list[Page]:
    """The pages of one label's pictures, after so many pages of other labels."""
    pages: list[Page] = []
    for start in range(0, len(rows), PAGE_PICTURES):
        shown = rows[start : start + PAGE_PICTURES]
        name = f"{FOLDER}/{before + len(pages) + 1:04d}.html"
        pages.append(Page(name, start + 1, start + len(shown), shown))
    return pages


def _pictures(items: Items, rows: Sequence[int], label: str, up: str = "") -> list[Picture]:
    """The small pictures of these rows; `up` leads from their page to the release's folder."""
    pictures = []
    for row in rows:
        address = thumbnail_uri(items.images[row])
        file = up + file_name(row, label)
        pictures.append(Picture(address, file, bool(items.privatized[row])))
    return pictures


def _galleries(
    study: Study, statement: Mapping[str, Any], items: Items, sections: Sequence[Section]
) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every page, in order."""
    pages = [(section, page) for section in sections for page in section.pages]
    names = [Path(page.name).name for _, page in pages]
    for number, (section, page) in enumerate(pages):
        pictures = _pictures(items, page.rows, section.label, up="../")
        yield (
            names[number],
            render(
                "page.html.j2",
                study=study,
                claim=statement["images"]["claim"],
                section=section,
                page=page,
                pictures=pictures,
                flagged=any(picture.privatized for picture in pictures),
                before=names[number - 1] if number else "",
                after=names[number + 1] if number + 1 < len(names) else "",
            ),
        )
