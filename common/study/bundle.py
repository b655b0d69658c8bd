"""The signed bundle of a plan: study.yaml, study.sig and checkpoints/ in one folder.

Guarantees: a bundle opens only with the operator's signature and with exactly the checkpoints that
the plan pins. Of a bundle only the checked files are copied.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ConfigurationError, RefusedError
from common.storage.files import atomic_write, read_capped
from common.study.fields import CHECKPOINT_CAP_BYTES, Checkpoint
from common.study.plan import Study, load_study
from common.wire import signing

Keys = Ed25519PublicKey | tuple[Ed25519PublicKey, ...]  # one of several may have signed
PLAN_FILE = "study.yaml"
SIGNATURE_FILE = "study.sig"
PLAN_CAP_BYTES = 1 << 20


def write_bundle(study_path: Path, key: Ed25519PrivateKey, out: Path) -> Study:
    """Write a signed bundle of the plan at `study_path` into the folder `out` and return the plan.

    Checkpoint paths in the plan are relative to the plan's folder.
    """
    study = load_study(study_path)
    for checkpoint in study.checkpoints():
        data = _read_pinned(study_path.parent / checkpoint.file, checkpoint)
        atomic_write(out / "checkpoints" / checkpoint.name, data)
    text = read_capped(study_path, PLAN_CAP_BYTES)
    atomic_write(out / PLAN_FILE, text)
    atomic_write(out / SIGNATURE_FILE, signing.sign(key, signing.PLAN, study.hash().encode()))
    return study


def open_bundle(folder: Path, public: Keys) -> Study:
    """Return the plan of a bundle that `public` signed and whose checkpoints are the pinned ones.

    Raises ConfigurationError where the plan or a checkpoint is missing, RefusedError for anything
    that is not as it was signed.
    """
    if not (folder / PLAN_FILE).is_file() or not (folder / SIGNATURE_FILE).is_file():
        raise ConfigurationError(
            f"{folder}: expected a plan bundle with study.yaml and study.sig",
            hint="give the folder that the operator's `kohort-server sign` wrote",
        )
    study = load_study(folder / PLAN_FILE)
    signature = read_capped(folder / SIGNATURE_FILE, signing.KEY_CAP_BYTES)
    try:
        _verify(public, study.hash().encode(), signature, f"{folder}/study.sig")
    except RefusedError as error:
        error.hint = (
            "ask the operator for the bundle again; both sides must run the same version of kohort"
        )
        raise
    for checkpoint in study.checkpoints():
        _read_pinned(folder / "checkpoints" / checkpoint.name, checkpoint)
    return study


def _verify(public: Keys, data: bytes, signature: bytes, what: str) -> None:
    """Refuse what none of the keys signed; of several the newest, which is the first, says why."""
    first, *others = public if isinstance(public, tuple) else (public,)
    for key in others:
        try:
            return signing.verify(key, signing.PLAN, data, signature, what=what)
        except RefusedError:
            continue
    return signing.verify(first, signing.PLAN, data, signature, what=what)


def copy_bundle(source: Path, public: Keys, target: Path) -> Study:
    """Copy the files of a checked bundle, and nothing else, into `target`; returns the plan."""
    study = open_bundle(source, public)
    for name in (PLAN_FILE, SIGNATURE_FILE):
        atomic_write(target / name, read_capped(source / name, PLAN_CAP_BYTES))
    for checkpoint in study.checkpoints():
        data = _read_pinned(source / "checkpoints" / checkpoint.name, checkpoint)
        atomic_write(target / "checkpoints" / checkpoint.name, data)
    return open_bundle(target, public)


def _read_pinned(path: Path, checkpoint: Checkpoint) -> bytes:
    """A checkpoint's bytes, if they have the pinned SHA-256."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: the starting checkpoint of the plan is missing", hint="put it beside the plan"
        )
    data = read_capped(path, CHECKPOINT_CAP_BYTES)
    got = hashlib.sha256(data).hexdigest()
    if got != checkpoint.sha256:
        raise RefusedError(
            f"{path}: SHA-256 is {got[:12]}..., the plan pins {checkpoint.sha256[:12]}...",
            hint="use the file that the plan was written for, or write and sign a new plan",
        )
    return data
