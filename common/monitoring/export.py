"""Shows the metrics of a daemon: on the loopback interface, in a file, or both.

In: `collect`, which returns a `Scrape`. Out: threads that end with the daemon.
Guarantees: whatever `collect` raises, and whatever a scraper does, ends no thread of the daemon: a
request is answered with 503, a file keeps its last text. At most `SCRAPERS` connections are open,
each for a few seconds of silence.
Not covered: who on this machine asks; the metrics hold nothing of a patient.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from common.errors import EnvironmentFault, KohortError
from common.monitoring.scrape import Scrape
from common.monitoring.settings import Address, MetricsSettings, loopback
from common.storage.files import atomic_write

PATH = "/metrics"
EVERY_S = 15.0  # between two texts of the file
SILENT_S = 5.0  # a scraper that says nothing for so long is left
SCRAPERS = 8
READABLE = 0o644  # node_exporter is another account
Collect = Callable[[], Scrape]
log = logging.getLogger("kohort")


@contextmanager
def exporting(settings: MetricsSettings, collect: Collect) -> Iterator[None]:
    """Show the metrics as the settings say, until the block ends.

    Raises EnvironmentFault (E-LISTEN) where the port is taken.
    """
    one_at_a_time = threading.Lock()

    def text() -> bytes:
        with one_at_a_time:
            return collect().text()

    with ExitStack() as stack:
        if settings.listen is not None:
            stack.enter_context(_listening(loopback(settings.listen), text))
        if settings.textfile is not None:
            stack.enter_context(_writing(Path(settings.textfile), text))
        yield


@contextmanager
def _listening(address: Address, text: Callable[[], bytes]) -> Iterator[None]:
    """Answer scrapers until the block ends."""
    try:
        server = _Server(address, text)
    except OSError as error:
        raise EnvironmentFault(
            f"metrics.listen: {address.host}:{address.port}: {error.strerror}",
            hint="another program has this port: name a free one",
            code="E-LISTEN",
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """Few connections at once; one more is closed unanswered."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, text: Callable[[], bytes]) -> None:
        self.text = text
        self._free = threading.BoundedSemaphore(SCRAPERS)
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, if one is free."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a scraper that went away."""


class _Handler(BaseHTTPRequestHandler):
    """GET /metrics, and nothing else."""

    server: _Server
    timeout = SILENT_S

    def do_GET(self) -> None:
        """Answer with the metrics that hold now."""
        if self.path != PATH:
            self.send_error(404)
            return
        try:
            text = self.server.text()
        except Exception as error:
            _warn("not read", error)
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def version_string(self) -> str:
        """Name no program."""
        return "kohort"

    def log_message(self, *_: Any) -> None:
        """Log no scrape."""


@contextmanager
def _writing(path: Path, text: Callable[[], bytes]) -> Iterator[None]:
    """Write the file again and again until the block ends; it is removed with the daemon."""
    stop = threading.Event()

    def loop() -> None:
        while True:
            try:
                atomic_write(path, text(), mode=READABLE)
            except Exception as error:
                _warn(f"{path.name} not written", error)
            if stop.wait(EVERY_S):
                return

    thread = threading.Thread(target=loop, name="metrics-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        # a text that nobody writes any more would be read as true
        path.unlink(missing_ok=True)


def _warn(what: str, error: Exception) -> None:
    """Log a code alone: an exception's text may hold anything."""
    code = error.code if isinstance(error, KohortError) else type(error).__name__
    log.warning("metrics: %s: %s", what, code)
