"""The site's daemon: one signed instruction in, one signed answer out, the same one for the same round for ever.

In: `Sealed` instructions (through client/fleet/app.py). Out: `Sealed` replies, or a KohortError whose code alone leaves. Must hold:
   1 the operator signed the instruction          2 the plan is approved, unaltered and within the site's policy
   3 kind, phase, model and round are the plan's  4 receipts in it are noted
   5 a round that was answered gets the stored bytes, whatever is asked now (an old backup is refused before it spends)
   6 the global weights fit the plan's model      7 the whole plan fits under the cap, and can learn, before its first step
   8 the ledger holds the reservation before a child starts, and one reservation has one child at most
   9 a person approved the images (policy), and their groups are frozen
  10 the gate clears what leaves                  11 it is signed and on disk before it is sent, at a fixed slot
Guaranteed after `kill -9` anywhere: a finished output is gated and sent; a child that was at work is dead, what it had reserved
stays spent and a new reservation is taken. Not covered: the wire (client/fleet/client.py) and the numbers (client/child/job.py).
Logs hold phase, round and code alone. This process imports no torch.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.daemon.jobs import run_child
from client.egress.evidence import Evidence
from client.egress.gate import Cleared, Gate
from client.egress.outbox import Outbox
from client.egress.review import SHEET, Reviews, batch_digest
from client.ingest.cohort import Cohort, IngestReport, ingest
from client.ingest.decode import Limits
from client.state.canaries import TALLY_CAP_BYTES, CanaryFile, Heard
from client.state.config import SiteConfig, check_plan
from client.state.folder import State
from client.state.group_store import Grouping, GroupStore
from client.state.jobs import TALLY, Job, Progress, Stopped, is_finished
from client.state.ledger import Ledger, Reservation
from client.state.membership import Membership
from client.state.plans import Plans
from common.errors import EnvironmentFault, PolicyError, RefusedError
from common.privacy.accounting import epsilon_rdp, spend
from common.privacy.boundary import PART_CAP_BYTES, check_instruction, check_total, check_weights
from common.privacy.canaries import Tally
from common.privacy.mechanisms import PLAIN_DIMENSION, Mechanism, image_event, round_event
from common.privacy.planning import refuse_hopeless
from common.storage.files import read_capped
from common.study.families import FAMILIES, Shapes
from common.study.plan import Study
from common.study.shapes import parameter_counts
from common.wire.messages import Header, Sealed, unseal
from common.wire.tensors import Arrays, dumps, loads, read, shapes

OUTPUT_CAP_BYTES = 1 << 32
HEADER_ROOM_BYTES = 1 << 16
REVIEW_POLL_S = 1.0
FILTER_ORDER = 4.0
log = logging.getLogger(__name__)


@dataclass
class Site:
    """The daemon's decisions, one instruction at a time (`answer`). `done` is set when the operator has closed the study."""

    state: State
    config: SiteConfig
    membership: Membership
    stop: threading.Event = field(default_factory=threading.Event)
    progress: Progress = lambda done, total: None
    done: threading.Event = field(default_factory=threading.Event)
    _crashes: dict[str, int] = field(default_factory=dict)
    _refusals: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plans = Plans(self.state, self.membership.operator)
        self.outbox = Outbox(self.state.root / "outbox")
        self.reviews = Reviews(self.state.root / "review")

    def answer(self, sealed: Sealed) -> Sealed:
        """Return the reply to an instruction; raises KohortError, of which only the code may leave."""
        began = time.monotonic()
        header = unseal(
            sealed, self.membership.operator, max_bytes=self.config.limits.max_message_mib << 20
        )  # 1
        study = self.plans.open(header.study)  # 2
        check_plan(study, self.config.policy, self.config.site)
        check_order(header, study)  # 3
        self._note_receipts(header)  # 4
        name = " ".join(
            part for part in (header.phase, header.model, f"round {header.round}") if part
        )
        reply = self.outbox.get(_reply_key(header))  # 5
        if reply is None:
            log.info("%s: %s: at work", study.name, name)
            reply = (
                self._train(header, study, sealed)
                if header.kind == "train"
                else self._images(header, study, sealed)
            )
            self._wait_for_slot(began)  # 11
        log.info("%s: %s: answered", study.name, name)
        if header.statement.get("done") is True:
            self.done.set()
        return reply

    # --- training

    def _train(self, header: Header, study: Study, sealed: Sealed) -> Sealed:
        """One round of one model: reserve, train, clear, store."""
        weights = loads(sealed.payload, max_bytes=len(sealed.payload))
        expected = self._expected(study, header.model, weights)
        check_weights(weights, expected)  # 6
        dimension = _trained_dimension(study, header.model, expected) + study.privacy.canaries
        event = round_event(study, header.model, dimension)
        folder, reservation = self._computed(header, study, sealed.payload, event)
        assert reservation is not None
        payload = read_capped(folder / "out.safetensors", OUTPUT_CAP_BYTES)
        with Groups(self.state.groups) as groups:
            gate, heard = self._gate(study, groups), self._heard(header, study, folder)
            cleared = gate.clear_update(header, payload, expected, reservation, event, heard)  # 10
        if heard:
            self._canaries(header, study).count_round(header.round, heard.latest)
        reply = self._store(header, (cleared,))  # 11
        shutil.rmtree(folder, ignore_errors=True)
        return reply

    def _canaries(self, header: Header, study: Study) -> CanaryFile:
        """The canaries of the model that is trained."""
        return CanaryFile(self.state.canaries, study.hash(), header.model, study.privacy.canaries)

    def _coins(self, header: Header, study: Study) -> bytes:
        """The canaries' coins for a child that trains; empty without canaries."""
        if header.kind != "train" or not study.privacy.canaries:
            return b""
        return dumps({"included": self._canaries(header, study).coins().astype(np.uint8)})

    def _heard(self, header: Header, study: Study, folder: Path) -> Heard | None:
        """What the canaries of a finished round heard, alone and with the rounds that were answered before."""
        if not study.privacy.canaries:
            return None
        latest = Tally.from_arrays(read(folder / TALLY, max_bytes=TALLY_CAP_BYTES))
        return self._canaries(header, study).with_round(header.round, latest)

    def _expected(self, study: Study, model: str, weights: Arrays) -> Shapes:
        """Names and shapes of a model's weights: the plan's starting checkpoint says; without one, the child's model will."""
        start = study.models.trained()[model].start
        if start is None:
            found: Shapes = {name: array.shape for name, array in weights.items()}
        else:
            path = self.plans.folder(study.hash()) / "checkpoints" / start.name
            found = {name: shape for name, (_, shape) in shapes(path).items()}
        return found if start is None else FAMILIES[model].select(found)

    # --- images

    def _images(self, header: Header, study: Study, sealed: Sealed) -> Sealed:
        """The one image batch of a plan: synthesize, review, freeze, clear, store all parts; returns the part asked for."""
        if header.part or header.round:
            raise PolicyError(
                "the first part of the images was never asked for", code="E-PART-UNKNOWN"
            )
        weights = loads(sealed.payload, max_bytes=len(sealed.payload))
        check_weights(weights, self._expected_for_images(study, weights))  # 6
        event = image_event(study)
        folder, reservation = self._computed(header, study, sealed.payload, event)
        evidence = Evidence.read(folder / "evidence.json")
        parts = split(read(folder / "out.safetensors", max_bytes=OUTPUT_CAP_BYTES), study)
        self._reviewed(parts, study, folder)  # 9
        with Groups(self.state.groups) as groups:
            groups.freeze(Grouping(evidence.groups, ()))
            gate = self._gate(study, groups)
            persons = persons_of(Cohort.open(self.state.cohort(study.intake)))
            batch = gate.clear_images(header, parts, evidence, persons, reservation, event)  # 10
        reply = self._store(header, tuple(batch))  # 11
        (folder / "in.safetensors").unlink(missing_ok=True)
        return reply

    def _expected_for_images(self, study: Study, weights: Arrays) -> Shapes:
        """Names and shapes of the weights that synthesis gets: generator and critic where trained, the flow where it is used."""
        expected: dict[str, tuple[int, ...]] = {}
        privatizes = study.synthesis is not None and study.synthesis.privatizes_averages
        for model in study.models.trained():
            family = FAMILIES[model]
            sent = family.select(weights)
            needed = family.synthesis == "always" or (family.synthesis != "never" and privatizes)
            if needed or (family.synthesis != "never" and sent):
                expected |= self._expected(study, model, sent)
        return expected

    def _reviewed(self, parts: list[bytes], study: Study, folder: Path) -> None:
        """Wait until a person has decided on exactly these bytes, where the policy asks for it; raises PolicyError."""
        digest = batch_digest(parts)
        if self.config.policy.review == "required":
            self.reviews.propose(digest, study.hash(), folder / SHEET)
            log.info("%s: images wait for a person: kohort-site review", study.name)
        while self.reviews.state(digest) == "waiting":
            if self.stop.wait(REVIEW_POLL_S):
                raise Stopped("stopped while images wait for review")
        if self.reviews.state(digest) == "rejected":
            raise PolicyError(
                "a person rejected the images; nothing was sent", code="E-REVIEW-REJECTED"
            )

    # --- one computation

    def _computed(
        self, header: Header, study: Study, weights: bytes, event: Mechanism | None
    ) -> tuple[Path, Reservation | None]:
        """The folder of a finished output and its reservation: an earlier one's, or that of a new child."""
        self.cohort(study)
        while True:
            folder, reservation, state = self._latest(header)
            if state == "started" and is_finished(folder):
                return folder, reservation
            self._check_given_up(header.key)
            if state != "reserved":  # 8: one that was started and has no output stays spent
                folder, reservation = self._reserve(header, study, event)
            job = self._job(header, study, reservation)
            job.write(folder, weights, self._frozen_groups(), self._coins(header, study))
            record = {
                "folder": folder.name,
                "reservation": reservation.to_json() if reservation else "",
            }
            self.state.journal.append(header.key, "started", record)
            ending = run_child(
                folder, self.config.limits.threads, self._group_key(), self.stop, self.progress
            )
            if ending.code:
                self._refusals[header.key] = ending.code
            elif not ending.finished:
                self._crashes[header.key] = self._crashes.get(header.key, 0) + 1
                log.warning("a child crashed; see child.log in its job folder")

    def _store(self, header: Header, batch: tuple[Cleared, ...]) -> Sealed:
        """Note what is about to be signed, sign and store every part, the first one last; returns the first."""
        record = {
            "digests": [cleared.header.digest for cleared in batch],
            "head": self.ledger().head,
        }
        self.state.journal.append(header.key, "cleared", record)
        stored = [
            self.outbox.store(cleared, self.state.signing_key()) for cleared in reversed(batch)
        ]
        self.state.journal.append(header.key, "answered")
        return stored[-1]

    def _latest(self, header: Header) -> tuple[Path, Reservation | None, str]:
        """Folder, reservation and state of the newest try of a round."""
        tries = [
            entry
            for entry in self.state.journal.entries(header.key)
            if entry.key == header.key and entry.state in ("reserved", "started")
        ]
        if not tries:
            return self.state.root / "jobs", None, "none"
        latest = tries[-1]
        text = str(latest.data["reservation"])
        reservation = Reservation.from_json(text) if text else None
        return self.state.root / "jobs" / str(latest.data["folder"]), reservation, latest.state

    def _reserve(
        self, header: Header, study: Study, event: Mechanism | None
    ) -> tuple[Path, Reservation | None]:
        """Write the round down as spent, in the ledger and then in the journal, before anything is computed."""
        self._check_rollback()
        self._check_whole_plan(study)  # 7
        reservation = None
        if event is not None and not event.covers_patient:
            self.ledger().declare(event, study.hash())
        elif event is not None:
            reservation = self.ledger().reserve(event, study.hash())
        tries = sum(
            (e.key, e.state) == (header.key, "reserved")
            for e in self.state.journal.entries(header.key)
        )
        folder = (
            self.state.root
            / "jobs"
            / f"{hashlib.sha256(header.key.encode()).hexdigest()[:16]}-{tries}"
        )
        record = {
            "folder": folder.name,
            "reservation": reservation.to_json() if reservation else "",
        }
        self.state.journal.append(header.key, "reserved", record)
        return folder, reservation

    def _check_rollback(self) -> None:
        """Refuse to spend from a ledger that is older than what was last signed."""
        cleared = [entry for entry in self.state.journal.entries() if entry.state == "cleared"]
        if cleared:
            self.ledger().refuse_if_behind(str(cleared[-1].data["head"]))

    def _check_whole_plan(self, study: Study) -> None:
        """Refuse a plan that cannot be finished under the cap, or not learn, before its first step.

        Raises PolicyError (E-POLICY-CAP, E-PLAN-INFEASIBLE).
        """
        ledger, policy = self.ledger(), self.config.policy
        plans = {row.data["plan"] for row in ledger.rows() if row.kind == "reserve"}
        if study.hash() in plans:
            return
        if all(
            plan.start for plan in study.models.trained().values()
        ):  # without one, `approve` has built and checked the model
            refuse_hopeless(
                study, parameter_counts(study, self.plans.folder(study.hash()) / "checkpoints")
            )
        history = (
            (*ledger.report(prv=False).mechanisms, *self._plan_events(study))
            if plans
            else self._plan_events(study)
        )
        epsilon = spend(history, policy.max_delta).pld
        if plans:
            epsilon = max(epsilon, epsilon_rdp(history, policy.max_delta, order=FILTER_ORDER))
        if not epsilon <= policy.max_epsilon:
            raise PolicyError(
                f"plan {study.name}: all its rounds would bring epsilon per patient to {epsilon:.3f}, "
                f"policy.max_epsilon is {policy.max_epsilon:g}; nothing was spent",
                hint="ask the operator for a plan with fewer steps or more noise",
                code="E-POLICY-CAP",
            )

    def _plan_events(self, study: Study) -> tuple[Mechanism, ...]:
        """Everything that the plan will spend at this site."""
        events: list[Mechanism] = []
        for model, plan in study.models.trained().items():
            expected = self._expected(study, model, {})
            dimension = _trained_dimension(study, model, expected) if expected else PLAIN_DIMENSION
            events += [round_event(study, model, dimension + study.privacy.canaries)] * plan.rounds
        event = image_event(study)
        if event is not None and event.covers_patient:
            events.append(event)
        return tuple(events)

    def _job(self, header: Header, study: Study, reservation: Reservation | None) -> Job:
        """The job of one round."""
        return Job(
            kind="train" if header.kind == "train" else "synthesize",
            model=header.model,
            plan=str(self.plans.folder(study.hash()).resolve()),
            cohort=str(self.state.cohort(study.intake).resolve()),
            reservation=reservation.to_json() if reservation else "",
            threads=self.config.limits.threads,
            memory_gib=self.config.limits.child_memory_gib,
        )

    def _frozen_groups(self) -> bytes:
        """The frozen groups, for the child to form again exactly as they are."""
        with Groups(self.state.groups) as store:
            return Evidence(store.groups(), (), ()).to_json()

    def _group_key(self) -> bytes:
        """The secret that orders patients in groupings; from it nobody can compute the pseudonym key."""
        return hmac.digest(self.state.pseudonym_bytes(), b"kohort-group-key", "sha256")

    def _check_given_up(self, key: str) -> None:
        """Spend nothing on what a child refused, or crashed over too often, since this daemon started."""
        if key in self._refusals:
            hint = "read jobs/*/child.log, repair, restart kohort-site run"
            raise PolicyError("the child refused the work", hint=hint, code=self._refusals[key])
        if self._crashes.get(key, 0) > self.config.limits.retries:
            raise EnvironmentFault(
                "the child crashed again; no more retries",
                hint="read jobs/*/child.log, repair, restart kohort-site run",
                code="E-WORK-CRASHED",
            )

    # --- shared by both

    def ledger(self) -> Ledger:
        """The site's ledger under the policy's cap."""
        policy = self.config.policy
        return Ledger.open(
            self.state.ledger, cap_epsilon=policy.max_epsilon, delta=policy.max_delta, cohort=self.state.cohort_name(),
            filter_order=FILTER_ORDER,
        )  # fmt: skip

    def cohort(self, study: Study) -> IngestReport | None:
        """Build the cohort of a plan unless it is there; returns the report of a new one, for the site's eyes."""
        folder = self.state.cohort(study.intake)
        if folder.is_dir():
            return None
        data, limits = self.config.data, self.config.limits
        log.info("%s: ingest", study.name)
        return ingest(
            Path(data.folder),
            study.intake,
            self.state.pseudonym_bytes(),
            folder,
            labels_csv=Path(data.labels_csv) if data.labels_csv else None,
            limits=Limits(max_file_bytes=limits.max_file_mib << 20),
            progress=self.progress,
        )

    def _gate(self, study: Study, groups: GroupStore) -> Gate:
        """The gate for one plan."""
        return Gate(
            study,
            self.config.policy,
            self.config.site,
            self.ledger(),
            self.plans.approved,
            groups,
            self.reviews,
        )

    def _note_receipts(self, header: Header) -> None:
        """Mark what the operator's signed receipts name, by payload digest; one for what is not here is a rollback."""
        sent: dict[str, str] = {}
        for entry in self.state.journal.entries(f"{header.study}/"):
            if entry.state == "cleared":
                place = entry.key.rpartition("/")[0]
                sent |= {
                    digest: f"{place}/{part}" for part, digest in enumerate(entry.data["digests"])
                }
        if not sent.keys() >= set(header.receipts):
            raise _rollback(
                "the operator has receipts for messages that this state folder never sent"
            )
        for digest in header.receipts:
            self.outbox.acknowledge(sent[digest])

    def _wait_for_slot(self, began: float) -> None:
        """Sleep until a multiple of the send slot has passed since the question, so that the time of leaving tells less."""
        slot = self.config.network.send_slot_s
        if slot > 0:
            self.stop.wait(slot - (time.monotonic() - began) % slot)


class Groups(GroupStore):
    """A group store that closes at the end of a block."""

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_order(header: Header, study: Study) -> None:
    """Check an instruction against the plan, and that its statement says at most that the study is done."""
    check_instruction(header, study)
    unknown = set(header.statement) - {"done"}
    if unknown or not isinstance(header.statement.get("done", False), bool):
        raise RefusedError(
            "instruction: its statement has keys that are not known", code="E-STATEMENT"
        )


def _rollback(what: str) -> PolicyError:
    """The refusal of a state folder that is older than what left it."""
    hint = "put the newest copy of the state folder back; nothing is spent until then"
    return PolicyError(what, hint=hint, code="E-ROLLBACK")


def _reply_key(header: Header) -> str:
    """The outbox key of the reply: the instruction's own place, and round 0 for the closing round of the images."""
    place = header.model_copy(update={"round": 0}) if header.phase == "synthesize" else header
    return place.key


def _trained_dimension(study: Study, model: str, expected: Shapes) -> int:
    """How many numbers a private step of this model moves: trained tensors, without the post-processed generator."""
    plan = study.models.trained()[model]
    return FAMILIES[model].private_dimension(expected, plan.trainable)


def persons_of(cohort: Cohort) -> dict[str, int]:
    """Return the person behind every pseudonym of a cohort, aliases included."""
    return {alias: person for person, names in enumerate(cohort.aliases) for alias in names}


def split(images: Arrays, study: Study) -> list[bytes]:
    """Return the payloads of a batch, each of at most 32 MiB, in order."""
    count = len(images["images"])
    check_total(count, study)
    each = images["images"][0].nbytes + images["labels"].itemsize + images["privatized"].itemsize
    size = max(1, (PART_CAP_BYTES - HEADER_ROOM_BYTES) // each)
    return [
        dumps({name: array[i : i + size] for name, array in images.items()})
        for i in range(0, count, size)
    ]
