"""Every state of a site that a person should know of, with its words and its fix.

In: `Health.set(STATE, facts)` from any thread.
Out: the active states, at most one per subject, for the status command and the status file.
Guarantees: every state has a code; every warning and error has a fix. Facts stay on this site: they
may name a host, a date or a path, never a patient.
Not covered: what is done about a state; nothing here stops or starts anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.storage.heartbeat import LAST_TIME

Severity = Literal["info", "warning", "error"]
ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class State:
    """A declared state: a stable code, what it is about, and what a person does about it."""

    code: str
    subject: str
    severity: Severity
    text: str
    fix: str


@dataclass(frozen=True)
class Active:
    """A state that holds since a Unix time in seconds, with facts for this site's own staff."""

    state: State
    since: float
    facts: str

    def line(self) -> str:
        """Return the state as one line for a person."""
        text = f"{self.state.severity}: {self.state.text}"
        if self.facts:
            text += f" ({self.facts})"
        text += "."
        if self.state.fix:
            text += f" Fix: {self.state.fix}"
        return text


STATES: dict[str, State] = {}


def _declare(code: str, subject: str, severity: Severity, text: str, fix: str) -> State:
    """Register a state under its code."""
    assert code not in STATES, code
    STATES[code] = State(code, subject, severity, text, fix)
    return STATES[code]


# what the heartbeat file calls them
CONTACT = "contact"
STATES_NOW = "states"
LAST_ERROR = "last_error"

CONNECTION = "connection"
MESSAGE = "message"
REPLY = "reply"
DISK = "disk"
WORK = "work"

CONNECTING = _declare(
    "CONNECTING",
    CONNECTION,
    "info",
    "connecting to the server",
    "",
)
CONNECTED = _declare(
    "CONNECTED",
    CONNECTION,
    "info",
    "connected to the server",
    "",
)
SERVER_CERTIFICATE_EXPIRED = _declare(
    "SERVER-CERTIFICATE-EXPIRED",
    CONNECTION,
    "error",
    "the server's certificate has expired",
    "ask the operator to renew it; check this machine's clock; the site reconnects by itself",
)
SERVER_CA_UNKNOWN = _declare(
    "SERVER-CA-UNKNOWN",
    CONNECTION,
    "error",
    "the server's certificate is not signed by the CA of the join file",
    (
        "compare ca.crt in the state folder with the operator's; if a proxy inspects TLS, "
        "exempt the server's name"
    ),
)
SERVER_NAME_WRONG = _declare(
    "SERVER-NAME-WRONG",
    CONNECTION,
    "error",
    "the server's certificate is for another name than the join file's server_url",
    (
        "ask the operator for a new join file with the name of the server's certificate: "
        "`kohort-site join FILE`"
    ),
)
TLS_FAILED = _declare(
    "TLS-FAILED",
    CONNECTION,
    "error",
    "no TLS 1.3 session with the server",
    "ask the operator whether the server offers TLS 1.3 and wants a client certificate",
)
CLIENT_CERTIFICATE_REFUSED = _declare(
    "CLIENT-CERTIFICATE-REFUSED",
    CONNECTION,
    "error",
    "the server refused this site's client certificate",
    (
        "it is missing, expired or revoked: ask the operator for a new join file, then "
        "`kohort-site join FILE`"
    ),
)
CLIENT_CERTIFICATE_UNUSABLE = _declare(
    "CLIENT-CERTIFICATE-UNUSABLE",
    CONNECTION,
    "error",
    "the CA file, the node key or the client certificate cannot be used",
    (
        "check keys/node.key, ca.crt and node.crt in the state folder, or `kohort-site "
        "join FILE` again; the site reads them at every attempt"
    ),
)
CLIENT_CERTIFICATE_DATES = _declare(
    "CLIENT-CERTIFICATE-DATES",
    CONNECTION,
    "error",
    "this site's certificate is outside its dates, so it does not connect",
    (
        "check this machine's clock; else ask the operator for a new join file, then "
        "`kohort-site join FILE`"
    ),
)
NOT_RUNNING = _declare(
    "NOT-RUNNING",
    CONNECTION,
    "warning",
    "kohort-site run is not running here",
    "start it; it continues where it was",
)
UNRESPONSIVE = _declare(
    "UNRESPONSIVE",
    CONNECTION,
    "error",
    "kohort-site run has given no sign of life for a minute",
    "is the process stopped, or the disk full? restart it; it continues where it was",
)
KEY_UNKNOWN = _declare(
    "KEY-UNKNOWN",
    CONNECTION,
    "error",
    "the server no longer knows this site's key",
    "ask the operator whether the site was revoked; a revoked key can never come back",
)
CLOCK_OFF = _declare(
    "CLOCK-OFF",
    CONNECTION,
    "error",
    "this machine's clock differs from the server's",
    "turn on time synchronisation (NTP)",
)
KEY_NOT_ADMITTED = _declare(
    "KEY-NOT-ADMITTED",
    CONNECTION,
    "error",
    (
        "the server does not admit this site's key: it is not registered, or counts in "
        "another session"
    ),
    (
        "send the request file of `kohort-site init` to the operator; a session that was "
        "cut off counts for 60 s, a copied key as long as it runs"
    ),
)
PROXY_REFUSED = _declare(
    "PROXY-REFUSED",
    CONNECTION,
    "error",
    "the proxy refuses the connection",
    "ask for CONNECT to the server's name and port",
)
PROXY_UNREACHABLE = _declare(
    "PROXY-UNREACHABLE",
    CONNECTION,
    "error",
    "the proxy of `network.proxy` does not answer; the server was not asked",
    "ask for the proxy's name and port, and correct `network.proxy` in site.yaml; null: no proxy",
)
PROXY_NAME_UNKNOWN = _declare(
    "PROXY-NAME-UNKNOWN",
    CONNECTION,
    "error",
    "the name of the proxy of `network.proxy` cannot be resolved; the server was not asked",
    "correct `network.proxy` in site.yaml, or this machine's DNS",
)
PROXY_NO_WAY = _declare(
    "PROXY-NO-WAY",
    CONNECTION,
    "error",
    "the proxy answers, and cannot reach the server",
    "is the server up? else ask for CONNECT to its name and port; the site keeps trying",
)
PROXY_LOGIN = _declare(
    "PROXY-LOGIN",
    CONNECTION,
    "error",
    "the proxy wants a login",
    "write user and password into `network.proxy`: http://USER:PASSWORD@HOST:PORT",
)
NAME_UNKNOWN = _declare(
    "NAME-UNKNOWN",
    CONNECTION,
    "error",
    "the server's name cannot be resolved",
    "check server_url in membership.json and this machine's DNS",
)
NOTHING_LISTENS = _declare(
    "NOTHING-LISTENS",
    CONNECTION,
    "error",
    "nothing answers at the server's address",
    "check address, port and firewall; the site keeps trying",
)
TIMED_OUT = _declare(
    "TIMED-OUT",
    CONNECTION,
    "warning",
    "the server does not answer in time",
    "check the network; the site keeps trying",
)
MACHINE_FAULT = _declare(
    "MACHINE-FAULT",
    CONNECTION,
    "error",
    "this machine cannot store what it receives",
    "see the facts: disk, path or owner",
)
BODY_REFUSED = _declare(
    "BODY-REFUSED",
    REPLY,
    "error",
    "the server or a proxy refuses requests of this size; the reply is kept",
    "ask the operator for a body limit of at least 8 MB",
)
FORBIDDEN = _declare(
    "FORBIDDEN",
    CONNECTION,
    "error",
    "the server forbids the request",
    "ask the operator whether this site is still a member",
)
SERVER_BUSY = _declare(
    "SERVER-BUSY",
    CONNECTION,
    "warning",
    "the server is busy or restarting",
    "none: the site keeps trying",
)
BETWEEN_STUDIES = _declare(
    "BETWEEN-STUDIES",
    CONNECTION,
    "info",
    "the server is up and serves no study now",
    "",
)
NOT_THE_SERVER = _declare(
    "NOT-THE-SERVER",
    CONNECTION,
    "error",
    "something else answers at the server's address",
    "a portal or proxy page is in between: ask for a direct way to the server",
)
REDIRECTED = _declare(
    "REDIRECTED",
    CONNECTION,
    "error",
    "the server redirected this site to another address; not followed",
    "ask the operator for a join file with the final address, then `kohort-site join FILE`",
)
ANSWER_TOO_LARGE = _declare(
    "ANSWER-TOO-LARGE",
    CONNECTION,
    "error",
    "an answer of the server exceeded this site's limit and was cut off",
    "tell the operator: no honest answer is that large",
)
APP_UNPINNED = _declare(
    "APP-UNPINNED",
    MESSAGE,
    "warning",
    "the server asked for work under a plan that nobody here approved",
    "read the plan and run `kohort-site approve`, or ask the operator what was submitted",
)
MESSAGE_TOO_LARGE = _declare(
    "MESSAGE-TOO-LARGE",
    MESSAGE,
    "error",
    "an instruction was larger than this site accepts; refused",
    "raise `limits.max_message_mib` if the plan's models need it",
)
MESSAGE_CORRUPT = _declare(
    "MESSAGE-CORRUPT",
    MESSAGE,
    "error",
    "an instruction does not match its identifiers; refused",
    "tell the operator: the server or the connection changes messages",
)
INSTRUCTION_REFUSED = _declare(
    "INSTRUCTION-REFUSED",
    MESSAGE,
    "error",
    "an instruction was refused by its header; nothing of it was stored",
    (
        "see the code in docs/reference/errors.md; E-REFUSED: the server forwards what another key "
        "than the operator's signed, tell the operator"
    ),
)
INBOX_FULL = _declare(
    "INBOX-FULL",
    MESSAGE,
    "error",
    "the inbox has no room for a message; the server asks again",
    "raise `limits.inbox_mib`, or look why replies cannot be sent",
)
MESSAGE_EXPIRED = _declare(
    "MESSAGE-EXPIRED",
    MESSAGE,
    "warning",
    "a message had expired when its turn came; the server asks again",
    "if this stays, turn on time synchronisation (NTP) on this machine",
)
DISK_FULL = _declare(
    "DISK-FULL",
    DISK,
    "error",
    "E-DISK-FULL: the disk of the state folder is full; what is at work is still recorded, in the "
    "space that was kept for it",
    "free some space there; the site goes on by itself",
)
WORK_FAILED = _declare(
    "WORK-FAILED",
    MESSAGE,
    "error",
    "an instruction could not be carried out; the server received the code only",
    "see this site's log",
)
WORK_REFUSED = _declare(
    "WORK-REFUSED",
    WORK,
    "error",
    "this site refuses what the study asks; the operator was told the code, and asks again",
    "see the facts, and the code in docs/reference/errors.md",
)


class Health:
    """The states that hold now, at most one per subject; thread-safe."""

    def __init__(self, on_change: Callable[[], None] | None = None) -> None:
        self._active: dict[str, Active] = {}
        self._lock = threading.Lock()
        self._on_change = on_change
        self._last_heartbeat: float | None = None
        self._last_error: tuple[str, float] | None = None

    def set(self, state: State, facts: str = "") -> None:
        """Make `state` hold in place of its subject's; set again, it keeps its start time."""
        with self._lock:
            old = self._active.get(state.subject)
            since = time.time()
            if old is not None and old.state == state:
                if old.facts == facts:
                    return
                since = old.since
            self._active[state.subject] = Active(state, since, facts)
        self._notify()

    def clear(self, subject: str) -> None:
        """Remove the state of a subject."""
        with self._lock:
            gone = self._active.pop(subject, None)
        if gone is not None:
            self._notify()

    def get(self, subject: str) -> Active | None:
        """Return the state that holds for a subject, if any."""
        return self._active.get(subject)

    def active(self) -> tuple[Active, ...]:
        """Return all states that hold: errors first, then the oldest."""
        with self._lock:
            active = list(self._active.values())
        return tuple(sorted(active, key=lambda one: (ORDER[one.state.severity], one.since)))

    def record_heartbeat(self) -> None:
        """Note that the server has just accepted a heartbeat."""
        self._last_heartbeat = time.time()

    @property
    def last_heartbeat(self) -> float | None:
        """Unix time in seconds of the last accepted heartbeat; None before the first."""
        return self._last_heartbeat

    def record_error(self, code: str) -> None:
        """Note the code of what could not be done; it stays when the state is over."""
        self._last_error = (code, time.time())
        self._notify()

    def to_dict(self) -> dict[str, object]:
        """Return what the heartbeat file says: states, last contact, last error."""
        rows = []
        for one in self.active():
            rows.append({"code": one.state.code, "facts": one.facts, "since": one.since})
        found: dict[str, object] = {STATES_NOW: rows}
        if self._last_heartbeat is not None:
            found[CONTACT] = self._last_heartbeat
        if self._last_error is not None:
            found[LAST_ERROR] = {"code": self._last_error[0], "time": self._last_error[1]}
        return found

    def _notify(self) -> None:
        """Call the listener, outside the lock."""
        if self._on_change is not None:
            self._on_change()


def read_states(facts: Mapping[str, Any]) -> tuple[Active, ...]:
    """Return the states in a heartbeat's facts; what no version wrote is left out."""
    rows = facts.get(STATES_NOW)
    found = []
    for row in rows if isinstance(rows, list) else ():
        state = STATES.get(str(row.get("code"))) if isinstance(row, dict) else None
        if state is not None:
            found.append(Active(state, read_seconds(row.get("since")), str(row.get("facts", ""))))
    return tuple(found)


def read_seconds(value: object) -> float:
    """Return a time of a heartbeat's facts, in seconds since 1970; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < LAST_TIME else 0.0
