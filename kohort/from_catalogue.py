"""What `list URL`, `pull NAME` and `notices` do: catalogues of releases, in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kohort import listing
from kohort.catalogue_words import catalogue_json, catalogue_lines
from kohort.console import plain
from kohort.errors import KohortError, RefusedError
from kohort.manifest import read_manifest
from kohort.notices import Notice, known_notices
from kohort.seen import Seen

WITHDRAWN_EXIT = RefusedError.exit_code


@dataclass(frozen=True)
class Source:
    """Where a release is fetched from and to, its digest, and who may have signed it.

    `digest` is "" where no catalogue names it.
    """

    url: str
    folder: Path
    digest: str
    trust: frozenset[str]


def list_catalogue(
    url: str, trust: frozenset[str], ca: Path | None, *, accept_old: bool, as_json: bool
) -> None:
    """Print the catalogue at an address."""
    seen = listing.fetch_catalogue(url, ca=ca, trust=trust, accept_old=accept_old)
    if as_json:
        sys.stdout.write(catalogue_json(seen) + "\n")
        return
    for line in catalogue_lines(seen):
        sys.stdout.write(plain(line) + "\n")
    warn_of(seen)


def find_source(
    wanted: str,
    folder: Path | None,
    catalogue: str | None,
    trust: frozenset[str],
    ca: Path | None,
    *,
    require: int | None = None,
    accept_old: bool = False,
) -> Source:
    """Return where the release is that an address, NAME or NAME@VERSION means.

    With `require` the reader's keys are those of signers, and the catalogue's key is the one seen
    before. A release of a catalogue whose key the reader trusts is trusted by its digest, whichever
    of the operator's keys has signed it.
    """
    if "://" in wanted:
        return Source(wanted, folder or Path(wanted.rstrip("/").rpartition("/")[2]), "", trust)
    listing.split_wanted(wanted)
    address = catalogue or listing.remembered_address(wanted)
    known = frozenset() if require else trust
    seen = listing.fetch_catalogue(address, ca=ca, trust=known, accept_old=accept_old)
    warn_of(seen)
    entry = listing.find_entry(seen, wanted)
    signers = trust if require else frozenset({entry.key}) if seen.trusted else frozenset()
    place = folder or Path(f"{entry.name}-{entry.version}")
    return Source(f"{seen.url}/{entry.path}", place, entry.sums, signers)


def show_notices(releases: Iterable[Path], ca: Path | None, *, as_json: bool) -> int:
    """Print what is known of each release, after asking every catalogue again.

    Returns the exit code: 1 where one of them was withdrawn.
    """
    seen, problems = listing.refresh(ca=ca)
    for problem in problems:
        sys.stderr.write(plain(f"kohort: warning: {problem}\n"))
    if not seen:
        sys.stderr.write("kohort: warning: no catalogue was seen yet: kohort list URL\n")
    found: list[Notice] = []
    for release in releases:
        try:
            of_this = known_notices(release, read_manifest(release), seen)
        except KohortError as error:
            sys.stderr.write(plain(f"kohort: warning: {release}: {error}\n"))
            continue
        found += of_this
        for one in of_this:
            facts = {"path": str(release), "kind": one.kind, "text": one.text}
            facts |= {"url": one.url, "seen": one.seen}
            line = json.dumps(facts, sort_keys=True) if as_json else f"{release}: {one.line}"
            sys.stdout.write(plain(line) + "\n")
    if not found and not as_json:
        sys.stdout.write("nothing is known against them\n")
    return WITHDRAWN_EXIT if any(one.kind == "withdrawn" for one in found) else 0


def warn_of(seen: Seen) -> None:
    """Say why a catalogue would have been refused."""
    if seen.warning:
        sys.stderr.write(f"kohort: warning: {seen.warning}\n")
