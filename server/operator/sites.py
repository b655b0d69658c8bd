"""The registry of enrolled sites: who they are, which keys are theirs, and whether they may take part now.

In: a site's signed request file, node ids from Flower, quarantine codes from the intake. Out: `Site` records, join files.
Guaranteed: a request is its own key's; one name and one key belong to one site; every change is on disk before it counts
and nothing is forgotten (append-only); quarantine ends only by the operator's word, revocation never.
Not covered: whether the person behind a request is who they say: read the fingerprint over another channel.

States: enrolled → registered (Flower knows the node) ⇄ quarantined (code) ; any → revoked. A revoked name may enrol again
with new keys (that is how a site changes its keys); a revoked key is refused for good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, PolicyError, RefusedError, disk_faults_named
from common.problems import describe
from common.storage.files import read_capped
from common.storage.journal import Entry, Journal
from common.storage.lock import FolderLock
from common.study.fields import Identifier
from common.wire import signing
from common.wire.messages import canonical
from server.operator.certificates import issue_site_certificate, load_authority, parse_site_key
from server.operator.config import ServerConfig, ServerState

REQUEST_CAP_BYTES = 65_536
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

    @property
    def active(self) -> bool:
        """Whether the round loop may talk to it."""
        return self.state == "registered" and self.node_id is not None

    @property
    def fingerprint(self) -> str:
        """The signing key's fingerprint, for reading aloud."""
        return signing.fingerprint(signing.parse_public(self.sign_key))


class Request(FrozenModel):
    """A site's request file."""

    format: Literal["kohort-request/1"]
    site: Identifier
    node_key: str = Field(max_length=1000)
    sign_key: str = Field(max_length=1000)
    signature: str = Field(max_length=4000)


class Registry:
    """All sites. Safe to use from several processes: each change is one appended entry."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journal = Journal(path)

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

        Raises RefusedError (E-ENROL-NAME, E-ENROL-KEY) when the name or a key belongs to another record.
        """
        asked = Site(request.site, _bare(request.node_key), _bare(request.sign_key))
        with FolderLock(self._path.with_suffix(".lock"), "an enrolment"):
            known = self.sites().get(asked.name)
            if known and known.state != "revoked":
                if (known.node_key, known.sign_key) == (asked.node_key, asked.sign_key):
                    return known
                raise RefusedError(
                    f"{asked.name}: enrolled already, with other keys",
                    hint=f"if the hospital changed its keys: kohort-server sites revoke {asked.name}, then enrol again",
                    code="E-ENROL-NAME",
                )
            if {asked.node_key, asked.sign_key} & self._used_keys():
                raise RefusedError(
                    f"{asked.name}: one of its keys belongs to another or a revoked record",
                    hint="the site makes new keys with `kohort-site init` in a fresh folder",
                    code="E-ENROL-KEY",
                )
            self._journal.append(
                asked.name, "enrolled", {"node_key": asked.node_key, "sign_key": asked.sign_key}
            )
        return asked

    def registered(self, name: str, node_id: int) -> None:
        """Note the node id that Flower gave to an enrolled site."""
        self._journal.append(name, "registered", {"node_id": node_id})

    def unregistered(self, name: str) -> None:
        """Note that Flower refuses a revoked site's node from now on."""
        self._journal.append(name, "unregistered")

    def quarantine(self, name: str, code: str) -> None:
        """Put a site in quarantine under a code, until the operator releases it."""
        self.get(name)
        self._journal.append(name, "quarantined", {"code": code})

    def release(self, name: str) -> None:
        """End a site's quarantine; raises PolicyError if it is in none."""
        if self.get(name).state != "quarantined":
            raise PolicyError(
                f"{name}: not in quarantine", hint="kohort-server sites lists the states"
            )
        self._journal.append(name, "released")

    def revoke(self, name: str) -> None:
        """Revoke a site for good (its keys are never accepted again)."""
        if self.get(name).state == "revoked":
            raise PolicyError(f"{name}: revoked already")
        self._journal.append(name, "revoked")

    def _used_keys(self) -> set[str]:
        """Every key that was ever enrolled."""
        rows = [entry.data for entry in self._journal.entries() if entry.state == "enrolled"]
        return {row[field] for row in rows for field in ("node_key", "sign_key")}

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


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
        return (
            site
            if site.state == "revoked"
            else replace(site, state="quarantined", code=data["code"])
        )
    if entry.state == "released":
        return replace(site, state="enrolled" if site.node_id is None else "registered", code="")
    return replace(
        site, state="revoked", node_id=None if entry.state == "unregistered" else site.node_id
    )


def _bare(line: str) -> str:
    """A key line without its comment."""
    return " ".join(line.split()[:2])


def read_request(path: Path) -> Request:
    """Return the request in a file; raises ConfigurationError (not such a file) or RefusedError (its signature fails).

    Checks, in this order: size, fields, the two keys, the signature by the request's own signing key.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="give the NAME.request.json that the site sent"
        )
    text = read_capped(path, REQUEST_CAP_BYTES)
    try:
        request = Request.model_validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(
            f"{path}: not a site's request: {_name_problems(error)}",
            hint="the site makes it with `kohort-site init`",
        ) from error
    public = _check_keys(request, path)
    rest = canonical({key: value for key, value in json.loads(text).items() if key != "signature"})
    try:
        signing.verify(public, signing.REQUEST, rest, request.signature.encode(), what=str(path))
    except RefusedError as error:
        hint = error.hint or "ask the site for its file again, unchanged"
        raise RefusedError(str(error), hint=hint, code=error.code) from error
    return request


def _check_keys(request: Request, path: Path) -> Ed25519PublicKey:
    """The signing key of a request whose two keys are keys."""
    try:
        parse_site_key(request.node_key)
        return signing.parse_public(request.sign_key)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{path}: {error}", hint="the site makes it with `kohort-site init`"
        ) from error


def _name_problems(error: ValidationError) -> str:
    """Every wrong field in words."""
    words = []
    for item in error.errors():
        field = f"{item['loc'][0]}: " if item["loc"] else ""
        words.append(field + describe(item))
    return "; ".join(words)


def enrol(request_path: Path, state: ServerState, config: ServerConfig, operator_key: str) -> bytes:
    """Enrol the site behind a request file and return the content of its join file.

    `operator_key`: the operator's public key line. Enrolling the same request again gives a join file with a new certificate.
    """
    request = read_request(request_path)
    authority = load_authority(state.authority)
    registry = Registry(state.sites)
    try:
        site = registry.enrol(request)
    finally:
        registry.close()
    certificate = state.root / "certificates" / f"{site.name}.crt"
    with disk_faults_named("create", certificate.parent):
        certificate.parent.mkdir(parents=True, exist_ok=True)
    issue_site_certificate(authority, site.name, site.node_key, certificate)
    join = {
        "format": "kohort-join/1",
        "site": site.name,
        "server_url": config.url,
        "ca": authority.certificate.public_bytes(Encoding.PEM).decode(),
        "operator_key": operator_key,
        "client_certificate": read_capped(certificate, REQUEST_CAP_BYTES).decode(),
    }
    return json.dumps(join, indent=1, sort_keys=True).encode() + b"\n"
