"""What the next catalogue says: a rule without files.

In: the last catalogue, the releases that are there, withdrawals, words, a time.
Out: the next catalogue, or the last one where nothing has changed and its end is far away.
Guarantees: the version rises; a withdrawal stays; a withdrawn release is never offered again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from common.errors import ConfigurationError, PolicyError
from common.problems import describe
from common.wire import signing
from kohort import signatures
from kohort.catalogue import (
    FORMAT,
    TIME,
    Catalogue,
    Entry,
    Reason,
    Withdrawal,
    open_catalogue,
    parse_time,
    version_order,
)
from server.operator.published import Signed

CHANGING = {"version", "created", "expires"}
RENEW_SHARE = 0.5  # of its lifetime: with less left, the next `publish` renews it


@dataclass(frozen=True)
class Words:
    """What an operator says of the catalogue: whose it is, its title, whom to ask, for how long."""

    name: str
    title: str
    contact: str
    days: int


def next_catalogue(
    last: Signed | None,
    entries: Iterable[Entry],
    withdrawn: Sequence[Withdrawal],
    words: Words,
    key: Ed25519PrivateKey,
    now: datetime,
    *,
    renew: bool = False,
) -> Signed:
    """Return the catalogue that holds from `now` on; the very bytes of `last` where they do."""
    gone = {(one.name, one.version) for one in withdrawn}
    offered = [one for one in entries if (one.name, one.version) not in gone]
    created = now.replace(microsecond=0)
    fields = {
        "format": FORMAT,
        "name": words.name,
        "title": words.title,
        "contact": words.contact,
        "operator_key": " ".join(signing.public_text(key.public_key()).split()[:2]),
        "version": last.catalogue.version + 1 if last else 1,
        "created": created.strftime(TIME),
        "expires": (created + timedelta(days=words.days)).strftime(TIME),
        "releases": tuple(_in_order(offered)),
        "withdrawn": tuple(withdrawn),
    }
    try:
        found = Catalogue.model_validate(fields)
    except ValidationError as error:
        said = "; ".join(describe(item) for item in error.errors())
        raise ConfigurationError(
            f"the catalogue cannot say this: {said}",
            hint="look at `catalogue` in server.yaml, and at the number of releases",
        ) from error
    is_same = last is not None and _says(last.catalogue) == _says(found)
    if last is not None and is_same and not renew and not _is_half_over(last.catalogue, now):
        return last
    text = (json.dumps(found.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
    signature = signing.sign(key, signatures.CATALOGUE, text)
    # what a reader would refuse is never published
    return Signed(open_catalogue(text, signature), text, signature)


def withdraw(
    last: Catalogue, name: str, version: str, reason: Reason, sentence: str, now: datetime
) -> tuple[Withdrawal, ...]:
    """Return the withdrawals with one more; raises PolicyError for one that stands already.

    Raises ConfigurationError for a release that the catalogue does not offer.
    """
    if last.withdrawal(name, version) is not None:
        raise PolicyError(
            f"{name} {version} is withdrawn already",
            hint="a withdrawal stays as it was first stated",
        )
    entry = last.find(name, version)
    if entry is None:
        offered = ", ".join(f"{one.name} {one.version}" for one in last.releases) or "nothing"
        raise ConfigurationError(
            f"{name} {version}: not in the catalogue, which offers {offered}",
            hint="kohort-server withdraw NAME VERSION",
        )
    one = Withdrawal(
        name=name,
        version=version,
        sums=entry.sums,
        date=now.strftime("%Y-%m-%d"),
        reason=reason,
        sentence=sentence,
    )
    return (*last.withdrawn, one)


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    """By name, the newest version first; older ones name it."""
    newest: dict[str, str] = {}
    ordered = sorted(entries, key=lambda one: version_order(one.version), reverse=True)
    found = []
    for one in ordered:
        first = newest.setdefault(one.name, one.version)
        later = first if first != one.version else ""
        found.append(one.model_copy(update={"superseded_by": later}))
    return sorted(found, key=lambda one: one.name)


def _says(catalogue: Catalogue) -> dict[str, object]:
    """All but its number and its times."""
    return catalogue.model_dump(exclude=CHANGING)


def _is_half_over(catalogue: Catalogue, now: datetime) -> bool:
    """Whether half of its time has gone."""
    ends = parse_time(catalogue.expires)
    return ends - now < RENEW_SHARE * (ends - parse_time(catalogue.created))
