"""The gallery page of a release: one HTML file without script that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.arrays import Pixels
from common.study.plan import Study
from server.public_data.pictures import png_bytes, triptychs
from server.release.datasheet import NOT_FOR, rehearsal_sentence
from server.release.glossary import terms_in
from server.release.items import Items
from server.release.limits import count_sentence
from server.release.pictures import SHOWN_PAIRS
from server.release.statement import audit_lines
from server.release.templating import render


@dataclass(frozen=True)
class Picture:
    """A picture on the page, as a `data:` address."""

    address: str
    privatized: bool = False


@dataclass(frozen=True)
class Section:
    """The pictures of one label."""

    label: str
    pictures: list[Picture]


def html(
    study: Study,
    statement: Mapping[str, Any],
    report: Mapping[str, Any],
    items: Items,
    fingerprint: str,
) -> str:
    """Return the page; `fingerprint` is that of the operator's key."""
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
        "fingerprint": fingerprint,
    }
    # terms are looked up in the words alone: encoded pictures hold any sequence of letters
    words = render("index.html.j2", gallery=[], glossary=[], **values)
    glossary = terms_in(words)
    return render("index.html.j2", gallery=_gallery(study, items), glossary=glossary, **values)


def data_uri(image: Pixels) -> str:
    """Return a picture as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _gallery(study: Study, items: Items) -> list[Section]:
    """Pictures by label; of pairs the first few, each with its mask and the overlay."""
    if items.masks is not None:
        shown = triptychs(items.images[:SHOWN_PAIRS], items.masks[:SHOWN_PAIRS])
        pictures = [Picture(data_uri(image)) for image in shown]
        return [Section(study.strata()[0], pictures)]
    return [_section(items, index, name) for index, name in enumerate(study.strata())]


def _section(items: Items, index: int, label: str) -> Section:
    """The pictures of one label."""
    pictures = []
    for row in np.flatnonzero(items.labels == index):
        picture = Picture(data_uri(items.images[row]), bool(items.privatized[row]))
        pictures.append(picture)
    return Section(label, pictures)
