"""Every failure of a call has a declared cause."""

from __future__ import annotations

import ssl

import httpx
import pytest

from client.fleet import health as states
from client.fleet.failures import classify, clock_words
from common.wire.between import HEADER, VALUE


def request_error(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://x")
    return httpx.HTTPStatusError(
        "", request=request, response=httpx.Response(status, content=body, headers=headers)
    )


def verification(code: int) -> httpx.ConnectError:
    cause = ssl.SSLCertVerificationError(1, "verify failed")
    cause.verify_code = code
    error = httpx.ConnectError("tls")
    error.__cause__ = cause
    return error


def named(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TABLE = [
    (verification(9), states.CLOCK_OFF, False),
    (verification(10), states.SERVER_CERTIFICATE_EXPIRED, False),
    (verification(20), states.SERVER_CA_UNKNOWN, False),
    (verification(18), states.SERVER_CA_UNKNOWN, False),
    (verification(62), states.SERVER_NAME_WRONG, False),
    (verification(64), states.SERVER_NAME_WRONG, False),
    (
        named(httpx.ReadError("x"), ssl.SSLError(1, "TLSV13_ALERT_CERTIFICATE_REQUIRED")),
        states.CLIENT_CERTIFICATE_REFUSED,
        True,
    ),
    (
        named(httpx.ConnectError("x"), ssl.SSLError(1, "TLSV1_ALERT_PROTOCOL_VERSION")),
        states.TLS_FAILED,
        False,
    ),
    (named(httpx.ConnectError("x"), __import__("socket").gaierror(-2)), states.NAME_UNKNOWN, False),
    (httpx.ConnectError("refused"), states.NOTHING_LISTENS, False),
    (httpx.ReadTimeout("slow"), states.TIMED_OUT, False),
    (httpx.ProxyError("407 Proxy Authentication Required"), states.PROXY_LOGIN, False),
    (httpx.ProxyError("403 Forbidden"), states.PROXY_REFUSED, False),
    (httpx.ReadError("cut"), states.SERVER_BUSY, False),
    (request_error(401), states.KEY_UNKNOWN, True),
    (request_error(401, headers={"date": "Mon, 01 Jan 2024 00:00:00 GMT"}), states.CLOCK_OFF, True),
    (request_error(412, b'{"code": 2004}'), states.KEY_NOT_ADMITTED, False),
    (request_error(413), states.BODY_REFUSED, True),
    (request_error(502), states.SERVER_BUSY, False),
    (request_error(503), states.SERVER_BUSY, False),
    (request_error(503, headers={HEADER: VALUE}), states.BETWEEN_STUDIES, False),
    (request_error(502, headers={HEADER: VALUE}), states.SERVER_BUSY, False),
    (request_error(302, headers={"location": "https://y"}), states.REDIRECTED, True),
    (RuntimeError("anything"), states.NOT_THE_SERVER, False),
]


@pytest.mark.parametrize(
    ("error", "state", "slow"), TABLE, ids=lambda value: getattr(value, "code", None)
)
def test_every_failure_has_a_declared_cause(
    error: Exception, state: states.State, slow: bool
) -> None:
    failure = classify(error)
    assert (failure.state, failure.slow) == (state, slow)


# what happens before a proxy is asked for the way is the proxy's, not the server's
PROXIED = {
    "nobody listens at the proxy's port": (
        httpx.ConnectError("refused"),
        states.PROXY_UNREACHABLE,
    ),
    "the proxy's name is unknown": (
        named(httpx.ConnectError("x"), __import__("socket").gaierror(-2)),
        states.PROXY_NAME_UNKNOWN,
    ),
    "the proxy does not answer in time": (httpx.ConnectTimeout("slow"), states.PROXY_UNREACHABLE),
    "the proxy finds no way": (httpx.ProxyError("502 Bad Gateway"), states.PROXY_NO_WAY),
    "the proxy refuses": (httpx.ProxyError("403 Forbidden"), states.PROXY_REFUSED),
    "behind the proxy another CA": (verification(20), states.SERVER_CA_UNKNOWN),
    "behind the proxy a slow server": (httpx.ReadTimeout("slow"), states.TIMED_OUT),
}


@pytest.mark.parametrize("sentence", PROXIED)
def test_behind_a_proxy_the_proxy_is_named_where_it_is_the_cause(sentence: str) -> None:
    error, state = PROXIED[sentence]
    assert classify(error, proxied=True).state is state


def test_a_clock_is_told_in_a_size_that_people_read() -> None:
    assert clock_words(90) == "90 s ahead of the server's"
    assert clock_words(-3 * 3600) == "3 h behind the server's"
    assert clock_words(410 * 86400) == "410 days ahead of the server's"
