"""One study while it runs: its plan, record, sites, signing key and limits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.privacy import boundary
from common.study.families import FAMILIES
from common.study.plan import Study
from common.wire import tensors
from common.wire.messages import Header, Sealed, digest_of, seal
from server.operator.config import Limits
from server.operator.log import OperatorLog
from server.operator.sites import Registry, Site
from server.rounds.intake import Instruction
from server.rounds.record import StudyRecord

log = logging.getLogger("kohort.server")


@dataclass(frozen=True)
class StudyRun:
    """Everything that a round needs, whatever the grid."""

    study: Study
    record: StudyRecord
    registry: Registry
    key: Ed25519PrivateKey
    limits: Limits
    # sites of a version that refuses an instruction which names the log's head
    without_log: set[str] = field(default_factory=set)

    @property
    def log(self) -> OperatorLog:
        """The operator's log."""
        return self.registry.log

    def active_sites(self) -> dict[str, Site]:
        """Return the sites of the plan that may take part now, by name."""
        planned = {site.name for site in self.study.sites}
        active = {}
        for name, site in self.registry.sites().items():
            if name in planned and site.active:
                active[name] = site
        return active

    def sign_instruction(
        self, instruction: Instruction, payload: bytes, site: str, statement: Mapping[str, bool]
    ) -> Sealed:
        """Return the signed instruction for one site, with its receipts and the log's head.

        A last word, which says `done` and asks for nothing new, names no head.
        """
        stated = dict(statement) or self._log_head(site)
        header = Header.model_validate(
            {
                "kind": instruction.phase,
                "study": self.study.hash(),
                "phase": instruction.phase,
                "model": instruction.model,
                "round": instruction.round,
                "part": instruction.part,
                "parts": max(1, instruction.parts),
                "sender": "operator",
                "digest": digest_of(payload),
                "statement": stated,
                "receipts": self.record.receipts(site, self.registry.get(site).sign_keys),
                "heads": self.registry.heads(site),
            }
        )
        boundary.check_instruction(header, self.study)
        return seal(header, payload, self.key)

    def _log_head(self, site: str) -> dict[str, str]:
        """The head of the operator's log, signed here; the site's reply repeats it."""
        head = None if site in self.without_log else self.log.sign(self.key)
        return {} if head is None else {boundary.OPERATOR_LOG: head.digest}

    def synthesis_weights(self) -> bytes:
        """Return the payload of a synthesize instruction: the final generator, critic and flow."""
        found: tensors.Arrays = {}
        for model, plan in self.study.models.trained().items():
            if FAMILIES[model].synthesis != "never":
                found |= self.record.weights(model, plan.rounds)
        return tensors.dumps(found)

    def quarantine(self, site: str, key: str, code: str) -> None:
        """Put a site in quarantine for its reply to `key`; the study goes on."""
        self.record.note_refused(key, site, code)
        self.registry.quarantine(site, code)
        log.warning("%s: in quarantine, %s", site, code)
