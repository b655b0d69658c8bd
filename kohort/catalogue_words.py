"""A catalogue in words, and as one JSON line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from kohort.catalogue import REASONS, Entry
from kohort.seen import Seen

UNCHECKED = "a key that you have not checked; name it with --trust"


def catalogue_lines(seen: Seen) -> Iterator[str]:
    """Yield what a person reads: whose catalogue it is, its releases, what was withdrawn."""
    found = seen.catalogue
    yield f"{found.title} ({found.name}): catalogue {found.version} of {found.created[:10]}"
    key = f"  signed by {found.fingerprint}"
    yield key if seen.trusted else f"{key}, {UNCHECKED}"
    for one in found.releases:
        yield _entry_line(one)
    for gone in found.withdrawn:
        why = f"{REASONS[gone.reason]}: {gone.sentence}"
        yield f"{gone.name} {gone.version}: WITHDRAWN on {gone.date}: {why}"
    if not found.releases:
        yield "no release is offered"


def _entry_line(one: Entry) -> str:
    """One release."""
    claim = f"k = {one.k}" if one.k is not None else "no k"
    budget = f"updates ({one.epsilon:g}, {one.delta:g})-DP"
    line = f"{one.name} {one.version}: {one.images} images, {claim}, {budget}, {one.licence}"
    if one.superseded_by:
        return f"{line}; superseded by {one.superseded_by}"
    return f"{line}: {one.title}"


def catalogue_json(seen: Seen) -> str:
    """Return a catalogue as one JSON line, with where and when it was seen."""
    facts = seen.catalogue.model_dump(mode="json")
    facts |= {
        "url": seen.url,
        "seen": seen.seen,
        "fingerprint": seen.catalogue.fingerprint,
        "trusted": seen.trusted,
        "warning": seen.warning,
    }
    return json.dumps(facts, sort_keys=True)
