"""Human review of image batches: what waits, and what a person decided.

In: the digest of a batch, the pages of its contact sheet; a reviewer's decision. Out: the state of
a digest.
Guarantees:
  1. a decision is on disk, with the reviewer's name, before it counts; it is final, and holds for
     one digest: a changed batch is another batch
  2. the journal holds the SHA-256 of every page when the batch is proposed; a batch is approved
     only while all these pages lie in its folder as they were, and the approval names them again
Not covered: who the reviewer is (the accounts of the operating system decide); that a person
opened every page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.errors import ConfigurationError, PolicyError
from common.storage.files import atomic_write, file_digest, read_capped
from common.storage.journal import Journal
from common.wire.messages import digest_of

State = Literal["unknown", "waiting", "approved", "rejected"]
STATES: dict[str, State] = {"waiting": "waiting", "approved": "approved", "rejected": "rejected"}
SHEET = "contact_sheet.png"
# further pictures that a job may leave (client/synthesize/inversion_sheet.py)
BESIDE = ("inversions.png",)
PAGE_CAP_BYTES = 1 << 28
GIVEN_UP = "kohort: somebody in it has left the cohort"


def batch_digest(parts: Sequence[bytes]) -> str:
    """Return the SHA-256, in hex, that stands for the payloads of a batch in their order."""
    return hashlib.sha256("\n".join(["kohort-batch", *map(digest_of, parts)]).encode()).hexdigest()


def page_name(sheet: str, page: int) -> str:
    """Return the file name of a page of a sheet; the first one, 0, has the sheet's own."""
    if not page:
        return sheet
    stem, _, ending = sheet.rpartition(".")
    return f"{stem}-{page + 1}.{ending}"


def pages_of(sheet: Path, count: int) -> list[Path]:
    """Return the `count` pages of a sheet, in their order: the first one, and those beside it.

    Raises PolicyError (E-REVIEW-PAGES) unless all are there: nobody approves what is not shown.
    """
    pages = [sheet.with_name(page_name(sheet.name, number)) for number in range(count)]
    for page in pages:
        if not page.is_file():
            raise PolicyError(
                f"review: {page}: expected page {pages.index(page) + 1} of {count}, found none",
                hint="put the file back; without it nobody can approve this batch",
                code="E-REVIEW-PAGES",
            )
    return pages


@dataclass(frozen=True)
class Batch:
    """One batch under review; `reviewer` is who decided.

    `folder` holds its contact sheet. `pages`: the SHA-256 of each page, by file name; empty for a
    batch that was proposed before pages were noted.
    """

    digest: str
    study: str
    folder: Path
    state: State
    reviewer: str = ""
    pages: Mapping[str, str] = field(default_factory=dict)

    @property
    def sheets(self) -> list[Path]:
        """Every page of the contact sheet, in order. They stay on site."""
        return [self.folder / name for name in self.pages] or [self.sheet]

    @property
    def sheet(self) -> Path:
        """The first page of the contact sheet."""
        return self.folder / SHEET


class Reviews:
    """The review folder of a site: the daemon proposes, `kohort-site review` decides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal = Journal(folder / "decisions.sqlite")

    def propose(self, digest: str, study: str, sheet: Path, count: int = 1) -> Batch:
        """Let a batch wait for a person; a second time changes nothing.

        `sheet`: the first of `count` pages; the others lie beside it. Raises PolicyError
        (E-REVIEW-PAGES) where one is missing.
        """
        folder = self.folder / digest[:16]
        if self.state(digest) in ("approved", "rejected"):
            return self._batch(digest)
        sources = {page_name(SHEET, i): page for i, page in enumerate(pages_of(sheet, count))}
        pages = {name: file_digest(page) for name, page in sources.items()}
        # a decision that was taken before stays
        waiting = self.state(digest) == "waiting"
        if self.state(digest) == "unknown" or (waiting and self._batch(digest).pages != pages):
            self._journal.append(digest, "waiting", {"study": study, "pages": _pairs(pages)})
        # the first page is written last: with it the pictures are complete
        if not (folder / SHEET).exists() or (waiting and find_altered(self._batch(digest))):
            for name in BESIDE:
                if (sheet.parent / name).is_file():
                    _copy(sheet.parent / name, folder / name)
            for name in reversed(list(sources)):
                _copy(sources[name], folder / name)
        return self._batch(digest)

    def decide(self, batch: str, *, approve: bool, reviewer: str) -> Batch:
        """Record a person's decision on the batch whose digest starts with `batch`; it is final.

        Raises PolicyError: E-REVIEW-FINAL after another decision, E-REVIEW-PAGES for an approval
        while a page is missing or altered.
        """
        if not reviewer.strip():
            raise ConfigurationError(
                "review: a decision needs the reviewer's name", hint="add --reviewer NAME"
            )
        # the same decision again is no change; another one is refused
        found = self.find(batch)
        digest = found.digest
        decision = "approved" if approve else "rejected"
        if self.state(digest) not in ("waiting", decision):
            raise PolicyError(
                f"review: batch {digest[:16]} is already {self.state(digest)}",
                code="E-REVIEW-FINAL",
            )
        if self.state(digest) == "waiting":
            if approve:
                _check_pages(found)
            record = {"reviewer": reviewer.strip(), "pages": _pairs(found.pages)}
            self._journal.append(digest, decision, record)
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
        noted = [entry.data["pages"] for entry in entries if "pages" in entry.data]
        pages = {str(name): str(sha256) for name, sha256 in noted[-1]} if noted else {}
        folder = self.folder / digest[:16]
        return Batch(digest, study, folder, self.state(digest), reviewer, pages)


def find_altered(batch: Batch) -> Path | None:
    """Return the first page that is missing or is not as it was proposed, or None."""
    for name, sha256 in batch.pages.items():
        page = batch.folder / name
        if not page.is_file() or file_digest(page) != sha256:
            return page
    return None


def _check_pages(batch: Batch) -> None:
    """Raise PolicyError (E-REVIEW-PAGES) unless every page lies there as it was proposed."""
    altered = find_altered(batch)
    if altered is not None:
        raise PolicyError(
            f"review: {altered} is missing, or is not the page that was proposed",
            hint="restart `kohort-site run`: it writes the pages again; for single images give the "
            "`privatize` command again",
            code="E-REVIEW-PAGES",
        )


def _pairs(pages: Mapping[str, str]) -> list[list[str]]:
    """Pages and digests in their order: a journal's objects have none."""
    return [[name, sha256] for name, sha256 in pages.items()]


def _copy(source: Path, target: Path) -> None:
    """A file for the reviewer, readable by the site's account alone."""
    atomic_write(target, read_capped(source, PAGE_CAP_BYTES), mode=0o600)
