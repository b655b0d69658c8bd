"""Builds a small signed release from invented batches, as the server would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.arrays import Images, Labels
from common.privacy import boundary
from common.study.bundle import write_bundle
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, digest_of, seal
from kohort import layout
from server.evaluate.canary_rehearsal import ModelAudit
from server.evaluate.extractors import Texture
from server.operator.config import ReleaseSigning
from server.release.build import build_release
from server.release.items import Account, ReleaseInputs, SiteBatch
from tests.studies import small_plan

AUDIT = ModelAudit(
    sites=3, canaries=450, steps=4, guesses=222, correct=130, lower_bound=0.12, ceiling=4.3,
    upper_bound=3.1, delta=1e-5, confidence=0.95, noise_ratio=1.01, release_ratio=1.02,
)  # fmt: skip
ACCOUNT = Account({"PLD": 3.2, "RDP": 3.6}, {"dp-accounting": "0.6.0"}, {"gan": AUDIT})


def batch(
    study: Study, site: str, seed: int, *, count: int = 6, key: Ed25519PrivateKey | None = None
) -> SiteBatch:
    """A site's signed batch of invented pictures."""
    rng = np.random.default_rng(seed)
    size, channels = study.intake.size_px, study.intake.channels
    images = rng.integers(0, 255, (count, size, size, channels), dtype=np.uint8)
    return batch_of(study, site, images, np.arange(count, dtype=np.int64) % 3, key)


def batch_of(
    study: Study, site: str, images: Images, labels: Labels, key: Ed25519PrivateKey | None = None
) -> SiteBatch:
    """A site's signed batch of these pictures."""
    arrays: tensors.Arrays = {
        "images": images,
        "labels": labels,
        "privatized": (np.arange(len(images)) % 4 == 0).astype(np.uint8),
    }
    payload = tensors.dumps(arrays)
    statement = {
        **boundary.public_statement(study, "images"),
        "weights": "d" * 64,
        "head_commitment": "0" * 64,
    }
    header = Header(
        kind="images", study=study.hash(), phase="synthesize", round=0, sender=site,
        digest=digest_of(payload), statement=statement,
    )  # fmt: skip
    key = key or signing.new_key()
    return SiteBatch(site, signing.public_text(key.public_key()), (seal(header, payload, key),))


def release_inputs(folder: Path, operator: Ed25519PrivateKey, **changes: object) -> ReleaseInputs:
    """Inputs of two sites for the small plan (no checkpoints)."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "study.yaml"
    plan.write_text(yaml.safe_dump(json.loads(json.dumps(small_plan(**changes)))))
    study = write_bundle(plan, operator, folder / "bundle")
    batches = [batch(study, "hospital-a", 1), batch(study, "hospital-b", 2)]
    reference = np.random.default_rng(3).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)
    return ReleaseInputs(
        study,
        folder / "bundle",
        batches,
        ACCOUNT,
        reference=reference,
        reference_name="invented pictures",
        extractor=Texture(8),  # quick; the default is tested beside the report
    )


def proposal(
    folder: Path, needed: int, *names: str
) -> tuple[Path, Ed25519PrivateKey, dict[str, Ed25519PrivateKey]]:
    """A proposed release for these signers, the operator's key, and the signers' keys."""
    operator = signing.new_key()
    keys = {name: signing.new_key() for name in names}
    lines = {name: signing.public_text(key.public_key()) for name, key in keys.items()}
    inputs = release_inputs(folder, operator)
    signers = ReleaseSigning(sign_offs=needed, signers=lines)
    inputs = replace(inputs, signers=signers, proposed=True)
    return build_release(inputs, folder / "releases", operator), operator, keys


def sign_off(
    folder: Path, name: str, key: Ed25519PrivateKey, namespace: str = signing.RELEASE
) -> Path:
    """Put a signature over SHA256SUMS into a release, as a signer's own program would."""
    target = folder / layout.sign_off_file(name)
    sums = (folder / layout.SUMS).read_bytes()
    target.write_bytes(signing.sign(key, namespace, sums))
    return target


def small_release(folder: Path) -> tuple[Path, Ed25519PrivateKey]:
    """A release below `folder`, and the operator's key."""
    operator = signing.new_key()
    return build_release(release_inputs(folder, operator), folder / "releases", operator), operator
