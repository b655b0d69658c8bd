"""Which catalogues this user saw last: nobody shows an older one, or another key's, unnoticed.

In: an address, the bytes of a catalogue and its signature, whom the reader trusts, a time.
Out: what to rely on, kept in the cache folder.
Guarantees, in order:
  1. the catalogue is signed by the key inside it (kohort/catalogue.py);
  2. that key is one of the reader's, or the one seen at this address before;
  3. its version is not lower than the highest that was seen there, and two catalogues of one
     version are one;
  4. it has not ended.
Not covered: the first look at an address by a reader who trusts nobody yet.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from kohort.catalogue import (
    CAP_BYTES,
    CATALOGUE,
    TIME,
    Catalogue,
    Line,
    Moment,
    check_fresh,
    open_catalogue,
)
from kohort.errors import ConfigurationError, RefusedError
from kohort.files import atomic_write, read_capped
from kohort.frozen import FrozenModel

VARIABLE = "KOHORT_CACHE"
FOLDER = "catalogues"
SEEN_CAP_BYTES = 8 * CAP_BYTES
OLD = "E-CATALOGUE-OLD"
OTHER_KEY = "E-CATALOGUE-KEY"
WITHOUT = "--accept-old shows it all the same; withdrawals since then are not in it"


class Kept(FrozenModel):
    """A catalogue as it was seen: where, when, its exact bytes, its signature.

    `trusted`: whether the reader has named its key.
    """

    format: Literal["kohort-seen/1"] = "kohort-seen/1"
    url: Line
    seen: Moment
    catalogue: str = Field(max_length=CAP_BYTES)
    signature: str = Field(max_length=1 << 14)
    trusted: bool = False


@dataclass(frozen=True)
class Seen:
    """A catalogue, where and when it was seen, and whether the reader trusts its key.

    `warning`: why it would have been refused, where the reader took it all the same.
    """

    url: str
    seen: str
    catalogue: Catalogue
    trusted: bool = False
    warning: str = ""


def cache_folder() -> Path:
    """Return where the catalogues of this user are kept: KOHORT_CACHE, or the usual place."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own) / FOLDER
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root / "kohort" / FOLDER


def spell_address(url: str) -> str:
    """Return the address of a catalogue in its one spelling, without its file's name.

    Raises ConfigurationError for anything but https://HOST[:PORT][/PATH].
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    extra = known and (parts.query or parts.fragment or parts.username)
    if not known or extra or not url.isprintable():
        raise ConfigurationError(
            f"{url}: expected https://HOST/PATH, where a catalogue is",
            hint="catalogues and releases are only fetched over TLS",
        )
    path = parts.path.removesuffix(CATALOGUE).removesuffix("index.html").rstrip("/")
    return f"https://{parts.netloc.lower()}{path}"


def read_seen() -> list[Seen]:
    """Return every catalogue in the cache, the one that was seen last first.

    Raises RefusedError for a file that is not as it was written.
    """
    folder = cache_folder()
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda one: (one.seen, one.url), reverse=True)


def accept(
    url: str,
    data: bytes,
    signature: bytes,
    *,
    trust: frozenset[str],
    now: datetime,
    accept_old: bool = False,
) -> Seen:
    """Return the catalogue at `url` if it may be relied on, and remember it.

    `trust`: fingerprints; a key among them is taken at once, another one is refused. Without them
    the key that was seen there first stays the only one. `accept_old` turns the refusals of 3 and 4
    into a warning, and forgets nothing.

    Raises RefusedError: E-CATALOGUE-KEY, E-CATALOGUE-OLD, E-CATALOGUE-EXPIRED.
    """
    # (1) signed by the key inside it
    catalogue = open_catalogue(data, signature)
    here = [one for one in read_seen() if one.url == url]
    # (2) a key that the reader trusts, or knows from before
    _check_key(url, catalogue.fingerprint, trust, here)
    # (3) not older than what was seen, (4) and not ended
    before = [one for one in here if one.catalogue.fingerprint == catalogue.fingerprint]
    old = _refusal(lambda: _check_version(url, catalogue, before))
    ended = _refusal(lambda: check_fresh(catalogue, now))
    refusal = old or ended
    if refusal is not None and not accept_old:
        raise refusal
    trusted = catalogue.fingerprint in trust or any(one.trusted for one in before)
    if old is None:
        kept = Kept(
            url=url,
            seen=now.strftime(TIME),
            catalogue=data.decode("utf-8"),
            signature=signature.decode("ascii"),
            trusted=trusted,
        )
        text = kept.model_dump_json().encode()
        atomic_write(_file(url, catalogue.fingerprint), text, mode=0o600)
    warning = str(refusal) if refusal else ""
    return Seen(url, now.strftime(TIME), catalogue, trusted, warning)


def _refusal(check: Callable[[], None]) -> RefusedError | None:
    """What a check raises; None where it passes."""
    try:
        check()
    except RefusedError as error:
        return error
    return None


def _check_key(url: str, key: str, trust: frozenset[str], here: list[Seen]) -> None:
    """Step 2: raise RefusedError (E-CATALOGUE-KEY) for a key that nobody vouches for."""
    if trust and key not in trust:
        raise RefusedError(
            f"{url}: the catalogue is signed by {key}, you trust {', '.join(sorted(trust))}",
            hint="compare with the fingerprint that the consortium publishes elsewhere",
            code=OTHER_KEY,
        )
    known = sorted({one.catalogue.fingerprint for one in here})
    if not trust and known and key not in known:
        raise RefusedError(
            f"{url}: the catalogue is signed by {key}, before it was {', '.join(known)}",
            hint="ask the consortium whether its key changed; if so, give the new one: "
            f"--trust {key}",
            code=OTHER_KEY,
        )


def _check_version(url: str, catalogue: Catalogue, same_key: list[Seen]) -> None:
    """Step 3: raise RefusedError (E-CATALOGUE-OLD) for what came before."""
    for one in same_key:
        newest = one.catalogue
        if catalogue.version < newest.version:
            raise RefusedError(
                f"{url}: shows catalogue {catalogue.version}, and on {one.seen[:10]} it showed "
                f"{newest.version}",
                hint=f"the server was put back, or holds withdrawals back; {WITHOUT}",
                code=OLD,
            )
        if catalogue.version == newest.version and catalogue != newest:
            raise RefusedError(
                f"{url}: shows another catalogue {catalogue.version} than on {one.seen[:10]}",
                hint=f"ask the operator, who signed two of one number; {WITHOUT}",
                code=OLD,
            )


def _file(url: str, key: str) -> Path:
    """Where the last catalogue of one address and key is kept."""
    digest = hashlib.sha256(f"{url}\n{key}".encode()).hexdigest()
    return cache_folder() / f"{digest[:40]}.json"


def _read(path: Path) -> Seen:
    """One file of the cache."""
    try:
        kept = Kept.model_validate_json(read_capped(path, SEEN_CAP_BYTES))
        catalogue = open_catalogue(kept.catalogue.encode(), kept.signature.encode())
    except (ValidationError, UnicodeError, RefusedError) as error:
        raise RefusedError(
            f"{path}: not the catalogue that was seen",
            hint="remove this file; what it protected from, an older catalogue, is not noticed "
            "the next time",
        ) from error
    return Seen(kept.url, kept.seen, catalogue, kept.trusted)
