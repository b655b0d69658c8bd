"""Who is one person, and who withdrew: the site's one notion of a person, in one file.

In: the names (pseudonyms) that an intake found on images; withdrawals.
Out: `People`, which every reader of a cohort asks.
Guarantees:
  - append only; it holds pseudonyms and nothing else
  - a link is kept for good: ids that were one person stay one when the file that showed it is gone
  - two names that a person called different are linked by nothing that speaks of these two alone
  - whoever withdrew is out under every name that is linked now or later
Not covered: how links are found (client/ingest/persons.py); a file that is older than what was
written (the site's head tells).

Entries of the journal: `stated` {persons, plain, forms}, `decided` {same, different},
`withdrawn` {names}. Forms are keyed hashes of an id without regard to its spelling
(client/ingest/spelling.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
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
class Spelling:
    """What an id is called without regard to spelling (`owns`), and what it may stand for."""

    owns: tuple[str, ...]
    claims: tuple[str, ...]

    def is_like(self, other: Spelling) -> bool:
        """Return whether two ids can be one id in two spellings."""
        both = {*other.owns, *other.claims}
        return not both.isdisjoint(self.owns) or not set(self.claims).isdisjoint(other.owns)

    def keyed(self, hide: Callable[[str], str]) -> Spelling:
        """Return the same with every form hidden by a keyed hash."""
        return Spelling(tuple(map(hide, self.owns)), tuple(map(hide, self.claims)))


Member = tuple[Hashable, Iterable[str]]  # a node, and the names that it stands for


@dataclass(frozen=True)
class People:
    """What the site knows of its persons.

    `persons`: names that are one person, as they were stated, oldest first. `plain`: for the name
    of an id under an issuer, the name of the same id without one. `forms`: what a name's id is
    called without regard to spelling. `parted`: sorted pairs of names that a person called
    different. `withdrawn`: names, and forms of ids.
    """

    persons: tuple[tuple[str, ...], ...] = ()
    plain: Mapping[str, str] = field(default_factory=dict)
    withdrawn: frozenset[str] = frozenset()
    forms: Mapping[str, Spelling] = field(default_factory=dict)
    parted: frozenset[tuple[str, str]] = frozenset()

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

    def called(self, name: str, spelling: Spelling | None = None) -> tuple[tuple[str, ...], ...]:
        """Return the persons with this name, also where it lacks the issuer that they have.

        Where no person has it, those whose id has this `spelling`.
        """
        issued = [known for known, plain in self.plain.items() if plain == name]
        found = {self.name_person([known]) for known in (name, *issued) if known in self.names}
        if not found and spelling is not None:
            found = {self.name_person([known]) for known in self.spelled_like(spelling)}
        return tuple(sorted(found))

    def spelled_like(self, spelling: Spelling) -> set[str]:
        """Return the names whose ids can be this id in another spelling."""
        found: set[str] = set()
        for form in (*spelling.owns, *spelling.claims):
            found.update(self._owners.get(form, ()))
        for form in spelling.owns:
            found.update(self._claimants.get(form, ()))
        return found

    @cached_property
    def _owners(self) -> dict[str, list[str]]:
        """The names that own each form."""
        return _by_form((name, forms.owns) for name, forms in self.forms.items())

    @cached_property
    def _claimants(self) -> dict[str, list[str]]:
        """The names that claim each form."""
        return _by_form((name, forms.claims) for name, forms in self.forms.items())

    def are_apart(self, one: Iterable[str], other: Iterable[str]) -> bool:
        """Return whether a person called a name of the one and a name of the other different."""
        if not self.parted:
            return False
        return any(tuple(sorted(pair)) in self.parted for pair in product(one, other))

    def join(self, links: Links, members: Sequence[Member]) -> None:
        """Link members who are one person, but no two of them who are apart."""
        touched = [(node, names) for node, names in members if self._is_parted(names)]
        free = [node for node, names in members if not self._is_parted(names)]
        links.join(free)
        for node, _ in touched:
            links.join([*free[:1], node])
        for (one, of_one), (other, of_other) in combinations(touched, 2):
            if not self.are_apart(of_one, of_other):
                links.join([one, other])

    def _is_parted(self, names: Iterable[str]) -> bool:
        return bool(self.parted) and not self._parted_names.isdisjoint(names)

    @cached_property
    def _parted_names(self) -> frozenset[str]:
        return frozenset(name for pair in self.parted for name in pair)

    def still_one(self) -> list[tuple[str, str]]:
        """Return the pairs that are apart, and that further names still make one person."""
        return [pair for pair in sorted(self.parted) if pair[1] in self.name_person(pair[:1])]

    def decide(
        self, same: Iterable[tuple[str, str]], different: Iterable[tuple[str, str]]
    ) -> People:
        """Return what is known once a person has decided on pairs of names."""
        joined = set(map(_sorted_pair, same))
        parted = (self.parted | set(map(_sorted_pair, different))) - joined
        return replace(self, persons=(*self.persons, *sorted(joined)), parted=frozenset(parted))

    def knows(self, names: Sequence[str]) -> bool:
        """Return whether these names are one person already, or kept apart."""
        if not set(names) <= self.names:
            return False
        if not self._is_parted(names):
            return set(names) <= set(self.name_person(names[:1]))
        for one, other in combinations(names, 2):
            apart = self.are_apart([one], [other])
            if not apart and self._links.root(one) != self._links.root(other):
                return False
        return True

    def _is_out(self, name: str) -> bool:
        """Whether a name, or the same id without its issuer, withdrew."""
        if name in self.withdrawn or self.plain.get(name) in self.withdrawn:
            return True
        forms = self.forms.get(name)
        if forms is not None and not self.withdrawn.isdisjoint((*forms.owns, *forms.claims)):
            return True
        return name in self.names and self._links.root(name) in self._withdrawn_roots

    @cached_property
    def _links(self) -> Links:
        links = Links()
        for names in self.persons:
            self.join(links, [(name, (name,)) for name in names])
        # an id under an issuer is the same id without one, where some file stated that form
        for name, plain in self.plain.items():
            if plain in self.names:
                self.join(links, [(name, (name,)), (plain, (plain,))])
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
        forms: dict[str, Spelling] = {}
        parted: set[tuple[str, str]] = set()
        with self._name_faults():
            for entry in self._entries():
                if entry.state == "withdrawn":
                    withdrawn.update(_names(entry.data["names"]))
                elif entry.state == "stated":
                    persons += [_names(names) for names in entry.data["persons"]]
                    plain |= dict(zip(*_columns(entry.data["plain"]), strict=True))
                    forms |= _spellings(entry.data.get("forms", {}))
                elif entry.state == "decided":
                    # the latest decision counts
                    same = _pairs(entry.data["same"])
                    persons += sorted(same)
                    parted = (parted | _pairs(entry.data["different"])) - same
                else:
                    raise ValueError(entry.state)
        return People(tuple(persons), plain, frozenset(withdrawn), forms, frozenset(parted))

    def state(
        self,
        persons: Iterable[Iterable[str]],
        plain: Mapping[str, str],
        forms: Mapping[str, Spelling] | None = None,
    ) -> People:
        """Keep which names are one person, for good; return all that is known then.

        What is known already is not written again.
        """
        known = self.read()
        distinct = dict.fromkeys(tuple(sorted(set(names))) for names in persons)
        news = [list(names) for names in distinct if not known.knows(names)]
        fresh = {name: other for name, other in plain.items() if name not in known.plain}
        entry: dict[str, object] = {"persons": news, "plain": fresh}
        for name, spelling in (forms or {}).items():
            if name not in known.forms:
                spelled = entry.setdefault("forms", {})
                assert isinstance(spelled, dict)
                spelled[name] = [list(spelling.owns), list(spelling.claims)]
        if not any(entry.values()):
            return known
        self._append("stated", entry)
        return self.read()

    def decide(
        self, same: Iterable[tuple[str, str]], different: Iterable[tuple[str, str]]
    ) -> People:
        """Keep a person's decisions on pairs of names; return all that is known then.

        The latest decision on a pair counts. What holds already is not written again.
        """
        known = self.read()
        pairs = set(map(_sorted_pair, same))
        joined = sorted(pair for pair in pairs if pair in known.parted or not known.knows(pair))
        parted = sorted(set(map(_sorted_pair, different)) - known.parted)
        if not joined and not parted:
            return known
        self._append("decided", {"same": joined, "different": parted})
        return self.read()

    @property
    def decisions(self) -> int:
        """The number of entries that hold a person's decisions."""
        with self._name_faults():
            return sum(entry.state == "decided" for entry in self._entries())

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


def _by_form(forms: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, list[str]]:
    """Names by form, of pairs of a name and its forms."""
    found: dict[str, list[str]] = {}
    for name, own in forms:
        for form in own:
            found.setdefault(form, []).append(name)
    return found


def _sorted_pair(pair: tuple[str, str]) -> tuple[str, str]:
    """A pair of names in the order in which it is kept."""
    first, second = sorted(pair)
    return first, second


def _pairs(value: Any) -> set[tuple[str, str]]:
    """Pairs of names; raises ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError("pairs")
    found = set()
    for pair in value:
        first, second = _names(pair)
        found.add(_sorted_pair((first, second)))
    return found


def _spellings(value: Any) -> dict[str, Spelling]:
    """Forms by name; raises ValueError for anything else."""
    found = {}
    for name, (owns, claims) in value.items():
        found[name] = Spelling(_names(owns), _names(claims))
    return found
