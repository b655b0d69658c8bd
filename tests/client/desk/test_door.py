"""What a request must show before the desk makes a page."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from client.desk.door import BODY_CAP_BYTES, COOKIE, Address
from client.desk.sessions import IDLE_S, LINK_S, SESSION_S
from tests.client.desk.conftest import ORIGIN, PLACE, Visitor, form_secret

# --- the link and the session


def test_a_link_opens_the_desk_once(stranger: Visitor) -> None:
    secret = stranger.desk.sessions.new_link()
    assert stranger.get("/").status_code == 401
    first = stranger.get(f"/open?token={secret}")
    assert (first.status_code, first.headers["location"]) == (303, f"{PLACE}/")
    assert stranger.get("/").status_code == 200
    stranger.browser.cookies.clear()
    assert stranger.get(f"/open?token={secret}").status_code == 401
    assert stranger.get("/").status_code == 401
    assert stranger.opened == ["opened"]


def test_who_has_not_opened_the_link_sees_nothing(stranger: Visitor) -> None:
    digest = stranger.reviews.find("").digest
    for rest in ("", "/decision", "/pictures/1/average", "/pictures/1/nearest", "/sheets/1"):
        assert stranger.get(f"/batches/{digest}{rest}").status_code == 401
    assert stranger.post("/leave").status_code == 401


def test_a_failure_says_nothing_of_its_cause(
    visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise ValueError("Mueller")

    visitor.desk.plans = fail
    with pytest.raises(ValueError):
        visitor.get("/")
    assert [r.getMessage() for r in caplog.records if r.name.startswith("client")] == [
        "the desk failed: ValueError"
    ]


@pytest.mark.parametrize("secret", ["", "x", "\N{SNOWMAN}", "a" * 5000], ids=lambda s: str(len(s)))
def test_a_made_up_link_opens_nothing(stranger: Visitor, secret: str) -> None:
    stranger.desk.sessions.new_link()
    assert stranger.get("/open", params={"token": secret}).status_code == 401


def test_a_link_that_nobody_used_ends(stranger: Visitor) -> None:
    secret = stranger.desk.sessions.new_link()
    stranger.clock.now += LINK_S
    assert stranger.get(f"/open?token={secret}").status_code == 401


def test_a_newer_link_ends_an_older_one(stranger: Visitor) -> None:
    older = stranger.desk.sessions.new_link()
    stranger.desk.sessions.new_link()
    assert stranger.get(f"/open?token={older}").status_code == 401


def test_the_cookie_is_for_this_desk_alone_and_no_script_reads_it(stranger: Visitor) -> None:
    cookie = stranger.enter().headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    for part in ("HttpOnly", "SameSite=strict", f"Path={PLACE}", f"Max-Age={int(SESSION_S)}"):
        assert part in cookie


def test_a_session_ends_when_nobody_is_there(visitor: Visitor) -> None:
    visitor.clock.now += IDLE_S - 1
    assert visitor.get("/").status_code == 200
    visitor.clock.now += IDLE_S
    assert visitor.get("/").status_code == 401


def test_a_session_ends_after_a_working_day(visitor: Visitor) -> None:
    for _ in range(int(SESSION_S // (IDLE_S / 2)) - 1):
        visitor.clock.now += IDLE_S / 2
        assert visitor.get("/").status_code == 200
    visitor.clock.now += IDLE_S / 2
    assert visitor.get("/").status_code == 401


def test_who_leaves_is_out(visitor: Visitor) -> None:
    cookie = visitor.browser.cookies[COOKIE]
    assert visitor.post("/leave").status_code == 200
    visitor.browser.cookies.clear()
    headers = {"cookie": f"{COOKIE}={cookie}"}
    assert visitor.get("/", headers=headers).status_code == 401


@pytest.mark.parametrize("cookie", ["kohort_desk", "kohort_desk=x", "a" * 5000, "kohort_desk=\x7f"])
def test_a_made_up_cookie_is_nobodys(stranger: Visitor, cookie: str) -> None:
    assert stranger.get("/", headers={"cookie": cookie}).status_code == 401


# --- where a request comes from

HOSTS = {
    "another name": "desk.example:8437",
    "a name that a resolver may point here": "127.0.0.1.example:8437",
    "another port": "127.0.0.1:8438",
    "no port": "127.0.0.1",
    "this machine's network address": "192.168.0.7:8437",
    "every address": "0.0.0.0:8437",
    "nothing": "",
    "a name with a user": "127.0.0.1:8437@evil.example",
}


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.replace(" ", "-").replace("'", ""))
def test_another_host_is_refused(visitor: Visitor, case: str) -> None:
    assert visitor.get("/", headers={"host": HOSTS[case]}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:8437", "localhost:8437", "[::1]:8437"])
def test_this_machine_has_three_names(host: str) -> None:
    assert Address(PLACE, 8437).is_own(host)
    assert Address(PLACE, None).is_own(host)
    assert not Address(PLACE, None).is_own(f"{host}.example")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_that_another_site_asks_for_is_refused(visitor: Visitor, site: str) -> None:
    assert visitor.get("/", headers={"sec-fetch-site": site}).status_code == 403


def test_nothing_lies_outside_the_desks_own_place(visitor: Visitor) -> None:
    for path in ("/", "/open", "/batches", f"{PLACE}x/", PLACE, "/openapi.json", "/docs"):
        assert visitor.browser.get(path).status_code == 404
    for path in ("/openapi.json", "/docs", "/redoc", "/desk.css.map", "/templates/base.html.j2"):
        assert visitor.get(path).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(visitor: Visitor, method: str) -> None:
    assert visitor.browser.request(method, f"{PLACE}/").status_code == 405


# --- forms

FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "without the session's secret": (403, {"form": {"form": ""}}),
    "with another session's secret": (403, {"form": {"form": "x" * 43}}),
    "from another site": (403, {"headers": {"origin": "http://evil.example"}}),
    "from another port": (403, {"headers": {"origin": "http://127.0.0.1:9999"}}),
    "from nowhere": (403, {"headers": {"origin": "null"}}),
    "without an origin": (403, {"headers": {"origin": ""}}),
    "that a browser says is another site's": (403, {"headers": {"sec-fetch-site": "cross-site"}}),
    "as a file": (415, {"headers": {"content-type": "multipart/form-data; boundary=x"}}),
    "as text": (415, {"headers": {"content-type": "text/plain"}}),
    "of more than it may have": (413, {"form": {"note": "a" * BODY_CAP_BYTES}}),
    "that says it is larger": (413, {"headers": {"content-length": str(BODY_CAP_BYTES + 1)}}),
    "that says it is huge": (413, {"headers": {"content-length": "9" * 5000}}),
    "of a negative size": (411, {"headers": {"content-length": "-1"}}),
    "of a size that is none": (411, {"headers": {"content-length": "1e3"}}),
    "in pieces of no declared size": (411, {"headers": {"transfer-encoding": "chunked"}}),
}


@pytest.mark.parametrize("case", FORMS, ids=lambda case: case.replace(" ", "-").replace("'", ""))
def test_a_form_that_is_not_this_pages_decides_nothing(
    visitor: Visitor, digest: str, case: str
) -> None:
    status, options = FORMS[case]
    form = {"choice": "approve", "reviewer": "Dr. A"} | options.get("form", {})
    headers = options.get("headers", {})
    answer = visitor.post(f"/batches/{digest}/decision", form, headers=headers)
    assert answer.status_code == status
    assert visitor.reviews.state(digest) == "waiting"


def test_a_body_that_is_larger_than_it_says_is_not_read(visitor: Visitor, digest: str) -> None:
    """uvicorn holds a body to its declared size; another server may not."""
    answer = visitor.post(
        f"/batches/{digest}/decision",
        {"choice": "approve", "reviewer": "Dr. A", "note": "a" * 2 * BODY_CAP_BYTES},
        headers={"content-length": "10"},
    )
    assert answer.status_code == 413
    assert visitor.reviews.state(digest) == "waiting"


def test_the_secret_of_one_session_is_none_of_another(visitor: Visitor, digest: str) -> None:
    secret = form_secret(visitor.get("/").text)
    visitor.browser.cookies.clear()
    visitor.enter()
    form = {"choice": "approve", "reviewer": "Dr. A", "form": secret}
    assert visitor.post(f"/batches/{digest}/decision", form).status_code == 403


# --- every answer


def test_no_answer_is_kept_runs_a_script_or_loads_from_elsewhere(
    visitor: Visitor, digest: str
) -> None:
    pages = ["/", f"/batches/{digest}", f"/batches/{digest}/decision", "/desk.css", "/nothing"]
    pages.append(f"/batches/{digest}/pictures/1/nearest")
    for page in pages:
        answer = visitor.get(page)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; img-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy and "script" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        for word in ("<script", "javascript:", "onclick", "http://", "https://", "url("):
            assert word not in answer.text.lower()


def test_no_log_line_says_what_was_asked_or_decided(
    visitor: Visitor, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        visitor.get("/batches/../../etc/passwd?secretword=1")
        visitor.decide(digest, "reject", "Dr. Secretname", note="secretnote", reason="person")
    assert visitor.reviews.state(digest) == "rejected"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("client")]
    assert ours == [f"batch {digest[:16]}: rejected"]
    assert ORIGIN not in "".join(ours)
