"""Sends signed instructions through Flower's grid, again where needed, and hands over the replies.

In: a grid, an instruction, the sites to ask. Out: `Reply` values, one at a time.
Guarantees: an instruction is repeated when a message was lost, when the site answers with a code,
and when it stays silent for `reask_s`; at most `replies_in_memory` instructions and replies are in
memory at once, whatever the number of sites; of a site's error only its code is repeated.
Not covered: what a reply is worth (intake.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from flwr.app import Message, RecordDict

from common.wire.messages import Sealed
from server.operator.config import Limits
from server.operator.sites import Site
from server.rounds.faults import UNPACKING
from server.rounds.intake import Instruction
from server.rounds.records import record_of, sealed_of
from server.rounds.slots import Slots
from server.rounds.study_run import StudyRun

MESSAGE_TYPES = {"train": "train", "synthesize": "query.synthesize"}
LOST = (3, 4, 5)  # Flower's codes: instruction lost, reply lost, node offline
TTL_MARGIN_S = 600.0
QUICK_S = 60.0  # poll quickly for this long, then once in SLOW_POLL_S
SLOW_POLL_S = 1.0
PUT_WAIT_S = 0.5
CODE_CHARACTERS = 64


class Grid(Protocol):
    """What a study needs of Flower's grid."""

    def get_node_ids(self) -> Iterable[int]: ...
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]: ...
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]: ...


class Unpacking(Exception):
    """Flower could not unpack the objects that a site sent; the cause says why."""


class Reply(NamedTuple):
    """What came back from one site: a record, a code, or the fault that ended its thread.

    `lost`: the code is Flower's own and says nothing about the site. `broken`: what the site's
    objects raised when Flower unpacked them.
    """

    site: str
    part: int
    record: RecordDict | None = None
    code: str = ""
    lost: bool = False
    fault: BaseException | None = None
    broken: Exception | None = None

    def sealed_message(self) -> Sealed:
        """Return the sealed message in the record; raises RefusedError (E-RECORD)."""
        assert self.record is not None
        return sealed_of(self.record)


@dataclass
class Outgoing:
    """What the pending instructions of one exchange share."""

    grid: Grid
    limits: Limits
    ttl_s: float
    replies: queue.Queue[Reply]
    slots: Slots


@dataclass
class PendingInstruction:
    """Asks one site one thing until it has answered or `stop` is set.

    Each has a thread of its own: Flower blocks inside a pull while a sender's upload is stalled.
    """

    outgoing: Outgoing
    site: Site
    part: int
    sealed: Sealed
    message_type: str
    stop: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)  # its node was online

    def start(self) -> PendingInstruction:
        """Begin to ask."""
        name = f"ask-{self.site.name}-{self.part}"
        threading.Thread(target=self._run, name=name, daemon=True).start()
        return self

    def _run(self) -> None:
        """The thread: a fault is handed over, for it must end the study's process."""
        try:
            self._ask()
        except Unpacking as error:
            self._put(Reply(self.site.name, self.part, broken=error))
        except Exception as error:  # Flower's own retries are exhausted, or a bug of ours
            self._put(Reply(self.site.name, self.part, fault=error))

    def _ask(self) -> None:
        """Push, poll, push again."""
        limits = self.outgoing.limits
        began = time.monotonic()
        next_ask = began
        pause = limits.retry_first_s
        open_ids: set[str] = set()
        answered = False
        while not self.stop.is_set():
            # Send the instruction when it is due.
            if not answered and time.monotonic() >= next_ask:
                pushed = self._push()
                open_ids |= pushed
                wait = limits.reask_s if pushed else limits.retry_first_s
                next_ask = time.monotonic() + wait
            # Hand over what came back; a code makes the next try due soon.
            for reply in self._take(open_ids):
                if not reply.code:
                    answered = True
                elif reply.lost:
                    next_ask = min(next_ask, time.monotonic() + limits.retry_first_s)
                else:
                    next_ask = min(next_ask, time.monotonic() + pause)
                    pause = min(2 * pause, limits.retry_cap_s)
            if answered and not open_ids:
                return
            self.stop.wait(self._poll_s(time.monotonic() - began))

    def _poll_s(self, elapsed_s: float) -> float:
        """The pause before the next look."""
        poll_s = self.outgoing.limits.poll_s
        return poll_s if elapsed_s < QUICK_S else max(SLOW_POLL_S, poll_s)

    def _push(self) -> set[str]:
        """Send the instruction once; empty where the site is offline or Flower does not take it."""
        grid = self.outgoing.grid
        node_id = self.site.node_id
        if node_id is None or node_id not in set(grid.get_node_ids()):
            return set()
        self.reached.set()
        with self.outgoing.slots.hold():
            record = record_of(self.sealed)
            message = Message(record, node_id, self.message_type, ttl=self.outgoing.ttl_s)
            return {message_id for message_id in grid.push_messages([message]) if message_id}

    def _take(self, open_ids: set[str]) -> list[Reply]:
        """Hand over what has come back, and return it without its content.

        The place in memory is held until it is handed over.
        """
        if not open_ids:
            return []
        taken = []
        with self.outgoing.slots.hold():
            for message in self._pull(open_ids):
                open_ids.discard(message.metadata.reply_to_message_id)
                reply = self._reply(message)
                self._put(reply)
                taken.append(reply._replace(record=None))
        return taken

    def _pull(self, open_ids: set[str]) -> list[Message]:
        """What has come back."""
        try:
            return list(self.outgoing.grid.pull_messages(sorted(open_ids)))
        except UNPACKING as error:
            raise Unpacking from error

    def _reply(self, message: Message) -> Reply:
        """A message as a reply."""
        name = self.site.name
        if message.has_error():
            number = message.error.code
            code = public_code(message.error.reason or "", number)
            return Reply(name, self.part, code=code, lost=number in LOST)
        if message.metadata.src_node_id != self.site.node_id:
            return Reply(name, self.part, code="E-INTAKE-NODE")
        return Reply(name, self.part, record=message.content)

    def _put(self, reply: Reply) -> None:
        """Hand over a reply. Waiting while the loop is busy bounds what is in memory."""
        while not self.stop.is_set():
            try:
                self.outgoing.replies.put(reply, timeout=PUT_WAIT_S)
                return
            except queue.Full:
                continue


def public_code(reason: str, number: int) -> str:
    """Return a site's code if it has the shape of one; anything else is never repeated."""
    plain = reason.replace("-", "").isalnum() and reason.isupper()
    if reason.startswith("E-") and len(reason) <= CODE_CHARACTERS and plain:
        return reason
    return f"E-FLOWER-{int(number)}"


class Exchange:
    """The pending instructions of one round, by site and part."""

    def __init__(self, run: StudyRun, grid: Grid, payload: bytes) -> None:
        self._run = run
        self._payload = payload
        self._pending: dict[tuple[str, int], PendingInstruction] = {}
        self._outgoing = Outgoing(
            grid=grid,
            limits=run.limits,
            ttl_s=run.study.round_deadline_s + TTL_MARGIN_S,
            replies=queue.Queue(maxsize=1),
            slots=Slots(run.limits.replies_in_memory),
        )

    def sites(self) -> set[str]:
        """Return the names of the sites that are being asked."""
        return {site for site, _ in self._pending}

    def reached(self, site: str) -> bool:
        """Return whether a site's node was online when this round asked it."""
        return any(
            pending.reached.is_set() for (name, _), pending in self._pending.items() if name == site
        )

    def ask(
        self, site: Site, instruction: Instruction, statement: Mapping[str, bool] | None = None
    ) -> None:
        """Begin to ask a site, unless this is pending already; anew where its node is another."""
        place = (site.name, instruction.part)
        known = self._pending.get(place)
        if known is not None and known.site.node_id == site.node_id:
            return
        if known is not None:
            # the site has changed its node key: the old node answers no more
            known.stop.set()
        sealed = self._run.sign_instruction(instruction, self._payload, site.name, statement or {})
        pending = PendingInstruction(
            self._outgoing, site, instruction.part, sealed, MESSAGE_TYPES[instruction.phase]
        )
        self._pending[place] = pending.start()

    def next(self) -> Reply | None:
        """Return the next reply within one poll, or None; raises the fault that ended a thread."""
        try:
            reply = self._outgoing.replies.get(timeout=self._run.limits.poll_s)
        except queue.Empty:
            return None
        if reply.fault is not None:
            raise reply.fault
        return reply

    def drop(self, site: str) -> None:
        """Stop asking a site."""
        for place in list(self._pending):
            if place[0] == site:
                self._pending.pop(place).stop.set()

    def close(self) -> None:
        """Stop asking; a thread that is stuck inside Flower ends with the process."""
        for pending in self._pending.values():
            pending.stop.set()
