"""What a study's journal says so far, kept in memory and brought up to date before each look.

In: the journal, the plan's hash. Out: closed rounds, accepted payloads by site.
Guarantees: a look reads the entries that are new since the last one, whoever wrote them; so it
takes the same time in a study's last round as in its first.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from common.storage.journal import Entry, Journal

CODE = "code"  # the state of an entry: a site answered with a code in place of a result


@dataclass(frozen=True)
class DeclaredCode:
    """What a site answers in place of a result: its code, the round, and since when (UTC).

    `place`: the round's journal key. `since`: "" in a journal of an earlier version.
    """

    code: str
    place: str
    since: str


@dataclass(frozen=True)
class Absence:
    """Of how many closed rounds in a row a site has nothing; when the first was closed (UTC).

    `since`: "" in a journal of an earlier version.
    """

    rounds: int
    since: str


class History:
    """The views that the round loop asks for again and again; safe to use from several threads.

    `closed`: keys of closed rounds. `missing`: sites that each closed round lacks, oldest first.
    `absent`: by site how long it has been missing, for those that the last closed round lacks.
    `accepted`: by site and signing key the digests of accepted payloads, oldest first. `newest`: by
    site the key of its newest accepted reply. `codes`: by site what it answers now in place of a
    result; an accepted reply ends that.
    """

    def __init__(self, journal: Journal, study_hash: str) -> None:
        self._journal = journal
        self._study = study_hash
        self._seen = 0
        self._lock = threading.Lock()
        self.closed: set[str] = set()
        self.missing: list[frozenset[str]] = []
        self.absent: dict[str, Absence] = {}
        self.accepted: dict[tuple[str, str], dict[str, None]] = {}
        self.newest: dict[str, str] = {}
        self.codes: dict[str, DeclaredCode] = {}

    def read(self) -> History:
        """Take in what was journaled since the last look; returns itself.

        Raises RefusedError (E-JOURNAL) for a damaged entry, at this look and at every later one.
        """
        with self._lock:
            for entry in self._journal.entries(self._study, after=self._seen):
                self._take(entry)
                self._seen = entry.seq
        return self

    def _take(self, entry: Entry) -> None:
        """Add one entry to the views."""
        if entry.state == "closed":
            self.closed.add(entry.key)
            self._take_missing(frozenset(entry.data.get("missing", ())), entry)
        elif entry.state == "accepted":
            site = entry.data["site"]
            self.accepted.setdefault((site, entry.data["key"]), {})[entry.data["digest"]] = None
            self.newest[site] = entry.key
            self.codes.pop(site, None)
        elif entry.state == CODE:
            # the key is that of the part, then the site's name and "code"
            place = entry.key.rsplit("/", 3)[0]
            since = str(entry.data.get("since", ""))
            self.codes[entry.data["site"]] = DeclaredCode(entry.data["code"], place, since)

    def _take_missing(self, missing: frozenset[str], entry: Entry) -> None:
        """Add the sites that one more closed round lacks."""
        self.missing.append(missing)
        closed = Absence(0, str(entry.data.get("time", "")))
        before = {name: self.absent.get(name, closed) for name in missing}
        self.absent = {name: Absence(one.rounds + 1, one.since) for name, one in before.items()}
