"""A headless Chromium, driven by the W3C protocol of chromedriver: keys, screenshots, requests."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = None if DRIVER and BROWSER else "needs the packages chromium and chromium-driver"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name of an element's field
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Space": " ", "Down": "\ue015", "Shift": "\ue008"}
START_S = 60.0
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--force-color-profile=srgb", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-extensions",
)


@dataclass
class Chromium:
    """One browser window."""

    driver: httpx.Client

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Return the value of the driver's answer; raises for an error."""
        content = json.dumps(body) if method == "POST" else None
        answer = self.driver.request(method, path, content=content)
        value = answer.json()["value"]
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {value['error']}: {value['message'][:300]}")
        return value

    def open(self, address: str) -> None:
        """Go to an address."""
        self.ask("POST", "url", url=address)

    @property
    def address(self) -> str:
        """Where the window is."""
        return str(self.ask("GET", "url"))

    @property
    def source(self) -> str:
        """The page as the browser has it."""
        return str(self.ask("GET", "source"))

    def evaluate(self, script: str) -> Any:
        """Return the value of a script that the test brings along."""
        return self.ask("POST", "execute/sync", script=script, args=[])

    def press(self, *keys: str) -> None:
        """Press keys by name, or type a text."""
        steps: list[dict[str, str]] = []
        for key in keys:
            for letter in [KEYS[key]] if key in KEYS else key:
                steps.append({"type": "keyDown", "value": letter})
                steps.append({"type": "keyUp", "value": letter})
        self.ask("POST", "actions", actions=[{"type": "key", "id": "keys", "actions": steps}])

    def focused(self, name: str) -> str:
        """Return an attribute of the element that has the focus."""
        element = self.ask("GET", "element/active")[ELEMENT]
        return str(self.ask("GET", f"element/{element}/attribute/{name}") or "")

    def focused_text(self) -> str:
        """Return the text of the element that has the focus."""
        element = self.ask("GET", "element/active")[ELEMENT]
        return str(self.ask("GET", f"element/{element}/text"))

    def tab_to(self, *, most: int = 60, text: str = "", **attributes: str) -> None:
        """Press Tab until an element with these attributes, or this text, has the focus."""
        for _ in range(most):
            self.press("Tab")
            if text and text in self.focused_text():
                return
            if attributes and all(self.focused(n) == v for n, v in attributes.items()):
                return
        raise AssertionError(f"no Tab leads to {text or attributes}")

    def requested(self) -> list[str]:
        """Return the addresses of all requests since the last call."""
        found: list[str] = []
        for row in self.ask("POST", "se/log", type="performance"):
            message = json.loads(row["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(str(message["params"]["request"]["url"]))
        return found

    def complaints(self) -> list[str]:
        """Return what the console says: blocked loads, wrong markup."""
        return [str(row["message"]) for row in self.ask("POST", "se/log", type="browser")]

    def resize(self, width: int, height: int) -> None:
        """Let the page have another size, as on another screen."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = "Emulation.setDeviceMetricsOverride"
        self.ask("POST", "goog/cdp/execute", cmd=command, params=metrics)

    def screenshot(self) -> bytes:
        """Return the window's picture as PNG."""
        return base64.b64decode(self.ask("GET", "screenshot"))


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Chromium]:
    """Yield a fresh browser; it ends with the block."""
    assert DRIVER is not None and BROWSER is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "driver.log"
        process = subprocess.Popen(
            [DRIVER, f"--port={port}", f"--log-path={log}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as driver:
                _wait(driver)
                options = [*OPTIONS, f"--user-data-dir={folder}/profile"]
                session = _begin(driver, [*options, f"--window-size={width},{height}"])
                driver.base_url = httpx.URL(f"http://127.0.0.1:{port}/session/{session}/")
                try:
                    yield Chromium(driver)
                finally:
                    driver.delete(f"http://127.0.0.1:{port}/session/{session}")
        finally:
            process.terminate()
            process.wait(30)


def _wait(driver: httpx.Client) -> None:
    """Wait until the driver answers."""
    until = time.monotonic() + START_S
    while True:
        try:
            driver.get("/status")
            return
        except httpx.ConnectError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _begin(driver: httpx.Client, options: list[str]) -> str:
    """Return the id of a new session."""
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": BROWSER, "args": options},
        "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
    }
    answer = driver.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
    return str(answer.json()["value"]["sessionId"])
