"""The pages of the catalogue: an index, a page a release, a page for each that was withdrawn.

In: the signed catalogue and its releases. Out: the bytes of every page, by name.
Guarantees: no script, and nothing from another address; each page allows itself its own style, by
digest, and pictures of its own server; every value is escaped; the same inputs give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from kohort import citing
from kohort.catalogue import REASONS, Catalogue, Entry, Withdrawal
from server.catalogue.plots import count_plot, not_evaluated, plots
from server.catalogue.shown import Picture, Shown
from server.public_data.pictures import pair_uris, thumbnail_uri
from server.release.datasheet import NOT_FOR, rehearsal_sentence

PACKAGE = "server.catalogue"
CARD_PICTURES = 6
PLACE = "https://ADDRESS-OF-THIS-SITE"
MIB = 1 << 20
SETS = {True: ("image and mask pair", "image and mask pairs"), False: ("image", "images")}


@dataclass(frozen=True)
class Site:
    """What the pages are made from; `url` is where they are served, "" where that is not known."""

    catalogue: Catalogue
    releases: tuple[Shown, ...]
    url: str


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as a `data:` address, what it shows, and the file that it leads to."""

    address: str
    words: str
    file: str


def page_name(one: Entry | Withdrawal) -> str:
    """Return the file of a release's page."""
    return f"{one.name}-{one.version}.html"


def write_pages(site: Site) -> dict[str, bytes]:
    """Return every page by its name."""
    order = {(one.name, one.version): number for number, one in enumerate(site.catalogue.releases)}
    shown = sorted(site.releases, key=lambda one: order[(one.entry.name, one.entry.version)])
    entries = {(one.name, one.version): one for one in site.catalogue.releases}
    cards = []
    pages = {}
    for one in shown:
        entry = entries[(one.entry.name, one.entry.version)]
        pictures = _thumbnails(one, one.pictures())
        cards.append((entry, _spread(pictures, CARD_PICTURES)))
        values = _values(one, entry, pictures)
        pages[page_name(entry)] = _render("release.html.j2", site, **values)
    for gone in site.catalogue.withdrawn:
        newest = site.catalogue.newest(gone.name)
        pages[page_name(gone)] = _render("withdrawn.html.j2", site, gone=gone, newest=newest)
    pages["index.html"] = _render("index.html.j2", site, cards=cards)
    return {name: text.encode() for name, text in pages.items()}


def _values(one: Shown, entry: Entry, pictures: list[Thumbnail]) -> dict[str, Any]:
    """What the page of a release shows."""
    findings = one.report["findings"]
    names = {item.path for item in one.manifest.files}
    return {
        "one": one,
        "entry": entry,
        "pictures": pictures,
        "counts": count_plot(one.counts),
        "plots": plots(findings),
        "shown": [item for item in findings if item["status"] == "shown"],
        "missing": not_evaluated(findings),
        "rehearsed": rehearsal_sentence(one.report),
        "not_for": NOT_FOR,
        "root": one.rows[0]["file_name"].rsplit("/", 2)[0] if one.rows else "data",
        "has_parquet": any(name.startswith("parquet/") for name in names),
        "has_citation": "CITATION.cff" in names,
        "citation": citing.cite(one.folder, one.manifest),
        "bibtex": citing.bibtex(one.folder, one.manifest),
        "size_mib": f"{max(0.1, entry.size_bytes / MIB):.1f}",
        "pairs": entry.k is None,
    }


def _thumbnails(one: Shown, pictures: list[Picture]) -> list[Thumbnail]:
    """The small pictures: of a pair image, mask, and the mask in red over the image."""
    found = []
    for number, picture in enumerate(pictures, 1):
        if picture.mask is None:
            address = thumbnail_uri(picture.pixels)
        else:
            address = pair_uris(picture.pixels[None, ..., None], picture.mask[None])[0]
        words = f"synthetic {SETS[picture.mask is not None][0]} {number}, label {picture.label}"
        found.append(Thumbnail(address, words, f"{one.entry.path}/{picture.file}"))
    return found


def _spread(pictures: list[Thumbnail], most: int) -> list[Thumbnail]:
    """A few of all labels, in order."""
    if len(pictures) <= most:
        return pictures
    return [pictures[number * len(pictures) // most] for number in range(most)]


def _render(template: str, site: Site, **values: Any) -> str:
    """One page."""
    found = site.catalogue
    return (
        _environment()
        .get_template(template)
        .render(
            catalogue=found,
            fingerprint=found.fingerprint,
            url=site.url or PLACE,
            reasons=REASONS,
            style=Markup(style()),
            policy=policy(),
            sets=SETS,
            **values,
        )
    )


def style() -> str:
    """Return the style sheet."""
    return files(PACKAGE).joinpath("templates/style.css").read_text(encoding="utf-8").strip()


def policy(*, framing: bool = False) -> str:
    """Return the Content-Security-Policy: this style sheet, and pictures of the same server.

    `framing`: with what only a header can say.
    """
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    text = (
        f"default-src 'none'; img-src 'self' data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return text + "; frame-ancestors 'none'" if framing else text


def _environment() -> jinja2.Environment:
    """Every value is escaped; an unknown name in a template is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"page_name": page_name}
    return environment
