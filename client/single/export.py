"""`kohort-site privatize --export`: single images that staff may hand over, where all rules agree.

  1. Plan, policy and cap must allow single images (rule 27), and the state must be as new as all
     that left (client/state/head.py), before a file is opened.
  2. Decode in a child process.
  3. An image that was drawn before keeps its bytes, at no cost.
  4. Charge the others first: as many ledger entries as the person with most of them has. Who is one
     person is the intake's to say (client/ingest/whose.py). An image of nobody could be of anybody,
     so it takes an entry of its own.
  5. Draw each once, and keep it.
  6. A person decides on exactly these bytes (policy), then the gate checks all again, and the
     operator has a receipt for the charge (policy).
  7. Take the head over what was spent, then write only the images to OUT, in an order that their
     own pixels give.

Guarantees:
  - a person's images are charged one by one, whatever ids they have
  - who withdrew is in no export, also of what was drawn before
  - the numbers of the files tell nothing of the inputs
  - an original's pixels, name or header never enter an exported file
Not covered: the wire: no single image enters the outbox (rule 27). Staff answer for a folder that
they carry out by hand.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.daemon.site import Site
from client.egress.gate import Gate
from client.egress.review import SHEET, batch_digest
from client.ingest.request import Photograph
from client.ingest.whose import Names
from client.single.flow import Flow
from client.single.inputs import read_inputs
from client.single.output import ON_SITE, comparison_sheet, write_images
from client.single.request import Outcome, Request
from client.state.group_store import GroupStore
from client.state.jobs import Progress
from common.arrays import Images
from common.errors import PolicyError, disk_faults_named
from common.privacy.boundary import check_single
from common.privacy.events import latent_event
from common.privacy.price import at_most
from common.storage.files import atomic_write
from common.wire.tensors import dumps
from common.wire.tensors import read as read_tensors

STORED_CAP_BYTES = 1 << 24
EXPORTS = "exports"


@dataclass(frozen=True)
class Stored:
    """An image that was drawn and charged once: its pixels and the id of its ledger entry."""

    pixels: Images
    reservation: int


@dataclass(frozen=True)
class Fresh:
    """An image that was not drawn before, and every name of its person."""

    photograph: Photograph
    owner: Names


def export_images(site: Site, flow: Flow, request: Request, progress: Progress) -> Outcome:
    """Run the numbered steps."""
    policy = site.config.policy
    allowed = policy.single_images != "never"
    epsilon = flow.mechanism.epsilon_per_image
    # (1) plan, policy and cap must allow single images; the state is as new as all that left
    check_single(flow.study, allowed, epsilon, policy.max_epsilon_image)
    site.records.heads.check()
    # (2) decode in a child process
    inputs = read_inputs(request.source, site, flow.study)
    # (3) find what was drawn before
    store = site.state.root / EXPORTS
    keys = [_key(flow, photograph) for photograph in inputs.photographs]
    fresh: dict[str, Fresh] = {}
    for key, photograph, owner in zip(keys, inputs.photographs, inputs.owners, strict=True):
        if _load_stored(store, key) is None:
            fresh[key] = Fresh(photograph, owner)
    # (4, 5) charge, draw and keep the others
    charged = _charge_and_draw(site, flow, store, fresh, progress)
    kept, originals = _sort_by_pixels(_load_all(store, keys), inputs.images)
    images = [stored.pixels for stored in kept]
    payloads = [dumps({"image": image}) for image in images]
    # (6) review by a person, then the gate
    if policy.review == "required":
        sheet = comparison_sheet(
            originals, images, f"epsilon = {at_most(epsilon)} per image; {ON_SITE}"
        )
        _require_review(site, flow, store, payloads, sheet)
    _check_gate(site, flow, payloads, [stored.reservation for stored in kept])
    if policy.single_images == "countersigned":
        _require_receipt(site, max(stored.reservation for stored in kept))
    # (7) take the head, then write only the images
    _take_head(site, flow.study.hash(), batch_digest(payloads))
    write_images(request, flow, images)
    repeated = sum(key not in fresh for key in keys)
    unknown = inputs.unknown_to(flow)
    return Outcome(len(images), flow.statement, inputs.refused, unknown, charged, repeated)


def _charge_and_draw(
    site: Site, flow: Flow, store: Path, fresh: Mapping[str, Fresh], progress: Progress
) -> int:
    """Steps 4 and 5; return the number of ledger entries."""
    with disk_faults_named("cannot create", store):
        store.mkdir(exist_ok=True, mode=0o700)
    turns = _assign_turns(fresh)
    for keys in turns:
        # (4) charge first
        reservation = site.ledger().reserve(flow.mechanism, flow.study.hash(), weights=flow.digest)
        site.state.journal.append(f"charge/{reservation.id}", "charged")
        # (5) draw, and keep
        images = flow.draw([fresh[key].photograph.pixels for key in keys], progress)
        entry = np.array([reservation.id], np.int64)
        payloads = [dumps({"image": image, "reservation": entry}) for image in images]
        site.ledger().commit(reservation, batch_digest(payloads))
        for key, payload in zip(keys, payloads, strict=True):
            atomic_write(_stored_path(store, key), payload, mode=0o600)
    return len(turns)


def _require_receipt(site: Site, reservation: int) -> None:
    """Raise PolicyError (E-RECEIPT-WAITING) until the operator knows of a ledger entry.

    A copy of the whole folder from before that entry cannot get there: the operator's receipt is
    for a head that the copy never took.
    """
    if site.records.heads.countersigned("ledger") < reservation:
        raise PolicyError(
            "the images are drawn and charged, and wait for the operator's receipt",
            hint="answer two more instructions of a study, then give the same command again "
            "(it costs nothing more)",
            code="E-RECEIPT-WAITING",
        )


def _take_head(site: Site, plan: str, digest: str) -> None:
    """Log it, take the head over what was spent, then journal that these bytes may go."""
    key = f"export/{digest}"
    site.state.log.note("exported", once=True, plan=plan, digest=digest)
    site.records.heads.take(key)
    if site.state.journal.latest(key) is None:
        site.state.journal.append(key, "exported")


def _assign_turns(fresh: Mapping[str, Fresh]) -> list[list[str]]:
    """Return the images in turns: one ledger entry each, with at most one image of a person."""
    turns: list[list[str]] = []
    alone: list[list[str]] = []
    seen: Counter[Names] = Counter()
    for key, one in fresh.items():
        # an image of nobody may be of anybody: nothing else is drawn under its entry
        if not one.owner:
            alone.append([key])
            continue
        turn = seen[one.owner]
        seen[one.owner] += 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(key)
    return turns + alone


def _sort_by_pixels(
    kept: Sequence[Stored], originals: Sequence[Images]
) -> tuple[list[Stored], list[Images]]:
    """Return both in the order of the SHA-256 of the drawn pixels.

    The order of the inputs, which their names give, is not seen in the numbers of the files.
    """
    pairs = list(zip(kept, originals, strict=True))
    pairs.sort(key=lambda pair: hashlib.sha256(pair[0].pixels.tobytes()).digest())
    return [stored for stored, _ in pairs], [original for _, original in pairs]


def _require_review(
    site: Site, flow: Flow, store: Path, payloads: Sequence[bytes], sheet: bytes
) -> None:
    """Raise PolicyError (E-REVIEW-WAITING) until a person decides on exactly these bytes."""
    digest = batch_digest(payloads)
    path = store / f"{digest[:16]}-{SHEET}"
    atomic_write(path, sheet, mode=0o600)
    if site.reviews.propose(digest, flow.study.hash(), path).state == "waiting":
        raise PolicyError(
            f"{len(payloads)} images are drawn and charged, and wait for a person",
            hint=f"`kohort-site review --approve {digest[:16]}`, then the same command again "
            "(it costs nothing more)",
            code="E-REVIEW-WAITING",
        )


def _check_gate(
    site: Site, flow: Flow, payloads: Sequence[bytes], reservations: Sequence[int]
) -> None:
    """Raise what the gate refuses."""
    with GroupStore(site.state.groups) as groups:
        gate = Gate.of(site.records, flow.study, groups, site.reviews)
        gate.clear_export(payloads, reservations, latent_event(flow.study))


def _key(flow: Flow, photograph: Photograph) -> str:
    """Return what makes two requests one: the same image, plan, mechanism and flow."""
    parts = (flow.study.hash(), flow.mechanism.event(), flow.digest, photograph.digest.hex())
    return hashlib.sha256("\n".join(("kohort-export", *parts)).encode()).hexdigest()


def _stored_path(store: Path, key: str) -> Path:
    """Return where the image of a key is kept."""
    return store / f"{key}.safetensors"


def _load_stored(store: Path, key: str) -> Stored | None:
    """Return what was drawn before for this key."""
    path = _stored_path(store, key)
    if not path.is_file():
        return None
    arrays = read_tensors(path, max_bytes=STORED_CAP_BYTES)
    return Stored(np.asarray(arrays["image"], dtype=np.uint8), int(arrays["reservation"][0]))


def _load_all(store: Path, keys: Sequence[str]) -> list[Stored]:
    """Return the stored images of the keys that have one, in their order."""
    found = []
    for key in keys:
        stored = _load_stored(store, key)
        if stored is not None:
            found.append(stored)
    return found
