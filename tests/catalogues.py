"""An operator with a catalogue: a state folder, published releases, a site, and a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.wire import signing
from kohort import signatures
from kohort.catalogue import Catalogue
from server.catalogue.document import Words
from server.catalogue.publish import Office, Told, publish, withdraw_release
from server.operator.state import ServerState
from server.release.build import build_release
from tests.releases import release_inputs

NOW = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
WORDS = Words("eye-consortium", "The eye consortium", "data@example.org", 90)
URL = "https://data.example.org/eyes"
DAY = timedelta(days=1)
SENTENCE = "Two labels were exchanged."


@dataclass(frozen=True)
class Operator:
    """An operator's key, its state folder, its published releases, its site."""

    root: Path
    key: Ed25519PrivateKey

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def site(self) -> Path:
        return self.root / "site"

    @property
    def web(self) -> Path:
        return self.site / "web"

    def office(self, now: datetime = NOW, **changes: Any) -> Office:
        office = Office(ServerState(self.root / "state"), self.site, WORDS, URL, self.key, now)
        return replace(office, **changes)

    def publish(self, now: datetime = NOW, *, renew: bool = False, **changes: Any) -> Told:
        return publish(self.office(now, **changes), self.releases, renew=renew)

    def withdraw(self, name: str, version: str, now: datetime = NOW) -> Told:
        return withdraw_release(self.office(now), name, version, "quality", SENTENCE)

    def release(self, version: str) -> Path:
        """Build and publish one release of the small study."""
        plan = {"release": {"version": version, "date": "2026-11-21"}}
        inputs = release_inputs(self.root / f"made-{version}", self.key, **plan)
        return build_release(inputs, self.releases, self.key)

    def copy(self, root: Path) -> Operator:
        """The same operator with folders of its own."""
        shutil.copytree(self.root, root, symlinks=True)
        return Operator(root, self.key)


def operator(root: Path, *versions: str, key: Ed25519PrivateKey | None = None) -> Operator:
    """A new operator with these releases of the small study; nothing is in a catalogue yet."""
    made = Operator(root, key or signing.new_key())
    state = ServerState(root / "state")
    signing.save_private(state.operator_key, made.key)
    state.root.chmod(0o700)
    for version in versions:
        made.release(version)
    return made


def sign_catalogue(
    key: Ed25519PrivateKey, catalogue: Catalogue | dict[str, Any]
) -> tuple[bytes, bytes]:
    """The bytes of a catalogue and a signature over them, whatever they say."""
    fields = catalogue if isinstance(catalogue, dict) else catalogue.model_dump(mode="json")
    text = json.dumps(fields, sort_keys=True).encode()
    return text, signing.sign(key, signatures.CATALOGUE, text)


ENTRY: dict[str, Any] = {
    "name": "small", "version": "1.0.0", "path": "releases/small-1.0.0", "sums": "ab" * 32,
    "key": "SHA256:" + "A" * 43, "title": "A small study", "date": "2026-11-21",
    "licence": "CC-BY-4.0", "images": 12, "labels": ["none"], "sites": 2, "size_bytes": 100,
    "k": 5, "grouping": "similar", "epsilon": 8.0, "delta": 1e-5, "superseded_by": "",
}  # fmt: skip
GONE: dict[str, Any] = {
    "name": "small", "version": "0.9.0", "sums": "cd" * 32, "date": "2026-11-22",
    "reason": "quality", "sentence": "Two labels were exchanged.",
}  # fmt: skip


def catalogue_fields(key: Ed25519PrivateKey, version: int = 1, **changes: Any) -> dict[str, Any]:
    """A catalogue of one release and one withdrawal."""
    known: dict[str, Any] = {
        "format": "kohort-catalogue/1", "name": "eyes", "title": "The eye consortium",
        "contact": "data@example.org", "version": version,
        "operator_key": signing.public_text(key.public_key()),
        "created": "2026-12-01T00:00:00Z", "expires": "2027-03-01T00:00:00Z",
        "releases": [ENTRY], "withdrawn": [GONE],
    }  # fmt: skip
    return known | changes
