"""The site's state folder: its paths, its keys, who the operator is, and which plans its own staff approved.

In: a folder made by `kohort-site init`, a join file, signed plan bundles. Out: paths, `Membership`, verified plans.
Guaranteed: a plan counts as approved only if a journal line says so and the stored bundle still has the operator's signature,
the pinned checkpoints and the approved hash; every opening checks all three again. Not covered: the policy (client/state/config.py).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, PolicyError, RefusedError, disk_faults_named
from common.storage.files import read_capped
from common.storage.journal import Journal
from common.study.plan import Identifier, Intake, Study, copy_bundle, open_bundle
from common.wire import signing
from common.wire.app_bundle import fab_hash
from common.wire.messages import canonical

JSON_CAP_BYTES = 1 << 20
KEY_BYTES = 32


class Membership(FrozenModel):
    """What the operator's join file says; the file is kept as membership.json."""

    format: Literal["kohort-join/1"]
    site: Identifier
    server_url: str = Field(pattern=r"^https://[^/\s]+$", max_length=300)
    ca: str = Field(max_length=65_536)
    operator_key: str = Field(max_length=4096)
    client_certificate: str = Field(max_length=65_536)

    @property
    def operator(self) -> Ed25519PublicKey:
        """The key that signs plans and instructions."""
        return signing.parse_public(self.operator_key)


def read_membership(path: Path) -> Membership:
    """Return the membership in a join file; raises ConfigurationError."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="kohort-site join FILE, with the operator's join file"
        )
    try:
        return Membership.model_validate_json(read_capped(path, JSON_CAP_BYTES))
    except ValidationError as error:
        wrong = (
            ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
            or "the file"
        )
        raise ConfigurationError(
            f"{path}: not a join file of kohort ({wrong})", hint="ask the operator again"
        ) from error


@dataclass(frozen=True)
class State:
    """The paths of a site's state folder."""

    root: Path

    @property
    def node_key(self) -> Path:
        """The key of the TLS client certificate and of Flower's node identity."""
        return self.root / "keys" / "node.key"

    @property
    def sign_key(self) -> Path:
        """The Ed25519 key that signs what leaves."""
        return self.root / "keys" / "sign.key"

    @property
    def pseudonym_key(self) -> Path:
        """The 32 bytes that turn patient identifiers into pseudonyms. They never leave."""
        return self.root / "keys" / "pseudonym.key"

    @property
    def membership(self) -> Path:
        """The operator's join file."""
        return self.root / "membership.json"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.root / "ledger.sqlite"

    @property
    def groups(self) -> Path:
        """The frozen groups."""
        return self.root / "groups.sqlite"

    @property
    def canaries(self) -> Path:
        """The folder of the canaries' coins and sums, by plan and model. They never leave."""
        return self.root / "canaries"

    def cohort(self, intake: Intake) -> Path:
        """The cohort folder of these intake rules."""
        digest = hashlib.sha256(canonical(intake.model_dump(mode="json"))).hexdigest()
        return self.root / f"cohort-{digest[:12]}"

    def signing_key(self) -> Ed25519PrivateKey:
        """Return the site's signing key."""
        return signing.load_private(self.sign_key)

    def pseudonym_bytes(self) -> bytes:
        """Return the pseudonym key; raises ConfigurationError unless it has 32 bytes."""
        key = read_capped(self.pseudonym_key, KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                f"{self.pseudonym_key}: {len(key)} bytes, expected {KEY_BYTES}"
            )
        return key

    def cohort_name(self) -> str:
        """Return the pseudonym key's fingerprint, under which the ledger stands."""
        return hashlib.sha256(b"kohort-cohort-name\0" + self.pseudonym_bytes()).hexdigest()[:16]

    @cached_property
    def journal(self) -> Journal:
        """The journal of everything this site decided."""
        return Journal(self.root / "journal.sqlite")


def new_pseudonym_key(path: Path) -> None:
    """Write 32 fresh secret bytes, mode 0600; refuses to replace a key."""
    with disk_faults_named("cannot write the key", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Plans:
    """The approved plans of a site, each a verified bundle in plans/<hash>/."""

    state: State
    operator: Ed25519PublicKey

    def approve(self, bundle: Path) -> Study:
        """Keep a copy of the bundle and write the approval down; the caller has checked the policy and asked a person."""
        study = open_bundle(bundle, self.operator)
        copy_bundle(bundle, self.operator, self.folder(study.hash()))
        self.state.journal.append(f"plan/{study.hash()}", "approved", {"name": study.name})
        return study

    def approved(self, plan_hash: str) -> bool:
        """Return whether the site's staff approved this hash."""
        latest = self.state.journal.latest(f"plan/{plan_hash}")
        return latest is not None and latest.state == "approved"

    def open(self, plan_hash: str) -> Study:
        """Return an approved plan, its bundle verified anew; raises PolicyError (E-PLAN-UNAPPROVED) or RefusedError."""
        if not self.approved(plan_hash):
            raise PolicyError(
                f"plan {plan_hash[:12]}: nobody here approved it",
                hint="read the plan, then `kohort-site approve BUNDLE`",
                code="E-PLAN-UNAPPROVED",
            )
        study = open_bundle(self.folder(plan_hash), self.operator)
        if study.hash() != plan_hash:
            raise RefusedError(
                f"plan {plan_hash[:12]}: the stored plan is another one", code="E-PLAN-ALTERED"
            )
        return study

    def hashes(self) -> tuple[str, ...]:
        """Return the hashes of all approved plans, oldest first."""
        keys = dict.fromkeys(
            entry.key.removeprefix("plan/") for entry in self.state.journal.entries("plan/")
        )
        return tuple(plan_hash for plan_hash in keys if self.approved(plan_hash))

    def pins(self) -> set[str]:
        """Return the app hashes that Flower reports for the approved plans."""
        return {
            fab_hash(read_capped(self.folder(h) / "study.yaml", 1 << 20)) for h in self.hashes()
        }

    def folder(self, plan_hash: str) -> Path:
        """Return the folder of a plan's bundle."""
        return self.state.root / "plans" / plan_hash
