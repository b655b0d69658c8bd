"""What a round costs, written down as spent before anything is computed.

In: a `Round`. Out: `Reserved`, or a refusal that spends nothing.
Guarantees: (7) the whole plan fits under the cap, and can learn, before its first step; (8) the
ledger holds a reservation before its one child starts; an old backup spends nothing.
Not covered: the ledger's own rules (client/state/ledger.py).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from client.daemon.jobs import Ending
from client.daemon.rounds import Output, Reserved, Round
from client.state.head import rollback
from client.state.jobs import is_finished
from client.state.ledger import Reservation
from client.state.machine import check_memory, read_room
from client.state.plans import log_refusal
from client.state.price import epsilon_after, refuse_over_cap, site_report
from client.state.records import Records
from common.codes import advise
from common.errors import EnvironmentFault, PolicyError
from common.privacy.events import image_event, plan_events, round_event
from common.privacy.mechanisms import PLAIN_DIMENSION, Mechanism, SubsampledGaussian
from common.privacy.plan_report import refuse_infeasible, refuse_over_budget
from common.storage.journal import Entry
from common.study.families import FAMILIES, Shapes
from common.study.fit import check_checkpoints
from common.study.plan import Study
from common.study.shapes import parameter_counts

TRY_AGAIN = (
    "Nothing more is tried until `kohort-site run` is restarted, for each try is charged as the "
    "first was. Where enough other sites answer, the study goes on without this one."
)
log = logging.getLogger(__name__)


@dataclass
class Spending:
    """The reservations of a site, and the failed children since this daemon started."""

    records: Records
    _crashes: dict[str, int] = field(default_factory=dict)
    _refusals: dict[str, str] = field(default_factory=dict)
    _within_budget: set[str] = field(default_factory=set)  # hashes of plans

    def reserve(self, round: Round) -> Reserved:
        """Return the round with a reservation that no child has used, or with a finished output.

        A reservation whose child started and left no output stays spent, and a new one is taken.
        """
        event = self._event(round)
        latest = self._latest_try(round.header.key)
        # the first try
        if latest is None:
            return self._reserve_anew(round, event)
        folder = self.records.state.jobs / str(latest.data["folder"])
        finished = latest.state == "started" and is_finished(folder)
        if not finished:
            self._check_never_cleared(round.header.key)
            self._check_given_up(round.header.key)
        # an output that was never sent, or a reservation that no child has used
        if finished or latest.state == "reserved":
            return Reserved(round, event, _reservation(latest), folder, finished)
        # a child started and left no output, or one that was dropped: its reservation stays spent
        return self._reserve_anew(round, event)

    def note_failure(self, round: Round, ending: Ending) -> None:
        """Count a child that left no output: it refused with a code, or crashed.

        What would fail again in the same way is not tried again, for each try spends.
        """
        key = round.header.key
        if ending.code:
            self._refusals[key] = ending.code
            return
        most = self.records.config.limits.retries + 1
        self._crashes[key] = self._crashes.get(key, 0) + 1 if ending.again else most
        log.warning("a child crashed; see child.log in its job folder")

    def _check_never_cleared(self, key: str) -> None:
        """Compute nothing again that was cleared: its bytes may have left."""
        if self.records.cleared(key):
            raise rollback(
                "a round was signed here, and neither its message nor its output is here"
            )

    def drop(self, output: Output) -> None:
        """Give an output up that may no longer leave: it stays spent, and is computed again."""
        record = {"folder": output.folder.name, "reservation": ""}
        self.records.state.journal.append(output.round.header.key, "dropped", record)

    def _check_given_up(self, key: str) -> None:
        """Spend nothing more on a round that a child refused, or crashed over too often."""
        if key in self._refusals:
            code = self._refusals[key]
            hint = f"{advise(code).fix} {TRY_AGAIN}"
            raise PolicyError("the child refused the work", hint=hint, code=code)
        hint = "read jobs/*/child.log, repair, restart kohort-site run"
        if self._crashes.get(key, 0) > self.records.config.limits.retries:
            raise EnvironmentFault(
                "the child crashed again; no more retries", hint=hint, code="E-WORK-CRASHED"
            )

    def _latest_try(self, key: str) -> Entry | None:
        """The newest entry of the journal that reserved, started or dropped a round."""
        latest = None
        for entry in self._entries(key):
            if entry.state in ("reserved", "started", "dropped"):
                latest = entry
        return latest

    def _entries(self, key: str) -> list[Entry]:
        """The journal's entries of exactly this key."""
        found = self.records.state.journal.entries(key)
        return [entry for entry in found if entry.key == key]

    def _reserve_anew(self, round: Round, event: Mechanism | None) -> Reserved:
        """Write the round down as spent, in the ledger and then in the journal."""
        self.records.heads.check()
        # (7) the whole plan fits under the cap, and can learn, before its first step
        with log_refusal(self.records.state, round.study.hash()):
            self._check_whole_plan(round.study)
            self._check_after_loss(round, event)
        # (8) the ledger holds the reservation before a child starts
        reservation = None
        plan = round.study.hash()
        weights = round.header.digest
        if event is not None and not event.covers_patient:
            self.records.ledger().declare(event, plan, weights=weights)
        elif event is not None:
            reservation = self.records.ledger().reserve(event, plan, weights=weights)
        # log and journal name it, and the journal the folder of its one child
        if event is not None:
            self.records.state.log.note("reserved", round=round.header.key, weights=weights)
        folder = self._new_folder(round.header.key)
        record = {"folder": folder.name, "reservation": ""}
        if reservation is not None:
            record["reservation"] = reservation.to_json()
        self.records.state.journal.append(round.header.key, "reserved", record)
        return Reserved(round, event, reservation, folder, finished=False)

    def _new_folder(self, key: str) -> Path:
        """The job folder of the next try of a round."""
        tries = [entry for entry in self._entries(key) if entry.state == "reserved"]
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.records.state.jobs / f"{digest[:16]}-{len(tries)}"

    def _check_whole_plan(self, study: Study) -> None:
        """Refuse a plan that breaks its own promise, cannot learn or does not fit under the cap.

        Raises PolicyError (E-PLAN-CHECKPOINT, E-PLAN-BUDGET, E-PLAN-INFEASIBLE, E-POLICY-CAP) or
        EnvironmentFault (E-PLAN-MEMORY). A plan's checkpoints, its memory and its own promise are
        checked by every daemon, the rest once a plan.
        """
        self._check_constants(study)
        report = site_report(self.records)
        if study.hash() in report.by_plan:
            return
        self._check_feasible(study)
        # everything that was spent before, and everything that this plan will spend
        after = epsilon_after(report, study.hash(), self._plan_events(study, earlier=False))
        refuse_over_cap(study, after, self.records.config.policy.max_epsilon)

    def _check_after_loss(self, round: Round, event: Mechanism | None) -> None:
        """After a loss, refuse images that rest on k alone: the groups that left are unknown."""
        if round.header.kind == "train" or not self.records.ledger().lost():
            return
        if event is None or not event.covers_patient:
            raise PolicyError(
                "images of this plan rest on k alone, and the groups that this hospital released "
                "before its state was lost are unknown",
                hint="take part in studies whose images claim epsilon per patient, or in training",
                code="E-AFTER-LOSS",
            )

    def _check_constants(self, study: Study) -> None:
        """Refuse a plan that this machine cannot compute, or that spends over its epsilon."""
        if study.hash() not in self._within_budget:
            check_checkpoints(study, self.records.plans.checkpoints(study))
            config = self.records.config
            check_memory(study, read_room(config.limits, config.compute))
            refuse_over_budget(study, self._plan_events(study))
            self._within_budget.add(study.hash())

    def _check_feasible(self, study: Study) -> None:
        """Refuse a plan that cannot learn, where every model has a starting checkpoint.

        Without one, `kohort-site approve` has built and checked the model.
        """
        if all(plan.start for plan in study.models.trained().values()):
            checkpoints = self.records.plans.checkpoints(study)
            refuse_infeasible(study, parameter_counts(study, checkpoints))

    def _plan_events(self, study: Study, *, earlier: bool = True) -> tuple[Mechanism, ...]:
        """Everything that the plan will spend at this site; `earlier`: with earlier versions."""
        dimensions = {}
        for model in study.models.trained():
            shapes = self.records.plans.start_shapes(study, model) or None
            dimensions[model] = _trained_numbers(study, model, shapes)
        return plan_events(study, dimensions, earlier=earlier)

    def _event(self, round: Round) -> Mechanism | None:
        """What one round spends or declares."""
        if round.header.kind == "train":
            return _training_event(round.study, round.header.model, round.expected)
        return image_event(round.study)


def _training_event(study: Study, model: str, shapes: Shapes) -> SubsampledGaussian:
    """What one training round spends."""
    dimension = _trained_numbers(study, model, shapes)
    return round_event(study, model, dimension + study.privacy.canaries)


def _trained_numbers(study: Study, model: str, shapes: Shapes | None) -> int:
    """How many numbers of a model get noise; `shapes` is None for a model not built yet."""
    if shapes is None:
        return PLAIN_DIMENSION
    trainable = study.models.trained()[model].trainable
    return FAMILIES[model].private_dimension(shapes, trainable)


def _reservation(entry: Entry) -> Reservation | None:
    """The ledger's reservation that a journal entry holds."""
    text = str(entry.data["reservation"])
    if not text:
        return None
    return Reservation.from_json(text)
