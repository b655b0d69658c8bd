"""Clears the output of the one image batch of a plan.

In: `Output`. Out: `Cleared`, one for each part.
Guarantees: people approved exactly these bytes where the policy asks for it (9), without the images
that they left out; every part passed the gate, or none; groups and images are in the group store
before anything leaves (10). A batch with somebody who has left the cohort since, or whose members
another study released first, does not leave and freezes no group: it is made again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.daemon.rounds import Output
from client.egress.contact_sheet import count_pages, is_unpaged
from client.egress.evidence import Evidence
from client.egress.facts import FILE as FACTS
from client.egress.facts import Facts, describe, read_findings
from client.egress.gate import Cleared, Gate
from client.egress.left_out import keep_rest, take_rest, why_whole
from client.egress.review import SHEET, Reviews, batch_digest, page_name, pages_of
from client.egress.sheet_pictures import SheetPictures
from client.ingest.cohort import persons_of
from client.state.group_store import GroupStore
from client.state.jobs import (
    EVIDENCE,
    FINDINGS,
    GROUPS,
    OUTPUT,
    OUTPUT_CAP_BYTES,
    Job,
    Stopped,
)
from client.state.records import Records
from common.errors import PolicyError, RefusedError
from common.privacy.boundary import PART_CAP_BYTES, check_total
from common.privacy.events import covers_every_image
from common.storage.files import atomic_write
from common.study.plan import Study
from common.wire.tensors import Arrays, dumps, read

HEADER_ROOM_BYTES = 1 << 16
REVIEW_POLL_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposal:
    """What people left of the batch that the child made.

    `sheet`: the first page of its contact sheet. `facts`: what is noted of each image; None where
    a child of an earlier version noted nothing.
    """

    tensors: Arrays
    evidence: Evidence
    parts: list[bytes]
    sheet: Path
    facts: Facts | None

    @property
    def digest(self) -> str:
        """What stands for these bytes in a review."""
        return batch_digest(self.parts)

    @property
    def names(self) -> tuple[str, Evidence]:
        """Digest and evidence, without pixels."""
        return self.digest, self.evidence


def clear(
    output: Output, records: Records, reviews: Reviews, stop: threading.Event
) -> tuple[Cleared, ...] | None:
    """Return the cleared parts of the batch; None where it must be made again.

    A member has left the cohort since, or another study released its members first. Raises
    RefusedError, PolicyError, Stopped.
    """
    study = output.round.study
    # what the child made, without the images that people left out; pixels do not wait in memory
    digest, evidence = read_proposal(output, records, reviews).names
    # another study released its members first: what the child knew of frozen groups is old
    if was_overtaken(output, evidence, records):
        reviews.give_up(digest)
        return None
    # (9) a person approved the images, where the policy asks for it
    if not has_lost_member(output, evidence, records):
        await_review(output, records, reviews, stop)
    proposal = read_proposal(output, records, reviews)
    # (9) nobody in them has left meanwhile
    if has_lost_member(output, proposal.evidence, records):
        reviews.give_up(proposal.digest)
        return None
    with GroupStore(records.state.groups) as groups:
        gate = Gate.of(records, study, groups, reviews)
        persons = persons_of(records.state.cohort(study.intake))
        # (10) the gate checks the batch, freezes its groups, keeps its images, and clears it
        try:
            return gate.clear_images(
                output.round.header,
                proposal.parts,
                proposal.evidence,
                persons,
                output.reservation,
                output.event,
            )
        except RefusedError:
            # somebody left between the two looks: no code tells the server why
            if has_lost_member(output, proposal.evidence, records):
                return None
            raise


def read_proposal(output: Output, records: Records, reviews: Reviews) -> Proposal:
    """Return what the child made, without the images that people left out of it.

    It follows from the job folder and the reviews' journal alone, so a restart finds the same.
    """
    study = output.round.study
    evidence = Evidence.read(output.folder / EVIDENCE)
    tensors = read(output.folder / OUTPUT, max_bytes=OUTPUT_CAP_BYTES)
    facts = None
    if (output.folder / FINDINGS).is_file():
        persons = persons_of(records.state.cohort(study.intake))
        findings = read_findings(output.folder / FINDINGS)
        facts = describe(study, evidence, tensors, findings, persons, why_whole(study))
    sheet = output.folder / SHEET
    found = Proposal(tensors, evidence, split(tensors, study), sheet, facts)
    while reviews.state(found.digest) == "reduced":
        found = leave_out(found, study, reviews.find(found.digest).left_out, output.folder)
    return found


def leave_out(before: Proposal, study: Study, numbers: Sequence[int], folder: Path) -> Proposal:
    """Return the rest of a proposal, with pages of its own in the job folder."""
    rest = keep_rest(study, before.evidence, numbers)
    tensors, evidence = take_rest(before.tensors, before.evidence, rest)
    parts = split(tensors, study)
    sheet = folder / f"rest-{batch_digest(parts)[:16]}" / SHEET
    facts = None
    if before.facts is not None:
        facts = before.facts.only(rest)
        # the first page is written last: with it the pages are complete
        if not sheet.is_file():
            count = count_pages(len(before.facts.images), *[study.intake.size_px] * 2)
            pictures = SheetPictures(pages_of(before.sheet, count), before.facts)
            pages = list(enumerate(pictures.draw_rest(rest)))
            for number, page in reversed(pages):
                path = sheet.with_name(page_name(SHEET, number))
                path.parent.mkdir(mode=0o700, exist_ok=True)
                atomic_write(path, page, mode=0o600)
    return Proposal(tensors, evidence, parts, sheet, facts)


def await_review(output: Output, records: Records, reviews: Reviews, stop: threading.Event) -> None:
    """Wait until people have decided on exactly these bytes, where the policy asks for it.

    Where they leave images out, the rest waits anew. Return early where a member has left the
    cohort. Raises PolicyError (E-REVIEW-REJECTED), or Stopped.
    """
    study = output.round.study
    while True:
        # propose the batch, also again after a restart
        proposal = read_proposal(output, records, reviews)
        digest, evidence = proposal.names
        if records.config.policy.review == "required":
            propose(proposal, study, reviews)
            log.info("%s: images wait for a person: kohort-site review", study.name)
        del proposal
        # wait for a decision; one that was taken before holds
        while reviews.state(digest) == "waiting":
            if stop.wait(REVIEW_POLL_S):
                raise Stopped("stopped while images wait for review")
            if has_lost_member(output, evidence, records):
                return
        if reviews.state(digest) == "rejected":
            raise PolicyError(
                "a person rejected the images; nothing was sent", code="E-REVIEW-REJECTED"
            )
        if reviews.state(digest) != "reduced":
            return


def propose(proposal: Proposal, study: Study, reviews: Reviews) -> None:
    """Let a proposal wait for people, with its pages and with what is noted of each image.

    Raises PolicyError (E-REVIEW-PAGES) where the sheet shows other images than would leave.
    """
    sheet = proposal.sheet
    size_px = study.intake.size_px
    pages = count_pages(len(proposal.evidence.group_of), size_px, size_px)
    # a batch that waited through an upgrade has one sheet of all its images
    if is_unpaged(sheet):
        pages = 1
    if proposal.facts is not None:
        pictures = SheetPictures(pages_of(sheet, pages), proposal.facts)
        if not pictures.shows(np.asarray(proposal.tensors["images"], np.uint8)):
            raise PolicyError(
                "the contact sheet shows other images than those that would leave",
                hint="report it; nothing was sent",
                code="E-REVIEW-PAGES",
            )
        atomic_write(sheet.with_name(FACTS), proposal.facts.to_json(), mode=0o600)
    reviews.propose(proposal.digest, study.hash(), sheet, pages)


def has_lost_member(output: Output, evidence: Evidence, records: Records) -> bool:
    """Return whether the site's persons changed since the child began, so that a group is broken.

    Somebody withdrew, a refresh left them out, or two members were found to be one person. A group
    that was broken from the start is the gate's to refuse.
    """
    cohort = records.state.cohort(output.round.study.intake)
    job = Job.read(output.folder)
    if (job.cohort, job.people) == (str(cohort.resolve()), records.people().digest):
        return False
    persons = persons_of(cohort)
    for group in evidence.groups:
        distinct = {persons[member] for member in group.members if member in persons}
        if len(distinct) < len(group.members):
            return True
    return False


def was_overtaken(output: Output, evidence: Evidence, records: Records) -> bool:
    """Return whether another study froze members of these groups since the child began."""
    study = output.round.study
    if covers_every_image(study):
        return False
    known = Evidence.read(output.folder / GROUPS).groups
    members = {member for group in evidence.groups for member in group.members}
    with GroupStore(records.state.groups) as store:
        for group in set(store.groups()) - set(known):
            released = store.released(group) or ()
            others = any(artefact.study != study.hash() for artefact in released)
            if others and members & set(group.members):
                return True
    return False


def split(images: Arrays, study: Study) -> list[bytes]:
    """Return the payloads of a batch, each of at most 32 MiB, in order."""
    count = len(images["images"])
    check_total(count, study)
    # as many images a part as fit beside its header
    image_bytes = images["images"][0].nbytes
    image_bytes += images["labels"].itemsize + images["privatized"].itemsize
    size = max(1, (PART_CAP_BYTES - HEADER_ROOM_BYTES) // image_bytes)
    parts: list[bytes] = []
    for start in range(0, count, size):
        parts.append(dumps({name: array[start : start + size] for name, array in images.items()}))
    return parts
