"""The pages: every value escaped, nothing from elsewhere, and what was not evaluated in a line."""

from __future__ import annotations

import re
import tarfile
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kohort import citing
from server.catalogue.pages import Site, policy, write_pages
from server.catalogue.plots import not_evaluated, plots
from server.catalogue.shown import read_shown
from tests.catalogues import URL, WORDS, Operator

FORMAT_1 = Path(__file__).parents[2] / "kohort" / "format_1.tar.xz"
HOSTILE = '"><img src=//x onerror=a()><script>a()</script>'


class Reader(HTMLParser):
    """Every element and every address of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]


@pytest.fixture(scope="module")
def site(built: Operator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Operator, Site]:
    eyes = built.copy(tmp_path_factory.mktemp("pages") / "eyes")
    words = replace(WORDS, title=f"Eyes {HOSTILE}", contact=HOSTILE)
    told = eyes.publish(words=words)
    shown = [read_shown(path) for path in sorted((eyes.site / "releases").iterdir())]
    return eyes, Site(told.signed.catalogue, tuple(shown), URL)


def test_every_page_is_escaped_and_loads_nothing_from_elsewhere(
    site: tuple[Operator, Site],
) -> None:
    assert policy().startswith("default-src 'none'; img-src 'self' data:; style-src 'sha256-")
    pages = write_pages(site[1])
    assert set(pages) == {"index.html", "small-1.0.0.html", "small-1.1.0.html"}
    for name, data in pages.items():
        text = data.decode()
        found = Reader(text)
        assert "script" not in found.tags and "Eyes &#34;&gt;&lt;img" in text, name
        for address in found.addresses:
            assert not re.match(r"[a-z]+:|//|/", address) or address.startswith("data:"), address
        assert f'content="{policy()}"'.replace("'", "&#39;") in text


def test_every_link_of_a_page_leads_to_a_file_of_the_site(site: tuple[Operator, Site]) -> None:
    eyes, _ = site
    for page in (eyes.web / "index.html", *eyes.web.glob("*.html")):
        addresses = Reader(page.read_text()).addresses
        files = [one for one in addresses if not one.startswith(("data:", "#"))]
        assert files, page.name
        for file in files:
            assert (eyes.web / file).is_file(), f"{page.name}: {file}"


def test_a_page_says_what_a_reader_needs(site: tuple[Operator, Site]) -> None:
    text = write_pages(site[1])["small-1.0.0.html"].decode()
    entry = site[1].catalogue.find("small", "1.0.0")
    assert entry is not None
    (one,) = (one for one in site[1].releases if one.entry.version == entry.version)
    for said in (
        f"kohort pull small@1.0.0 --from {URL}",
        'ImageFolder("small-1.0.0/data/train")',
        f"kohort verify small-1.0.0 --trust {entry.key}",
        "a group of at least 5",
        "It must not be used for",
        "Superseded.",
        escape(citing.cite(one.folder, one.manifest)),
        "@misc{small-1.0.0",
        "Questions: ",
        entry.sums,
    ):
        assert said in text, said
    # nine rows "not evaluated" are one sentence
    (line,) = re.findall(r"<p>Not evaluated: (.*)\.</p>", text)
    assert line.count(";") >= 3
    assert "not evaluated</td>" not in text


def test_the_same_catalogue_gives_the_same_pages(site: tuple[Operator, Site]) -> None:
    turned = replace(site[1], releases=site[1].releases[::-1])
    assert write_pages(site[1]) == write_pages(turned)


def test_only_what_was_evaluated_is_drawn() -> None:
    shown = {"status": "shown", "unit": "", "interval": [0.4, 0.6]}
    findings = [
        {**shown, "name": "downstream accuracy on real images", "value": 0.5},
        {**shown, "name": "membership inference, AUC of the worst attacker", "value": 0.7},
        {"name": "linkage", "status": "not evaluated", "value": None, "unit": "", "interval": None},
        {**shown, "name": "membership inference, AUC by chance", "value": 1.7, "interval": None},
    ]
    use, attack = plots(findings)
    assert [bar.shown for bar in use.bars] == ["0.50"]
    assert [bar.words for bar in attack.bars] == ["worst attacker on this release"]
    assert attack.mark == 0.5
    assert not_evaluated(findings) == ["linkage"]
    assert plots([]) == []


def test_a_release_of_format_1_is_shown(tmp_path: Path) -> None:
    with tarfile.open(FORMAT_1) as packed:
        packed.extractall(tmp_path, filter="data")
    found = read_shown(tmp_path)
    assert found.sheet == "contact_sheet.png" and sum(found.counts.values()) == 12
    assert len(found.pictures()) == 12
