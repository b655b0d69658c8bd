"""Who may look at the desk: a link that works once opens a session in a cookie.

In: what a browser presents, the time. Out: a `Session`, or None.
Guarantees:
  1. a link opens one session, within `LINK_S`
  2. a session ends after `SESSION_S`, or after `IDLE_S` without a request
  3. links and sessions are known by the SHA-256 of 256 random bits, and never written down
Not covered: what else of this account reads the terminal that shows the link.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LINK_S = 3600.0
SESSION_S = 8 * 3600.0
IDLE_S = 3600.0
SECRET_BYTES = 32
MOST_SESSIONS = 16


@dataclass
class Session:
    """One person at the desk.

    `form`: the secret in each of its forms. `reviewer`: the name of the first decision; it stays.
    `marks`: by batch, the images that are marked to be left out.
    """

    cookie: str
    form: str
    began: float
    seen: float
    reviewer: str = ""
    marks: dict[str, set[int]] = field(default_factory=dict)

    def is_own_form(self, secret: str) -> bool:
        """Return whether a form was made for this session."""
        return hmac.compare_digest(self.form.encode(), secret.encode())

    def is_over(self, now: float) -> bool:
        """Return whether it has ended."""
        return now - self.began >= SESSION_S or now - self.seen >= IDLE_S


class Sessions:
    """All links and sessions of one desk, in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._links: dict[str, float] = {}
        self._sessions: dict[str, Session] = {}

    def new_link(self) -> str:
        """Return the secret of a link that works once; earlier links that nobody used end."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self._links = {_digest(secret): self._clock()}
        return secret

    def open(self, secret: str) -> Session | None:
        """Return a new session for a link's secret; None for one that is used, old or unknown."""
        made = self._links.pop(_digest(secret), None)
        now = self._clock()
        self._forget(now)
        if made is None or now - made >= LINK_S or len(self._sessions) >= MOST_SESSIONS:
            return None
        cookie, form = (secrets.token_urlsafe(SECRET_BYTES) for _ in range(2))
        session = Session(cookie, form, now, now)
        self._sessions[_digest(cookie)] = session
        return session

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie, which now was seen; None where it has ended."""
        now = self._clock()
        self._forget(now)
        session = self._sessions.get(_digest(cookie))
        if session is not None:
            session.seen = now
        return session

    def end(self, session: Session) -> None:
        """End a session."""
        self._sessions.pop(_digest(session.cookie), None)

    def _forget(self, now: float) -> None:
        """Drop the sessions that have ended."""
        for name, session in list(self._sessions.items()):
            if session.is_over(now):
                del self._sessions[name]


def _digest(secret: str) -> str:
    """Under what a secret is known: a search for it tells nothing by its time."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
