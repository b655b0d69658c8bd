"""The shared release: an immutable, versioned, signed folder of synthetic images that verifies offline.

In: the accepted batches of the sites with their signatures, the plan, the final weights; or, of a study without synthesis, the
sites' signed last updates and the pairs drawn from the final generator. Out: `<name>-<version>/`. The build, numbered as in
the code:
  1. the quorum of the plan has sent images (updates), and every batch (update) still has its site's signature and digest;
  2. every batch passes the boundary rules again (common/privacy/boundary.py); of an update those that its header answers for;
  3. identical pictures enter once; at least `release.min_images` remain;
  4. order and numbers come from a keyed shuffle: a name says nothing about site, group or patient;
  5. pictures are re-encoded PNG without metadata, masks PNG and NIfTI; the same inputs give the same bytes;
  6. statement, evaluation, Croissant, page, manifest, SHA256SUMS, signature; then one rename makes it visible.
Guaranteed: a release that exists is never changed; a build that fails leaves nothing. Not covered: whether sharing is lawful.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from numpy.typing import NDArray
from PIL import Image

from common.arrays import Images
from common.errors import PolicyError, RefusedError, disk_faults_named
from common.privacy import boundary
from common.storage import files
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, unseal
from kohort import manifest as layout
from server.evaluate import findings as evaluate
from server.evaluate import rehearsal_report as played
from server.evaluate.canary_rehearsal import ModelAudit
from server.evaluate.downstream import Labelled
from server.evaluate.extractors import Extractor
from server.public_data.pairs import PublicPairs
from server.release import page
from server.release.pairs import SHOWN, nifti_bytes, triptychs

BATCH_CAP_BYTES = 1 << 28
SHEET_COLUMNS, TRIPTYCH_COLUMNS = 9, 4


@dataclass(frozen=True)
class SiteBatch:
    """What one site sent for the release: its signing key line and its sealed parts, as they came over the wire."""

    site: str
    key: str
    parts: Sequence[Sealed]


@dataclass(frozen=True)
class Account:
    """Epsilon of all model updates of one site, by each accountant, at the plan's delta; by model, what canaries refuted."""

    epsilon: Mapping[str, float]
    versions: Mapping[str, str]
    canaries: Mapping[str, ModelAudit] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseInputs:
    """All that a release is made from. `weights` are the files of the final models, `reference` is public.

    `rehearsal`: who played the patients, where public people did (server/evaluate/rehearsal_report.py), or what a rehearsal of this plan found.
    """

    study: Study
    bundle: Path
    batches: Sequence[SiteBatch]
    account: Account
    weights: Mapping[str, Path] = field(default_factory=dict)
    reference: Images | None = None
    reference_name: str = ""
    pairs: Pairs | None = None
    extractor: Extractor | None = None
    rehearsal: played.Cast | played.Rehearsal | None = None


@dataclass(frozen=True)
class Pairs:
    """What a study without synthesis releases: pairs uint8 [N, S, S, 2] and the sites' statements of their last updates.

    `statements`: site -> kohort.manifest.Statement as JSON. `reference`: public real pairs to compare with.
    """

    drawn: Images
    statements: Mapping[str, bytes]
    reference: PublicPairs | None = None


@dataclass(frozen=True)
class Items:
    """The released pictures in their final order: uint8 [N, H, W, C], label index [N], privatized flag [N].

    `masks` uint8 [N, H, W] of 0 and 255 where every picture has one.
    """

    images: Images
    labels: NDArray[np.int64]
    privatized: NDArray[np.uint8]
    masks: Images | None = None


@dataclass(frozen=True)
class Evidence:
    """What the sites signed: the newest header of each, and the file that goes into statements/."""

    headers: Mapping[str, Header]
    statements: Mapping[str, bytes]


def build_release(
    inputs: ReleaseInputs,
    out: Path,
    key: Ed25519PrivateKey,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Build, sign and publish the release below `out`; returns its folder.

    Raises PolicyError (quorum, too few images), RefusedError (a batch does not verify, the version exists with other bytes).
    """
    study = inputs.study
    if inputs.pairs is None:
        evidence, arrays = _accepted(inputs)  # steps 1, 2
        items = _shuffled(arrays, study, key)  # steps 3, 4
    else:
        evidence = _updates(inputs.pairs.statements, study)  # steps 1, 2
        items = _shuffled_pairs(inputs.pairs.drawn, study, key)  # steps 3, 4
    target, part = (
        out / f"{study.name}-{study.release.version}",
        out / f".{study.name}-{study.release.version}.part",
    )
    with disk_faults_named("cannot write the release", part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            _write_items(part, items, study, progress)  # step 5
            _write_documents(part, inputs, items, evidence, key)  # step 6
            _seal_folder(part, study, len(items.images), tuple(sorted(evidence.headers)), key)
            _publish(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _check_quorum(sites: int, study: Study, what: str) -> None:
    """Step 1, the quorum."""
    if sites < study.quorum:
        raise PolicyError(
            f"{sites} sites sent {what}, the plan's quorum is {study.quorum}",
            hint="wait for the others, or ask them for `kohort-site status`",
            code="E-QUORUM",
        )


def _accepted(inputs: ReleaseInputs) -> tuple[Evidence, list[tensors.Arrays]]:
    """Steps 1 and 2: every part verified again with the rules that the gate and the intake used."""
    study = inputs.study
    _check_quorum(len({batch.site for batch in inputs.batches}), study, "images")
    headers, statements, arrays = {}, {}, []
    for batch in sorted(inputs.batches, key=lambda b: b.site):
        for sealed in batch.parts:
            header = unseal(sealed, signing.parse_public(batch.key), max_bytes=BATCH_CAP_BYTES)
            if (
                header.sender != batch.site
                or header.study != study.hash()
                or header.kind != "images"
            ):
                raise RefusedError(
                    f"{batch.site}: its batch is signed for another site, plan or purpose"
                )
            found = boundary.open_payload(sealed.payload, header, BATCH_CAP_BYTES)
            boundary.check_images(found, header, study)
            headers[batch.site] = header
            statements[batch.site] = layout.statement_json(
                batch.site, batch.key, sealed.header, sealed.signature
            )
            arrays.append(found)
    return Evidence(headers, statements), arrays


def _updates(statements: Mapping[str, bytes], study: Study) -> Evidence:
    """Steps 1 and 2 for a release of pairs: each site signed an update of the last round of the model that is drawn from."""
    _check_quorum(len(statements), study, "updates")
    headers = {}
    assert study.models.wgan is not None
    for site, data in sorted(statements.items()):
        statement, header = layout.open_statement(data, f"statements/{site}.json")
        boundary.check_reply(header, study)
        place = (header.sender, header.kind, header.model, header.round)
        if statement.site != site or place != (
            site,
            "update",
            "wgan",
            study.models.wgan.rounds - 1,
        ):
            raise RefusedError(f"{site}: its statement is not about its update of the last round")
        headers[site] = header
    return Evidence(headers, dict(sorted(statements.items())))


def _secret(key: Ed25519PrivateKey) -> bytes:
    """The key of the shuffle."""
    return hashlib.sha256(
        key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()) + b"order"
    ).digest()


def _shuffled_pairs(drawn: Images, study: Study, key: Ed25519PrivateKey) -> Items:
    """Steps 3 and 4 for pairs; there is one label (server/release/pairs.py checks the plan)."""
    secret, size = _secret(key), study.intake.size_px
    if (
        drawn.dtype != np.uint8
        or drawn.shape[1:] != (size, size, 2)
        or not np.isin(drawn[..., 1], (0, 255)).all()
    ):
        raise RefusedError(
            f"pairs: expected uint8 [N, {size}, {size}, 2] with masks of 0 and 255, got {drawn.shape}"
        )
    rows = {
        hmac.digest(secret, study.hash().encode() + pair.tobytes(), "sha256"): pair
        for pair in drawn
    }
    _check_enough(len(rows), study)
    pairs = np.stack([rows[rank] for rank in sorted(rows)])
    zeros = np.zeros(len(pairs), np.int64)
    return Items(pairs[..., :1], zeros, zeros.astype(np.uint8), np.ascontiguousarray(pairs[..., 1]))


def _check_enough(count: int, study: Study) -> None:
    """Step 3, the least number."""
    if count < study.release.min_images:
        raise PolicyError(
            f"{count} images, the plan's release.min_images is {study.release.min_images}"
        )


def _shuffled(arrays: Sequence[tensors.Arrays], study: Study, key: Ed25519PrivateKey) -> Items:
    """Steps 3 and 4: without identical pictures, in an order that only the operator's key explains."""
    secret = _secret(key)
    rows: dict[bytes, tuple[Images, int, int]] = {}
    for batch in arrays:
        for image, label, flag in zip(
            batch["images"], batch["labels"], batch["privatized"], strict=True
        ):
            rank = hmac.digest(secret, study.hash().encode() + image.tobytes(), "sha256")
            rows.setdefault(rank, (image, label, flag))
    _check_enough(len(rows), study)
    ordered = [rows[rank] for rank in sorted(rows)]
    images, labels, flags = zip(*ordered, strict=True)
    return Items(np.stack(images), np.array(labels, np.int64), np.array(flags, np.uint8))


def png_bytes(image: Images) -> bytes:
    """Return a PNG without any metadata of a uint8 picture [H, W] or [H, W, C]."""
    data = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image).save(
        data, "PNG", optimize=True
    )
    return data.getvalue()


def contact_sheet(images: Images, columns: int = SHEET_COLUMNS, pad: int = 2) -> Images:
    """Return one uint8 picture with all of `images` [N, H, W, C] in rows of `columns`."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        sheet[y : y + h, x : x + w] = image
    return sheet


def file_name(index: int, label: str) -> str:
    """Return a picture's path in the release."""
    return f"data/{label}/{index:05d}.png"


def _write_items(
    part: Path, items: Items, study: Study, progress: Callable[[int, int], None]
) -> None:
    """Step 5: pictures by label folder (torchvision's and HF's layout) and the table of them."""
    if items.masks is not None:
        _write_pairs(part, items, items.masks, study, progress)
        return
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "label", "k", "grouping", "mechanism", "synthetic"])
    synthesis = study.synthesis
    for i, (image, label, flag) in enumerate(
        zip(items.images, items.labels, items.privatized, strict=True)
    ):
        name = file_name(i, study.strata()[label])
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(png_bytes(image))
        mechanism = (
            synthesis.privatize.mechanism
            if flag and synthesis and synthesis.privatize
            else "average"
        )
        row = (synthesis.k, synthesis.grouping) if synthesis else (0, "none")
        writer.writerow([name, study.strata()[label], *row, mechanism, "yes"])
        progress(i + 1, len(items.images))
    (part / "metadata.csv").write_text(table.getvalue())
    (part / "contact_sheet.png").write_bytes(png_bytes(contact_sheet(items.images)))


def _write_pairs(
    part: Path, items: Items, masks: Images, study: Study, progress: Callable[[int, int], None]
) -> None:
    """Step 5 for pairs: each picture in its label folder, its mask under the same number as PNG and as NIfTI."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file_name", "mask", "mask_nifti", "label", "mechanism", "synthetic"])
    (part / "masks").mkdir()
    for i, (image, label, mask) in enumerate(zip(items.images, items.labels, masks, strict=True)):
        name, masked = file_name(i, study.strata()[label]), f"masks/{i:05d}"
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(png_bytes(image))
        (part / f"{masked}.png").write_bytes(png_bytes(mask))
        (part / f"{masked}.nii.gz").write_bytes(nifti_bytes(mask))
        writer.writerow(
            [
                name,
                f"{masked}.png",
                f"{masked}.nii.gz",
                study.strata()[label],
                "dp-generator",
                "yes",
            ]
        )
        progress(i + 1, len(items.images))
    (part / "metadata.csv").write_text(table.getvalue())
    sheet = contact_sheet(
        triptychs(items.images[:SHOWN], masks[:SHOWN]), columns=TRIPTYCH_COLUMNS, pad=8
    )
    (part / "contact_sheet.png").write_bytes(png_bytes(sheet))


def _write_documents(
    part: Path, inputs: ReleaseInputs, items: Items, evidence: Evidence, key: Ed25519PrivateKey
) -> None:
    """Step 6, documents: all generated from the plan, the headers and the findings."""
    study = inputs.study
    statement = page.privacy_statement(study, evidence.headers, inputs.account)
    rehearsed = _rehearsed(inputs, items)
    findings = _findings(inputs, items, rehearsed) + evaluate.canary_findings(
        inputs.account.canaries
    )
    report = {
        "reference": inputs.reference_name or None,
        "rehearsal": rehearsed and rehearsed.model_dump(mode="json"),
        "findings": evaluate.to_json(findings),
    }
    _json(part / "privacy_statement.json", statement)
    _json(part / "evaluation.json", report)
    (part / "privacy_statement.md").write_text(page.statement_markdown(statement))
    (part / "README.md").write_text(page.readme(study, statement, report, len(items.images)))
    (part / "LICENSE").write_text(page.licence_text(study))
    for name in ("study.yaml", "study.sig"):
        shutil.copyfile(inputs.bundle / name, part / name)
    if study.release.models and inputs.weights:
        (part / "models").mkdir()
        for name, path in sorted(inputs.weights.items()):
            shutil.copyfile(path, part / "models" / f"{name}.safetensors")
    (part / "statements").mkdir()
    for site, data in evidence.statements.items():
        (part / "statements" / f"{site}.json").write_bytes(data)
    _json(
        part / "croissant.json",
        page.croissant(study, statement, layout.file_digest(part / "metadata.csv")),
    )
    fingerprint = signing.fingerprint(key.public_key())
    (part / "index.html").write_text(page.html(study, statement, report, items, fingerprint))


def _rehearsed(inputs: ReleaseInputs, items: Items) -> played.Rehearsal | None:
    """What attackers and a classifier make of this release, where public people played, or of another that was rehearsed."""
    if not isinstance(inputs.rehearsal, played.Cast):
        return inputs.rehearsal
    attacker = played.networks(inputs.study, inputs.weights, inputs.bundle / "checkpoints")
    return played.rehearse(
        Labelled(items.images, items.labels), inputs.rehearsal, inputs.study, attacker
    )


def _findings(
    inputs: ReleaseInputs, items: Items, rehearsed: played.Rehearsal | None
) -> list[evaluate.Finding]:
    """What the pictures are worth against public ones, and pairs against public pairs, where some were given."""
    names = inputs.study.strata()
    if inputs.pairs is None or items.masks is None:
        utility, attacks = played.findings(rehearsed)
        return evaluate.evaluate(
            items.images, items.labels, names, inputs.reference,
            extractor=inputs.extractor, downstream=utility, attacks=attacks,
        )  # fmt: skip
    from server.evaluate.pair_utility import evaluate_pairs

    real = inputs.pairs.reference
    pairs, patient_of = (None, None) if real is None else (real.pairs, real.patient_of)
    released = np.concatenate([items.images, items.masks[..., None]], axis=-1)
    return evaluate.evaluate(
        items.images, items.labels, names, inputs.reference if pairs is None else pairs[..., :1],
        patient_of=patient_of, extractor=inputs.extractor, downstream=evaluate_pairs(released, pairs, patient_of),
    )  # fmt: skip


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _seal_folder(
    part: Path, study: Study, images: int, sites: tuple[str, ...], key: Ed25519PrivateKey
) -> None:
    """Step 6, seal: manifest, sums, signature, the signer's line; then the researcher's own check."""
    key_line = signing.public_text(key.public_key())
    synthesis = study.synthesis
    files = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
    manifest = layout.Manifest(
        format="kohort-release/1",
        name=study.name,
        version=study.release.version,
        title=study.title,
        date=study.release.date,
        study=study.hash(),
        operator_key=key_line,
        k=synthesis.k if synthesis else None,
        grouping=synthesis.grouping if synthesis else "none",
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        images=images,
        labels=study.strata(),
        sites=sites,
        files=tuple(
            layout.FileEntry(path=name, size_bytes=(part / name).stat().st_size) for name in files
        ),
    )
    _json(part / layout.MANIFEST, manifest.model_dump(mode="json"))
    digests = {name: layout.file_digest(part / name) for name in (*files, layout.MANIFEST)}
    sums = layout.sums_text(digests).encode()
    (part / layout.SUMS).write_bytes(sums)
    (part / layout.SIGNATURE).write_bytes(signing.sign(key, signing.RELEASE, sums))
    (part / layout.SIGNERS).write_text(layout.signers_line(manifest.principal, key_line))
    layout.verify(part)


def _publish(part: Path, target: Path) -> None:
    """Step 6, last: the rename; a version that exists must be the very same bytes."""
    if target.exists():
        if (target / layout.SUMS).read_bytes() == (part / layout.SUMS).read_bytes():
            return
        raise RefusedError(
            f"{target}: this version is published with other bytes",
            hint="raise release.version in a new plan",
        )
    part.rename(target)
    files.sync_folder(target.parent)
