"""Verifies again what the sites sent, and gathers it in the order of the release.

In: signed batches, or signed statements and drawn pairs; a folder for images.
Out: `Evidence` and `Items`.
Guarantees, numbered as in server/release/build.py:
  1. the plan's quorum of sites has sent, and every signature and digest still holds;
  2. every batch passes the boundary rules again, every update those on its header;
  3. identical pictures enter once; at least `release.min_images` remain;
  4. the order is a keyed shuffle: a number says nothing about site, group or patient.
One part of one site's images is in memory at a time; all of them lie in the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from common.arrays import Images
from common.arrays import Pairs as PairArray
from common.errors import PolicyError, RefusedError
from common.privacy import boundary
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, unseal
from kohort.statements import open_statement, statement_json
from server.release.items import Evidence, Items, ReleaseInputs, SiteBatch
from server.release.spool import Spool

BATCH_CAP_BYTES = 1 << 28


def collect_images(
    inputs: ReleaseInputs, key: Ed25519PrivateKey, folder: Path
) -> tuple[Evidence, Items]:
    """Return each site's evidence, and the items in their final order, which lie in `folder`.

    Raises PolicyError below the quorum and for too few images, RefusedError for a part that does
    not verify.
    """
    # (1) the quorum
    study = inputs.study
    _check_quorum(len({batch.site for batch in inputs.batches}), study, "images")

    # (2) open and check every part, (3) identical pictures have one place, so each enters once
    size = study.intake.size_px
    rank = _Ranking(study, key)
    headers: dict[str, Header] = {}
    statements: dict[str, bytes] = {}
    with contextlib.closing(Spool(folder, (size, size, study.intake.channels))) as spool:
        for batch in sorted(inputs.batches, key=lambda batch: batch.site):
            for sealed in batch.parts:
                header, found = _open_part(batch, sealed, study)
                headers[batch.site] = header
                statements[batch.site] = statement_json(
                    batch.site, batch.key, sealed.header, sealed.signature
                )
                _add_part(spool, found, rank)
        _check_one_set_of_weights(headers)
        _check_enough(len(spool.rows), study)

        # (4) order by place
        rows = spool.ordered()
        labels = np.array([row.label for row in rows], np.int64)
        flags = np.array([row.privatized for row in rows], np.uint8)
        items = Items(spool.in_order(rows), labels, flags)
    return Evidence(headers, statements), items


def _add_part(spool: Spool, arrays: tensors.Arrays, rank: _Ranking) -> None:
    """Put the pictures of one part into the spool."""
    columns = zip(arrays["images"], arrays["labels"], arrays["privatized"], strict=True)
    for image, label, flag in columns:
        spool.add(rank(image), image, int(label), int(flag))


def _open_part(batch: SiteBatch, sealed: Sealed, study: Study) -> tuple[Header, tensors.Arrays]:
    """One part, checked with the rules that the gate and the intake used."""
    header = unseal(sealed, signing.parse_public(batch.key), max_bytes=BATCH_CAP_BYTES)
    expected = (batch.site, study.hash(), "images")
    if (header.sender, header.study, header.kind) != expected:
        raise RefusedError(f"{batch.site}: its batch is signed for another site, plan or purpose")
    found = boundary.open_payload(sealed.payload, header, BATCH_CAP_BYTES)
    boundary.check_images(found, header, study)
    return header, found


def accept_updates(statements: Mapping[str, bytes], study: Study) -> Evidence:
    """Return each site's evidence, its update of the last round: steps 1 and 2 for pairs.

    Raises PolicyError below the quorum, RefusedError for any other statement.
    """
    # (1) the quorum
    _check_quorum(len(statements), study, "updates")

    # (2) open every statement; it must be about the site's own update of the last round
    assert study.models.wgan is not None
    last_round = study.models.wgan.rounds - 1
    headers: dict[str, Header] = {}
    for site, data in sorted(statements.items()):
        statement, header = open_statement(data, f"statements/{site}.json")
        boundary.check_reply(header, study)
        found = (statement.site, header.sender, header.kind, header.model, header.round)
        if found != (site, site, "update", "wgan", last_round):
            raise RefusedError(f"{site}: its statement is not about its update of the last round")
        headers[site] = header
    _check_one_set_of_weights(headers)
    return Evidence(headers, dict(sorted(statements.items())))


def _check_one_set_of_weights(headers: Mapping[str, Header]) -> None:
    """Step 2: all sites computed with the same global weights."""
    named = {header.statement["weights"] for header in headers.values()}
    if len(named) > 1:
        raise RefusedError(
            f"the sites' statements name {len(named)} sets of global weights, expected one",
            hint="a site answered another server: talk to the hospitals",
            code="E-INTAKE-WEIGHTS",
        )


def _check_quorum(sites: int, study: Study, what: str) -> None:
    """Step 1, the quorum."""
    if sites < study.quorum:
        raise PolicyError(
            f"{sites} sites sent {what}, the plan's quorum is {study.quorum}",
            hint="wait for the others, or ask them for `kohort-site status`",
            code="E-QUORUM",
        )


def shuffle_pairs(drawn: PairArray, study: Study, key: Ed25519PrivateKey) -> Items:
    """Return the items in their final order: steps 3 and 4 for pairs.

    The plan of such a release has one label (server/operator/releasable.py).
    """
    # refuse what is no pair
    size = study.intake.size_px
    fits = drawn.dtype == np.uint8 and drawn.shape[1:] == (size, size, 2)
    if not fits or not np.isin(drawn[..., 1], (0, 255)).all():
        raise RefusedError(
            f"pairs: expected uint8 [N, {size}, {size}, 2] with masks of 0 and 255, "
            f"got {drawn.shape}"
        )

    # (3) identical pairs have one place, so each enters once
    rank = _Ranking(study, key)
    rows = {rank(pair): pair for pair in drawn}
    _check_enough(len(rows), study)

    # (4) order by place
    pairs = np.stack([rows[place] for place in sorted(rows)])
    zeros = np.zeros(len(pairs), np.int64)
    masks = np.ascontiguousarray(pairs[..., 1])
    return Items(pairs[..., :1], zeros, zeros.astype(np.uint8), masks)


class _Ranking:
    """Gives each picture its place in the order: a hash of its pixels under the operator's key."""

    def __init__(self, study: Study, key: Ed25519PrivateKey) -> None:
        raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        self._secret = hashlib.sha256(raw + b"order").digest()
        self._plan = study.hash().encode()

    def __call__(self, picture: Images) -> bytes:
        return hmac.digest(self._secret, self._plan + picture.tobytes(), "sha256")


def _check_enough(count: int, study: Study) -> None:
    """Step 3, the least number."""
    least = study.release.min_images
    if count < least:
        raise PolicyError(f"{count} images, the plan's release.min_images is {least}")
