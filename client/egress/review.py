"""Human review of image batches: what waits, what a person decided, bound to the digest of exactly those bytes.

In: the SHA-256 of a batch, its contact sheet and the pictures beside it; a reviewer's decision. Out: the state of a digest.
Guaranteed: a decision is on disk, with the reviewer's name, before it counts; it holds for one digest and is final; a changed
batch is another batch. Not covered: who the reviewer is (the operating system's accounts decide who may run
`kohort-site review`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import ConfigurationError, PolicyError
from common.storage.files import atomic_write, read_capped
from common.storage.journal import Journal
from common.wire.messages import digest_of

State = Literal["unknown", "waiting", "approved", "rejected"]
SHEET = "contact_sheet.png"
BESIDE = (
    "inversions.png",
)  # further pictures that a job may leave (client/synthesize/inversion_sheet.py)
SHEET_CAP_BYTES = 1 << 30


def batch_digest(parts: Sequence[bytes]) -> str:
    """Return the SHA-256, in hex, that stands for the payloads of a batch in their order."""
    return hashlib.sha256("\n".join(["kohort-batch", *map(digest_of, parts)]).encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """One batch under review: its digest, plan, folder with the contact sheet, state and who decided."""

    digest: str
    study: str
    folder: Path
    state: State
    reviewer: str = ""

    @property
    def sheet(self) -> Path:
        """The contact sheet: every image of the batch. It stays on site."""
        return self.folder / SHEET


class Reviews:
    """The review folder of a site; the daemon proposes, `kohort-site review` decides, both through the journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder / "decisions.sqlite")

    def propose(self, digest: str, study: str, sheet: Path) -> Batch:
        """Let a batch wait for a person; proposing it again changes nothing."""
        target = self.folder / digest[:16] / SHEET
        if self.state(digest) == "unknown":
            self._journal.append(digest, "waiting", {"study": study})
        if not target.exists():
            for name in (one for one in BESIDE if (sheet.parent / one).is_file()):
                atomic_write(
                    target.parent / name,
                    read_capped(sheet.parent / name, SHEET_CAP_BYTES),
                    mode=0o600,
                )
            atomic_write(target, read_capped(sheet, SHEET_CAP_BYTES), mode=0o600)
        return self._batch(digest)

    def decide(self, batch: str, *, approve: bool, reviewer: str) -> Batch:
        """Write a person's decision on the batch whose digest starts with `batch`; it is final."""
        if not reviewer.strip():
            raise ConfigurationError(
                "review: a decision needs the reviewer's name", hint="add --reviewer NAME"
            )
        digest = self.find(batch).digest
        decision = "approved" if approve else "rejected"
        if self.state(digest) not in ("waiting", decision):
            raise PolicyError(
                f"review: batch {digest[:16]} is already {self.state(digest)}",
                code="E-REVIEW-FINAL",
            )
        if self.state(digest) == "waiting":
            self._journal.append(digest, decision, {"reviewer": reviewer.strip()})
        return self._batch(digest)

    def find(self, batch: str) -> Batch:
        """Return the one batch whose digest starts with `batch`; an empty string means the only one that waits."""
        found = [
            b
            for b in self.batches()
            if (b.digest.startswith(batch) if batch else b.state == "waiting")
        ]
        if len(found) != 1:
            raise ConfigurationError(
                f"review: {len(found)} batches match {batch or '(waiting)'!r}, expected one",
                hint="`kohort-site review` lists the batches; give the first letters of one digest",
            )
        return found[0]

    def batches(self) -> tuple[Batch, ...]:
        """Return every batch ever proposed, oldest first."""
        return tuple(
            self._batch(digest)
            for digest in dict.fromkeys(entry.key for entry in self._journal.entries())
        )

    def state(self, digest: str) -> State:
        """Return what holds for exactly this digest."""
        latest = self._journal.latest(digest)
        states: dict[str, State] = {
            "waiting": "waiting",
            "approved": "approved",
            "rejected": "rejected",
        }
        return "unknown" if latest is None else states[latest.state]

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _batch(self, digest: str) -> Batch:
        entries = [entry for entry in self._journal.entries(digest) if entry.key == digest]
        study, reviewer = str(entries[0].data["study"]), str(entries[-1].data.get("reviewer", ""))
        return Batch(digest, study, self.folder / digest[:16], self.state(digest), reviewer)
