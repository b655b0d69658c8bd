"""Every state a site can be in that a person should know of: declared once, with the words and the fix.

In: `Health.set(STATE, facts)` from any thread. Out: the active states, at most one per subject, for the status command,
the status file and the metrics. Guaranteed: no state without a code and a fix; facts stay on this site (they may name a
host, a date or a path; never a patient). Not covered: what to do about a state; nothing here stops or starts anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class State:
    """A declared state: `code` is stable, `subject` is what it is about, `fix` is what a person does."""

    code: str
    subject: str
    severity: Severity
    text: str
    fix: str


@dataclass(frozen=True)
class Active:
    """A state that holds now, since a Unix time in seconds, with facts for this site's own staff."""

    state: State
    since: float
    facts: str

    def line(self) -> str:
        """The state as one line of plain words."""
        facts = f" ({self.facts})" if self.facts else ""
        fix = f" Fix: {self.state.fix}" if self.state.fix else ""
        return f"{self.state.severity}: {self.state.text}{facts}.{fix}"


STATES: dict[str, State] = {}


def _declare(code: str, subject: str, severity: Severity, text: str, fix: str) -> State:
    """Register a state under its code."""
    assert code not in STATES, code
    return STATES.setdefault(code, State(code, subject, severity, text, fix))


_C = "connection"
CONNECTING = _declare("CONNECTING", _C, "info", "connecting to the server", "")
CONNECTED = _declare("CONNECTED", _C, "info", "connected to the server", "")
SERVER_CERTIFICATE_EXPIRED = _declare(
    "SERVER-CERTIFICATE-EXPIRED", _C, "error", "the server's certificate has expired",
    "ask the operator to renew it; check this machine's clock; the site reconnects by itself",
)  # fmt: skip
SERVER_CA_UNKNOWN = _declare(
    "SERVER-CA-UNKNOWN", _C, "error", "the server's certificate is not signed by the CA in `server.ca`",
    "compare the CA file with the operator's; if a proxy inspects TLS, exempt the server's name from it",
)  # fmt: skip
SERVER_NAME_WRONG = _declare(
    "SERVER-NAME-WRONG", _C, "error", "the server's certificate is for another name",
    "use the name in the certificate as `server.address`, or ask the operator to add this one",
)  # fmt: skip
TLS_FAILED = _declare(
    "TLS-FAILED", _C, "error", "no TLS 1.3 session with the server",
    "ask the operator whether the server offers TLS 1.3 and wants a client certificate",
)  # fmt: skip
CLIENT_CERTIFICATE_REFUSED = _declare(
    "CLIENT-CERTIFICATE-REFUSED", _C, "error", "the server refused our client certificate",
    "it is missing, expired or revoked: ask the operator for a new one and put it at `identity.certificate`",
)  # fmt: skip
CLIENT_CERTIFICATE_UNUSABLE = _declare(
    "CLIENT-CERTIFICATE-UNUSABLE", _C, "error", "the CA file, our key or our certificate cannot be read",
    "check the files in `server.ca` and `identity`; they are read again at every attempt",
)  # fmt: skip
KEY_UNKNOWN = _declare(
    "KEY-UNKNOWN", _C, "error", "the server no longer knows our key",
    "ask the operator whether the site was revoked; a revoked key can never come back, make a new one",
)  # fmt: skip
CLOCK_OFF = _declare(
    "CLOCK-OFF",
    _C,
    "error",
    "this machine's clock differs from the server's",
    "turn on time synchronisation (NTP)",
)
KEY_NOT_ADMITTED = _declare(
    "KEY-NOT-ADMITTED", _C, "error", "the server does not let our key in: not registered, or counted in another session",
    "send keys/node.pub to the operator; a session that was cut off counts for 60 s, a copied key for as long as it runs",
)  # fmt: skip
PROXY_REFUSED = _declare(
    "PROXY-REFUSED",
    _C,
    "error",
    "the proxy refuses the connection",
    "ask for CONNECT to the server's name and port",
)
PROXY_LOGIN = _declare(
    "PROXY-LOGIN",
    _C,
    "error",
    "the proxy wants a login",
    "put user and password into `network.proxy`",
)
NAME_UNKNOWN = _declare(
    "NAME-UNKNOWN",
    _C,
    "error",
    "the server's name cannot be resolved",
    "check `server.address` and this machine's DNS",
)
NOTHING_LISTENS = _declare(
    "NOTHING-LISTENS", _C, "error", "nothing answers at the server's address",
    "check address and port and the firewall; the site keeps trying",
)  # fmt: skip
TIMED_OUT = _declare(
    "TIMED-OUT",
    _C,
    "warning",
    "the server does not answer in time",
    "check the line; the site keeps trying",
)
MACHINE_FAULT = _declare(
    "MACHINE-FAULT",
    _C,
    "error",
    "this machine cannot store what it receives",
    "see the facts: disk, path or owner",
)
BODY_REFUSED = _declare(
    "BODY-REFUSED", "reply", "error", "the server or a proxy refuses bodies of our size; the reply is kept",
    "ask for a body limit of at least 8 MB",
)  # fmt: skip
FORBIDDEN = _declare(
    "FORBIDDEN",
    _C,
    "error",
    "the server forbids the request",
    "ask the operator whether this site is still a member",
)
SERVER_BUSY = _declare(
    "SERVER-BUSY", _C, "warning", "the server is busy or restarting", "none: the site keeps trying"
)
NOT_THE_SERVER = _declare(
    "NOT-THE-SERVER", _C, "error", "something else answers at the server's address",
    "a portal or a proxy page is in between: open the way to the server",
)  # fmt: skip
REDIRECTED = _declare(
    "REDIRECTED", _C, "error", "the server tried to send us elsewhere; not followed",
    "use the final address as `server.address` after asking the operator about it",
)  # fmt: skip
ANSWER_TOO_LARGE = _declare(
    "ANSWER-TOO-LARGE", _C, "error", "an answer of the server was cut off at our limit",
    "tell the operator: no honest answer is that large",
)  # fmt: skip

_M = "message"
APP_UNPINNED = _declare(
    "APP-UNPINNED", _M, "warning", "the server asked for work under a plan that nobody here approved",
    "read the plan and run `kohort-site approve`, or ask the operator what was submitted",
)  # fmt: skip
MESSAGE_TOO_LARGE = _declare(
    "MESSAGE-TOO-LARGE", _M, "error", "an instruction was larger than this site accepts; refused",
    "raise `server.max_message` if the plan's models need it",
)  # fmt: skip
MESSAGE_CORRUPT = _declare(
    "MESSAGE-CORRUPT", _M, "error", "an instruction was not what its identifiers promise; refused",
    "tell the operator: the server or the line changes messages",
)  # fmt: skip
WORK_FAILED = _declare(
    "WORK-FAILED", _M, "error", "an instruction could not be carried out; the server got the code only",
    "see this site's log",
)  # fmt: skip


class Health:
    """The states that hold now, at most one per subject. Safe to use from several threads."""

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self._active: dict[str, Active] = {}
        self._lock = threading.Lock()
        self._on_change = on_change
        self._last_heartbeat: float | None = None

    def set(self, state: State, facts: str = "") -> None:
        """Let `state` hold; it replaces the state of the same subject and keeps its own start time."""
        with self._lock:
            old = self._active.get(state.subject)
            same = old is not None and old.state == state
            if same and old is not None and old.facts == facts:
                return
            since = old.since if same and old is not None else time.time()
            self._active[state.subject] = Active(state, since, facts)
        self._notify()

    def clear(self, subject: str) -> None:
        """Let no state of this subject hold."""
        with self._lock:
            gone = self._active.pop(subject, None)
        if gone is not None:
            self._notify()

    def get(self, subject: str) -> Active | None:
        """The state that holds for a subject, if any."""
        return self._active.get(subject)

    def active(self) -> tuple[Active, ...]:
        """All states that hold, errors first."""
        order = {"error": 0, "warning": 1, "info": 2}
        with self._lock:
            return tuple(
                sorted(
                    self._active.values(), key=lambda one: (order[one.state.severity], one.since)
                )
            )

    def record_heartbeat(self) -> None:
        """The server has just accepted a heartbeat."""
        self._last_heartbeat = time.time()

    @property
    def last_heartbeat(self) -> float | None:
        """Unix time in seconds of the last accepted heartbeat; None before the first."""
        return self._last_heartbeat

    def to_dict(self) -> dict[str, object]:
        """The same for a status file."""
        return {
            "last_heartbeat": self._last_heartbeat,
            "states": [
                {
                    "code": one.state.code,
                    "subject": one.state.subject,
                    "severity": one.state.severity,
                    "text": one.state.text,
                    "fix": one.state.fix,
                    "facts": one.facts,
                    "since": one.since,
                }
                for one in self.active()
            ],
        }

    def _notify(self) -> None:
        """Call the listener, outside the lock."""
        if self._on_change is not None:
            self._on_change()
