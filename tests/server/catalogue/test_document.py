"""What the next catalogue says, without files."""

from __future__ import annotations

from common.wire import signing
from kohort.catalogue import Entry, Withdrawal
from server.catalogue.document import next_catalogue
from tests.catalogues import DAY, ENTRY, GONE, NOW, WORDS


def entry(version: str) -> Entry:
    return Entry(**ENTRY | {"version": version, "path": f"releases/small-{version}"})


def test_a_withdrawn_release_is_never_offered_and_supersedes_nothing() -> None:
    key = signing.new_key()
    entries = [entry(version) for version in ("1.0.0", "1.10.0", "1.9.0")]
    first = next_catalogue(None, entries, (), WORDS, key, NOW)
    shown = [(one.version, one.superseded_by) for one in first.catalogue.releases]
    assert shown == [("1.10.0", ""), ("1.9.0", "1.10.0"), ("1.0.0", "1.10.0")]
    gone = Withdrawal(**GONE | {"version": "1.10.0"})
    second = next_catalogue(first, entries, (gone,), WORDS, key, NOW + DAY)
    assert second.catalogue.version == 2
    shown = [(one.version, one.superseded_by) for one in second.catalogue.releases]
    assert shown == [("1.9.0", ""), ("1.0.0", "1.9.0")]


def test_the_order_in_which_releases_lie_there_changes_no_byte() -> None:
    key = signing.new_key()
    entries = [entry(version) for version in ("1.0.0", "1.10.0", "1.9.0")]
    first = next_catalogue(None, entries, (), WORDS, key, NOW)
    assert next_catalogue(None, entries[::-1], (), WORDS, key, NOW).text == first.text
    assert next_catalogue(first, entries[::-1], (), WORDS, key, NOW + 44 * DAY) is first
