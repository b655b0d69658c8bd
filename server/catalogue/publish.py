"""Publishes and withdraws: the steps, numbered.

  1. the last catalogue is the newer one of the state folder's and the site's; both are this
     operator's, or nothing is done;
  2. every published release enters the site, verified; a withdrawn one does not;
  3. the next catalogue is signed and kept in the state folder;
  4. the site shows it.
A kill between 3 and 4 leaves a catalogue that the next run shows as it was signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigurationError
from common.storage.lock import FolderLock
from common.wire import signing
from kohort.catalogue import Reason, Withdrawal
from kohort.manifest import read_manifest
from server.catalogue.document import Words, next_catalogue, withdraw
from server.catalogue.pages import Site, write_pages
from server.catalogue.shown import read_shown
from server.catalogue.site import (
    add_release,
    offered_folders,
    published_folders,
    read_site,
    write_site,
)
from server.operator.hand_over import operator_keys
from server.operator.published import Signed, check_own, read_published, write_published
from server.operator.state import ServerState

LOCK = "catalogue.lock"


@dataclass(frozen=True)
class Office:
    """Who publishes where: the state folder, the site's folder, words, key, and the time.

    `url`: the address under which the site is served, "" where that is not known.
    """

    place: ServerState
    out: Path
    words: Words
    url: str
    key: Ed25519PrivateKey
    now: datetime


@dataclass(frozen=True)
class Told:
    """What became of a catalogue: what is shown, which releases are new, whether pages changed.

    `held_back`: releases of the folder that are withdrawn and stay out.
    """

    signed: Signed
    added: tuple[str, ...] = ()
    held_back: tuple[str, ...] = ()
    changed: bool = True


def publish(office: Office, releases: Path | None, *, renew: bool = False) -> Told:
    """Show every published release of a folder, beside those that the site has already.

    Raises RefusedError where a release does not verify, or the site is another operator's.
    """
    place = office.place
    with FolderLock(place.root / LOCK, "kohort-server publish"):
        # (1) the last catalogue
        last = _last(place, office.out)
        gone = last.catalogue.withdrawn if last else ()
        # (2) the releases
        trust = frozenset(signing.fingerprint(one) for one in operator_keys(place))
        added, held_back = _add_all(releases, office.out, gone, trust)
        # (3, 4) sign and show
        signed, changed = _show(office, last, gone, renew=renew)
    return Told(signed, tuple(added), tuple(held_back), changed)


def withdraw_release(
    office: Office, name: str, version: str, reason: Reason, sentence: str
) -> Told:
    """Withdraw one release: it stays listed as withdrawn, and its files go from the site.

    Raises ConfigurationError where the catalogue does not offer it.
    """
    with FolderLock(office.place.root / LOCK, "kohort-server withdraw"):
        last = _last(office.place, office.out)
        if last is None:
            raise ConfigurationError(
                f"{office.out}: no catalogue is there", hint="kohort-server publish writes one"
            )
        gone = withdraw(last.catalogue, name, version, reason, sentence, office.now)
        signed, changed = _show(office, last, gone)
    return Told(signed, changed=changed)


def _last(place: ServerState, out: Path) -> Signed | None:
    """Step 1: the newer one of what the state folder and the site hold."""
    keys = operator_keys(place)
    kept, shown = read_published(place), read_site(out)
    for signed, where in ((kept, place.root), (shown, out)):
        if signed is not None:
            check_own(signed, keys, str(where))
    known = [one for one in (kept, shown) if one is not None]
    return max(known, key=lambda one: one.catalogue.version, default=None)


def _add_all(
    releases: Path | None, out: Path, gone: Sequence[Withdrawal], trust: frozenset[str]
) -> tuple[list[str], list[str]]:
    """Step 2: which releases are new, and which stay out."""
    withdrawn = {(one.name, one.version) for one in gone}
    added, held_back = [], []
    for folder in published_folders(releases) if releases is not None else []:
        manifest = read_manifest(folder)
        title = f"{manifest.name} {manifest.version}"
        if (manifest.name, manifest.version) in withdrawn:
            held_back.append(title)
        elif add_release(folder, out, trust):
            added.append(title)
    return added, held_back


def _show(
    office: Office, last: Signed | None, gone: Sequence[Withdrawal], *, renew: bool = False
) -> tuple[Signed, bool]:
    """Steps 3 and 4."""
    folders = offered_folders(office.out, [(one.name, one.version) for one in gone])
    shown = [read_shown(folder) for folder in folders]
    # (3) the next catalogue, kept before it is shown
    entries = [one.entry for one in shown]
    signed = next_catalogue(last, entries, gone, office.words, office.key, office.now, renew=renew)
    pages = write_pages(Site(signed.catalogue, tuple(shown), office.url))
    write_published(office.place, signed)
    # (4) the site
    return signed, write_site(office.out, signed, pages)
