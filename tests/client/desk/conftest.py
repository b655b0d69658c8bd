"""A hospital whose images wait, and a desk over its state."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from httpx import Client, Response

from client.desk.door import Address
from client.desk.pages import Desk, make_app
from client.desk.serving import bind_loopback, make_server
from client.desk.sessions import Sessions
from client.egress.review import Reviews
from client.state.jobs import Stopped
from tests.asgi_browser import browse
from tests.shown_batches import showing_hospital
from tests.sites import Hospital

PLACE = "/place"
PORT = 8437
ORIGIN = f"http://127.0.0.1:{PORT}"


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Visitor:
    """A browser at the desk, which follows no redirect by itself."""

    desk: Desk
    clock: Clock
    opened: list[str]
    browser: Client = field(init=False)

    def __post_init__(self) -> None:
        self.browser = browse(make_app(self.desk), ORIGIN)

    def enter(self) -> Response:
        """Open a fresh link."""
        return self.get(f"/open?token={self.desk.sessions.new_link()}")

    def get(self, path: str, **options: Any) -> Response:
        """Ask for a page below the desk's place."""
        return self.browser.get(f"{PLACE}{path}", **options)

    def post(self, path: str, form: dict[str, Any] | None = None, **options: Any) -> Response:
        """Send a form as a browser does, with the secret of the page at `/`."""
        secret = form_secret(self.get("/").text)
        headers = {"origin": ORIGIN, "sec-fetch-site": "same-origin"}
        headers |= options.pop("headers", {})
        data = {"form": secret} | (form or {})
        return self.browser.post(f"{PLACE}{path}", data=data, headers=headers, **options)

    @property
    def reviews(self) -> Reviews:
        """The reviews that the desk decides on."""
        return self.desk.reviews

    def decide(self, digest: str, choice: str, reviewer: str, **fields: str) -> Response:
        """Decide on a batch."""
        form = {"choice": choice, "reviewer": reviewer, "reason": "", "note": ""} | fields
        return self.post(f"/batches/{digest}/decision", form)


def form_secret(page: str) -> str:
    """The secret in a page's forms."""
    found = re.search(r'name="form" value="([^"]+)"', page)
    return found.group(1) if found else ""


def wait_for_people(hospital: Hospital, **policy: Any) -> None:
    """Let the daemon make its batch and stop while it waits."""
    site = hospital.site(**policy)
    site.stop.set()
    with pytest.raises(Stopped):
        site.answer(hospital.ask("synthesize"))
    site.reviews.close()


@pytest.fixture(scope="session")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A hospital whose images wait; made once."""
    with pytest.MonkeyPatch.context() as patch:
        found = showing_hospital(tmp_path_factory.mktemp("waiting"), patch)
        wait_for_people(found)
    return found


@pytest.fixture
def hospital(waiting: Hospital, tmp_path: Path) -> Hospital:
    """A copy of it, for one test."""
    shutil.copytree(waiting.root, tmp_path / "state")
    return replace(waiting, root=tmp_path / "state")


def visit(hospital: Hospital, **policy: Any) -> Visitor:
    """A desk over a hospital's state, and a browser."""
    site = hospital.site(**policy)
    clock = Clock()
    opened: list[str] = []
    found = Desk(
        site.config.site,
        site.reviews,
        site.plans.valid,
        Sessions(clock),
        Address(PLACE, PORT),
        lambda: opened.append("opened"),
    )
    return Visitor(found, clock, opened)


@pytest.fixture
def stranger(hospital: Hospital) -> Iterator[Visitor]:
    """A browser that has not opened the link."""
    found = visit(hospital)
    yield found
    found.browser.close()


@pytest.fixture
def visitor(stranger: Visitor) -> Visitor:
    """A browser with a session."""
    assert stranger.enter().status_code == 303
    return stranger


@pytest.fixture
def digest(visitor: Visitor) -> str:
    """The batch that waits."""
    return visitor.reviews.find("").digest


@contextmanager
def listening(visitor: Visitor) -> Iterator[str]:
    """Serve a visitor's desk on loopback while the block runs; yields its origin."""
    with bind_loopback("127.0.0.1", 0) as listener:
        visitor.desk.address = Address(PLACE, listener.getsockname()[1])
        server = make_server(make_app(visitor.desk))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{visitor.desk.address.port}"
        finally:
            server.should_exit = True
            thread.join(30)
