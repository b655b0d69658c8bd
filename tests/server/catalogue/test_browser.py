"""The catalogue in a real browser: accessible, readable on a phone, and asking nobody else."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.catalogues import Operator
from tests.webdriver import MISSING, Chromium, chromium

AXE = find_spec("axe_core_python")
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=MISSING or ""),
    pytest.mark.skipif(AXE is None, reason="needs the package axe-core-python"),
]
VIOLATIONS = """; return axe.run().then(
  found => found.violations.map(one => one.id + ": " + one.nodes[0].html.slice(0, 200)))"""
WIDE = """
return [...document.querySelectorAll("html, section, article, pre, table, li, dl")]
  .filter(one => one.scrollWidth > one.clientWidth && getComputedStyle(one).display != "inline")
  .map(one => one.tagName + "." + one.className)"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site of two releases, one of them withdrawn."""
    eyes = built.copy(tmp_path_factory.mktemp("browser") / "eyes")
    eyes.publish()
    eyes.withdraw("small", "1.0.0")
    handler = functools.partial(Quiet, directory=str(eyes.web))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as window:
        window.open("about:blank")
        window.requested()
        window.complaints()
        yield window


def axe() -> str:
    """The script of axe that the package brings."""
    assert AXE is not None and AXE.origin is not None
    return (Path(AXE.origin).parent / "axe.min.js").read_text()


@pytest.mark.parametrize("page", ["index", "small-1.1.0", "small-1.0.0"])
def test_a_page_is_accessible_fits_a_phone_and_asks_nobody_else(
    page: str, address: str, browser: Chromium
) -> None:
    for width_px in (390, 1100):
        browser.resize(width_px, 900)
        browser.open(f"{address}/{page}.html")
        if page == "small-1.1.0":
            browser.evaluate("document.querySelector('details').open = true")
        assert browser.evaluate(WIDE) == [], width_px
        assert browser.evaluate(axe() + VIOLATIONS) == [], width_px
        asked = [one for one in browser.requested() if not one.startswith("data:")]
        assert asked and all(one.startswith(address) for one in asked)
        assert browser.complaints() == []


def test_axe_finds_what_is_wrong(address: str, browser: Chromium) -> None:
    browser.open(f"{address}/index.html")
    browser.evaluate("document.querySelector('img').removeAttribute('alt')")
    assert any("image-alt" in one for one in browser.evaluate(axe() + VIOLATIONS))
