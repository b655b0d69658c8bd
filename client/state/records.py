"""What the hospital's own decisions rest on: state folder, configuration, approved plans, ledger.

Not covered: what a person decided on images (client/egress/review.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from client.state.canaries import CanaryFile, Tallies
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.head import Heads
from client.state.ledger import Ledger
from client.state.people import PeopleFile
from client.state.plans import Plans
from common.errors import PolicyError
from common.privacy.boundary import OPERATOR_LOG
from common.study.plan import Study
from common.wire.messages import Header, digest_of

FILTER_ORDER = 4.0
LOSS = "loss"  # the journal's key of a state that was lost


@dataclass(frozen=True)
class Records:
    """The site's records; every call of `ledger` reads the file again."""

    state: State
    config: SiteConfig
    plans: Plans

    def ledger(self) -> Ledger:
        """Return the site's verified ledger under the policy's cap."""
        policy = self.config.policy
        return Ledger.open(
            self.state.ledger,
            cap_epsilon=policy.max_epsilon,
            delta=policy.max_delta,
            cohort=self.state.cohort_name(),
            filter_order=FILTER_ORDER,
            lost=epsilon_lost(self.state),
        )

    def people(self) -> PeopleFile:
        """Return the file of who is one person, and who withdrew."""
        return PeopleFile(self.state.people)

    def canaries(self, study: Study, model: str) -> CanaryFile:
        """Return the canaries of one model of a plan."""
        return CanaryFile(self.state.canaries, study.hash(), model, study.privacy.canaries)

    @cached_property
    def heads(self) -> Heads:
        """The heads over everything that was spent or frozen, and the receipts for them."""
        return Heads(self.state)

    def note_cleared(
        self, study: Study, asked: Header, digests: Sequence[str], tallies: Tallies | None
    ) -> str:
        """Write down what is about to be signed, and return the commitment to the head over it.

        In this order: the round counts in the audit, the log and the journal name the payloads,
        the head is taken. A second call with the same digests changes nothing; other digests are
        refused (E-OUTBOX-SECOND).
        """
        cleared = self.cleared(asked.key)
        if cleared and list(digests) != cleared:
            raise PolicyError("this round was cleared with another payload", code="E-OUTBOX-SECOND")
        if tallies is not None:
            self.canaries(study, asked.model).count_round(asked.round, tallies.latest)
        if not cleared:
            self._log_signed(asked, digests)
            self.state.journal.append(asked.key, "cleared", {"digests": list(digests)})
        return self.heads.take(asked.key)

    def _log_signed(self, asked: Header, digests: Sequence[str]) -> None:
        """Note in the log what is about to be signed, and which head of the operator's log came."""
        operator_log = str(asked.statement.get(OPERATOR_LOG, ""))
        # one digest over all parts: their number depends on the images
        digest = digest_of("\n".join(digests).encode())
        self.state.log.note(
            "signed", once=True, round=asked.key, digest=digest, operator_log=operator_log
        )

    def cleared(self, key: str) -> list[str]:
        """Return the payload digests that were cleared for a round; empty before that."""
        for entry in self.state.journal.entries(key):
            if entry.key == key and entry.state == "cleared":
                return [str(digest) for digest in entry.data["digests"]]
        return []


def note_loss(state: State, epsilon: float) -> None:
    """Write down, in a new folder, that an earlier state is lost that may have spent `epsilon`."""
    state.log.note("state-lost", once=True, epsilon=epsilon)
    state.journal.append(LOSS, "marked", {"epsilon": epsilon})


def epsilon_lost(state: State) -> float:
    """Return the epsilon that an earlier, lost state may have spent; 0 where there was none."""
    marked = state.journal.latest(LOSS)
    return 0.0 if marked is None else float(marked.data["epsilon"])
