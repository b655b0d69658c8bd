"""One request against the rules, from its head alone.

In: method, raw path, query, headers, the key of the peer's certificate. Out: the size of the body
that may be read, or the status of the refusal.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.front import rules

Headers = Sequence[tuple[bytes, bytes]]


def judge(
    method: str, raw_path: bytes, query: bytes, headers: Headers, key: bytes
) -> tuple[int, int]:
    """Return (0, size of the body) for a request that may pass, else (status, 0)."""
    # path, then method: raw, so that no other spelling of a path passes
    path = raw_path.decode("latin-1")
    cap = rules.CALLS.get(path)
    if cap is None or query:
        return rules.UNKNOWN_PATH, 0
    if method != "POST":
        return rules.WRONG_METHOD, 0
    # headers that would mean two things to two readers
    names = [name for name, _ in headers]
    doubled = any(names.count(name) > 1 for name in rules.SINGLE_HEADERS)
    if doubled or any(name in names for name in rules.REFUSED_HEADERS):
        return rules.BAD_REQUEST, 0
    found = dict(headers)
    # Flower's key is the certificate's key
    if found.get(rules.KEY_HEADER) != key:
        return rules.NOT_ENROLLED, 0
    if found.get(b"content-type") != rules.MEDIA_TYPES.get(path, rules.MEDIA_TYPE):
        return rules.WRONG_TYPE, 0
    return _judge_length(found.get(b"content-length"), cap)


def _judge_length(text: bytes | None, cap: int) -> tuple[int, int]:
    """The size that a request names, within the cap of its call."""
    if text is None:
        return rules.NO_LENGTH, 0
    if not text.isdigit() or len(text) > 12:
        return rules.BAD_REQUEST, 0
    if int(text) > cap:
        return rules.TOO_LARGE, 0
    return 0, int(text)
