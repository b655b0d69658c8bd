"""The site's Fleet client: loops that pull, handle and answer messages with this site's own code.

In: settings, the app hashes of approved plans, and `handle`, the installed ClientApp.
Out: replies on the wire.
Guarantees: nothing of an app that is not pinned is pulled; a message is on disk before the server
hears that it arrived; a reply is deflated once and sent again with the same bytes; only error codes
leave, never text; only `stop` ends the loops.
Not covered: Flower's protocol (wire.py); what a message must satisfy (messages.py); files
(inbox.py); what a message means and what may leave (app.py, client/daemon, client/egress).

The steps of one message, as in the threat model:
  1 pull the shell
  2 check the app's hash against the approved plans
  3 limit the number of objects
  4 check every object against its identifier
  5 store and sync
  6 confirm to the server
  7 inflate, with an empty run_config
  8 handle
  9 store the reply, then send it
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

from flwr.app import Context, Error, Message, RecordDict

from client.fleet import health as states
from client.fleet.connection import (
    FleetSettings,
    check_addresses,
    read_node_key,
    tls_context,
)
from client.fleet.failures import Backoff, CallFailed, classify
from client.fleet.health import Health
from client.fleet.inbox import Inbox
from client.fleet.messages import (
    CONTENT_REFUSED,
    OBJECT_LOST,
    MessageRefused,
    check_app,
    check_object,
    error_code,
    inflate,
    is_expired,
    object_ids,
    too_large,
)
from client.fleet.session import Session
from client.fleet.wire import PulledMessage, Reply, Wire, check_flower_version, deflate
from common.errors import Bug, KohortError
from common.storage.lock import FolderLock

PULL_LIMIT_S = 600.0
PUSH_LIMIT_S = 120.0  # the server's upload window closes after 180 s
EAGER_S = 60.0  # how long after a message the server is asked every `poll_s`
IDLE_POLL_S = 5.0
IDLE_GROWTH = 1.5
STOP_WAIT_S = 10.0
QUEUE_WAIT_S = 0.2

Handle = Callable[[Message, Context], Message | None]
log = logging.getLogger(__name__)


class FleetClient:
    """The site's connection to the server; `run` is its whole life.

    `pins` returns the app hashes of the approved plans (`common.wire.app_bundle.fab_hash`) and is
    asked for every message. `handle` gets the message, its signature unchecked, and an empty
    context. It returns the reply, or None for no reply now; what it raises becomes an `Error` with
    a code. `on_turn` is called after every turn of the pull loop, for a watchdog.
    """

    def __init__(
        self,
        settings: FleetSettings,
        pins: Callable[[], set[str]],
        handle: Handle,
        health: Health,
        on_turn: Callable[[], None] | None = None,
    ) -> None:
        check_flower_version()
        check_addresses(settings.url, settings.proxy)
        self.settings = settings
        self._pins = pins
        self._handle = handle
        self._health = health
        self._on_turn = on_turn
        self._stop = threading.Event()
        self._session = Session(settings, health)
        self._to_handle: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_message = time.monotonic()

    @property
    def node_id(self) -> int | None:
        """The node id that the server gave this key; None before the first contact."""
        return self._session.node_id

    def run(self, stop: threading.Event) -> None:
        """Pull, handle and reply until `stop` is set.

        This thread pulls; one sends heartbeats, one handles messages in order of arrival, one
        sends replies. Each has its own connection. After `kill -9` stored replies are sent again
        and all other messages are handled again: `handle` must answer a round that it has already
        done from its own journal.

        Raises only before the loops: for a bad file, or a second client on this folder.
        """
        # Fail early on what no retry mends.
        tls_context(self.settings)
        read_node_key(self.settings.node_key_file)
        self._stop = stop
        with FolderLock(self.settings.state_dir / "lock", "a fleet client"):
            self._inbox = Inbox(self.settings.state_dir / "inbox")
            self._session.load()
            self._queue_stored_messages()

            # The three loops beside this thread's own.
            threads = []
            for loop in (self._heartbeat_loop, self._work_loop, self._reply_loop):
                thread = threading.Thread(target=loop, name=loop.__name__.strip("_"), daemon=True)
                thread.start()
                threads.append(thread)
            self._pull_loop()

            # They see `stop` as well; none is waited for without end.
            for thread in threads:
                thread.join(STOP_WAIT_S)

    def _queue_stored_messages(self) -> None:
        """Queue what an earlier process left: replies to send, messages to handle."""
        for message_id in self._inbox.waiting():
            if self._inbox.reply(message_id):
                self._to_send.put(message_id)
            else:
                self._to_handle.put(message_id)

    # --- pulling ------------------------------------------------------------------------------

    def _pull_loop(self) -> None:
        """Pull until stop; no failure ends the loop."""
        wire = Wire(self.settings)
        backoff = Backoff(self.settings)
        wait_s = 0.0
        self._health.set(states.CONNECTING)
        while not self._stop.wait(wait_s):
            try:
                if self._session.ensure_joined(wire):
                    self._last_message = time.monotonic()
                wait_s = self._pull_once(wire, wait_s)
                self._health.set(states.CONNECTED)
                backoff.reset()
            except Exception as error:
                failure = classify(error)
                self._session.mark_lost()
                log.warning("%s %s", failure.state.code, failure.facts)
                self._health.set(failure.state, failure.facts)
                wait_s = backoff.after(failure)
            self._feed_watchdog()
        wire.close()

    def _pull_once(self, wire: Wire, last_wait_s: float) -> float:
        """Pull one message if there is one; return the seconds to wait before the next turn."""
        pulled = wire.pull_message(self._session.own_id)  # (1) pull the shell
        if pulled is not None:
            self._last_message = time.monotonic()
            self._receive(wire, pulled)
            return 0.0
        # Nothing waits: ask often after a message, then less and less.
        poll_s = self.settings.poll_s
        if time.monotonic() - self._last_message < EAGER_S:
            return poll_s
        return min(max(last_wait_s, poll_s) * IDLE_GROWTH, max(IDLE_POLL_S, poll_s))

    def _receive(self, wire: Wire, pulled: PulledMessage) -> None:
        """Steps 2 to 6: store and queue a message that passes; answer any other with an error."""
        run_id = pulled.metadata.run_id
        message_id = pulled.message_id
        try:
            # (2) check the app's hash against the approved plans
            check_app(wire.app_hash(self._session.own_id, run_id), self._pins())
            ids = object_ids(pulled, self.settings.max_objects)  # (3) limit the number of objects
            # (4, 5) check every object against its identifier, store and sync
            self._inbox.store(message_id, pulled.to_bytes(), self._pull_objects(wire, run_id, ids))
        except CallFailed as failure:
            if not failure.run_ended:
                raise
            return  # the server wants nothing more of this run
        except MessageRefused as refused:
            self._refuse(pulled, refused)
            return
        self._to_handle.put(message_id)
        wire.confirm(self._session.own_id, run_id, message_id)  # (6) confirm to the server

    def _pull_objects(self, wire: Wire, run_id: int, ids: list[str]) -> Iterator[tuple[str, bytes]]:
        """Yield every object, checked, while their sum stays within the limit."""
        total = 0
        deadline = time.monotonic() + PULL_LIMIT_S
        for object_id in ids:
            content = self._pull_object(wire, run_id, object_id, deadline)
            check_object(object_id, content)
            total += len(content)
            if total > self.settings.max_message_bytes:
                raise too_large(f"over {total} bytes")
            yield object_id, content

    def _pull_object(self, wire: Wire, run_id: int, object_id: str, deadline: float) -> bytes:
        """Return one object; retry while it is still being uploaded or the connection fails."""
        backoff = Backoff(self.settings)
        while True:
            self._feed_watchdog()
            try:
                answer = wire.pull_object(self._session.own_id, run_id, object_id)
                if not answer.object_found:
                    lost = Error(OBJECT_LOST, "E-MESSAGE-LOST")
                    raise MessageRefused(states.MESSAGE_CORRUPT, lost, "object gone")
                if answer.object_available:
                    return bytes(answer.object_content)
                failure = CallFailed(states.SERVER_BUSY, "object not there yet")
            except CallFailed as error:
                failure = error
            if failure.is_final or time.monotonic() > deadline:
                raise failure
            if self._stop.wait(backoff.after(failure)):
                raise failure

    def _refuse(self, pulled: PulledMessage, refused: MessageRefused) -> None:
        """Store and queue an error reply; nothing of the message's content is kept."""
        log.warning("refused a message: %s %s", refused.state.code, refused.facts)
        self._health.set(refused.state, refused.facts)
        self._inbox.store(pulled.message_id, pulled.to_bytes(), iter(()))
        self._answer(pulled.message_id, Message(refused.error, reply_to=pulled.shell()))

    def _heartbeat_loop(self) -> None:
        """Send heartbeats until stop, on a connection of their own."""
        self._session.heartbeat_loop(Wire(self.settings), self._stop)

    # --- working ------------------------------------------------------------------------------

    def _work_loop(self) -> None:
        """Handle stored messages, one at a time, in order of arrival."""
        while (message_id := self._next(self._to_handle)) is not None:
            try:
                self._handle_one(message_id)
            except Exception as error:
                log.error("message not handled: %s %s", type(error).__name__, error_code(error))
                self._health.set(states.WORK_FAILED, error_code(error))
                if not isinstance(error, KohortError):
                    # The stored message is unreadable: it would fail again at every start.
                    self._inbox.drop(message_id)

    def _handle_one(self, message_id: str) -> None:
        """Steps 7 to 9 for one message."""
        pulled = PulledMessage.parse(self._inbox.message(message_id))
        if is_expired(pulled.metadata):
            self._inbox.drop(message_id)
            return
        try:
            reply = self._run_handler(pulled)
            self._health.clear("message")
        except MessageRefused as refused:
            self._health.set(refused.state, refused.facts)
            reply = Message(refused.error, reply_to=pulled.shell())
        except Exception as error:
            if self._stop.is_set():
                return  # the next start handles it again
            code = error_code(error)
            log.error("work failed: %s %s", type(error).__name__, code)
            self._health.set(states.WORK_FAILED, code)
            reply = Message(Error(CONTENT_REFUSED, code), reply_to=pulled.shell())
        if reply is None:
            self._inbox.drop(message_id)
        else:
            self._answer(message_id, reply)  # (9) store the reply, then send it

    def _run_handler(self, pulled: PulledMessage) -> Message | None:
        """Return the handler's reply to a stored message."""
        objects = self._inbox.objects(pulled.message_id)
        node_id = self._session.own_id
        # (7) inflate, with an empty run_config
        message = inflate(pulled, objects, node_id, self.settings.max_message_bytes)
        run_id = message.metadata.run_id
        context = Context(run_id, node_id, node_config={}, state=RecordDict(), run_config={})
        reply = self._handle(message, context)  # (8) handle
        if reply is not None and reply.metadata.reply_to_message_id != pulled.message_id:
            raise Bug("the handler's reply is for another message")
        return reply

    def _answer(self, message_id: str, message: Message) -> None:
        """Deflate the reply once, store it, and queue it for sending."""
        reply, objects = deflate(message)
        self._inbox.store_reply(message_id, reply.to_bytes(), objects)
        self._to_send.put(message_id)

    # --- replying -----------------------------------------------------------------------------

    def _reply_loop(self) -> None:
        """Send stored replies; one that cannot be sent now goes to the end of the queue."""
        wire = Wire(self.settings)
        backoff = Backoff(self.settings)
        while (message_id := self._next(self._to_send)) is not None:
            if not self._session.wait_joined(self._stop):
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
                self._to_send.put(message_id)
                self._stop.wait(backoff.after(failure))
        wire.close()

    def _send(self, wire: Wire, message_id: str) -> None:
        """Push one stored reply; drop it once the server has all of it or the run has ended."""
        stored = self._inbox.reply(message_id)
        if stored is None:
            return
        reply = Reply.parse(stored)
        if is_expired(reply.metadata):
            log.warning("a reply came after its instruction had expired; the server asks again")
            self._inbox.drop(message_id)
            return
        objects = self._inbox.reply_objects(message_id)
        # The shell first; the server then names the objects that it lacks.
        try:
            answer = wire.push_reply(self._session.own_id, reply)
            for object_id in answer.objects_to_push:
                if object_id in objects:
                    self._push_object(wire, reply, object_id, answer.session_id, objects[object_id])
        except CallFailed as failure:
            if not failure.run_ended:
                raise
        self._inbox.drop(message_id)

    def _push_object(
        self, wire: Wire, reply: Reply, object_id: str, session_id: str, content: bytes
    ) -> None:
        """Push one object; retry until the server's upload window would be over."""
        backoff = Backoff(self.settings)
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

    # --- waiting ------------------------------------------------------------------------------

    def _feed_watchdog(self) -> None:
        """Report that the pull loop is alive."""
        if self._on_turn is not None:
            self._on_turn()

    def _next(self, waiting: queue.SimpleQueue[str]) -> str | None:
        """Return the next id in a queue; None when stopped."""
        while not self._stop.is_set():
            try:
                return waiting.get(timeout=QUEUE_WAIT_S)
            except queue.Empty:
                continue
        return None
