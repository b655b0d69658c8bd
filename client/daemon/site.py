"""The site's daemon: one signed instruction in, one signed answer out.

In: `Sealed` instructions, through client/fleet/app.py.
Out: `Sealed` replies, or a KohortError of which only the code leaves.
Procedure (the numbers stand at the steps, here and in the files that a round passes):
   1 the operator signed the instruction
   2 the plan is approved, unaltered and within the site's policy
   3 kind, phase, model and round are the plan's
   4 the receipts in it are noted; the state is as new as all that it sent (client/state/head.py)
   5 a round that was answered gets its stored bytes, whatever is asked now: answers are idempotent
   6 the global weights fit the plan's model (rounds.py) and lie on the path that the plan implies,
     from its starting checkpoint on (path.py)
   7 the whole plan fits under the cap, and can learn, before its first step (spending.py)
   8 the ledger holds the reservation before a child starts; one reservation has at most one child
     (spending.py, jobs.py)
   9 a person approved the images, where the policy asks for it (images.py)
  10 the gate clears what leaves; it freezes the groups of images and keeps what leaves of them
     (training.py, images.py)
  11 the reply is signed and on disk before it is sent; replies and refusals leave at a fixed slot.
     What `admit` refuses by a header and the approved plans alone leaves at once
Guarantees after `kill -9` anywhere: a finished output is gated and sent. A child that was at work
is dead, what it had reserved stays spent, and a new reservation is taken.
Not covered: the wire (client/fleet), the numbers (client/child).
Logs hold phase, round and code alone. This process imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field

from client.daemon import images, training
from client.daemon.jobs import compute
from client.daemon.path import admit
from client.daemon.rounds import Output, Round, check_size, open_round
from client.daemon.spending import Spending
from client.egress.gate import Cleared
from client.egress.outbox import Outbox
from client.egress.review import open_reviews
from client.ingest.build import IngestReport, Phases, show_no_phase
from client.ingest.refresh import Intakes, Refreshed
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.head import rollback
from client.state.jobs import WEIGHTS, Progress
from client.state.ledger import Ledger
from client.state.membership import Membership
from client.state.operators import Operators, plans_of
from client.state.plan_check import check_plan
from client.state.plans import log_refusal
from client.state.records import Records
from client.state.spool import remove_spool, spool_of
from client.state.upgrade import upgrade
from common.errors import RefusedError
from common.privacy.boundary import OPERATOR_LOG, check_instruction, is_digest
from common.study.plan import Study
from common.study.round_names import name_of_key
from common.wire.messages import Header, Sealed, digest_of_sealed, open_header, unseal

log = logging.getLogger(__name__)


@dataclass
class Site:
    """The daemon's decisions, one instruction at a time (`answer`).

    `done` is set when the operator has closed the study; `stop` ends every wait.
    """

    state: State
    config: SiteConfig
    membership: Membership
    stop: threading.Event = field(default_factory=threading.Event)
    progress: Progress = lambda done, total: None
    phases: Phases = show_no_phase
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        backup = upgrade(self.state)
        if backup is not None:
            log.info("state folder of version 0.1: migrated; a copy lies in %s", backup.name)
        self.operators = Operators(self.state, self.membership)
        self.plans = plans_of(self.state, self.membership)
        self.outbox = Outbox(self.state.outbox)
        self.reviews = open_reviews(self.state, self.config)
        self.records = Records(self.state, self.config, self.plans)
        self.intakes = Intakes(self.state, self.config, self.phases)
        self._spending = Spending(self.records)

    def admit(self, text: bytes, signature: bytes, size_bytes: int) -> None:
        """Raise KohortError unless an instruction may be stored, judged by its header alone.

        `size_bytes`: the declared size of its payload. `answer` checks the same again, and more.
        """
        # (1) the operator signed the instruction
        header = open_header(text, signature, self.operators.signer(text, signature))
        # (2) the plan is approved and unaltered
        study = self.plans.open(header.study)
        # (3) kind, phase, model and round are the plan's, and the payload is of its size
        check_order(header, study)
        check_size(header, study, size_bytes, self.plans)

    def answer(self, sealed: Sealed) -> Sealed:
        """Return the reply to an instruction; raises KohortError, whose code alone may leave.

        (11) All of them leave at a fixed slot: new replies, stored ones, and refusals.
        """
        began = time.monotonic()
        try:
            return self._answer(sealed)
        finally:
            self._wait_for_slot(began)

    def _answer(self, sealed: Sealed) -> Sealed:
        """Return the reply as soon as it is there (steps 1 to 10)."""
        # (1) the operator signed the instruction
        max_bytes = self.config.limits.max_message_mib << 20
        signer = self.operators.signer(sealed.header, sealed.signature)
        header = unseal(sealed, signer, max_bytes=max_bytes)
        self.operators.note_used(signer)
        # (2) the plan is approved, unaltered and within the site's policy
        study = self.plans.open(header.study)
        with log_refusal(self.state, header.study):
            check_plan(study, self.config.policy, self.config.site)
        # (3) kind, phase, model and round are the plan's
        check_order(header, study)
        # (4) the receipts in it are noted; the state is as new as all that it sent
        self._note_receipts(header)
        self.records.heads.check()
        # (5) a round that was answered gets its stored bytes
        reply = self._stored(_reply_key(header))
        if reply is None and header.statement.get("done") is True:
            # a study that is over asks for nothing new
            self.done.set()
            raise RefusedError("instruction: the study has ended", code="E-STUDY-ENDED")
        if reply is None:
            log.info("%s: %s: at work", study.name, name_of_key(study, header.key))
            reply = self._compute_reply(header, study, sealed.payload)
        log.info("%s: %s: answered", study.name, name_of_key(study, header.key))
        if header.statement.get("done") is True:
            self.done.set()
        return reply

    def _compute_reply(self, header: Header, study: Study, payload: bytes) -> Sealed:
        """Carry one round through the daemon: Round, Output, Cleared, Sealed."""
        # (6) the global weights fit the plan's model
        round = open_round(header, study, payload, self.plans)
        # (6) they lie on the path that the plan implies
        admit(round, self.plans)
        self.cohort(study)
        output, cleared = self._compute_cleared(round)
        # (11) it is signed and on disk before it is sent
        reply = self._seal(header, cleared)
        _discard(output)
        return reply

    def _compute_cleared(self, round: Round) -> tuple[Output, tuple[Cleared, ...]]:
        """Compute a round and clear it; again where somebody in its images left meanwhile."""
        while True:
            # (7, 8) it is reserved, and computed by one child
            output = self._compute(round)
            # (9, 10) a person approved the images; the gate clears what leaves
            if round.header.kind == "train":
                return output, training.clear(output, self.records, self.reviews)
            cleared = images.clear(output, self.records, self.reviews, self.stop)
            if cleared is not None:
                return output, cleared
            self._spending.drop(output)

    def _compute(self, round: Round) -> Output:
        """Reserve the round and run a child; after a crash again, with a new reservation."""
        while True:
            reserved = self._spending.reserve(round)
            result = compute(reserved, self.records, self.stop, self.progress)
            if isinstance(result, Output):
                return result
            self._spending.note_failure(round, result)

    def _seal(self, header: Header, batch: tuple[Cleared, ...]) -> Sealed:
        """Sign and store every part, the first one last, and journal that it is answered.

        Returns the first part.
        """
        for cleared in reversed(batch):
            stored = self.outbox.store(cleared, self.state.signing_key())
        self._note_answered(header.key)
        return stored

    def _note_answered(self, key: str) -> None:
        """Journal the digests of the stored messages of a round; it may leave from now on."""
        self.state.journal.append(key, "answered", {"sealed": self.outbox.digests(key)})

    def _stored(self, key: str) -> Sealed | None:
        """The stored answer, byte for byte as it was signed, or None for a new question."""
        stored = self.outbox.get(key)
        if stored is None:
            return None
        place, _, part = key.rpartition("/")
        answered = self.state.journal.latest(f"{place}/0")
        # the process ended between the outbox and the journal
        if answered is None or answered.state != "answered":
            self._note_answered(f"{place}/0")
            return stored
        if digest_of_sealed(stored) != answered.data["sealed"][int(part)]:
            raise rollback("a message of the outbox is not the one that was signed")
        return stored

    def ledger(self) -> Ledger:
        """Return the site's verified ledger under the policy's cap."""
        return self.records.ledger()

    def cohort(self, study: Study) -> IngestReport | None:
        """Build the cohort of a plan unless it is there; returns the report of a new one.

        The report is for the site's own staff.
        """
        if not self.state.cohort(study.intake).is_dir():
            log.info("%s: ingest", study.name)
        return self.intakes.ensure(study.intake)

    def refresh(self, study: Study) -> Refreshed | None:
        """Build the cohort of a plan anew, and journal that; None where there is none yet."""
        refreshed = self.intakes.refresh(study.intake)
        if refreshed is not None:
            name = self.state.cohort(study.intake).name
            self.state.journal.append("cohort", "refreshed", {"folder": name})
        return refreshed

    def _note_receipts(self, header: Header) -> None:
        """Mark the messages whose payload digests the operator's signed receipts name.

        A receipt for a head or a message that is not here means an old state folder.
        """
        self.records.heads.receive(header.heads)
        sent = self._sent_messages(header.study)
        if not sent.keys() >= set(header.receipts):
            raise rollback("the operator has a receipt for a message that this folder never sent")
        for digest in header.receipts:
            self.outbox.acknowledge(sent[digest])

    def _sent_messages(self, study_hash: str) -> dict[str, str]:
        """The outbox keys of all cleared messages of a study, by payload digest."""
        sent: dict[str, str] = {}
        for entry in self.state.journal.entries(f"{study_hash}/"):
            if entry.state == "cleared":
                place = entry.key.rpartition("/")[0]
                for part, digest in enumerate(entry.data["digests"]):
                    sent[digest] = f"{place}/{part}"
        return sent

    def _wait_for_slot(self, began: float) -> None:
        """Sleep until a multiple of the send slot has passed since the question arrived.

        The time of sending then tells less about the work, and nothing about why it was refused.
        """
        slot = self.config.network.send_slot_s
        if slot > 0:
            self.stop.wait(slot - (time.monotonic() - began) % slot)


def check_order(header: Header, study: Study) -> None:
    """Check an instruction against the plan, and its statement: `done`, and the operator's head."""
    check_instruction(header, study)
    unknown = set(header.statement) - {"done", OPERATOR_LOG}
    named = OPERATOR_LOG in header.statement
    if named and not is_digest(header.statement[OPERATOR_LOG]):
        unknown.add(OPERATOR_LOG)
    if unknown or not isinstance(header.statement.get("done", False), bool):
        raise RefusedError("instruction: its statement has unknown keys", code="E-STATEMENT")


def _reply_key(header: Header) -> str:
    """The outbox key of the reply: that of the instruction, but round 0 for the images.

    The closing round of the images so gets the batch that was sent before.
    """
    if header.phase == "synthesize":
        return header.model_copy(update={"round": 0}).key
    return header.key


def _discard(output: Output) -> None:
    """Remove what an answered round needs no more: its folder, or the weights of the images."""
    remove_spool(spool_of(output.folder))
    if output.round.header.kind == "train":
        shutil.rmtree(output.folder, ignore_errors=True)
        return
    # what a disk that fails keeps is swept at the next start
    with contextlib.suppress(OSError):
        (output.folder / WEIGHTS).unlink(missing_ok=True)
