"""Looks after this site's certificate beside the daemon's work, in a thread of its own.

In: a `Renewal`, the fleet client. Out: a renewed certificate, one line in the log for each change.
Guarantees: no fault here ends the daemon; the old node key gives way only between two messages.
Not covered: the renewal itself (client/fleet/renewal.py).
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from client.fleet.expiry import ending_certificates
from client.fleet.failures import CallFailed, classify
from client.fleet.renewal import Renewal, finish_rotation
from client.state.folder import State
from client.state.request import write_request_file
from common.errors import KohortError

if TYPE_CHECKING:
    from client.fleet.client import FleetClient

LOOK_S = 60.0
DAY_S = 86_400.0
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
log = logging.getLogger("kohort")


class CertificateWatch:
    """The thread; `start` begins it, `stop` of the site ends it."""

    def __init__(self, renewal: Renewal, client: FleetClient, stop: threading.Event) -> None:
        self._renewal = renewal
        self._client = client
        self._stop = stop
        self._asked = -DAY_S
        self._named = -DAY_S
        self._had_next_key = False

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="certificates", daemon=True).start()

    def _run(self) -> None:
        """Look now, and once a minute until the site stops."""
        while True:
            self.look()
            if self._stop.wait(LOOK_S):
                return

    def look(self, now: datetime | None = None) -> None:
        """One look: ask for a certificate if it is time, and name what ends soon once a day."""
        now = now or datetime.now(UTC)
        clock = time.monotonic()
        if clock - self._named >= DAY_S:
            self._named = clock
            for one in ending_certificates(self._renewal.settings, now):
                log.log(LEVELS[one.severity], "%s", one.line)
        if clock - self._asked < self._renewal.wait_s() and not self._has_new_key():
            return
        self._asked = clock
        try:
            said = self._renewal.turn(now)
        except (CallFailed, KohortError, OSError, ValueError) as error:
            # the connection's own state tells a person what to do
            log.info("certificate not renewed: %s", code_of(error))
            return
        if said:
            log.info("%s", said)
            self._client.reconnect()

    def _has_new_key(self) -> bool:
        """Whether `kohort-site rotate` has made a key since the last look."""
        before = self._had_next_key
        place = self._renewal.state
        self._had_next_key = place.next_node_key.is_file() or place.next_sign_key.is_file()
        return self._had_next_key and not before

    def rest(self) -> None:
        """Nothing is at work and nothing waits: new keys may take the place of the old."""
        if take_over(self._renewal.state, self._renewal.site):
            self._client.forget_node()
            log.info("the new key counts")


def mend_rotation(state: State, site: str) -> None:
    """Go on with a change of keys in which an earlier process ended."""
    node = state.next_certificate.is_file() and not state.next_node_key.is_file()
    sign = state.next_sign_known.is_file() and not state.next_sign_key.is_file()
    if (node or sign) and take_over(state, site):
        log.info("the new key counts")


def take_over(state: State, site: str) -> bool:
    """Let new keys take over that the server knows; write the request that names them."""
    if not finish_rotation(state, site):
        return False
    try:
        write_request_file(state, site)
    except KohortError as error:
        log.warning("the request file still names the old key: %s", error.code)
    return True


def code_of(error: Exception) -> str:
    """Return what may stand in a log of a failed renewal."""
    if isinstance(error, KohortError):
        return error.code
    return classify(error).state.code
