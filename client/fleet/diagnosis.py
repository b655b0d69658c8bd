"""Looks closer at a failed connection: the same symptom has several causes, with other fixes.

In: a declared failure, the site's settings, the environment. Out: the failure with its true cause.
1. A certificate outside its dates: is it the certificate, or this machine's clock? The server is
   asked for the time; its certificate must be the CA's, whatever its dates are.
2. Nothing listens at one loopback address: does the other one answer?
3. No way out: does the environment name a proxy, which kohort does not use?
Guarantees: nothing is sent but a request for the time; a proxy's address is never repeated, since
it may hold a password; whatever goes wrong here, the first cause stays.
Not covered: how a failure gets its first cause (failures.py).
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import urlsplit

import httpx

from client.fleet import health as states
from client.fleet.connection import CappedClient, FleetSettings, tls_context
from client.fleet.failures import CallFailed, clock_words, seconds_ahead
from common.errors import KohortError

ASK_S = 3.0
CLOCK_OFF_S = 300.0  # certificates are not that exact
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
OF_DATES = (
    states.SERVER_CERTIFICATE_EXPIRED,
    states.CLIENT_CERTIFICATE_DATES,
    states.CLOCK_OFF,
)
NO_WAY_OUT = (states.NAME_UNKNOWN, states.NOTHING_LISTENS, states.TIMED_OUT)
OTHER_LOOPBACK = {"::1": "127.0.0.1", "127.0.0.1": "::1", "localhost": "127.0.0.1"}
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def look_closer(failure: CallFailed, settings: FleetSettings) -> CallFailed:
    """Return a failure with its true cause; the failure itself where nothing more is found."""
    with suppress(KohortError, OSError, httpx.HTTPError, ValueError):
        # (1) is it the clock?
        if failure.state in OF_DATES:
            return _of_clock(failure, settings)
        # (2) does the other loopback address answer?
        if failure.state is states.NOTHING_LISTENS:
            other = _other_door(settings.url)
            if other:
                return CallFailed(failure.state, other)
        # (3) is there a proxy in the environment?
        if failure.state in NO_WAY_OUT and settings.proxy is None:
            ignored = ignored_proxy(os.environ)
            if ignored:
                return CallFailed(failure.state, ignored)
    return failure


def ignored_proxy(environment: Mapping[str, str]) -> str:
    """Return the sentence on a proxy that the environment names; "" where it names none."""
    for name in PROXY_VARIABLES:
        if environment.get(name):
            return (
                f"{name} is set here, and kohort does not use it: if the way out is that proxy, "
                "write it into `network.proxy` of site.yaml"
            )
    return ""


def _of_clock(failure: CallFailed, settings: FleetSettings) -> CallFailed:
    """Tell a wrong clock from a certificate that has really ended."""
    ahead_s = ask_clock(settings)
    if ahead_s is None or abs(ahead_s) < CLOCK_OFF_S:
        return failure
    return CallFailed(states.CLOCK_OFF, clock_words(ahead_s), slow=True)


def ask_clock(settings: FleetSettings) -> float | None:
    """Return how far this machine's clock is ahead of the server's, None where it says no time.

    The server's certificate is checked, but for its dates.
    """
    context = tls_context(settings)
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    quick = replace(settings, timeout_s=min(settings.timeout_s, ASK_S))
    with CappedClient(context, quick.proxy, quick.timeout_s) as client:
        request = client.build_request("GET", f"{settings.url}/health")
        return seconds_ahead(client.send(request))


def _other_door(url: str) -> str:
    """Return the sentence on the other loopback address, if something listens there; else ""."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    other = OTHER_LOOPBACK.get(host)
    if other is None:
        return ""
    try:
        socket.create_connection((other, port), timeout=1.0).close()
    except OSError:
        return ""
    return (
        f"nothing listens at {host}, port {port}, but at {other} something does: ask the operator "
        "for a join file with the address at which the server listens"
    )
