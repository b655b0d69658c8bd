"""Targets: what a child leaves for reviewers, and what a browser sends to the review desk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from starlette.types import ASGIApp, Message

from client.desk.door import Address
from client.desk.pages import Desk, make_app
from client.desk.sessions import Sessions
from client.egress.audit import AuditReport, Nearest
from client.egress.contact_sheet import contact_sheet
from client.egress.facts import Facts, Finding, ImageFacts, findings_text, read_findings
from client.egress.review import Reviews
from client.egress.sheet_pictures import SheetPictures
from common.wire import signing
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import damaged, exchanged, one_of, revalued

FINDING = Finding("A-PASS", 1.2, 0.9)
IMAGES = (ImageFacts("grade-0", 0, 5, False, FINDING), ImageFacts("grade-1", 1, 6, True, FINDING))
REPORT = AuditReport(("A-PASS",) * 2, (Nearest(1, (2.0,) * 3, (1.0,) * 3),) * 2)


def _facts(folder: Path) -> Parser:
    """What is noted of each image, and what the audit found."""
    paths = (folder / "batch.json", folder / "findings.json")
    seeds = (Facts(32, IMAGES, "").to_json(), findings_text(REPORT))

    def call(data: bytes) -> None:
        which = data[:1] == b"\1"
        paths[which].write_bytes(data[1:])
        if which:
            read_findings(paths[1])
        else:
            Facts.read(paths[0])

    makers = (one_of(*map(revalued, seeds)), one_of(*map(exchanged, seeds)))
    return Parser(call, makers)


def _page(folder: Path) -> Parser:
    """A page of a contact sheet, from which pictures are cut."""
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    seed = contact_sheet(images, images, REPORT)
    path = folder / "contact_sheet.png"

    def call(data: bytes) -> None:
        path.write_bytes(data)
        SheetPictures([path], Facts(8, IMAGES, "")).png(2, 1)

    return Parser(call, (damaged(seed),), good=seed)


def _desk(folder: Path) -> Parser:
    """Requests to the review desk, of somebody who has a session and of a stranger."""
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    (folder / "contact_sheet.png").write_bytes(contact_sheet(images, images, REPORT))
    (folder / "batch.json").write_bytes(Facts(8, IMAGES, "").to_json())
    key = signing.new_key()
    reviews = Reviews(folder / "review", lambda: key, 2)
    batch = reviews.propose("ab" * 32, "f" * 64, folder / "contact_sheet.png")
    sessions = Sessions(lambda: 0.0)
    session = sessions.open(sessions.new_link())
    assert session is not None
    session.form = "form"
    desk = Desk("hospital-a", reviews, dict, sessions, Address("/d", None))
    app = make_app(desk)
    head = f"host: localhost\ncookie: kohort_desk={session.cookie}\norigin: http://localhost\n"
    form = "content-type: application/x-www-form-urlencoded\ncontent-length: 60\n"
    page = f"/d/batches/{batch.digest}"
    seeds = [
        f"GET /d/open?token=x\n{head}\n",
        f"GET {page}?page=1\n{head}sec-fetch-site: none\n\n",
        f"GET {page}/pictures/1/nearest\n{head}\n",
        f"GET {page}/sheets/1\n{head}\n",
        f"POST {page}/marks\n{head}{form}\nform=form&page=1&mark=1&mark=2&go=decision",
        f"POST {page}/decision\n{head}{form}\nform=form&choice=approve&reviewer=R&note=n",
    ]

    def call(data: bytes) -> None:
        status = asyncio.run(_answer(app, data))
        assert status < 500, status

    raw = [seed.encode() for seed in seeds]
    return Parser(call, (damaged(*raw), exchanged(*raw)), good=raw[1])


async def _answer(app: ASGIApp, data: bytes) -> int:
    """The status of the answer to a request, as a server hands it on."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.decode("latin-1").partition(" ")
    path, _, query = target.partition("?")
    headers = [tuple(line.lower().split(b": ", 1)) for line in lines if b": " in line]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope |= {"headers": headers, "scheme": "http", "root_path": "", "server": ("localhost", 80)}
    found: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    await app(scope, receive, send)
    return found[0]


TARGETS = (
    Target("desk-requests", ("client.desk.door", "client.desk.pages"), _desk, few=300),
    Target("batch-facts", ("client.egress.facts",), _facts),
    Target("sheet-page", ("client.egress.sheet_pictures",), _page, memory_mib=128, few=400),
)
