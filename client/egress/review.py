"""Human review of image batches: what waits, and what persons decided.

In: the digest of a batch, the pages of its contact sheet; a reviewer's decision. Out: the state of
a digest.
Guarantees:
  1. a decision is on disk, signed and with the reviewer's name, before it counts; it holds for one
     digest: a changed batch is another batch
  2. the journal holds the SHA-256 of every page when the batch is proposed; a batch is approved
     only while all these pages lie in its folder as they were, and the approval names them again
  3. a batch is approved once as many different persons approved it as the policy asks for; one
     rejection holds, whatever came before it
  4. where a person leaves images out, the batch never leaves; the rest is a batch of its own
  5. an approval that nobody signed does not count (versions before signed none)
Not covered: who the reviewer is (the accounts of the operating system decide); that a person
opened every page.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.egress import decisions
from client.egress.decisions import Choice, Decision, Entries, SigningKey, who
from client.egress.facts import FILE as FACTS
from client.egress.facts import Facts
from client.egress.left_out import check_numbers, refuse_single
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.signers import signing_keys
from common.audit_log.log import AuditLog
from common.errors import ConfigurationError, PolicyError
from common.storage.files import atomic_write, file_digest, read_capped
from common.storage.journal import Journal
from common.wire.messages import digest_of

# "unsigned": approved by a version that signed nothing; it waits once it is proposed again
# "reduced": a person left images out; the rest is another batch
BatchState = Literal["unknown", "waiting", "approved", "rejected", "reduced", "unsigned"]
WAITING = "waiting"
FINAL = ("approved", "rejected", "reduced")
SHEET = "contact_sheet.png"
PAGE = re.compile(r"contact_sheet(-[0-9]+)?\.png")
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
    """One batch under review, and every decision on it since it was proposed.

    `folder` holds its contact sheet. `pages`: the SHA-256 of each page, by file name; empty for a
    batch that was proposed before pages were noted.
    """

    digest: str
    study: str
    folder: Path
    state: BatchState
    decided: tuple[Decision, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)

    @property
    def reviewer(self) -> str:
        """Who decided, in the order of their decisions."""
        return ", ".join(decision.reviewer for decision in self.decided)

    @property
    def sheets(self) -> list[Path]:
        """Every page of the contact sheet, in order. They stay on site."""
        sheets = [self.folder / name for name in self.pages if PAGE.fullmatch(name)]
        return sheets or [self.sheet]

    @property
    def sheet(self) -> Path:
        """The first page of the contact sheet."""
        return self.folder / SHEET

    @property
    def left_out(self) -> tuple[int, ...]:
        """The numbers, from 1, of the images that a person left out."""
        return tuple(number for decision in self.decided for number in decision.left_out)

    def facts(self) -> Facts | None:
        """Return what is known of each image; None for a batch of which nothing was noted.

        Raises PolicyError (E-REVIEW-PAGES) where the file is missing or altered.
        """
        if FACTS not in self.pages:
            return None
        path = self.folder / FACTS
        if not path.is_file() or file_digest(path) != self.pages[FACTS]:
            raise _altered(path)
        return Facts.read(path)


class Reviews:
    """The review folder of a site: the daemon proposes, people decide.

    `key`: the site's signing key, read when somebody decides. `reviewers`: how many different
    persons must approve a batch. `keys`: the public keys whose decisions count; only the key's own
    unless given. `log`: where each decision is noted before it is recorded.
    """

    def __init__(
        self,
        folder: Path,
        key: SigningKey,
        reviewers: int = 1,
        keys: Callable[[], Sequence[Ed25519PublicKey]] | None = None,
        log: AuditLog | None = None,
    ) -> None:
        self.folder = folder
        self.reviewers = reviewers
        self._key = key
        self._public_keys = keys or (lambda: (key().public_key(),))
        self._log = log
        self._journal = Journal(folder / "decisions.sqlite")

    def propose(self, digest: str, study: str, sheet: Path, count: int = 1) -> Batch:
        """Let a batch wait for a person; a second time changes nothing.

        `sheet`: the first of `count` pages; the others lie beside it, and so may batch.json. Raises
        PolicyError (E-REVIEW-PAGES) where a page is missing.
        """
        folder = self.folder / digest[:16]
        state = self.state(digest)
        if state in FINAL:
            return self._batch(digest)
        sources = {page_name(SHEET, i): page for i, page in enumerate(pages_of(sheet, count))}
        if (sheet.parent / FACTS).is_file():
            sources[FACTS] = sheet.parent / FACTS
        pages = {name: file_digest(page) for name, page in sources.items()}
        # other pages, or an approval that nobody signed: whoever decides looks anew
        waiting = state == "waiting"
        if not waiting or self._batch(digest).pages != pages:
            self._record(digest, WAITING, {"study": study, "pages": _pairs(pages)})
        # the first page is written last: with it the pictures are complete
        if not (folder / SHEET).exists() or (waiting and find_altered(self._batch(digest))):
            for name in BESIDE:
                if (sheet.parent / name).is_file():
                    _copy(sheet.parent / name, folder / name)
            for name in reversed(list(sources)):
                _copy(sources[name], folder / name)
        return self._batch(digest)

    def decide(
        self, batch: str, *, approve: bool, reviewer: str, reason: str = "", note: str = ""
    ) -> Batch:
        """Record a person's decision on the batch whose digest starts with `batch`.

        The same decision by the same person again changes nothing. Raises PolicyError:
        E-REVIEW-FINAL after another decision, E-REVIEW-SAME where the policy asks for a second
        person, E-REVIEW-PAGES for an approval while a page is missing or altered.
        """
        kind = decisions.APPROVED if approve else decisions.REJECTED
        choice = Choice(kind, reviewer, reason, note).checked()
        found = self.find(batch)
        if found.state == kind:
            return found
        _check_open(found)
        if approve:
            _check_another(found, choice.reviewer)
            _check_pages(found)
        self._decide(found, choice)
        return self._batch(found.digest)

    def leave_out(
        self, batch: str, numbers: Sequence[int], *, reviewer: str, reason: str = "", note: str = ""
    ) -> Batch:
        """Record that these images stay on site, by their numbers from 1, with their groups.

        The batch itself never leaves; the daemon proposes the rest. Raises PolicyError as `decide`
        does, and E-REVIEW-SINGLE where single images of this batch cannot be left out.
        """
        chosen = Choice(decisions.REDUCED, reviewer, reason, note, tuple(sorted(set(numbers))))
        choice = chosen.checked()
        found = self.find(batch)
        _check_open(found)
        _check_pages(found)
        facts = found.facts()
        if facts is None:
            raise refuse_single("nothing is noted of its single images")
        check_numbers(facts, choice.left_out)
        self._decide(found, choice)
        return self._batch(found.digest)

    def give_up(self, digest: str) -> None:
        """Reject a waiting batch that can no longer leave: somebody in it has left the cohort."""
        if self.state(digest) == "waiting":
            self._record(digest, decisions.REJECTED, {"reviewer": GIVEN_UP})

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

    def state(self, digest: str) -> BatchState:
        """Return the state of exactly this digest; no signature is looked at."""
        return _state_of(self._entries(digest), self.reviewers)

    def approvals(self, digest: str) -> frozenset[str]:
        """Return who approved exactly this digest, each with a valid signature on it.

        Raises PolicyError (E-REVIEW-CHAIN) where a record is not as it was written.
        """
        decisions.check_chain(self._journal.entries())
        keys = self._public_keys()
        since = _since_proposal(self._entries(digest))
        names: set[str] = set()
        for entry in since:
            if entry.state == decisions.APPROVED and Decision.of(entry).signed:
                decisions.check_signature(entry, keys)
                names.add(who(Decision.of(entry).reviewer))
        return frozenset(names)

    def verify(self) -> tuple[int, str]:
        """Return how many records there are, and the digest over them all.

        Raises PolicyError (E-REVIEW-CHAIN) for the first one that is not as it was written.
        """
        entries = self._journal.entries()
        decisions.check_chain(entries)
        keys = self._public_keys()
        for entry in entries:
            if decisions.SIGNATURE in entry.data:
                decisions.check_signature(entry, keys)
        return len(entries), decisions.chain(entries)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _record(self, digest: str, state: str, fields: Mapping[str, object]) -> None:
        """Write a record that no person decided."""
        self._journal.append_after(
            digest, state, lambda before: decisions.record_waiting(fields, before)
        )

    def _decide(self, batch: Batch, choice: Choice) -> None:
        """Write a person's decision, unless another one came first."""
        key = self._key()

        def make(before: Entries) -> Mapping[str, object]:
            latest = [entry for entry in before if entry.key == batch.digest]
            if _state_of(latest, self.reviewers) != "waiting":
                raise PolicyError(
                    f"review: somebody else just decided on batch {batch.digest[:16]}",
                    code="E-REVIEW-FINAL",
                )
            pages = _pairs(batch.pages)
            record = decisions.record_decision(batch.digest, choice, pages, before, key)
            if self._log is not None:
                self._log.note(
                    "reviewed", batch=batch.digest, decision=choice.kind, by=choice.reviewer
                )
            return record

        self._journal.append_after(batch.digest, choice.kind, make)

    def _entries(self, digest: str) -> Entries:
        """The records of exactly this digest, in order."""
        return [entry for entry in self._journal.entries(digest) if entry.key == digest]

    def _batch(self, digest: str) -> Batch:
        """The batch as the journal has it."""
        entries = self._entries(digest)
        study = str(entries[0].data["study"])
        decided = [Decision.of(e) for e in _since_proposal(entries) if e.state != WAITING]
        noted = [entry.data["pages"] for entry in entries if "pages" in entry.data]
        pages = {str(name): str(sha256) for name, sha256 in noted[-1]} if noted else {}
        folder = self.folder / digest[:16]
        state = _state_of(entries, self.reviewers)
        return Batch(digest, study, folder, state, tuple(decided), pages)


def open_reviews(state: State, config: SiteConfig) -> Reviews:
    """Return the reviews of a site under its policy, signed with its key."""
    keys = partial(signing_keys, state)
    return Reviews(state.reviews, state.signing_key, config.policy.reviewers, keys, state.log)


def _since_proposal(entries: Entries) -> Entries:
    """The records of one batch from its last proposal on: decisions before it count no more."""
    places = [place for place, entry in enumerate(entries) if entry.state == WAITING]
    return entries[places[-1] :] if places else entries


def _state_of(entries: Entries, reviewers: int) -> BatchState:
    """The state that the records of one batch give it."""
    if not entries:
        return "unknown"
    if any(entry.state == decisions.REJECTED for entry in entries):
        return "rejected"
    if any(entry.state == decisions.REDUCED for entry in entries):
        return "reduced"
    approved = [e for e in _since_proposal(entries) if e.state == decisions.APPROVED]
    signed = {who(str(e.data["reviewer"])) for e in approved if decisions.SIGNATURE in e.data}
    if len(signed) >= reviewers:
        return "approved"
    if len(approved) > len(signed):
        return "unsigned"
    return "waiting"


def _check_open(batch: Batch) -> None:
    """Raise PolicyError (E-REVIEW-FINAL) unless the batch waits for a decision."""
    if batch.state != "waiting":
        raise PolicyError(
            f"review: batch {batch.digest[:16]} is already {batch.state}",
            hint="nothing to repair; an unsigned one waits again once the daemon starts",
            code="E-REVIEW-FINAL",
        )


def _check_another(batch: Batch, reviewer: str) -> None:
    """Raise PolicyError (E-REVIEW-SAME) for a second approval by one person."""
    for decision in batch.decided:
        if who(decision.reviewer) == who(reviewer):
            raise PolicyError(
                f"review: {decision.reviewer} approved batch {batch.digest[:16]} before; "
                "policy.reviewers asks for another person",
                hint="let somebody else look, with --reviewer NAME",
                code="E-REVIEW-SAME",
            )


def read_page(batch: Batch, page: Path) -> bytes:
    """Return a page of a batch; raises PolicyError (E-REVIEW-PAGES) unless it is as proposed."""
    if not page.is_file():
        raise _altered(page)
    data = read_capped(page, PAGE_CAP_BYTES)
    if digest_of(data) != batch.pages.get(page.name, digest_of(data)):
        raise _altered(page)
    return data


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
        raise _altered(altered)


def _altered(page: Path) -> PolicyError:
    """The refusal of a page."""
    return PolicyError(
        f"review: {page} is missing, or is not the page that was proposed",
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
