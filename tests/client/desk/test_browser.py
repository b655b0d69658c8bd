"""The desk in a browser, by keyboard alone: what is loaded, decided and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.client.desk.conftest import PLACE, Visitor, listening, visit
from tests.sites import Hospital
from tests.transport import until
from tests.webdriver import MISSING, Chromium, chromium

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
SCRIPT = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def visitor(hospital: Hospital) -> Iterator[Visitor]:
    """A desk that listens, for two persons."""
    found = visit(hospital, reviewers=2)
    with listening(found):
        yield found


@pytest.fixture
def browser() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


def test_a_person_decides_by_keyboard_alone_and_nothing_is_loaded_from_elsewhere(
    visitor: Visitor, browser: Chromium
) -> None:
    desk = visitor.desk
    origin = f"http://127.0.0.1:{desk.address.port}"
    digest = visitor.reviews.find("").digest
    # what the browser loads for itself before it goes anywhere
    browser.open("about:blank")
    browser.requested()
    # (1) a person leaves two images out, with a name that a browser could run
    browser.open(f"{origin}{PLACE}/open?token={desk.sessions.new_link()}")
    assert browser.address == f"{origin}{PLACE}/"
    browser.tab_to(text=digest[:16])
    browser.press("Enter")
    browser.tab_to(value="2", type="checkbox")
    browser.press("Space")
    browser.tab_to(value="5", type="checkbox")
    browser.press("Space")
    browser.tab_to(value="decision")
    browser.press("Enter")
    assert "Leave out 2 marked: 2, 5." in browser.source
    # the first of the choices has the focus; the arrows go through them
    browser.tab_to(type="radio")
    browser.press("Down")
    browser.tab_to(id="reviewer")
    browser.press(SCRIPT[:80])
    browser.tab_to(id="note")
    browser.press(SCRIPT)
    browser.tab_to(text="Sign and decide")
    browser.press("Enter")
    batch = visitor.reviews.find(digest)
    assert (batch.state, batch.left_out) == ("reduced", (2, 5))
    # (2) its tags are words
    assert browser.evaluate("return document.title") != "run"
    made = "document.scripts.length + document.querySelectorAll('main img[src=x]').length"
    assert browser.evaluate(f"return {made}") == 0
    # (3) what is loaded comes from the desk
    asked = browser.requested()
    assert any(address.endswith("/nearest") for address in asked)
    assert [address for address in asked if not address.startswith(f"{origin}{PLACE}/")] == []
    assert browser.complaints() == []


def test_a_page_that_was_left_shows_nothing_by_the_back_button(
    visitor: Visitor, browser: Chromium
) -> None:
    origin = f"http://127.0.0.1:{visitor.desk.address.port}"
    browser.open(f"{origin}{PLACE}/open?token={visitor.desk.sessions.new_link()}")
    browser.tab_to(text="Leave the desk")
    browser.press("Enter")
    assert "You have left the desk" in browser.source
    browser.ask("POST", "back")
    assert "Images that may leave" not in browser.source


def test_no_page_is_wider_than_a_telephone(visitor: Visitor, browser: Chromium) -> None:
    desk = visitor.desk
    origin = f"http://127.0.0.1:{desk.address.port}"
    digest = visitor.reviews.find("").digest
    browser.resize(360, 640)
    browser.open(f"{origin}{PLACE}/open?token={desk.sessions.new_link()}")
    for path in ("/", f"/batches/{digest}", f"/batches/{digest}/decision"):
        browser.open(f"{origin}{PLACE}{path}")
        # a picture that was refused is complete, too, and has no width
        until(lambda: browser.evaluate("return [...document.images].every(one => one.complete)"))
        facts = browser.evaluate(
            "return [document.documentElement.scrollWidth, "
            "[...document.images].filter(one => !one.naturalWidth).map(one => one.src)]"
        )
        assert facts[0] <= 360 and not facts[1], json.dumps([path, facts])
