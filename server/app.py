"""The round loop of a study, as a thin Flower ServerApp: sign, ask, check, fold, remember.

In: the state folder and the study (environment KOHORT_SERVER_STATE and KOHORT_STUDY_HASH), a Flower grid. Out: final weights and
accepted image batches in the study's folder. A round, numbered as in the code:
  1. the weights of the last closed round; accepted replies of this one that are on disk already are checked again
  2. every active site of the plan gets the same payload under its own signed header with its receipts
  3. a site is asked again when a message was lost, when it answers with a code, when it stays silent for `reask_s`
  4. a reply passes the intake and is on disk, or its site is in quarantine and the study goes on
  5. the round closes when all awaited sites have answered, or at the deadline, and never below the quorum
  6. fold in the order of sites, write the weights, journal the round as closed, drop the updates
Guaranteed: `kill -9` anywhere loses no accepted reply; a closed round stays as it is. Logs and journal hold site names and
codes alone. Not covered: starting and restarting this app (server/flower/coordinator.py). This process imports no torch.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.errors import ConfigurationError, EnvironmentFault, KohortError, RefusedError
from common.privacy import boundary
from common.process import end_when_orphaned
from common.storage.files import file_digest
from common.storage.lock import FolderLock
from common.study.bundle import open_bundle
from common.study.families import FAMILIES
from common.study.plan import Study
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, digest_of, seal
from server.operator.config import Limits, ServerState, load_config
from server.operator.sites import Registry, Site
from server.rounds import aggregate, intake
from server.rounds.intake import Accepted, Asked
from server.rounds.record import StudyRecord, read_sealed, store_sealed

STATE_VARIABLE, STUDY_VARIABLE = "KOHORT_SERVER_STATE", "KOHORT_STUDY_HASH"
MESSAGE_TYPES = {"train": "train", "synthesize": "query.synthesize"}
LOST = (3, 4, 5)  # Flower: instruction lost, reply lost, node offline
TTL_MARGIN_S = 600.0
REGISTRY_S = 1.0
QUICK_S, SLOW_POLL_S = 60.0, 1.0  # a minute of quick polls, then one a second
SLOT_WAIT_S = 60.0
LOCK_WAIT_S = 120.0
log = logging.getLogger("kohort.server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the environment names until it is complete."""
    end_when_orphaned()  # after `kill -9` of the server an orphan would keep the study's lock
    with opened(dict(os.environ)) as study_run:
        study_run.run(grid)


@contextmanager
def opened(environment: Mapping[str, str]) -> Iterator[StudyRun]:
    """Yield the study run that the environment names, alone in its folder."""
    missing = [name for name in (STATE_VARIABLE, STUDY_VARIABLE) if not environment.get(name)]
    if missing:
        raise ConfigurationError(
            f"environment: {missing} not set", hint="this app is started by `kohort-server run`"
        )
    state, study_hash = ServerState(Path(environment[STATE_VARIABLE])), environment[STUDY_VARIABLE]
    key = signing.load_private(state.operator_key)
    root = state.study(study_hash)
    study = open_bundle(root / "bundle", key.public_key())
    if study.hash() != study_hash:
        raise RefusedError(f"{root / 'bundle'}: holds another plan than its folder's name says")
    lock = _patient_lock(root / "lock")
    record, registry = StudyRecord(root, study), Registry(state.sites)
    try:
        yield StudyRun(study, record, registry, key, load_config(state.config).limits)
    finally:
        record.close()
        registry.close()
        lock.release()


def _patient_lock(path: Path) -> FolderLock:
    """The study's lock; an older app that is just ending gets some time."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return FolderLock(path, "this study")
        except EnvironmentFault:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@dataclass(frozen=True)
class StudyRun:
    """Everything that the loop needs, whatever the grid."""

    study: Study
    record: StudyRecord
    registry: Registry
    key: Ed25519PrivateKey
    limits: Limits

    def run(self, grid: Grid) -> None:
        """Train every model in the plan's order, collect the images, say goodbye; continue where the journal ends."""
        for model, plan in self.study.models.trained().items():
            for round_ in range(plan.rounds):
                if self.record.closed("train", model, round_) is None:
                    self._train_round(grid, model, round_)
        if self.study.synthesis and self.record.closed("synthesize", "", 0) is None:
            self._image_round(grid)
        if not self.record.complete():
            self._goodbye(grid)
            self.record.journal.append(self.study.hash(), "complete")
        log.info("study %s: complete", self.study.name)

    # --- phases

    def _train_round(self, grid: Grid, model: str, round_: int) -> None:
        """One round of one model."""
        weights = self.record.weights(model, round_)  # 1
        shapes = {name: array.shape for name, array in weights.items()}
        asked = Asked(self.study, "train", model, round_, shapes=shapes)
        gathering = Gathering(self, grid, asked, tensors.dumps(weights))
        gathering.gather()  # 1-5
        shares = {site: self.study.weight_of(site) for site in gathering.complete}
        new = aggregate.average(weights, shares, self.study.quorum, gathering.read)  # 6
        path = self.record.write_weights(model, round_ + 1, new)
        self.record.close_round(
            "train", model, round_, gathering.outcome() | {"weights": file_digest(path)}
        )
        log.info("%s round %d: closed with %s", model, round_, ", ".join(sorted(shares)))

    def _image_round(self, grid: Grid) -> None:
        """Ask every site for its synthetic images."""
        asked = Asked(self.study, "synthesize", "", 0)
        gathering = Gathering(self, grid, asked, self._synthesis_weights())
        gathering.gather()
        self.record.close_round("synthesize", "", 0, gathering.outcome())
        log.info("images: closed with %s", ", ".join(sorted(gathering.complete)))

    def _goodbye(self, grid: Grid) -> None:
        """Tell the sites of the last round that the study is done; wait a bounded time for their last word."""
        if self.study.synthesis:
            last = ("synthesize", "", 0)
            asked = Asked(self.study, "synthesize", "", boundary.LAST_SYNTHESIS_ROUND)
            payload = self._synthesis_weights()
        else:
            model, plan = list(self.study.models.trained().items())[-1]
            last = ("train", model, plan.rounds - 1)
            asked = Asked(self.study, "train", model, plan.rounds - 1)
            payload = tensors.dumps(self.record.weights(model, plan.rounds - 1))
        entry = self.record.closed(*last)
        assert entry is not None
        sites = {
            name: site for name, site in self.active().items() if name in entry.data["accepted"]
        }
        Farewell(self, Exchange(self, grid, payload), asked, f"{self.record.place(*last)}/0").say(
            sites
        )

    def _synthesis_weights(self) -> bytes:
        """The payload of a synthesize instruction: the final generator, critic and flow."""
        found: tensors.Arrays = {}
        for model, plan in self.study.models.trained().items():
            if FAMILIES[model].synthesis != "never":
                found |= self.record.weights(model, plan.rounds)
        return tensors.dumps(found)

    # --- shared

    def active(self) -> dict[str, Site]:
        """The sites of the plan that may take part now."""
        planned = {site.name for site in self.study.sites}
        return {
            name: site
            for name, site in self.registry.sites().items()
            if name in planned and site.active
        }

    def instruction(
        self, asked: Asked, payload: bytes, site: str, statement: Mapping[str, bool]
    ) -> Sealed:
        """The signed instruction for one site."""
        header = Header.model_validate(
            {
                "kind": asked.phase,
                "study": self.study.hash(),
                "phase": asked.phase,
                "model": asked.model,
                "round": asked.round,
                "part": asked.part,
                "parts": max(1, asked.parts),
                "sender": "operator",
                "digest": digest_of(payload),
                "statement": dict(statement),
                "receipts": self.record.receipts(site),
            }
        )
        boundary.check_instruction(header, self.study)
        return seal(header, payload, self.key)

    def quarantine(self, site: str, key: str, code: str) -> None:
        """Put a site in quarantine for a reply to `key`, and go on."""
        self.record.note_refused(key, site, code)
        self.registry.quarantine(site, code)
        log.warning("%s: in quarantine, %s", site, code)


# --- the wire: one thread an awaited reply ------------------------------------------------------------------------------


class Reply(NamedTuple):
    """What came back from one site: a record, or a code (`lost`: Flower's own, nothing to do with the site)."""

    site: str
    part: int
    record: RecordDict | None = None
    code: str = ""
    lost: bool = False
    fault: BaseException | None = None


@dataclass
class Line:
    """Asks one site one thing until told to stop, and hands over everything that comes back.

    One thread each, because Flower blocks inside a pull while a sender's upload is stalled.
    """

    grid: Grid
    site: Site
    part: int
    sealed: Sealed
    ttl_s: float
    message_type: str
    limits: Limits
    replies: queue.Queue[Reply]
    slots: threading.BoundedSemaphore
    stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Line:
        """Begin to ask."""
        name = f"line-{self.site.name}-{self.part}"
        threading.Thread(target=self._run, name=name, daemon=True).start()
        return self

    def _run(self) -> None:
        try:
            self._ask()
        except (
            Exception
        ) as error:  # Flower's own retries are exhausted, or a bug: the study's process must end
            self._put(Reply(self.site.name, self.part, fault=error))

    def _ask(self) -> None:
        """Push, poll, push again."""
        began, pause = time.monotonic(), self.limits.retry_first_s
        open_ids: set[str] = set()
        next_ask, answered = began, False
        while not self.stop.is_set():
            if not answered and time.monotonic() >= next_ask:
                pushed = self._push()
                open_ids |= pushed
                next_ask = time.monotonic() + (
                    self.limits.reask_s if pushed else self.limits.retry_first_s
                )
            for message in self._pull(open_ids):
                open_ids.discard(message.metadata.reply_to_message_id)
                reply = self._reply(message)
                answered = answered or reply.record is not None
                if reply.record is None:
                    next_ask = min(
                        next_ask,
                        time.monotonic() + (self.limits.retry_first_s if reply.lost else pause),
                    )
                    pause = pause if reply.lost else min(2 * pause, self.limits.retry_cap_s)
                self._put(reply)
            if answered and not open_ids:
                return
            quick = time.monotonic() - began < QUICK_S
            self.stop.wait(self.limits.poll_s if quick else max(SLOW_POLL_S, self.limits.poll_s))

    def _push(self) -> set[str]:
        """Send the instruction once; empty where the site is offline or Flower does not take it."""
        node_id = self.site.node_id
        if node_id is None or node_id not in set(self.grid.get_node_ids()):
            return set()
        message = Message(record_of(self.sealed), node_id, self.message_type, ttl=self.ttl_s)
        with self._slot():
            return {message_id for message_id in self.grid.push_messages([message]) if message_id}

    def _pull(self, open_ids: set[str]) -> list[Message]:
        """What has come back."""
        if not open_ids:
            return []
        with self._slot():
            return list(self.grid.pull_messages(sorted(open_ids)))

    def _reply(self, message: Message) -> Reply:
        """A message as a reply."""
        name = self.site.name
        if message.has_error():
            code = message.error.code
            return Reply(
                name, self.part, code=_public(message.error.reason or "", code), lost=code in LOST
            )
        if message.metadata.src_node_id != self.site.node_id:
            return Reply(name, self.part, code="E-INTAKE-NODE")
        return Reply(name, self.part, record=message.content)

    def _put(self, reply: Reply) -> None:
        """Hand over, waiting while the loop is busy: that bounds what is in memory."""
        while not self.stop.is_set():
            try:
                self.replies.put(reply, timeout=0.5)
                return
            except queue.Full:
                continue

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """One of a few places in memory; whoever waited a minute goes on without, so that stalled senders block nobody."""
        held = self.slots.acquire(timeout=SLOT_WAIT_S)
        try:
            yield
        finally:
            if held:
                self.slots.release()


def _public(reason: str, code: int) -> str:
    """A site's code if it has the shape of one; anything else is never repeated."""
    shaped = (
        reason.startswith("E-")
        and len(reason) <= 64
        and reason.replace("-", "").isalnum()
        and reason.isupper()
    )
    return reason if shaped else f"E-FLOWER-{int(code)}"


def record_of(sealed: Sealed) -> RecordDict:
    """Return the Flower record of one sealed message."""
    head = ConfigRecord({"header": sealed.header, "signature": sealed.signature})
    return RecordDict(
        {
            "sealed": head,
            "payload": ArrayRecord({"payload": Array(np.frombuffer(sealed.payload, np.uint8))}),
        }
    )


def sealed_of(record: RecordDict) -> Sealed:
    """Return the sealed message in a Flower record; raises RefusedError (E-RECORD) for any other content."""
    head, arrays = record.get("sealed"), record.get("payload")
    if len(record) == 2 and isinstance(head, ConfigRecord) and isinstance(arrays, ArrayRecord):
        header, signature, payload = (
            head.get("header"),
            head.get("signature"),
            arrays.get("payload"),
        )
        plain = (
            len(head) == 2
            and len(arrays) == 1
            and isinstance(payload, Array)
            and payload.dtype == "uint8"
        )
        if (
            plain
            and isinstance(header, bytes)
            and isinstance(signature, bytes)
            and isinstance(payload, Array)
        ):
            return Sealed(header, _bytes_of(payload), signature)
    raise RefusedError(
        "record: expected one sealed message: header, signature, payload", code="E-RECORD"
    )


def _bytes_of(payload: Array) -> bytes:
    """The numbers of an array from outside."""
    try:
        return payload.numpy().tobytes()
    except Exception as error:
        raise RefusedError("record: the payload is not an array", code="E-RECORD") from error


# --- one open round -----------------------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """The open lines of one instruction."""

    run: StudyRun
    grid: Grid
    payload: bytes
    lines: dict[tuple[str, int], Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replies: queue.Queue[Reply] = queue.Queue(maxsize=1)
        self.slots = threading.BoundedSemaphore(self.run.limits.replies_in_memory)

    def ask(self, site: Site, asked: Asked, statement: Mapping[str, bool] | None = None) -> None:
        """Open a line, unless this was asked already."""
        if (site.name, asked.part) in self.lines:
            return
        sealed = self.run.instruction(asked, self.payload, site.name, statement or {})
        ttl_s = self.run.study.round_deadline_s + TTL_MARGIN_S
        kind = MESSAGE_TYPES[asked.phase]
        line = Line(
            self.grid,
            site,
            asked.part,
            sealed,
            ttl_s,
            kind,
            self.run.limits,
            self.replies,
            self.slots,
        ).start()
        self.lines[site.name, asked.part] = line

    def next(self) -> Reply | None:
        """The next reply within a poll, or None; raises what a line died of."""
        try:
            reply = self.replies.get(timeout=self.run.limits.poll_s)
        except queue.Empty:
            return None
        if reply.fault is not None:
            raise reply.fault
        return reply

    def drop(self, site: str) -> None:
        """Stop asking a site."""
        for (name, part), line in list(self.lines.items()):
            if name == site:
                line.stop.set()
                del self.lines[name, part]

    def close(self) -> None:
        """Stop all lines; one that is stuck inside Flower ends with the process."""
        for line in self.lines.values():
            line.stop.set()


@dataclass
class Gathering:
    """Steps 1 to 5 of one round."""

    run: StudyRun
    grid: Grid
    asked: Asked
    payload: bytes

    def __post_init__(self) -> None:
        self.parts: dict[str, dict[int, Header]] = {}
        self.images: dict[str, int] = {}
        self.exchange = Exchange(self.run, self.grid, self.payload)
        self._said = ""

    @property
    def complete(self) -> frozenset[str]:
        """The sites whose every part is accepted."""
        return frozenset(site for site, parts in self.parts.items() if len(parts) == parts[0].parts)

    def gather(self) -> None:
        """Return once the round may close (step 5)."""
        self._recall()  # 1
        deadline, refresh = time.monotonic() + self.run.study.round_deadline_s, 0.0
        awaited: frozenset[str] = frozenset()
        try:
            while True:
                if time.monotonic() >= refresh:
                    awaited = self._refresh()  # 2
                    refresh = time.monotonic() + REGISTRY_S
                if self._may_close(awaited, time.monotonic() >= deadline):
                    return
                self._say(awaited)
                reply = self.exchange.next()  # 3
                if reply is not None:
                    self._take(reply)  # 4
                    refresh = 0.0
        finally:
            self.exchange.close()

    def read(self, site: str) -> Accepted:
        """The accepted update of a site, from disk, through the intake once more."""
        return self._checked(site, 0)

    def outcome(self) -> dict[str, object]:
        """The round record: accepted, refused and missing sites by name."""
        refused = self.run.record.refused(self.asked.phase, self.asked.model, self.asked.round)
        accepted = sorted(self.complete)
        rest = {site.name for site in self.run.study.sites} - set(accepted) - set(refused)
        gone = {name: refused[name] for name in sorted(refused) if name not in self.complete}
        return {"accepted": accepted, "refused": gone, "missing": sorted(rest)}

    # --- inside

    def _recall(self) -> None:
        """Check again what an earlier process accepted in this round; what does not pass is asked anew."""
        active = self.run.active()
        for site in sorted(active):
            part, parts = 0, 1
            while part < parts and self._file(site, part).exists():
                try:
                    accepted = self._checked(site, part)
                except KohortError:
                    self._file(site, part).unlink()
                    break
                self._remember(site, part, accepted, active[site].sign_key)
                part, parts = part + 1, accepted.header.parts

    def _refresh(self) -> frozenset[str]:
        """Open lines to sites that became active, close those of sites that are not; return the awaited sites."""
        sites, active = self.run.registry.sites(), self.run.active()
        for name in {name for name, _ in self.exchange.lines} - set(active):
            self.exchange.drop(name)
        for name, site in active.items():
            if name not in self.complete:
                self.exchange.ask(site, self._asked(name, len(self.parts.get(name, {}))))
        out = {name for name, site in sites.items() if site.state in ("quarantined", "revoked")}
        planned = {site.name for site in self.run.study.sites} - out
        return frozenset(planned if self._first_round() else planned & set(sites))

    def _first_round(self) -> bool:
        """Whether nothing of the study is closed yet: only then a hospital that is not even enrolled is waited for."""
        place = self.run.study.hash()
        return not any(entry.state == "closed" for entry in self.run.record.journal.entries(place))

    def _may_close(self, awaited: frozenset[str], late: bool) -> bool:
        """Step 5."""
        if len(self.complete) < self.run.study.quorum:
            return False
        return late or not awaited - self.complete

    def _say(self, awaited: frozenset[str]) -> None:
        """Journal what the round waits for, when it changes: names and codes alone."""
        missing = sorted(awaited - self.complete)
        text = f"waiting for {', '.join(missing)}" if missing else ""
        if not missing:
            text = f"QUORUM_MISSING: {len(self.complete)} of {self.run.study.quorum}"
        if text != self._said:
            self._said = text
            self.run.record.journal.append(
                self.run.study.hash() + "/state", "waiting", {"text": text}
            )
            log.info(
                "%s %s round %d: %s", self.asked.phase, self.asked.model, self.asked.round, text
            )

    def _take(self, reply: Reply) -> None:
        """Step 4 for one reply."""
        if reply.record is None:
            self._note_code(reply)
            return
        site = self.run.active().get(reply.site)
        if site is None:
            return
        key = self._key(reply.part)
        try:
            sealed = sealed_of(reply.record)
            known = self.parts.get(site.name, {}).get(reply.part)
            if known is not None:
                check_same(sealed, site, known.digest)
                return
            accepted = intake.accept(
                sealed, site.name, site.sign_key, self._asked(site.name, reply.part)
            )
        except RefusedError as error:
            self._quarantine(site.name, key, error.code)
            return
        store_sealed(self._file(site.name, reply.part), sealed)
        self._remember(site.name, reply.part, accepted, site.sign_key)
        log.info("%s: accepted", site.name)

    def _note_code(self, reply: Reply) -> None:
        """Journal a code that a site answered with, when it changes."""
        if (
            not reply.lost
            and self.run.record.journal.latest(f"{self._key(reply.part)}/{reply.site}/code") is None
        ):
            data = {"site": reply.site, "code": reply.code}
            self.run.record.journal.append(
                f"{self._key(reply.part)}/{reply.site}/code", "code", data
            )
            log.warning("%s: answers %s; asked again", reply.site, reply.code)

    def _quarantine(self, site: str, key: str, code: str) -> None:
        """Drop everything of a site in this round."""
        self.run.quarantine(site, key, code)
        self.exchange.drop(site)
        for part in self.parts.pop(site, {}):
            self._file(site, part).unlink(missing_ok=True)
        self.images.pop(site, None)

    def _remember(self, site: str, part: int, accepted: Accepted, sign_key: str) -> None:
        """Count an accepted reply whose bytes are on disk."""
        digest = accepted.header.digest
        if self.run.record.accepted_digest(self._key(part), site) != digest:
            self.run.record.note_accepted(self._key(part), site, digest, sign_key)
        self.parts.setdefault(site, {})[part] = accepted.header
        self.images[site] = self.images.get(site, 0) + len(accepted.arrays.get("images", ()))

    def _checked(self, site: str, part: int) -> Accepted:
        """An accepted reply from disk, through the intake."""
        sealed = read_sealed(self._file(site, part))
        asked = (
            self._asked(site, part)
            if part not in self.parts.get(site, {})
            else replace(self.asked, part=part)
        )
        return intake.accept(sealed, site, self.run.registry.get(site).sign_key, asked)

    def _asked(self, site: str, part: int) -> Asked:
        """What is asked of a site: its first part, or one that its first part announced."""
        first = self.parts.get(site, {}).get(0)
        if part == 0 or first is None:
            return self.asked
        return replace(
            self.asked, part=part, parts=first.parts, images_before=self.images.get(site, 0)
        )

    def _file(self, site: str, part: int) -> Path:
        return self.run.record.reply_file(
            self.asked.phase, self.asked.model, self.asked.round, site, part
        )

    def _key(self, part: int) -> str:
        return (
            f"{self.run.record.place(self.asked.phase, self.asked.model, self.asked.round)}/{part}"
        )


def check_same(sealed: Sealed, site: Site, digest: str) -> None:
    """Check that another reply to an answered instruction has the same payload; raises RefusedError (E-INTAKE-SECOND)."""
    header = intake.open_header(sealed, site.name, site.sign_key, boundary.UPDATE_CAP_BYTES)
    if header.digest != digest:
        raise RefusedError(
            "a second, different payload for one instruction", code="E-INTAKE-SECOND"
        )


@dataclass
class Farewell:
    """The closing instruction: receipts, and `done`; the answer is the reply that is stored under `key` once more."""

    run: StudyRun
    exchange: Exchange
    asked: Asked
    key: str

    def say(self, sites: Mapping[str, Site]) -> None:
        """Tell the sites and wait until all have answered, or for `goodbye_s`."""
        waiting = set(sites)
        deadline = time.monotonic() + self.run.limits.goodbye_s
        try:
            for site in sites.values():
                self.exchange.ask(site, self.asked, {"done": True})
            while waiting and time.monotonic() < deadline:
                reply = self.exchange.next()
                if reply is not None and reply.record is not None:
                    waiting.discard(reply.site)
                    self._check(reply.record, sites[reply.site])
        finally:
            self.exchange.close()

    def _check(self, record: RecordDict, site: Site) -> None:
        """The last word must be what was accepted."""
        try:
            check_same(
                sealed_of(record), site, self.run.record.accepted_digest(self.key, site.name) or ""
            )
        except RefusedError as error:
            self.run.registry.quarantine(site.name, error.code)
            log.warning("%s: in quarantine, %s", site.name, error.code)
