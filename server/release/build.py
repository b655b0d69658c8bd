"""Builds a release: an immutable, versioned, signed folder of synthetic images.

In: the sites' signed batches (or updates and drawn pairs), the plan, the final weights.
Out: `<name>-<version>/`, which verifies offline.
Guarantees: a release that exists is never changed; a build that fails leaves nothing; the same
inputs give the same bytes; of the images one part of one site is in memory at a time.
Not covered: whether sharing is lawful.

The steps, numbered as in the code:
  1. the quorum has sent, and every signature and digest still holds;
  2. everything passes the boundary rules again;
  3. identical pictures enter once; at least `release.min_images` remain;
  4. a keyed shuffle gives order and numbers;
  5. pictures become PNG that say they are synthetic and nothing else, masks also NIfTI; tables,
     Parquet and tars follow;
  6. documents, manifest, SHA256SUMS and signature; one rename makes the folder visible.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import disk_faults_named
from server.release.collect import accept_updates, collect_images, shuffle_pairs
from server.release.documents import write_documents
from server.release.items import Evidence, Items, ReleaseInputs
from server.release.loaders import write_loaders
from server.release.pictures import write_items
from server.release.seal import PROPOSED, check_unpublished, publish, seal_folder


def build_release(
    inputs: ReleaseInputs,
    out: Path,
    key: Ed25519PrivateKey,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Build, sign and publish the release below `out`; returns its folder.

    One that is proposed waits in `out`/proposed for its signers.

    Raises PolicyError below the quorum and for too few images. Raises RefusedError for a batch that
    does not verify, and for a version that exists with other bytes.
    """
    study = inputs.study
    name = f"{study.name}-{study.release.version}"
    target = out / PROPOSED / name if inputs.proposed else out / name
    part = out / f".{name}.part"
    pictures = out / f".{name}.pictures"
    try:
        evidence, items = _collect(inputs, key, pictures)
        with disk_faults_named("cannot write the release", part):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

            # (5) write pictures, masks and their table
            write_items(part, items, study, progress)
            write_loaders(part, study)

            # (6) write the documents, sign the folder, make it visible
            write_documents(part, inputs, items, evidence, key)
            shutil.rmtree(pictures, ignore_errors=True)
            sites = tuple(sorted(evidence.headers))
            seal_folder(part, study, len(items.images), sites, inputs.signers, key)
            if inputs.proposed:
                check_unpublished(out / name)
            target.parent.mkdir(exist_ok=True)
            publish(part, target)
    finally:
        shutil.rmtree(pictures, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
    return target


def _collect(inputs: ReleaseInputs, key: Ed25519PrivateKey, folder: Path) -> tuple[Evidence, Items]:
    """Steps 1 to 4; images lie in `folder`."""
    study = inputs.study
    if inputs.pairs is None:
        # (1, 2) verify each site's batch again, (3, 4) leave out identical images, shuffle the rest
        return collect_images(inputs, key, folder)

    # (1, 2) verify each site's last update again
    evidence = accept_updates(inputs.pairs.statements, study)

    # (3, 4) leave out identical pairs, shuffle the rest
    return evidence, shuffle_pairs(inputs.pairs.drawn, study, key)
