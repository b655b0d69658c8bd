"""Sends replies until the server has them: stored ones, and refusals, which are kept in memory.

In: the ids of stored replies; refusals.
Out: requests of the Fleet interface.
Guarantees: a reply is deflated once and sent again with the same bytes; one that cannot be sent now
goes to the end of the queue; a refusal holds nothing of the message but its identifiers.
Not covered: a refusal does not survive the process: the server asks again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TypeVar

from flwr.app import Message

from client.fleet import health as states
from client.fleet.connection import FleetSettings
from client.fleet.failures import Backoff, CallFailed, classify
from client.fleet.health import Health
from client.fleet.inbox import Inbox
from client.fleet.messages import MessageRefused, is_expired
from client.fleet.session import Session
from client.fleet.wire import PulledMessage, Reply, Wire, deflate
from common.errors import RefusedError

PUSH_LIMIT_S = 120.0  # the server's upload window closes after 180 s
QUEUE_WAIT_S = 0.2
T = TypeVar("T")
log = logging.getLogger(__name__)

Objects = dict[str, bytes]


def take_next(waiting: queue.SimpleQueue[T], stop: threading.Event) -> T | None:
    """Return the next item of a queue; None when stopped."""
    while not stop.is_set():
        try:
            return waiting.get(timeout=QUEUE_WAIT_S)
        except queue.Empty:
            continue
    return None


class Sender:
    """The replies that wait; `loop` is a thread of its own."""

    def __init__(
        self, settings: FleetSettings, session: Session, inbox: Inbox, health: Health
    ) -> None:
        self._settings = settings
        self._session = session
        self._inbox = inbox
        self._health = health
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._refusals: dict[str, tuple[Reply, Objects]] = {}
        self._stop = threading.Event()

    @property
    def refusals(self) -> int:
        """How many refusals are not sent yet."""
        return len(self._refusals)

    def put(self, message_id: str) -> None:
        """Queue a stored reply."""
        self._waiting.put(message_id)

    def refuse(self, pulled: PulledMessage, refused: MessageRefused) -> None:
        """Queue an error reply; nothing of the message is stored."""
        log.warning("refused a message: %s %s", refused.state.code, refused.facts)
        self._health.set(refused.state, refused.facts)
        reply = Message(refused.error, reply_to=pulled.shell())
        self._refusals[pulled.message_id] = deflate(reply)
        self._waiting.put(pulled.message_id)

    def loop(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        self._stop = stop
        wire = self._session.new_wire()
        backoff = Backoff(self._settings)
        while (message_id := take_next(self._waiting, stop)) is not None:
            if not self._session.wait_joined(stop):
                break
            try:
                self._send(wire, message_id)
                self._health.clear("reply")
                backoff.reset()
            except Exception as error:
                # Keep the reply; the others may pass it in the queue.
                failure = classify(error)
                log.info("reply not sent yet: %s", failure.state.code)
                if failure.state is states.BODY_REFUSED:
                    self._health.set(failure.state, failure.facts)
                self._waiting.put(message_id)
                stop.wait(backoff.after(failure))
        wire.close()

    def _send(self, wire: Wire, message_id: str) -> None:
        """Push one reply; drop it once the server has all of it or the run has ended."""
        refusal = self._refusals.get(message_id)
        if refusal is not None:
            self._push(wire, *refusal)
            self._refusals.pop(message_id)
            return
        stored = self._inbox.reply(message_id)
        if stored is None:
            return
        try:
            reply = Reply.parse(stored)
            objects = self._inbox.reply_objects(message_id)
        except RefusedError:
            log.warning("a stored reply is damaged; the server asks again")
            self._inbox.drop(message_id)
            return
        self._push(wire, reply, objects)
        self._inbox.drop(message_id)

    def _push(self, wire: Wire, reply: Reply, objects: Objects) -> None:
        """Push one reply: the shell first; the server then names the objects that it lacks."""
        if is_expired(reply.metadata):
            log.warning("a reply came after its instruction had expired; the server asks again")
            self._health.set(states.MESSAGE_EXPIRED, "a reply")
            return
        try:
            answer = wire.push_reply(self._session.own_id, reply)
            for object_id in answer.objects_to_push:
                if object_id in objects:
                    self._push_object(wire, reply, object_id, answer.session_id, objects[object_id])
        except CallFailed as failure:
            if not failure.run_ended:
                raise

    def _push_object(
        self, wire: Wire, reply: Reply, object_id: str, session_id: str, content: bytes
    ) -> None:
        """Push one object; retry until the server's upload window would be over."""
        backoff = Backoff(self._settings)
        deadline = time.monotonic() + PUSH_LIMIT_S
        run_id = reply.metadata.run_id
        while True:
            try:
                stored = wire.push_object(
                    self._session.own_id, run_id, object_id, session_id, content
                )
            except CallFailed as failure:
                if failure.is_final or time.monotonic() > deadline:
                    raise
                if self._stop.wait(backoff.after(failure)):
                    raise
                continue
            if stored:
                return
            raise CallFailed(states.SERVER_BUSY, "upload window closed")
