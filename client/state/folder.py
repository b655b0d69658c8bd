"""The site's state folder: its paths and its keys.

In: a folder made by `kohort-site init`. Out: paths, keys, the journal.
Not covered: what the files hold (the other modules of client/state).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.state.people import FILE as PEOPLE
from common.audit_log.log import AuditLog
from common.errors import ConfigurationError, disk_faults_named
from common.storage.files import read_capped, write_new
from common.storage.journal import Journal
from common.study.intake import Intake
from common.wire import signing
from common.wire.messages import canonical

KEY_BYTES = 32


@dataclass(frozen=True)
class State:
    """The paths of a site's state folder."""

    root: Path

    @property
    def node_key(self) -> Path:
        """The key of the TLS client certificate and of Flower's node identity."""
        return self.root / "keys" / "node.key"

    @property
    def next_node_key(self) -> Path:
        """The node key that comes, until its certificate is here and the daemon rests."""
        return self.root / "keys" / "node-next.key"

    @property
    def certificate(self) -> Path:
        """The TLS client certificate."""
        return self.root / "node.crt"

    @property
    def next_certificate(self) -> Path:
        """The certificate of the next node key."""
        return self.root / "node-next.crt"

    @property
    def authority(self) -> Path:
        """The operator's newest statement of its authorities (common/wire/authority.py)."""
        return self.root / "authority.json"

    @property
    def sign_key(self) -> Path:
        """The Ed25519 key that signs what leaves."""
        return self.root / "keys" / "sign.key"

    @property
    def next_sign_key(self) -> Path:
        """The signing key that comes, until the operator's registry has it and the daemon rests."""
        return self.root / "keys" / "sign-next.key"

    @property
    def next_sign_known(self) -> Path:
        """There once the operator's registry has the next signing key."""
        return self.root / "keys" / "sign-next.known"

    @property
    def handovers(self) -> Path:
        """The statements by which earlier signing keys handed over, one a line."""
        return self.root / "keys" / "sign.handovers"

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
    def domains(self) -> Path:
        """The folder of what `check --pictures` found, by plan."""
        return self.root / "domain"

    @property
    def jobs(self) -> Path:
        """The folder of the job folders."""
        return self.root / "jobs"

    @property
    def outbox(self) -> Path:
        """The folder of the signed messages that leave."""
        return self.root / "outbox"

    @property
    def reviews(self) -> Path:
        """The folder of the batches that a person decides on."""
        return self.root / "review"

    @property
    def weights(self) -> Path:
        """The folder of the global weights that the site saw last, by plan."""
        return self.root / "weights"

    @property
    def canaries(self) -> Path:
        """The folder of the canary files, one a plan and model. They never leave."""
        return self.root / "canaries"

    @property
    def heads(self) -> Path:
        """The heads over everything that was spent or frozen."""
        return self.root / "heads.sqlite"

    @property
    def receipts(self) -> Path:
        """The operator's receipts for heads, over all studies."""
        return self.root / "receipts.sqlite"

    @property
    def version(self) -> Path:
        """Which version of kohort laid this folder out."""
        return self.root / "version"

    @property
    def ways(self) -> Path:
        """The file of what is fastest on this machine (client/learn/fast/ways.py)."""
        return self.root / "ways.json"

    @property
    def people(self) -> Path:
        """The file of who is one person, and who withdrew. It never leaves."""
        return self.root / PEOPLE

    def cohort(self, intake: Intake) -> Path:
        """The cohort folder of these intake rules: the newest, after a refresh."""
        older = self.cohorts(intake)
        if older:
            return older[-1]
        return self.root / _cohort_name(intake)

    def cohorts(self, intake: Intake) -> tuple[Path, ...]:
        """The cohort folders of these intake rules, oldest first."""
        name = _cohort_name(intake)
        found = {}
        for path in self.root.glob(f"{name}*"):
            number = path.name.removeprefix(name).removeprefix("-") or "1"
            if path.is_dir() and number.isdecimal():
                found[int(number)] = path
        return tuple(path for _, path in sorted(found.items()))

    def next_cohort(self, intake: Intake) -> Path:
        """The folder for the cohort that a refresh builds."""
        newest = self.cohort(intake)
        number = newest.name.removeprefix(_cohort_name(intake)).removeprefix("-") or "1"
        return self.root / f"{_cohort_name(intake)}-{int(number) + 1}"

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
        """Return the pseudonym key's fingerprint, under which the ledger is kept."""
        return hashlib.sha256(b"kohort-cohort-name\0" + self.pseudonym_bytes()).hexdigest()[:16]

    @cached_property
    def journal(self) -> Journal:
        """The journal of everything this site decided."""
        return Journal(self.root / "journal.sqlite")

    @cached_property
    def log(self) -> AuditLog:
        """The audit log: what was done here, for whoever asks later."""
        return AuditLog(self.root, self.signing_key)


def message_file(outbox: Path, key: str) -> Path:
    """Return the file of the signed message with this key."""
    return outbox / f"{hashlib.sha256(key.encode()).hexdigest()}.sealed"


def _cohort_name(intake: Intake) -> str:
    """What the cohort folders of these intake rules begin with."""
    digest = hashlib.sha256(canonical(intake.hashed_fields())).hexdigest()
    return f"cohort-{digest[:12]}"


def new_pseudonym_key(path: Path) -> None:
    """Write 32 fresh secret bytes, mode 0600; refuses to replace a key."""
    with disk_faults_named("cannot write the key", path):
        write_new(path, secrets.token_bytes(KEY_BYTES))
