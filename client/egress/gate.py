"""The gate: the only maker of `Cleared`, the only type that the outbox takes.

In: payload bytes that a child left, the instruction that they answer, the site's own records.
Out: `Cleared`, or RefusedError with the code of the first rule that does not hold.
Guarantees: nothing is sent that no rule names; every rule is checked before anything changes, and
only then is the artefact committed to the ledger.
Not covered: the privacy of the numbers (client/learn), how groups are formed (client/synthesize).

Rules 1-14 of common/privacy/boundary.py hold for values, and the server checks them again; 20-28
need what only the site has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from client.egress.artefacts import check_artefacts, freeze
from client.egress.evidence import SINGLE, Evidence
from client.egress.review import Reviews, batch_digest
from client.state.canaries import Tallies
from client.state.config import Policy
from client.state.group_store import GroupStore
from client.state.ledger import Ledger, Reservation
from client.state.ledger_file import Entry, of_kind
from client.state.plan_check import check_plan
from client.state.records import Records
from common.errors import Bug, KohortError, PolicyError
from common.privacy.boundary import (
    HEAD_COMMITMENT,
    OPERATOR_LOG,
    PART_CAP_BYTES,
    UPDATE_CAP_BYTES,
    WEIGHTS,
    Statement,
    check_images,
    check_instruction,
    check_single,
    check_total,
    check_update,
    open_payload,
    public_statement,
)
from common.privacy.boundary_rules import refuse
from common.privacy.canary_audit import Claim, fault
from common.privacy.events import image_event, latent_event
from common.privacy.latent_mechanisms import Latent
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from common.study.families import Shapes
from common.study.plan import Study
from common.wire.messages import Header, digest_of
from common.wire.tensors import Arrays

_TOKEN = object()
# writes down the payloads' digests of a round; returns the commitment to the head over them
Note = Callable[[Study, Header, Sequence[str], Tallies | None], str]
NO_HEAD = "0" * 64  # in a header that is only checked, never signed


class Cleared:
    """A message that passed the gate: header and payload, unchangeable. Only the gate makes one."""

    __slots__ = ("header", "payload")
    header: Header
    payload: bytes

    def __init__(self, token: object, header: Header, payload: bytes) -> None:
        if token is not _TOKEN:
            raise Bug(
                "only the gate makes a Cleared", hint="call Gate.clear_update or Gate.clear_images"
            )
        object.__setattr__(self, "header", header)
        object.__setattr__(self, "payload", payload)

    def __setattr__(self, name: str, value: object) -> None:
        raise Bug(f"a Cleared cannot be changed ({name})")

    def __delattr__(self, name: str) -> None:
        raise Bug(f"a Cleared cannot be changed ({name})")


@dataclass(frozen=True)
class Gate:
    """The gate for one plan at one site.

    `approved(plan hash)`: whether the site's staff approved it. `note`: writes down what is about
    to be signed, and returns the commitment to the head over it.
    """

    study: Study
    policy: Policy
    site: str
    ledger: Ledger
    approved: Callable[[str], bool]
    groups: GroupStore
    reviews: Reviews
    note: Note

    @classmethod
    def of(cls, records: Records, study: Study, groups: GroupStore, reviews: Reviews) -> Gate:
        """Return the gate for one plan over the site's own records."""
        config = records.config
        return cls(
            study,
            config.policy,
            config.site,
            records.ledger(),
            records.plans.is_approved,
            groups,
            reviews,
            records.note_cleared,
        )

    def clear_update(
        self,
        instruction: Header,
        payload: bytes,
        expected: Shapes,
        reservation: Reservation,
        event: SubsampledGaussian,
        tallies: Tallies | None = None,
    ) -> Cleared:
        """Return the cleared update of one training round.

        `expected`: names and shapes of the global weights that it answers. `event`: what the plan
        spends in one round. `tallies`: what its canaries measured, where the plan has any.
        """
        # (1, 20) the instruction is of this plan, which is approved and within the policy
        self._check_plan(instruction, "train")
        # (1-9) the update holds the declared tensors alone, within the plan's norm
        header = self._header(instruction, "update", payload)
        update = open_payload(payload, header, UPDATE_CAP_BYTES)
        check_update(update, expected, header, self.study)
        # (21) it was reserved for this plan's event, and led to no other artefact
        self._check_reservation(reservation, event, header.digest, instruction.digest)
        # (26) measured noise and clip match the plan's
        self._check_canaries(instruction.model, event, tallies)
        self.ledger.commit(reservation, header.digest)
        # what is about to be signed is written down; the header commits to the head over it
        commitment = self.note(self.study, instruction, [header.digest], tallies)
        return Cleared(_TOKEN, self._header(instruction, "update", payload, commitment), payload)

    def clear_images(
        self,
        instruction: Header,
        parts: Sequence[bytes],
        evidence: Evidence,
        persons: Mapping[str, int],
        reservation: Reservation | None = None,
        event: Mechanism | None = None,
    ) -> tuple[Cleared, ...]:
        """Return the cleared parts of one image batch, all or none.

        `persons`: the person behind every pseudonym of the cohort. `event`: the plan's mechanism on
        images, if it has one; `reservation`: its ledger entry where it claims epsilon per patient.
        """
        # (1, 20) the instruction is of this plan, which is approved and within the policy
        self._check_plan(instruction, "synthesize")
        # (1-4, 10-14) the parts hold the declared tensors alone, within the plan's total
        arrays = [self._check_part(instruction, parts, index) for index in range(len(parts))]
        labels = [label for part in arrays for label in part["labels"].tolist()]
        check_total(len(labels), self.study)
        # (22, 23) every image's group is large enough, and has the image's label
        self._check_groups(evidence, labels, persons)
        # (28) nothing new of a frozen group but a draw that the policy allows
        limit = self.policy.average_limit
        released = check_artefacts(self.study, evidence, arrays, self.groups, limit)
        # (21) the mechanism is reserved, or declared
        digest = batch_digest(parts)
        self._check_image_event(event, reservation, digest, instruction.digest)
        # (24) the audit found nothing
        if evidence.audit:
            codes = ", ".join(evidence.audit[:5])
            raise refuse(24, f"audit codes {codes}", hint="see the job folder; nothing was sent")
        # (25) people approved exactly this batch
        self._check_review(digest)
        # (23) the groups are frozen, and what leaves of them is kept
        freeze(self.study, released, self.groups, limit)
        if reservation is not None:
            self.ledger.commit(reservation, digest)
        # what is about to be signed is written down; the headers commit to the head over it
        commitment = self.note(self.study, instruction, [digest_of(part) for part in parts], None)
        cleared: list[Cleared] = []
        for index, payload in enumerate(parts):
            header = self._header(instruction, "images", payload, commitment, index, len(parts))
            cleared.append(Cleared(_TOKEN, header, payload))
        return tuple(cleared)

    def clear_export(
        self, images: Sequence[bytes], reservations: Sequence[int], event: Latent
    ) -> None:
        """Check that privatized images of one patient each may be handed over in person.

        Nothing here can send them. `reservations`: the ledger's entry under which each image was
        drawn. Rules 20, 27, 21, 25; raises RefusedError.
        """
        # (20) the plan is approved and within the policy
        self._check_policy()
        # (27) plan and policy allow single images at this epsilon
        allowed = self.policy.single_images != "never"
        most = self.policy.max_epsilon_image
        check_single(self.study, allowed, event.epsilon_per_image, most)
        # (21) every image was reserved for the plan's own mechanism
        if event != latent_event(self.study) or len(images) != len(reservations):
            raise refuse(21, "the mechanism on single images is not the plan's")
        rows = self.ledger.rows()
        for number in reservations:
            self._check_entry(number, event, rows)
        # (25) people approved exactly these images
        self._check_review(batch_digest(images))

    def _check_plan(self, instruction: Header, phase: str) -> None:
        """Rules 1 and 20: the instruction is of this plan, which the site allows."""
        check_instruction(instruction, self.study)
        if instruction.phase != phase:
            asked = instruction.phase
            raise refuse(1, f"an instruction of phase {asked} for an artefact of {phase}")
        self._check_policy()

    def _check_policy(self) -> None:
        """Rule 20: the plan is approved and within the policy."""
        if not self.approved(self.study.hash()):
            raise refuse(20, "nobody at this site approved it", hint="kohort-site approve BUNDLE")
        try:
            check_plan(self.study, self.policy, self.site)
        except KohortError as error:
            raise refuse(20, str(error), hint=error.hint) from error

    def _header(
        self,
        instruction: Header,
        kind: str,
        payload: bytes,
        commitment: str = NO_HEAD,
        part: int = 0,
        parts: int = 1,
    ) -> Header:
        """The reply's header: the instruction's place, the plan's constants, the commitment."""
        statement: Statement = public_statement(self.study, kind, instruction.model)
        # the site's signature over the operator's head countersigns that log
        if OPERATOR_LOG in instruction.statement:
            statement |= {OPERATOR_LOG: instruction.statement[OPERATOR_LOG]}
        return Header.model_validate(
            {
                "kind": kind,
                "study": instruction.study,
                "phase": instruction.phase,
                "model": instruction.model,
                "round": instruction.round,
                "part": part,
                "parts": parts,
                "sender": self.site,
                "digest": digest_of(payload),
                "statement": statement | {WEIGHTS: instruction.digest, HEAD_COMMITMENT: commitment},
            }
        )

    def _check_part(self, instruction: Header, parts: Sequence[bytes], index: int) -> Arrays:
        """Rules 1 to 4 and 10 to 14 for one part; returns its tensors."""
        count = len(parts)
        header = self._header(instruction, "images", parts[index], part=index, parts=count)
        arrays = open_payload(parts[index], header, PART_CAP_BYTES)
        check_images(arrays, header, self.study)
        return arrays

    def _check_reservation(
        self, reservation: Reservation, event: Mechanism, artefact: str, weights: str
    ) -> None:
        """Rule 21: reserved for this plan's own event, and led to no other artefact.

        `weights`: SHA-256 of the global weights that the artefact was made with.
        """
        if type(reservation) is not Reservation:
            raise refuse(21, "practice steps, with noise that may repeat: NOT PRIVATE")
        rows = self.ledger.rows()
        self._check_entry(reservation.id, event, rows, weights)
        for commit in of_kind(rows, "commit"):
            data = commit.data
            if data["reservation"] == reservation.id and data["artefact"] != artefact:
                raise refuse(21, f"entry {reservation.id} is committed to another artefact")

    def _check_entry(
        self, number: int, event: Mechanism, rows: Sequence[Entry], weights: str | None = None
    ) -> None:
        """Rule 21: a ledger entry is a reservation of this plan for this event and weights."""
        entries = {row.seq: row.data for row in of_kind(rows, "reserve")}
        reserved = entries.get(number)
        if reserved is None or reserved["plan"] != self.study.hash():
            raise refuse(21, f"entry {number} is no reservation of this plan")
        if reserved["event"] != json.loads(event.event()):
            raise refuse(21, f"entry {number} was reserved for another event")
        if weights is not None and reserved.get("weights") != weights:
            raise refuse(21, f"entry {number} was reserved for other global weights")

    def _check_canaries(
        self, model: str, event: SubsampledGaussian, tallies: Tallies | None
    ) -> None:
        """Rule 26: measured noise and clip match the plan's, in canaries and in all that is sent.

        No lower bound refutes the epsilon that this model has spent so far.
        """
        count = self.study.privacy.canaries
        plan = self.study.models.trained()[model]
        if not count:
            return
        if tallies is None:
            raise refuse(26, f"no measurement of {count} canaries")
        delta = self.study.privacy.delta
        claim = Claim(event, plan.clip, plan.patients_per_step, delta, plan.rounds, count)
        found = fault(tallies.latest, tallies.total, claim)
        if found:
            hint = "the private step does not do what it claims: report it; nothing was sent"
            raise refuse(26, found, hint=hint)

    def _check_image_event(
        self,
        event: Mechanism | None,
        reservation: Reservation | None,
        artefact: str,
        weights: str,
    ) -> None:
        """Rule 21 for images: the plan's mechanism is reserved.

        It is declared instead where it claims no epsilon per patient.
        """
        if event != image_event(self.study) or (event is None and reservation is not None):
            raise refuse(21, "the mechanism on images is not the plan's")
        if event is None:
            return
        if reservation is not None:
            self._check_reservation(reservation, event, artefact, weights)
            return
        wanted = {
            "event": json.loads(event.event()),
            "plan": self.study.hash(),
            "weights": weights,
        }
        declared = [row.data for row in of_kind(self.ledger.rows(), "declare")]
        if getattr(event, "covers_patient", True) or wanted not in declared:
            raise refuse(
                21, "the mechanism on images is in the ledger neither as reserved nor as declared"
            )

    def _check_groups(
        self, evidence: Evidence, labels: Sequence[int], persons: Mapping[str, int]
    ) -> None:
        """Rules 22 and 23: every image's group is large enough, and its label is the image's.

        Its members are known persons of the cohort.
        """
        if len(evidence.group_of) != len(labels):
            raise refuse(22, f"{len(evidence.group_of)} groups named for {len(labels)} images")
        least = self.policy.min_k
        if self.study.synthesis is not None:
            least = max(least, self.study.synthesis.k)
        for label, index in zip(labels, evidence.group_of, strict=True):
            if index == SINGLE:
                raise refuse(
                    27,
                    "an image of one patient in a batch",
                    hint="kohort-site privatize keeps it on site",
                )
            group = evidence.groups[index]
            distinct = {persons[member] for member in group.members if member in persons}
            if len(distinct) < least or len(distinct) < len(group.members):
                raise refuse(22, f"an image's group has fewer than {least} persons of the cohort")
            if group.stratum.label != label:
                raise refuse(23, "an image has another label than its group")

    def _check_review(self, digest: str) -> None:
        """Rule 25: as many different persons as the policy asks for approved exactly this batch.

        The site's own signature is on each approval. A rejection, or an image left out, holds even
        where the policy asks for no review.
        """
        state = self.reviews.state(digest)
        if state in ("rejected", "reduced"):
            raise refuse(25, f"batch {digest[:16]} is {state}", hint="kohort-site review")
        if self.policy.review != "required":
            return
        try:
            approved = len(self.reviews.approvals(digest))
        except PolicyError as error:
            raise refuse(25, str(error), hint=error.hint) from error
        if approved < self.policy.reviewers:
            found = f"batch {digest[:16]} is {state}: {approved} signed approvals"
            raise refuse(
                25, f"{found}, expected {self.policy.reviewers}", hint="kohort-site review"
            )
