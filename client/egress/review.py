"""Human review of image batches: what waits, and what a person decided.

In: the digest of a batch, its contact sheet; a reviewer's decision. Out: the state of a digest.
Guarantees: a decision is on disk, with the reviewer's name, before it counts; it is final, and
holds for one digest: a changed batch is another batch.
Not covered: who the reviewer is (the accounts of the operating system decide).
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
STATES: dict[str, State] = {"waiting": "waiting", "approved": "approved", "rejected": "rejected"}
SHEET = "contact_sheet.png"
# further pictures that a job may leave (client/synthesize/inversion_sheet.py)
BESIDE = ("inversions.png",)
SHEET_CAP_BYTES = 1 << 30
GIVEN_UP = "kohort: somebody in it has left the cohort"


def batch_digest(parts: Sequence[bytes]) -> str:
    """Return the SHA-256, in hex, that stands for the payloads of a batch in their order."""
    return hashlib.sha256("\n".join(["kohort-batch", *map(digest_of, parts)]).encode()).hexdigest()


@dataclass(frozen=True)
class Batch:
    """One batch under review; `folder` holds its contact sheet, `reviewer` is who decided."""

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
    """The review folder of a site: the daemon proposes, `kohort-site review` decides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder / "decisions.sqlite")

    def propose(self, digest: str, study: str, sheet: Path) -> Batch:
        """Let a batch wait for a person; a second time changes nothing."""
        target = self.folder / digest[:16] / SHEET
        # a decision that was taken before stays
        if self.state(digest) == "unknown":
            self._journal.append(digest, "waiting", {"study": study})
        # the sheet is written last: with it the pictures are complete
        if not target.exists():
            for name in BESIDE:
                if (sheet.parent / name).is_file():
                    _copy(sheet.parent / name, target.parent / name)
            _copy(sheet, target)
        return self._batch(digest)

    def decide(self, batch: str, *, approve: bool, reviewer: str) -> Batch:
        """Record a person's decision on the batch whose digest starts with `batch`; it is final."""
        if not reviewer.strip():
            raise ConfigurationError(
                "review: a decision needs the reviewer's name", hint="add --reviewer NAME"
            )
        # the same decision again is no change; another one is refused
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

    def give_up(self, digest: str) -> None:
        """Reject a waiting batch that can no longer leave: somebody in it has left the cohort."""
        if self.state(digest) == "waiting":
            self._journal.append(digest, "rejected", {"reviewer": GIVEN_UP})

    def find(self, batch: str) -> Batch:
        """Return the one batch whose digest starts with `batch`, or with "" the one that waits."""
        if batch:
            found = [known for known in self.batches() if known.digest.startswith(batch)]
        else:
            found = [known for known in self.batches() if known.state == "waiting"]
        if len(found) != 1:
            raise ConfigurationError(
                f"review: {len(found)} batches match {batch or '(waiting)'!r}, expected one",
                hint="`kohort-site review` lists the batches; give the first letters of one digest",
            )
        return found[0]

    def batches(self) -> tuple[Batch, ...]:
        """Return every batch ever proposed, oldest first."""
        digests = dict.fromkeys(entry.key for entry in self._journal.entries())
        return tuple(self._batch(digest) for digest in digests)

    def state(self, digest: str) -> State:
        """Return the state of exactly this digest."""
        latest = self._journal.latest(digest)
        if latest is None:
            return "unknown"
        return STATES[latest.state]

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _batch(self, digest: str) -> Batch:
        """The batch as the journal has it."""
        entries = [entry for entry in self._journal.entries(digest) if entry.key == digest]
        study = str(entries[0].data["study"])
        reviewer = str(entries[-1].data.get("reviewer", ""))
        return Batch(digest, study, self.folder / digest[:16], self.state(digest), reviewer)


def _copy(source: Path, target: Path) -> None:
    """A file for the reviewer, readable by the site's account alone."""
    atomic_write(target, read_capped(source, SHEET_CAP_BYTES), mode=0o600)
