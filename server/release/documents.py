"""Writes the documents of a release: statement, evaluation, datasheet, page, metadata (step 6)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.storage.files import file_digest
from common.study.plan import Study
from common.wire import signing
from kohort import layout
from kohort.credentials import release_facts
from server.release import crate
from server.release.absent import absent_sites
from server.release.c2pa import c2pa_manifest
from server.release.croissant import croissant
from server.release.datasheet import licence_text, readme
from server.release.deposit import Deposit, citation_cff, datacite, zenodo
from server.release.evaluation import evaluation
from server.release.items import Evidence, Items, ReleaseInputs
from server.release.models import write_models
from server.release.page import write_pages
from server.release.provenance import provenance
from server.release.statement import privacy_statement, statement_markdown


def write_documents(
    part: Path, inputs: ReleaseInputs, items: Items, evidence: Evidence, key: Ed25519PrivateKey
) -> None:
    """Write all documents; each is made from the plan, the signed headers and the findings."""
    study = inputs.study
    statement = privacy_statement(study, evidence.headers, inputs.account)
    statement["absent"] = absent_sites(study, evidence.headers, inputs.quarantined, inputs.revoked)
    report = evaluation(inputs, items)

    # what is promised, and what was measured
    write_json(part / "privacy_statement.json", statement)
    (part / "privacy_statement.md").write_text(statement_markdown(statement), encoding="utf-8")
    write_json(part / layout.FINDINGS, report)
    write_credentials(part, study, key)

    # what a reader and a data catalogue need
    datasheet = readme(study, statement, report, len(items.images), inputs.signers)
    (part / "README.md").write_text(datasheet, encoding="utf-8")
    (part / "LICENSE").write_text(licence_text(study), encoding="utf-8")
    table_digest = file_digest(part / layout.METADATA)
    write_json(part / "croissant.json", croissant(study, statement, table_digest))
    write_pages(part, study, statement, report, items, _vouching(inputs, key))

    # what the claims rest on
    _copy_sources(part, inputs)
    (part / "statements").mkdir()
    for site, data in evidence.statements.items():
        (part / "statements" / f"{site}.json").write_bytes(data)

    # how it is cited, and last what each file is
    deposit = Deposit(
        study=study,
        author=inputs.author,
        claim=f"{statement['images']['claim']} {statement['updates']['claim']}",
        images=len(items.images),
        sites=tuple(sorted(evidence.headers)),
        fingerprint=signing.fingerprint(key.public_key()),
    )
    _write_deposit(part, deposit, evidence)


def write_credentials(part: Path, study: Study, key: Ed25519PrivateKey) -> None:
    """Write provenance.c2pa, which stands beside the contact sheet and names the release."""
    version = study.release.version
    facts = release_facts(part, study.name, version, study.hash())
    sheet = (part / layout.CONTACT_SHEET).read_bytes()
    data = c2pa_manifest(f"{study.name} {version}", sheet, facts, key)
    (part / layout.PROVENANCE).write_bytes(data)


def _vouching(inputs: ReleaseInputs, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Who signs the release: the operator's fingerprint, and the signers."""
    fingerprint = signing.fingerprint(key.public_key())
    return {"fingerprint": fingerprint, "signing": inputs.signers}


def _copy_sources(part: Path, inputs: ReleaseInputs) -> None:
    """The signed plan, and the final models where the plan releases them."""
    for name in ("study.yaml", "study.sig"):
        shutil.copyfile(inputs.bundle / name, part / name)
    if inputs.study.release.models:
        write_models(part, inputs.study, inputs.weights)


def _write_deposit(part: Path, deposit: Deposit, evidence: Evidence) -> None:
    """The citation, the metadata for repositories, the provenance and the RO-Crate."""
    (part / "CITATION.cff").write_text(citation_cff(deposit), encoding="utf-8")
    write_json(part / "reports" / "datacite.json", datacite(deposit))
    write_json(part / "reports" / "zenodo.json", zenodo(deposit))
    models = {path.stem: file_digest(path) for path in part.glob("models/*.safetensors")}
    origin = provenance(deposit.study, evidence, models, deposit.fingerprint)
    write_json(part / "reports" / "prov.json", origin)
    write_json(part / crate.METADATA, crate.crate(deposit, part))


def write_json(path: Path, value: Any) -> None:
    """Write plain data, keys sorted, and the folder where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
