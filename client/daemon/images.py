"""Clears the output of the one image batch of a plan.

In: `Output`. Out: `Cleared`, one for each part.
Guarantees: a person approved exactly these bytes where the policy asks for it (9); every part
passed the gate, or none; groups and images are in the group store before anything leaves (10). A
batch with somebody who has left the cohort since, or whose members another study released first,
does not leave and freezes no group: it is made again.
"""

from __future__ import annotations

import logging
import threading

from client.daemon.rounds import Output
from client.egress.contact_sheet import count_pages, is_unpaged
from client.egress.evidence import Evidence
from client.egress.gate import Cleared, Gate
from client.egress.review import SHEET, Reviews, batch_digest
from client.ingest.cohort import persons_of
from client.state.group_store import GroupStore
from client.state.jobs import EVIDENCE, GROUPS, OUTPUT, OUTPUT_CAP_BYTES, Job, Stopped
from client.state.records import Records
from common.errors import PolicyError, RefusedError
from common.privacy.boundary import PART_CAP_BYTES, check_total
from common.privacy.events import covers_every_image
from common.study.plan import Study
from common.wire.tensors import Arrays, dumps, read

HEADER_ROOM_BYTES = 1 << 16
REVIEW_POLL_S = 1.0
log = logging.getLogger(__name__)


def clear(
    output: Output, records: Records, reviews: Reviews, stop: threading.Event
) -> tuple[Cleared, ...] | None:
    """Return the cleared parts of the batch; None where it must be made again.

    A member has left the cohort since, or another study released its members first. Raises
    RefusedError, PolicyError, Stopped.
    """
    study = output.round.study
    # what the child left
    evidence = Evidence.read(output.folder / EVIDENCE)
    parts = split(read(output.folder / OUTPUT, max_bytes=OUTPUT_CAP_BYTES), study)
    # another study released its members first: what the child knew of frozen groups is old
    if was_overtaken(output, evidence, records):
        reviews.give_up(batch_digest(parts))
        return None
    # (9) a person approved the images, where the policy asks for it
    if not has_lost_member(output, evidence, records):
        await_review(output, parts, records, reviews, stop)
    # (9) nobody in them has left meanwhile
    if has_lost_member(output, evidence, records):
        reviews.give_up(batch_digest(parts))
        return None
    with GroupStore(records.state.groups) as groups:
        gate = Gate.of(records, study, groups, reviews)
        persons = persons_of(records.state.cohort(study.intake))
        # (10) the gate checks the batch, freezes its groups, keeps its images, and clears it
        try:
            return gate.clear_images(
                output.round.header, parts, evidence, persons, output.reservation, output.event
            )
        except RefusedError:
            # somebody left between the two looks: no code tells the server why
            if has_lost_member(output, evidence, records):
                return None
            raise


def await_review(
    output: Output, parts: list[bytes], records: Records, reviews: Reviews, stop: threading.Event
) -> None:
    """Wait until a person has decided on exactly these bytes, where the policy asks for it.

    Return early where a member has left the cohort. Raises PolicyError (E-REVIEW-REJECTED), or
    Stopped.
    """
    # propose the batch, also again after a restart
    digest = batch_digest(parts)
    study = output.round.study
    evidence = Evidence.read(output.folder / EVIDENCE)
    if records.config.policy.review == "required":
        size_px = study.intake.size_px
        sheet = output.folder / SHEET
        pages = count_pages(len(evidence.group_of), size_px, size_px)
        # a batch that waited through an upgrade has one sheet of all its images
        if is_unpaged(sheet):
            pages = 1
        reviews.propose(digest, study.hash(), sheet, pages)
        log.info("%s: images wait for a person: kohort-site review", study.name)
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
