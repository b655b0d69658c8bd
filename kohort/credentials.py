"""Checks provenance.c2pa of a verified release with c2pa-python, without a network.

In: a release that verifies. Out: what its C2PA manifest says.
Guarantees: the manifest is whole, of the contact sheet beside it, and of this very release.
Not covered: trust in its certificate. The release's own signature says whose it is.
"""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

from kohort.errors import ConfigurationError, RefusedError, damage_named
from kohort.extras import how_to_install
from kohort.files import file_digest, read_capped
from kohort.layout import CONTACT_SHEET, METADATA, PIXELS, PROVENANCE
from kohort.manifest import Manifest
from kohort.marks import SYNTHETIC, TERM
from kohort.png import FILE_CAP_BYTES

CAP_BYTES = 1 << 20
RELEASE_ASSERTION = "org.kohort.release"
STATEMENT = "privacy_statement.json"
BOUND = (METADATA, PIXELS, STATEMENT)  # by their SHA-256: they name every picture and every claim
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
# of an operator's own root, which no public list of C2PA names
UNTRUSTED = "signingCredential.untrusted"


def release_facts(folder: Path, name: str, version: str, study: str) -> dict[str, str]:
    """Return what a C2PA manifest says of a release: who it is, and digests of its lists."""
    facts = {"name": name, "version": version, "study": study}
    return facts | {bound: file_digest(folder / bound) for bound in BOUND}


def check_credentials(release: Path, manifest: Manifest) -> None:
    """Check the C2PA manifest of a release; `manifest` is what `verify` returned for it.

    Raises ConfigurationError where c2pa-python is not installed, RefusedError (naming the file)
    for a manifest that does not hold, is of another release, or calls nothing synthetic.
    """
    try:
        c2pa = importlib.import_module("c2pa")
    except ImportError as error:
        raise ConfigurationError(
            f"{PROVENANCE}: reading it needs c2pa-python, which is not installed here",
            hint=how_to_install("c2pa"),
        ) from error
    stored = read_capped(release / PROVENANCE, CAP_BYTES)
    sheet = read_capped(release / CONTACT_SHEET, FILE_CAP_BYTES)
    with damage_named(RefusedError(f"{PROVENANCE}: not a C2PA manifest that can be read")):
        found = _read(c2pa, stored, sheet)
        failures = {one["code"] for one in found["failures"]} - {UNTRUSTED}
        said = {one["label"]: one["data"] for one in found["assertions"]}
        terms = TERM.findall(json.dumps(said["c2pa.actions.v2"]))
        facts = said[RELEASE_ASSERTION]
    if failures or found["state"] not in ("Valid", "Trusted"):
        raise RefusedError(f"{PROVENANCE}: does not hold: {', '.join(sorted(failures))}")
    if facts != release_facts(release, manifest.name, manifest.version, manifest.study):
        raise RefusedError(f"{PROVENANCE}: about another release")
    if SYNTHETIC.isdisjoint(terms):
        raise RefusedError(f"{PROVENANCE}: does not say that the release is synthetic")


def _read(c2pa: Any, stored: bytes, sheet: bytes) -> dict[str, Any]:
    """State, failures and assertions of the active manifest."""

    context = c2pa.Context(c2pa.Settings.from_dict(OFFLINE))
    with c2pa.Reader("image/png", io.BytesIO(sheet), stored, context) as reader:
        results = reader.get_validation_results()
        return {
            "state": reader.get_validation_state(),
            "failures": results["activeManifest"]["failure"],
            "assertions": reader.get_active_manifest()["assertions"],
        }
