"""Who is one person, and who withdrew: the site's one notion of a person, in one file.

In: the names (pseudonyms) that an intake found on images; withdrawals.
Out: `People`, which every reader of a cohort asks.
Guarantees:
  - append only; it holds pseudonyms and nothing else
  - a link is kept for good: ids that were one person stay one when the file that showed it is gone
  - whoever withdrew is out under every name that is linked now or later
Not covered: how links are found (client/ingest/persons.py); a file that is older than what was
written (the site's head tells).

Entries of the journal: `stated` {persons, plain}, `withdrawn` {names}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import EnvironmentFault, RefusedError
from common.storage.journal import Entry, Journal
from common.wire.messages import canonical

FILE = "people.sqlite"
KEY = "people"


class Links:
    """Nodes in trees, one tree a person (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def root(self, node: Hashable) -> Hashable:
        """Return what stands for all nodes that are linked to this one."""
        parent = self._parent
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, nodes: Iterable[Hashable]) -> None:
        """Link all these nodes."""
        first = None
        for node in nodes:
            if first is None:
                first = node
            self._parent[self.root(node)] = self.root(first)


@dataclass(frozen=True)
class People:
    """What the site knows of its persons.

    `persons`: names that are one person, as they were stated, oldest first. `plain`: for the name
    of an id under an issuer, the name of the same id without one. `withdrawn`: names.
    """

    persons: tuple[tuple[str, ...], ...] = ()
    plain: Mapping[str, str] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name that was stated."""
        return frozenset(name for names in self.persons for name in names)

    def name_person(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return every name of the person who has these names, sorted."""
        found = set(names)
        for name in tuple(found):
            if name in self.names:
                found |= self._members[self._links.root(name)]
        return tuple(sorted(found))

    def has_withdrawn(self, names: Iterable[str]) -> bool:
        """Return whether the person who has these names withdrew."""
        return any(self._is_out(name) for name in self.name_person(names))

    def called(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return the persons with this name, also where it lacks the issuer that they have."""
        issued = [known for known, plain in self.plain.items() if plain == name]
        found = {self.name_person([known]) for known in (name, *issued) if known in self.names}
        return tuple(sorted(found))

    def _is_out(self, name: str) -> bool:
        """Whether a name, or the same id without its issuer, withdrew."""
        if name in self.withdrawn or self.plain.get(name) in self.withdrawn:
            return True
        return name in self.names and self._links.root(name) in self._withdrawn_roots

    @cached_property
    def _links(self) -> Links:
        links = Links()
        for names in self.persons:
            links.join(names)
        # an id under an issuer is the same id without one, where some file stated that form
        for name, plain in self.plain.items():
            if plain in self.names:
                links.join((name, plain))
        return links

    @cached_property
    def _members(self) -> dict[Hashable, set[str]]:
        """The names in each tree."""
        members: dict[Hashable, set[str]] = {}
        for name in self.names:
            members.setdefault(self._links.root(name), set()).add(name)
        return members

    @cached_property
    def _withdrawn_roots(self) -> set[Hashable]:
        return {self._links.root(name) for name in self.withdrawn & self.names}


class PeopleFile:
    """The journal of a site's persons; every call opens and closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> People:
        """Return what is known; nothing, where there is no file. Raises RefusedError (E-PEOPLE)."""
        persons: list[tuple[str, ...]] = []
        plain: dict[str, str] = {}
        withdrawn: set[str] = set()
        with self._name_faults():
            for entry in self._entries():
                if entry.state == "withdrawn":
                    withdrawn.update(_names(entry.data["names"]))
                elif entry.state == "stated":
                    persons += [_names(names) for names in entry.data["persons"]]
                    plain |= dict(zip(*_columns(entry.data["plain"]), strict=True))
                else:
                    raise ValueError(entry.state)
        return People(tuple(persons), plain, frozenset(withdrawn))

    def state(self, persons: Iterable[Iterable[str]], plain: Mapping[str, str]) -> People:
        """Keep which names are one person, for good; return all that is known then.

        What is known already is not written again.
        """
        known = self.read()
        news = []
        for names in persons:
            own = sorted(set(names))
            if not set(own) <= known.names or not set(own) <= set(known.name_person(own[:1])):
                news.append(own)
        fresh = {name: other for name, other in plain.items() if name not in known.plain}
        if not news and not fresh:
            return known
        self._append("stated", {"persons": news, "plain": fresh})
        return self.read()

    def withdraw(self, names: Iterable[str]) -> None:
        """Write withdrawals down, on disk before this returns; a second time changes nothing."""
        news = sorted(set(names) - self.read().withdrawn)
        if news:
            self._append("withdrawn", {"names": news})

    @property
    def count(self) -> int:
        """The number of entries."""
        with self._name_faults():
            return len(self._entries())

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all entries."""
        return hashlib.sha256(b"kohort-people\0" + b"\n".join(self.history())).hexdigest()

    def history(self) -> list[bytes]:
        """Return every entry, oldest first."""
        rows: list[bytes] = []
        with self._name_faults():
            for entry in self._entries():
                rows.append(canonical([entry.seq, entry.state, entry.data]))
        return rows

    def _entries(self) -> list[Entry]:
        if not self.path.is_file():
            return []
        journal = Journal(self.path)
        try:
            return journal.entries()
        finally:
            journal.close()

    def _append(self, state: str, data: Mapping[str, Any]) -> None:
        """Write one entry; the file is for the site's account alone."""
        journal = Journal(self.path)
        try:
            journal.append(KEY, state, data)
        finally:
            journal.close()

    @contextmanager
    def _name_faults(self) -> Iterator[None]:
        """A file that is not what was written, as a refusal."""
        try:
            yield
        except EnvironmentFault:
            raise
        except Exception as error:
            raise RefusedError(
                f"{self.path.name}: not the persons file that was written",
                hint="put the newest copy of the state folder back; never delete this file",
                code="E-PEOPLE",
            ) from error


def _names(value: Any) -> tuple[str, ...]:
    """A list of names; raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("names")
    return tuple(value)


def _columns(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names under an issuer, and those without; raises ValueError for anything else."""
    return _names(list(value)), _names(list(value.values()))
