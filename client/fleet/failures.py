"""Gives every failed call a declared cause, and says how long to wait before the next try.

In: whatever a call raised.
Out: a `CallFailed` with a state of health.py.
Guarantees: no text of the server enters a state.
Not covered: what the loops do about it (client.py).
"""

from __future__ import annotations

import calendar
import json
import random
import socket
import ssl
import time
from collections.abc import Iterator

import httpx

from client.fleet import health as states
from client.fleet.connection import AnswerTooLarge, FleetSettings, NotProtobuf
from client.fleet.health import State
from client.fleet.own_certificate import OutsideDates
from common.errors import ConfigurationError, KohortError
from common.wire import between

ADMISSION_RETRY_S = 5.0  # a person registers the site and waits to see it arrive
JITTER = 0.2
MAX_DOUBLINGS = 30
MAX_CAUSES = 10

# Flower's own error codes.
RUN_ENDED = 2007
ACTIVATION_REFUSED = 2004

# Flower accepts a signature from -5 to +305 seconds old.
CLOCK_AHEAD_S = 4.0
CLOCK_BEHIND_S = 295.0
DAY_S = 86_400.0

# X509 verification codes of OpenSSL; all others mean that the CA is unknown.
TLS_STATES = {
    9: states.CLOCK_OFF,
    10: states.SERVER_CERTIFICATE_EXPIRED,
    62: states.SERVER_NAME_WRONG,
    64: states.SERVER_NAME_WRONG,
}
# what happens before the proxy is asked for the way
OF_PROXY = {
    states.NAME_UNKNOWN: states.PROXY_NAME_UNKNOWN,
    states.NOTHING_LISTENS: states.PROXY_UNREACHABLE,
}
STATUS_STATES = {
    400: states.CLIENT_CERTIFICATE_REFUSED,
    403: states.FORBIDDEN,
    408: states.SERVER_BUSY,
    413: states.BODY_REFUSED,
}


class CallFailed(Exception):
    """A call failed, with the state that says why.

    `slow`: a long wait is better. `run_ended`: the server wants nothing more of this run.
    """

    def __init__(
        self, state: State, facts: str = "", *, slow: bool = False, run_ended: bool = False
    ) -> None:
        super().__init__(state.code)
        self.state = state
        self.facts = facts
        self.slow = slow
        self.run_ended = run_ended

    @property
    def is_final(self) -> bool:
        """Whether a quick second try is useless."""
        return self.slow or self.run_ended


def classify(error: BaseException, *, proxied: bool = False) -> CallFailed:
    """Return the declared cause of whatever a call raised.

    `proxied`: the call went through a proxy, so that a name that is not found is the proxy's, and
    so is a port at which nobody listens.
    """
    if isinstance(error, CallFailed):
        return error
    if isinstance(error, httpx.HTTPStatusError):
        return _classify_status(error.response)
    if isinstance(error, AnswerTooLarge):
        return CallFailed(states.ANSWER_TOO_LARGE, slow=True)
    if isinstance(error, (NotProtobuf, httpx.DecodingError, httpx.RemoteProtocolError)):
        return CallFailed(states.NOT_THE_SERVER)
    if isinstance(error, OutsideDates):
        # a certificate begins on the day that it was made
        state = states.CLOCK_OFF if error.early else states.CLIENT_CERTIFICATE_DATES
        return CallFailed(state, str(error))
    if isinstance(error, ConfigurationError):
        return CallFailed(states.CLIENT_CERTIFICATE_UNUSABLE, str(error))
    if isinstance(error, KohortError):
        return CallFailed(states.MACHINE_FAULT, str(error))
    found = _classify_tls(error) or _classify_transport(error)
    if proxied and found.state in OF_PROXY:
        return CallFailed(OF_PROXY[found.state], found.facts)
    return found


def _classify_tls(error: BaseException) -> CallFailed | None:
    """Return the cause if TLS or name resolution failed anywhere in the chain of causes."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            state = TLS_STATES.get(cause.verify_code, states.SERVER_CA_UNKNOWN)
            return CallFailed(state, f"TLS error {cause.verify_code}")
        if isinstance(cause, ssl.SSLError):
            text = str(cause).upper()
            if "ALERT" in text and "CERTIFICATE" in text:
                return CallFailed(states.CLIENT_CERTIFICATE_REFUSED, slow=True)
            return CallFailed(states.TLS_FAILED)
        if isinstance(cause, socket.gaierror):
            return CallFailed(states.NAME_UNKNOWN)
    return None


def _classify_transport(error: BaseException) -> CallFailed:
    """Return the cause of any other error below HTTP."""
    if isinstance(error, httpx.ProxyError):
        if str(error).startswith("407"):
            return CallFailed(states.PROXY_LOGIN)
        if str(error).startswith("5"):
            return CallFailed(states.PROXY_NO_WAY)
        return CallFailed(states.PROXY_REFUSED)
    if isinstance(error, httpx.ConnectTimeout):
        return CallFailed(states.NOTHING_LISTENS, "no answer in time")
    if isinstance(error, httpx.TimeoutException):
        return CallFailed(states.TIMED_OUT)
    if isinstance(error, httpx.ConnectError):
        return CallFailed(states.NOTHING_LISTENS)
    if isinstance(error, httpx.TransportError):
        return CallFailed(states.SERVER_BUSY)
    return CallFailed(states.NOT_THE_SERVER, type(error).__name__)


def _classify_status(response: httpx.Response) -> CallFailed:
    """Return the cause of an HTTP status."""
    status = response.status_code
    code = _flower_code(response)
    facts = f"HTTP {status}"
    if code:
        facts += f", code {code}"
    if response.is_redirect:
        return CallFailed(states.REDIRECTED, facts, slow=True)
    if code == RUN_ENDED:
        return CallFailed(states.CONNECTED, facts, run_ended=True)
    if status == 401:
        return _classify_unauthorized(response, facts)
    if status == 412 and code == ACTIVATION_REFUSED:
        return CallFailed(states.KEY_NOT_ADMITTED, facts)
    if status in STATUS_STATES:
        return CallFailed(STATUS_STATES[status], facts, slow=True)
    if status == between.STATUS and response.headers.get(between.HEADER) == between.VALUE:
        return CallFailed(states.BETWEEN_STUDIES)
    if status == 429 or status >= 500:
        return CallFailed(states.SERVER_BUSY, facts)
    return CallFailed(states.NOT_THE_SERVER, facts)


def _classify_unauthorized(response: httpx.Response, facts: str) -> CallFailed:
    """Return the cause of a 401: the clock is off, or the key is not (or no longer) registered."""
    ahead_s = seconds_ahead(response)
    if ahead_s is not None and not -CLOCK_BEHIND_S < ahead_s < CLOCK_AHEAD_S:
        return CallFailed(states.CLOCK_OFF, clock_words(ahead_s), slow=True)
    return CallFailed(states.KEY_UNKNOWN, facts, slow=True)


def clock_words(ahead_s: float) -> str:
    """Return how far this machine's clock is from the server's, in words."""
    side = "ahead of" if ahead_s > 0 else "behind"
    far = abs(ahead_s)
    amount = f"{far:.0f} s"
    if far >= 2 * DAY_S:
        amount = f"{far / DAY_S:.0f} days"
    elif far >= 7200:
        amount = f"{far / 3600:.0f} h"
    return f"{amount} {side} the server's"


def seconds_ahead(response: httpx.Response) -> float | None:
    """Return how far this machine's clock is ahead of the server's."""
    try:
        server = time.strptime(response.headers.get("date", ""), "%a, %d %b %Y %H:%M:%S GMT")
    except ValueError:
        return None
    return time.time() - calendar.timegm(server)


def _flower_code(response: httpx.Response) -> int:
    """Return Flower's error code in an error answer, 0 if it has none."""
    try:
        answer = json.loads(response.content)
    except (ValueError, RecursionError):
        return 0
    code = answer.get("code") if isinstance(answer, dict) else None
    return code if isinstance(code, int) else 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and everything it came from."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


class Backoff:
    """How long to wait after the n-th failure in a row: doubling up to a cap, ±20 %.

    After a refusal the wait is long at once.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._failures = 0

    def reset(self) -> None:
        """Start anew: the last call worked."""
        self._failures = 0

    def after(self, failure: CallFailed) -> float:
        """Return the seconds to wait now."""
        settings = self._settings
        doublings = min(self._failures, MAX_DOUBLINGS)
        wait_s = min(settings.retry_first_s * 2.0**doublings, settings.retry_cap_s)
        if failure.state is states.KEY_NOT_ADMITTED:
            wait_s = min(wait_s, ADMISSION_RETRY_S)
        if failure.slow:
            wait_s = settings.refused_retry_s
        self._failures += 1
        return wait_s * random.uniform(1 - JITTER, 1 + JITTER)
