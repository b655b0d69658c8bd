"""The desk's pages: the list, a batch, its pictures, the decision.

In: requests that passed the door (door.py). Out: HTML and PNG.
Guarantees:
  1. a form counts only with the secret of its session
  2. a path names a batch by its whole digest and a picture by its number: no path of a file is made
     of what a browser sends
  3. pictures are cut from pages that have the SHA-256 in the journal
  4. one session decides under one name
Not covered: the rules of a decision (client/egress/review.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from client.desk import views
from client.desk.door import COOKIE, ICON, OPEN, STYLE, Address, Door
from client.desk.sessions import SESSION_S, Session, Sessions
from client.desk.words import image_claims
from client.egress.decisions import REASONS, who
from client.egress.facts import Facts
from client.egress.review import Batch, Reviews, find_altered, read_page
from client.egress.sheet_pictures import SIDES, SheetPictures
from common.errors import (
    ConfigurationError,
    EnvironmentFault,
    KohortError,
    PolicyError,
    RefusedError,
)
from common.study.plan import Study

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_FIELD = 2000
MOST_PAGES = 100_000
STATUS: tuple[tuple[type[KohortError], int], ...] = (
    (ConfigurationError, 422),
    (PolicyError, 409),
    (RefusedError, 404),
    (EnvironmentFault, 500),
)
log = logging.getLogger(__name__)

Digest = Annotated[str, InPath(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, InPath(ge=1, le=MOST_PAGES)]


@dataclass
class Desk:
    """What the pages are made of.

    `plans`: the approved plans by their hash. `opened`: is called when a link was used. `prices`:
    what plans cost a patient, a line each.
    """

    site: str
    reviews: Reviews
    plans: Callable[[], Mapping[str, Study]]
    sessions: Sessions
    address: Address
    opened: Callable[[], None] = lambda: None
    prices: Callable[[], Sequence[str]] = tuple
    _pictures: dict[str, SheetPictures] = field(default_factory=dict)

    def batch(self, digest: str) -> Batch:
        """Return the batch with exactly this digest; raises HTTPException (404)."""
        for batch in self.reviews.batches():
            if batch.digest == digest:
                return batch
        raise HTTPException(404)

    def facts(self, batch: Batch) -> Facts:
        """Return what is noted of a batch's images; raises HTTPException where nothing is."""
        facts = batch.facts()
        if facts is None:
            raise HTTPException(404)
        return facts

    def pictures(self, batch: Batch) -> SheetPictures:
        """Return the pictures of a batch; those of the batch that was shown last are kept."""
        key = "/".join((batch.digest, *batch.pages.values()))
        if key not in self._pictures:
            found = SheetPictures([*batch.sheets], self.facts(batch), batch.pages)
            self._pictures = {key: found}
        return self._pictures[key]

    def html(
        self, template: str, session: Session | None, status: int = 200, **values: Any
    ) -> Response:
        """Return a page."""
        shared = {"site": self.site, "base": self.address.place, "session": session}
        text = _environment().get_template(template).render(**shared, **values)
        return HTMLResponse(text, status)

    def link(self, *parts: object) -> str:
        """Return the path of a page."""
        return "/".join((self.address.place, *map(str, parts)))


def make_app(desk: Desk) -> ASGIApp:
    """Return the desk as an application, behind its door."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter(prefix=desk.address.place)
    add_signing_in(router, desk)
    add_looking(router, desk)
    add_deciding(router, desk)
    app.include_router(router)
    add_faults(app, desk)
    return Door(app, desk.address, desk.sessions)


def add_signing_in(router: APIRouter, desk: Desk) -> None:
    """The link that opens a session, its end, and the style."""

    @router.get(OPEN)
    async def open_link(token: str = "") -> Response:
        session = desk.sessions.open(token)
        if session is None:
            return desk.html("refused.html.j2", None, 401, **_words_of_a_used_link())
        answer = _go(desk.link(""))
        answer.set_cookie(
            COOKIE,
            session.cookie,
            max_age=int(SESSION_S),
            path=desk.address.place,
            httponly=True,
            samesite="strict",
        )
        log.info("the desk was opened")
        desk.opened()
        return answer

    @router.post("/leave")
    async def leave(request: Request) -> Response:
        session, _ = await read_form(request)
        desk.sessions.end(session)
        answer = desk.html("left.html.j2", None)
        answer.delete_cookie(COOKIE, path=desk.address.place)
        return answer

    @router.get(STYLE)
    async def style() -> Response:
        return Response((TEMPLATES / "desk.css").read_bytes(), media_type="text/css")

    @router.get(ICON)
    async def icon() -> Response:
        return Response((TEMPLATES / "desk.svg").read_bytes(), media_type="image/svg+xml")


def add_looking(router: APIRouter, desk: Desk) -> None:
    """The list, a batch, and its pictures."""

    @router.get("/")
    async def show_list(request: Request) -> Response:
        plans = desk.plans()
        rows: list[views.Row] = []
        for batch in reversed(desk.reviews.batches()):
            study = plans.get(batch.study)
            facts = None if find_altered(batch) else batch.facts()
            rows.append(views.Row.of(batch, facts, study, desk.reviews.reviewers))
        prices = desk.prices() if rows else ()
        return desk.html("list.html.j2", _session(request), rows=rows, prices=prices)

    @router.get("/batches/{digest}")
    async def show_batch(request: Request, digest: Digest, page: int = 1) -> Response:
        return show(desk, _session(request), desk.batch(digest), page)

    @router.get("/batches/{digest}/pictures/{number}/{side}")
    async def show_picture(digest: Digest, number: Number, side: str) -> Response:
        if side not in SIDES:
            raise HTTPException(404)
        batch = desk.batch(digest)
        return _png(desk.pictures(batch).png(number, SIDES.index(side)))

    @router.get("/batches/{digest}/sheets/{number}")
    async def show_sheet(digest: Digest, number: Number) -> Response:
        batch = desk.batch(digest)
        if number > len(batch.sheets):
            raise HTTPException(404)
        return _png(read_page(batch, batch.sheets[number - 1]))


def add_deciding(router: APIRouter, desk: Desk) -> None:
    """Marks, and the decision."""

    @router.post("/batches/{digest}/marks")
    async def mark(request: Request, digest: Digest) -> Response:
        session, form = await read_form(request)
        batch = desk.batch(digest)
        facts = desk.facts(batch)
        page = views.Pages.of(_number(_text(form, "page")), len(facts.images))
        shown = set(page.shown(len(facts.images)))
        marks = session.marks.setdefault(digest, set())
        marks -= shown
        marks |= shown & {_number(str(value)) for value in form.getlist("mark")}
        place = _text(form, "go")
        if place == "decision":
            return _go(desk.link("batches", digest, "decision"))
        return _go(desk.link("batches", f"{digest}?page={_number(place) or page.page}"))

    @router.get("/batches/{digest}/decision")
    async def ask(request: Request, digest: Digest) -> Response:
        session = _session(request)
        batch = desk.batch(digest)
        return desk.html("decision.html.j2", session, **_question(desk, batch, session))

    @router.post("/batches/{digest}/decision")
    async def decide(request: Request, digest: Digest) -> Response:
        session, form = await read_form(request)
        batch = desk.batch(digest)
        name = _own_name(session, _text(form, "reviewer"))
        words = {"reason": _text(form, "reason"), "note": _text(form, "note")}
        choice = _text(form, "choice")
        if choice == "leave out":
            marks = sorted(session.marks.get(digest, ()))
            decided = desk.reviews.leave_out(digest, marks, reviewer=name, **words)
        elif choice in ("approve", "reject"):
            approve = choice == "approve"
            decided = desk.reviews.decide(digest, approve=approve, reviewer=name, **words)
        else:
            raise ConfigurationError("no decision was chosen", hint="choose one of them")
        session.reviewer = session.reviewer or decided.decided[-1].reviewer
        log.info("batch %s: %s", batch.digest[:16], decided.state)
        return _go(desk.link("batches", digest))


def add_faults(app: FastAPI, desk: Desk) -> None:
    """What is refused, in words; nothing of the request stands in it."""

    @app.exception_handler(KohortError)
    async def refused(request: Request, error: KohortError) -> Response:
        status = next((code for kind, code in STATUS if isinstance(error, kind)), 500)
        words = {"title": "That was not done", "text": str(error), "hint": error.hint}
        return desk.html("refused.html.j2", _found(request), status, code=error.code, **words)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("the desk failed: %s", type(error).__name__)
        return Response("The desk failed; nothing was decided.\n", 500, media_type="text/plain")

    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        words = {"title": "There is no such page", "text": "Nothing lies here.", "hint": ""}
        return desk.html("refused.html.j2", _found(request), status, code="", **words)


def show(desk: Desk, session: Session, batch: Batch, asked: int) -> Response:
    """Return the page of a batch."""
    facts = batch.facts()
    study = desk.plans().get(batch.study)
    values: dict[str, Any] = {
        "row": views.Row.of(batch, facts, study, desk.reviews.reviewers),
        "claims": [] if study is None else list(image_claims(study)),
        "steps": views.steps(batch.decided),
        "altered": find_altered(batch) is not None,
        "waiting": batch.state == "waiting",
    }
    if facts is None:
        return desk.html("sheets.html.j2", session, sheets=len(batch.sheets), **values)
    pages = views.Pages.of(asked, len(facts.images))
    marks = session.marks.get(batch.digest, set())
    shown = views.pictures(facts, pages.shown(len(facts.images)), marks)
    return desk.html(
        "batch.html.j2",
        session,
        pages=pages,
        pictures=shown,
        whole=facts.whole,
        marks=marks,
        **values,
    )


def _question(desk: Desk, batch: Batch, session: Session) -> dict[str, Any]:
    """What the form of a decision says."""
    facts = batch.facts()
    marks = sorted(session.marks.get(batch.digest, ()))
    stay = facts.of_groups(marks) if facts is not None else ()
    return {
        "row": views.Row.of(batch, facts, desk.plans().get(batch.study), desk.reviews.reviewers),
        "waiting": batch.state == "waiting",
        "steps": views.steps(batch.decided),
        "marks": marks,
        "stay": stay,
        "images": 0 if facts is None else len(facts.images),
        "whole": facts.whole if facts is not None else "",
        "can_leave_out": facts is not None and not facts.whole,
        "reasons": REASONS,
        "reviewers": desk.reviews.reviewers,
    }


async def read_form(request: Request) -> tuple[Session, FormData]:
    """Return the session and the form that was made for it; raises HTTPException (403)."""
    session = _session(request)
    form = await request.form()
    if not session.is_own_form(_text(form, "form")):
        raise HTTPException(403)
    return session, form


def _own_name(session: Session, name: str) -> str:
    """The name under which this session decides; raises PolicyError for a second one."""
    if session.reviewer and who(session.reviewer) != who(name):
        raise PolicyError(
            f"review: this session decided as {session.reviewer}, and decides under one name",
            hint="leave the desk; the other person opens the next link that the terminal shows",
            code="E-REVIEW-SAME",
        )
    return name


def _session(request: Request) -> Session:
    """The session that the door found; raises HTTPException (401)."""
    session = _found(request)
    if session is None:
        raise HTTPException(401)
    return session


def _found(request: Request) -> Session | None:
    """The session that the door found, or None."""
    session = request.scope.get("state", {}).get("session")
    return session if isinstance(session, Session) else None


def _text(form: FormData, name: str) -> str:
    """A field of a form as text; "" where it is none."""
    value = form.get(name, "")
    return value[:LONGEST_FIELD] if isinstance(value, str) else ""


def _number(text: str) -> int:
    """A number of a form; 0 for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 0


def _go(path: str) -> RedirectResponse:
    """The answer to a form: look there."""
    return RedirectResponse(path, 303)


def _png(data: bytes) -> Response:
    """A picture."""
    return Response(data, media_type="image/png")


def _words_of_a_used_link() -> dict[str, str]:
    """What is said to whoever comes with a link that opens nothing."""
    return {
        "title": "This link opens nothing",
        "text": "It was used, or it is old. Each link opens the desk once.",
        "hint": "Open the newest link that the terminal shows.",
        "code": "",
    }


def _environment() -> jinja2.Environment:
    """Every value is escaped; an unknown name in a template is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
