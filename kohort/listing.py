"""Fetches a catalogue over HTTPS, and finds a release in it.

In: an address, whom the reader trusts. Out: a catalogue that may be relied on.
Guarantees: those of kohort/seen.py; no redirect is followed; no more than the cap is read.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from kohort import download
from kohort.catalogue import (
    CAP_BYTES,
    CATALOGUE,
    REASONS,
    SIGNATURE,
    Entry,
    Withdrawal,
)
from kohort.errors import ConfigurationError, PeerError, RefusedError
from kohort.notices import WITHDRAWN
from kohort.seen import Seen, accept, read_seen, spell_address
from kohort.signatures import KEY_CAP_BYTES

WANTED = re.compile(r"([a-z][a-z0-9-]{0,31})(?:@([0-9.]{5,32}))?")
READ_TWICE = 2


def fetch_catalogue(
    url: str,
    *,
    ca: Path | None = None,
    trust: frozenset[str] = frozenset(),
    accept_old: bool = False,
    now: datetime | None = None,
) -> Seen:
    """Return the catalogue at `url`, and remember it.

    `now`: the time against which its end is held; None: this machine's clock.

    Raises ConfigurationError (not HTTPS), PeerError (no catalogue there) and RefusedError (it may
    not be relied on).
    """
    address = spell_address(url)
    with download.open_client(address, ca) as client:
        source = download.Download(client, address, Path())
        for attempt in range(READ_TWICE):
            data = source.read_small(CATALOGUE, size_cap_bytes=CAP_BYTES)
            signature = source.read_small(SIGNATURE, size_cap_bytes=KEY_CAP_BYTES)
            moment = now or datetime.now(UTC)
            try:
                return accept(
                    address, data, signature, trust=trust, now=moment, accept_old=accept_old
                )
            except RefusedError as error:
                # published anew between the two answers: the second look sees one of them whole
                if error.code != RefusedError.default_code or attempt + 1 == READ_TWICE:
                    raise
    raise AssertionError("unreachable")


def find_entry(seen: Seen, wanted: str) -> Entry:
    """Return the release that NAME or NAME@VERSION means; without a version the newest one.

    Raises RefusedError (E-WITHDRAWN) for one that was withdrawn, ConfigurationError where there is
    none.
    """
    name, version = split_wanted(wanted)
    catalogue = seen.catalogue
    entry = catalogue.find(name, version) if version else catalogue.newest(name)
    if entry is not None:
        return entry
    gone = [one for one in catalogue.withdrawn if one.name == name and version in ("", one.version)]
    if gone:
        raise withdrawn_error(gone[-1])
    offered = ", ".join(sorted({one.name for one in catalogue.releases})) or "nothing"
    raise ConfigurationError(
        f"{wanted}: not in the catalogue of {catalogue.name}, which offers {offered}",
        hint=f"kohort list {seen.url}",
    )


def split_wanted(wanted: str) -> tuple[str, str]:
    """Return name and version of NAME or NAME@VERSION, the version "" for the newest."""
    match = WANTED.fullmatch(wanted)
    if match is None:
        raise ConfigurationError(
            f"{wanted}: expected https://..., NAME or NAME@VERSION",
            hint="kohort list URL shows the names of a catalogue",
        )
    return match[1], match[2] or ""


def withdrawn_error(gone: Withdrawal) -> RefusedError:
    """Return the refusal of a release that was withdrawn."""
    return RefusedError(
        f"{gone.name} {gone.version} was withdrawn on {gone.date}: {REASONS[gone.reason]}: "
        f"{gone.sentence}",
        hint="use another version; where you have a copy, stop using it",
        code=WITHDRAWN,
    )


def remembered_address(wanted: str) -> str:
    """Return the one address whose catalogue, as last seen, knows a release.

    Raises ConfigurationError where none or several do.
    """
    name, _ = split_wanted(wanted)
    found = sorted({one.url for one in read_seen() if one.catalogue.knows(name)})
    if len(found) == 1:
        return found[0]
    problem = "no catalogue that you have seen names it"
    if found:
        problem = f"several catalogues name it: {', '.join(found)}"
    raise ConfigurationError(
        f"{wanted}: {problem}", hint=f"give its address: kohort pull {wanted} --from URL"
    )


def refresh(*, ca: Path | None = None) -> tuple[list[Seen], list[str]]:
    """Return every catalogue that this user has seen, asked again, and why one was not reached."""
    found, problems = [], []
    for one in read_seen():
        try:
            key = frozenset({one.catalogue.fingerprint})
            found.append(fetch_catalogue(one.url, ca=ca, trust=key))
        except (PeerError, RefusedError) as error:
            problems.append(f"{error}; what follows of it was seen on {one.seen[:10]}")
            found.append(one)
    return found, problems
