"""The registry of sites: their keys, and whether they may take part now.

States: enrolled, registered (Flower knows the node), quarantined (with a code), revoked.
Guarantees:
  one name and one key belong to one site;
  every change is on disk before it counts, in the log first, and nothing is forgotten;
  quarantine ends by the operator's command alone; a revoked key is refused for good.
A revoked name may enrol again with new keys: this is how a site changes its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigurationError, PolicyError, RefusedError
from common.storage.journal import Entry, Journal
from common.storage.lock import FolderLock
from common.wire import signing
from common.wire.handover import Handover, refusal
from kohort.header import HEADS
from server.operator.log import OperatorLog
from server.operator.requests import Request

KEYS = ("node_key", "sign_key")
State = Literal["enrolled", "registered", "quarantined", "revoked"]


@dataclass(frozen=True)
class Site:
    """One hospital as the operator knows it. Keys are one-line OpenSSH texts without comment."""

    name: str
    node_key: str
    sign_key: str
    state: State = "enrolled"
    node_id: int | None = None
    code: str = ""
    next_node_key: str = ""
    next_node_id: int | None = None
    earlier_sign_keys: tuple[str, ...] = ()  # oldest first

    @property
    def sign_keys(self) -> tuple[str, ...]:
        """Its signing key, and those that handed over to it, newest first."""
        return (self.sign_key, *reversed(self.earlier_sign_keys))

    @property
    def first_sign_key(self) -> str:
        """The key with which it was enrolled: heads and receipts go on under it."""
        return self.sign_keys[-1]

    @property
    def node_keys(self) -> tuple[str, ...]:
        """The node keys that count now: two while the site changes its key."""
        return tuple(filter(None, (self.node_key, self.next_node_key)))

    @property
    def active(self) -> bool:
        """Whether the round loop may talk to it."""
        return self.state == "registered" and self.node_id is not None

    @property
    def fingerprint(self) -> str:
        """The signing key's fingerprint, for reading aloud."""
        return signing.fingerprint(signing.parse_public(self.sign_key))


class Registry:
    """All sites. Safe to use from several processes: each change is one appended entry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal = Journal(path)
        self._heads = Journal(path.with_name("heads.sqlite"))
        self.log = OperatorLog(path.parent)

    def sites(self) -> dict[str, Site]:
        """Return every site by name, in order of name."""
        found: dict[str, Site] = {}
        for entry in self._journal.entries():
            found[entry.key] = _after(found.get(entry.key), entry)
        return dict(sorted(found.items()))

    def get(self, name: str) -> Site:
        """Return one site; raises ConfigurationError if the name is unknown."""
        sites = self.sites()
        if name not in sites:
            raise ConfigurationError(
                f"no site {name!r} is enrolled; known: {', '.join(sites) or 'none'}",
                hint="kohort-server sites lists them",
            )
        return sites[name]

    def enrol(self, request: Request) -> Site:
        """Return the site of a checked request; the same request again changes nothing.

        Raises RefusedError (E-ENROL-NAME, E-ENROL-KEY) when the name or a key belongs to another
        record.
        """
        asked = Site(request.site, _bare(request.node_key), _bare(request.sign_key))
        with FolderLock(self._path.with_suffix(".lock"), "an enrolment"):
            # The name: free, revoked, or this very request once more.
            known = self.sites().get(asked.name)
            if known and known.state != "revoked":
                if (known.node_key, known.sign_key) == (asked.node_key, asked.sign_key):
                    return known
                raise RefusedError(
                    f"{asked.name}: enrolled already, with other keys",
                    hint="ask for its newest NAME.request.json; if it lost its keys: "
                    f"kohort-server sites revoke {asked.name}, then enrol again",
                    code="E-ENROL-NAME",
                )
            # The keys: never used before.
            if {asked.node_key, asked.sign_key} & self._used_keys():
                raise RefusedError(
                    f"{asked.name}: one of its keys belongs to another or a revoked record",
                    hint="the site makes new keys with `kohort-site init` in a fresh folder",
                    code="E-ENROL-KEY",
                )
            self.log.note("site-enrolled", site=asked.name, fingerprint=asked.fingerprint)
            self._journal.append(
                asked.name, "enrolled", {"node_key": asked.node_key, "sign_key": asked.sign_key}
            )
        return asked

    def note_registered(self, name: str, node_id: int) -> None:
        """Note the node id that Flower gave to an enrolled site."""
        self._journal.append(name, "registered", {"node_id": node_id})

    def note_unregistered(self, name: str) -> None:
        """Note that Flower refuses a revoked site's node from now on."""
        self._journal.append(name, "unregistered")

    def begin_rotation(self, name: str, node_key: str, *, again: bool = False) -> None:
        """Note a site's next node key; both count until the new one was seen at the front.

        One that counts already changes nothing, unless Flower has forgotten it: `again`.
        Raises RefusedError (E-ENROL-KEY) for a key that was ever used, PolicyError for a revoked
        site.
        """
        with FolderLock(self._path.with_suffix(".lock"), "an enrolment"):
            site = self.get(name)
            if site.state == "revoked":
                raise PolicyError(f"{name}: revoked")
            if again and node_key == site.next_node_key:
                self._journal.append(name, "rotating", {"node_key": node_key})
            if node_key in site.node_keys:
                return
            if node_key in self._used_keys():
                raise RefusedError(
                    f"{name}: its next node key belongs to another or an earlier record",
                    hint="the site makes a new one with `kohort-site rotate node`",
                    code="E-ENROL-KEY",
                )
            self._journal.append(name, "rotating", {"node_key": node_key})

    def note_next_registered(self, name: str, node_id: int) -> None:
        """Note the node id that Flower gave to a site's next key."""
        self._journal.append(name, "next-registered", {"node_id": node_id})

    def end_rotation(self, name: str) -> None:
        """The next node key was seen: it alone counts from now on."""
        if self.get(name).next_node_key:
            self._journal.append(name, "rotated")

    def hand_over(self, name: str, handover: Handover) -> bool:
        """Let a site's next signing key take over; return False where it has done so already.

        What it signed before stays verifiable. Raises RefusedError (E-HANDOVER) for a statement of
        another site or key, (E-ENROL-KEY) for a key that was ever used.
        """
        with FolderLock(self._path.with_suffix(".lock"), "an enrolment"):
            site = self.get(name)
            if handover.new == site.sign_key:
                return False
            if handover.name != name or handover.old != site.sign_key or site.state == "revoked":
                raise refusal(f"not from the present key of {name}")
            if handover.new in self._used_keys():
                raise RefusedError(
                    f"{name}: its next signing key belongs to another or an earlier record",
                    hint="the site makes a new one with `kohort-site rotate signing`",
                    code="E-ENROL-KEY",
                )
            self.log.note("site-key-changed", site=name, old=handover.old, new=handover.new)
            data = {"sign_key": handover.new, "handover": handover.model_dump(mode="json")}
            self._journal.append(name, "handed-over", data)
        return True

    def quarantine(self, name: str, code: str) -> None:
        """Put a site in quarantine under a code, until the operator releases it."""
        self.get(name)
        self.log.note("site-quarantined", site=name, code=code)
        self._journal.append(name, "quarantined", {"code": code})

    def release(self, name: str) -> None:
        """End a site's quarantine; raises PolicyError if it is in none."""
        if self.get(name).state != "quarantined":
            raise PolicyError(
                f"{name}: not in quarantine", hint="kohort-server sites lists the states"
            )
        self.log.note("site-released", site=name)
        self._journal.append(name, "released")

    def revoke(self, name: str) -> None:
        """Revoke a site for good (its keys are never accepted again)."""
        if self.get(name).state == "revoked":
            raise PolicyError(f"{name}: revoked already")
        self.log.note("site-revoked", site=name)
        self._journal.append(name, "revoked")

    def note_head(self, name: str, commitment: str) -> None:
        """Note a commitment to a site's head that came with an accepted reply, of any study.

        It belongs to the site's first signing key: a site that is enrolled anew begins without one.
        """
        known = self.heads(name)
        if commitment not in known:
            newest = [*known, commitment][-HEADS:]
            self._heads.append(self.get(name).first_sign_key, "accepted", {"newest": newest})

    def heads(self, name: str) -> tuple[str, ...]:
        """Return the newest commitments that were accepted from a site, oldest first."""
        latest = self._heads.latest(self.get(name).first_sign_key)
        if latest is None:
            return ()
        return tuple(latest.data["newest"])

    def _used_keys(self) -> set[str]:
        """Every key that was ever enrolled."""
        used: set[str] = set()
        for entry in self._journal.entries():
            if entry.state in ("enrolled", "rotating", "handed-over"):
                used |= {str(entry.data[name]) for name in KEYS if name in entry.data}
        return used

    def close(self) -> None:
        """Close the file."""
        self._journal.close()
        self._heads.close()
        self.log.close()


def _after(site: Site | None, entry: Entry) -> Site:
    """The site after one more entry."""
    data: dict[str, Any] = entry.data
    if entry.state == "enrolled":
        return Site(entry.key, data["node_key"], data["sign_key"])
    assert site is not None
    if entry.state == "registered":
        state: State = "registered" if site.state == "enrolled" else site.state
        return replace(site, state=state, node_id=data["node_id"])
    if entry.state == "quarantined":
        if site.state == "revoked":
            return site
        return replace(site, state="quarantined", code=data["code"])
    if entry.state == "released":
        if site.node_id is None:
            return replace(site, state="enrolled", code="")
        return replace(site, state="registered", code="")
    if entry.state == "rotating":
        return replace(site, next_node_key=data["node_key"], next_node_id=None)
    if entry.state == "handed-over":
        earlier = (*site.earlier_sign_keys, site.sign_key)
        return replace(site, sign_key=data["sign_key"], earlier_sign_keys=earlier)
    if entry.state == "next-registered":
        return replace(site, next_node_id=data["node_id"])
    if entry.state == "rotated":
        node_id = site.next_node_id
        return replace(
            site,
            node_key=site.next_node_key,
            node_id=node_id,
            next_node_key="",
            next_node_id=None,
            state="enrolled" if node_id is None and site.state == "registered" else site.state,
        )
    if entry.state == "unregistered":
        return replace(site, state="revoked", node_id=None)
    return replace(site, state="revoked")


def _bare(line: str) -> str:
    """A key line without its comment."""
    return " ".join(line.split()[:2])
