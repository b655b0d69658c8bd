"""The operator's page: what is planted is named with its command; nothing in it is active."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.codes import advise
from server.operator.expiry import SITE_FIX
from server.page.overview import Overview
from server.page.render import mark_words, render_fault, render_page
from server.rounds.standing import Declared
from tests.deploy.programs import check_line, is_ours
from tests.server.page.overviews import (
    NOW,
    PROPOSAL,
    disk,
    ending,
    life,
    overview,
    release,
    site,
    standing,
    study,
    troubled,
)

VOID = {"meta", "progress", "br"}
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "h1", "h2", "ul", "li", "b"),
    *("nav", "main", "section", "p", "span", "code", "table", "thead", "tbody", "tr", "th", "td"),
    *("div", "progress", "time", "caption", "footer", "br"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "id",
        "href",
        "scope",
        "colspan",
    ),
    *("data-label", "aria-label", "aria-labelledby", "aria-hidden", "value", "max", "datetime"),
}
HOSTILE = "</style></title><script>alert(1)</script>\"'><img src=//x onerror=alert(1)>`{{7*7}}"


class Document(HTMLParser):
    """Tags with attributes, the text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def words(found: Overview) -> str:
    """The text of the page, its white space as a reader sees it."""
    return " ".join(Document(render_page(found)).text.split())


def with_standing(**changes: Any) -> Overview:
    return overview(standing=standing(**changes))


def with_site(**changes: Any) -> Overview:
    return with_standing(sites=(site("hospital-b", **changes), site("hospital-c")))


# what is planted: the overview, the alert's code, the command that mends it
PLANTED: dict[str, tuple[Callable[[], Overview], str, str]] = {
    "the server is not running": (
        lambda: with_standing(server=life(state="died")),
        "SERVER-NOT-RUNNING",
        "kohort-server run BUNDLE",
    ),
    "the server hangs": (
        lambda: with_standing(server=life(state="hung")),
        "SERVER-HUNG",
        "kohort-server run BUNDLE",
    ),
    "a study is paused": (
        lambda: with_standing(studies=(study(code="E-QUORUM", since="2026-12-01T04:15:00+00:00"),)),
        "E-QUORUM",
        "kohort-server study extend fundus",
    ),
    "a study cannot be read": (
        lambda: with_standing(unreadable={"ab" * 32: advise("E-JOURNAL")}),
        "E-JOURNAL",
        advise("E-JOURNAL").fix,
    ),
    "a site refuses the plan": (
        lambda: with_site(declared=Declared(advise("E-POLICY-CAP"), "fundus, gan round 4 of 8")),
        "E-POLICY-CAP",
        advise("E-POLICY-CAP").fix,
    ),
    "a site is in quarantine": (
        lambda: with_site(state="quarantined", declared=Declared(advise("E-INTAKE-SIZE"))),
        "E-INTAKE-SIZE",
        "kohort-server sites release hospital-b",
    ),
    "a site is silent": (
        lambda: with_site(connected=False, seen=NOW - timedelta(hours=2)),
        "SITE-SILENT",
        "kohort-site status",
    ),
    "a certificate ends": (
        lambda: with_standing(ending=(ending(2),)),
        "CERTIFICATE-ENDS",
        SITE_FIX,
    ),
    "somebody submitted a run": (
        lambda: with_standing(foreign_runs=({"time": "2026-11-30T09:30:00+00:00"},)),
        "E-APP-UNPINNED",
        "a foreign run was refused at 2026-11-30 09:30 UTC",
    ),
    "a proposal waits for a signer": (
        lambda: overview(
            releases=(
                release(folder=PROPOSAL, proposed=True, signed=("hospital-a",)),
            )
        ),
        "E-SIGN-OFF",
        f"kohort-server sign-off NAME --release {PROPOSAL} --key FILE",
    ),
    "a proposal is signed off": (
        lambda: overview(releases=(release(folder=PROPOSAL, proposed=True),)),
        "RELEASE-READY",
        f"kohort-server release --publish {PROPOSAL} --out /srv/releases",
    ),
    "a published release lacks a sign-off": (
        lambda: overview(releases=(release(signed=("hospital-a",)),)),
        "E-SIGN-OFF",
        "kohort verify /srv/releases/fundus-1.0.0",
    ),
    "a release was altered": (
        lambda: overview(releases=(release(problem="E-REFUSED"),)),
        "E-REFUSED",
        "kohort verify /srv/releases/fundus-1.0.0",
    ),
    "a release has another operator's key": (
        lambda: overview(releases=(release(other_key="SHA256:other"),)),
        "OTHER-KEY",
        "kohort verify /srv/releases/fundus-1.0.0 --trust SHA256:other",
    ),
    "a folder is nearly full": (
        lambda: overview(disk=(disk(0.85),)),
        "E-QUOTA",
        "limits.studies_gib",
    ),
    "a folder is full": (lambda: overview(disk=(disk(0.99),)), "E-QUOTA", "du -sh"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_named_with_the_command_that_mends_it(name: str) -> None:
    plant, code, command = PLANTED[name]
    found = plant()
    (alert,) = found.alerts()
    assert alert.code == code
    text = words(found)
    assert "To mend (1)" in text
    assert code in text
    assert command.replace("`", "") in text
    assert "To mend (1)" not in words(overview())
    assert "Nothing waits for you." in words(overview())
    assert "Nothing waits for you." not in text


@pytest.mark.parametrize("name", PLANTED)
def test_a_command_that_is_shown_can_be_typed(name: str) -> None:
    for alert in PLANTED[name][0]().alerts():
        # what a site refused is mended there; a damaged journal comes back from a copy
        by_hand = advise(alert.code).who == "hospital" or alert.code == "E-JOURNAL"
        assert "`" in alert.fix or by_hand
        for marked in alert.fix.split("`")[1::2]:
            words = shlex.split(marked)
            if is_ours(words[0]):
                check_line(words)


def test_errors_stand_first() -> None:
    severities = [alert.severity for alert in troubled().alerts()]
    assert severities == sorted(severities, key=lambda one: one != "error")
    assert severities[0] == "error" and severities[-1] == "warning"


def test_everything_that_is_asked_about_a_consortium_is_on_the_page() -> None:
    text = words(troubled())
    for said in (
        "eye-consortium",
        "server running (process 4711, since 2026-11-28 09:30 UTC)",
        "as of 2026-12-01 09:30 UTC",
        "3 of 8",
        "gan round 4 of 8 waiting for hospital-b",
        "2026-12-01 04:15 UTC E-QUORUM",
        "hospital-b, 2 rounds, since 2026-11-30 22:40 UTC",
        "E-PLAN-MEMORY in fundus, gan round 4 of 8, since 2026-12-01 04:12 UTC",
        advise("E-PLAN-MEMORY").means.replace("`", ""),
        "quarantined",
        "1 of 2: hospital-a",
        "2 of 2: hospital-a, hospital-c",
        "42.0 GiB",
        "100.0 GiB limits.studies_gib",
        "the authority",
    ):
        assert said in text, said


def poison(value: Any) -> Any:
    """The same value with every text a hostile one."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, Path):
        return Path("/" + HOSTILE.replace("/", "\\"))
    if isinstance(value, dict):
        return {poison(key): poison(one) for key, one in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(poison(one) for one in value)
    if hasattr(value, "_replace"):
        return value._replace(**{name: poison(getattr(value, name)) for name in value._fields})
    if is_dataclass(value) and not isinstance(value, type):
        changes = {one.name: poison(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **changes)
    return value


def hostile() -> Overview:
    """Every text hostile, but the server's state, which its own words look up."""
    base = troubled()
    states = replace(
        base.standing,
        foreign_runs=({"time": HOSTILE},),
        unreadable={"x": advise("E-JOURNAL")},
    )
    found = poison(replace(base, standing=states))
    assert isinstance(found, Overview)
    return replace(found, standing=replace(found.standing, server=life()))


def test_hostile_texts_stay_texts() -> None:
    text = render_page(hostile())
    document = Document(text)
    assert not document.open
    assert {tag for tag, _ in document.tags} <= TAGS
    for _, attributes in document.tags:
        assert attributes.keys() <= ATTRIBUTES
    links = {attributes["href"] for attributes in document.all("a")}
    assert {link for link in links if link and not link.startswith("#")} == set()
    assert "{{7*7}}" in document.text and "49" not in document.text
    assert text.count("<script") == 0 and html.escape("<script>") in text
    # nothing that a hostile text could be part of escapes from the style sheet
    assert len(document.all("style")) == 1


def test_a_fault_is_said_in_words_that_are_as_inert() -> None:
    document = Document(render_fault(HOSTILE, HOSTILE, HOSTILE))
    assert not document.open
    assert {tag for tag, _ in document.tags} <= TAGS


def test_the_page_reads_without_eyes_and_without_a_mouse() -> None:
    document = Document(render_page(troubled(), refresh=True))
    assert document.all("html") == [{"lang": "en"}]
    assert len(document.all("h1")) == len(document.all("main")) == len(document.all("title")) == 1
    assert all(one.get("scope") in ("col", "row") for one in document.all("th"))
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(one["href"]) for one in document.all("a")]
    assert links[0] == "#main"
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    for section in document.all("section"):
        assert section["aria-labelledby"] in ids
    # on a phone each cell says what it is
    assert all(one.get("data-label") for one in document.all("td"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in document.all(
        "meta"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("since 2026-12-01 09:30:07+01:00", "since 2026-12-01 08:30 UTC"),
        ("since 2026-12-01T09:30:07+00:00", "since 2026-12-01 09:30 UTC"),
        ("since 2026-99-99T09:30:07+00:00", "since 2026-99-99T09:30:07+00:00"),
        ("type `a <b>` there", "type <code>a &lt;b&gt;</code> there"),
        ("a lone ` <b>", "a lone ` &lt;b&gt;"),
    ],
    ids=["local", "utc", "none", "code", "unpaired"],
)
def test_words_have_short_times_and_marked_code(text: str, shown: str) -> None:
    assert mark_words(text) == shown


def test_it_is_read_again_by_itself_unless_somebody_stops_it() -> None:
    assert '<meta http-equiv="refresh" content="30">' in render_page(overview(), refresh=True)
    assert 'http-equiv="refresh"' not in render_page(overview())
