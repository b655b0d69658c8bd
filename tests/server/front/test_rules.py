"""The head of a request against the rules, and the counters of the front."""

from __future__ import annotations

import asyncio

import pytest

from server.front import rules
from server.front.limits import Bodies, Rate
from server.front.requests import judge

KEY = b"key"
HEAD = [(b"content-type", rules.MEDIA_TYPE), (rules.KEY_HEADER, KEY), (b"content-length", b"7")]
PATH = b"/v1/fleet/pull-messages"


def test_an_honest_head_passes_with_its_size() -> None:
    assert judge("POST", PATH, b"", HEAD, KEY) == (0, 7)


CASES = [
    ("GET", PATH, b"", HEAD, rules.WRONG_METHOD),
    ("POST", PATH + b"/", b"", HEAD, rules.UNKNOWN_PATH),
    ("POST", PATH, b"a=1", HEAD, rules.UNKNOWN_PATH),
    ("POST", PATH, b"", HEAD[1:], rules.WRONG_TYPE),
    ("POST", PATH, b"", HEAD[:1] + HEAD[2:], rules.NOT_ENROLLED),
    ("POST", PATH, b"", HEAD[:2], rules.NO_LENGTH),
    ("POST", PATH, b"", [*HEAD[:2], (b"content-length", b"4097")], rules.TOO_LARGE),
    ("POST", PATH, b"", [*HEAD[:2], (b"content-length", b"-1")], rules.BAD_REQUEST),
    ("POST", PATH, b"", [*HEAD[:2], (b"content-length", b"1" * 40)], rules.BAD_REQUEST),
    ("POST", PATH, b"", [*HEAD, HEAD[2]], rules.BAD_REQUEST),
    ("POST", PATH, b"", [*HEAD, (b"transfer-encoding", b"chunked")], rules.BAD_REQUEST),
    ("POST", PATH, b"", [*HEAD, (b"upgrade", b"h2c")], rules.BAD_REQUEST),
]


@pytest.mark.parametrize(("method", "path", "query", "headers", "status"), CASES)
def test_a_head_that_breaks_a_rule_is_refused(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    assert judge(method, path, query, headers, KEY) == (status, 0)


def test_a_site_has_a_burst_and_then_a_rate() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert sum(rate.allow("a") for _ in range(rules.BURST + 50)) == rules.BURST
    assert rate.allow("b")
    now[0] += 1.0
    assert sum(rate.allow("a") for _ in range(rules.BURST)) == rules.RATE_PER_S


def order_of(*asked: tuple[str, str, int]) -> list[str]:
    """In which order bodies get their share: (label, site, KiB)."""

    async def play() -> list[str]:
        bodies = Bodies(100 * rules.KIB, 60 * rules.KIB)
        order: list[str] = []

        async def hold(label: str, site: str, size: int) -> None:
            async with bodies.share(site, size * rules.KIB):
                order.append(label)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(hold(*one) for one in asked))
        return order

    return asyncio.run(play())


def test_bodies_wait_for_their_share() -> None:
    assert order_of(("a", "x", 60), ("b", "y", 60), ("c", "z", 40)) == ["a", "c", "b"]


def test_one_site_cannot_hold_the_budget_of_all() -> None:
    assert order_of(("a", "x", 40), ("b", "x", 40), ("c", "y", 60)) == ["a", "c", "b"]


def test_a_small_body_waits_for_nobody() -> None:
    assert order_of(("a", "x", 60), ("b", "y", 40), ("c", "x", 4)) == ["a", "b", "c"]
