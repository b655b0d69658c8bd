"""The page in a real browser: nothing runs, nothing is fetched, nothing is cut off."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from server.page.render import render_page
from tests.server.page.overviews import troubled
from tests.server.page.test_render import hostile

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
MEASURE = """
const wide = [...document.querySelectorAll("html, section, .scroll, li, td")]
  .filter(one => one.scrollWidth > one.clientWidth && getComputedStyle(one).display != "inline")
  .map(one => one.tagName + "." + one.className);
document.title = "wider than its place: " + (wide.join(" ") || "none");
"""


class Trap(BaseHTTPRequestHandler):
    """Serves the page, and keeps what else was asked for."""

    asked: ClassVar[list[tuple[str, str]]] = []
    body: ClassVar[bytes] = b""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append((self.headers.get("Host", ""), self.path))
        body = self.body if self.path == "/" else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def trap() -> Iterator[int]:
    Trap.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Trap) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def browse(address: str, home: Path, *options: str) -> str:
    """Open an address in a browser for which every other host is the trap; returns its output."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--disable-background-networking", "--no-first-run", f"--user-data-dir={home}",
         *options, address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_hostile_names_run_nothing_and_fetch_nothing(trap: int, tmp_path: Path) -> None:
    # the hostile texts name a picture of host x, which the browser would find at the trap
    address = f"http://127.0.0.1:{trap}/"
    options = (f"--host-resolver-rules=MAP * 127.0.0.1:{trap}", "--dump-dom")
    Trap.body = render_page(hostile()).encode()
    tree = browse(address, tmp_path, *options)
    assert ("x", "/") not in Trap.asked
    assert (f"127.0.0.1:{trap}", "/") in Trap.asked
    assert "<img" not in tree and "<script" not in tree
    assert tree.count("<style>") == 1
    # a page that lets such a text through is caught
    Trap.body = b"<p><img src=//x>"
    assert "<img" in browse(address, tmp_path, *options)
    assert ("x", "/") in Trap.asked


@pytest.mark.parametrize("width_px", [500, 1000], ids=["phone", "small screen"])
def test_nothing_is_cut_off(tmp_path: Path, width_px: int) -> None:
    # the page, with a script of this test's own in place of its policy
    text = render_page(troubled()).replace('http-equiv="Content-Security-Policy"', "")
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"<script>{MEASURE}</script></body>"))
    tree = browse(page.as_uri(), tmp_path / "home", f"--window-size={width_px},900", "--dump-dom")
    assert "<title>wider than its place: none</title>" in tree
