"""The site's Fleet client: loops that pull, handle and answer messages with this site's own code.

In: settings, the app hashes of approved plans, `admit`, which judges a message's header, and
`handle`, the installed ClientApp.
Out: replies on the wire.
Guarantees: nothing of an app that is not pinned is pulled, and no payload whose header is not
admitted; at most two instructions are stored, one at work and one that waits, and at most four
messages with the replies that are to be sent; a message is on disk before the server hears that it
arrived; a reply is deflated once and sent again with the same bytes; only error codes leave, never
text; only `stop` ends the loops.
Not covered: Flower's protocol (wire.py); what a message must satisfy (messages.py); files
(inbox.py); what a message means and what may leave (app.py, client/daemon, client/egress).

The steps of one message, as in the threat model:
  1 pull the shell, if there is room
  2 check the app's hash against the approved plans
  3 limit the number of objects
  4 admit the header, before anything else is pulled
  5 check every object against its identifier, store and sync
  6 confirm to the server
  7 inflate, with an empty run_config
  8 handle
  9 store the reply, then send it

Flower hands a message out once, when it is pulled. So a site without room does not pull: what
waits stays with the server, and no honest message is lost or answered with a code.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from flwr.app import Context, Error, Message, RecordDict

from client.fleet import health as states
from client.fleet.connection import (
    FleetSettings,
    check_addresses,
    read_node_key,
    tls_context,
)
from client.fleet.diagnosis import look_closer
from client.fleet.failures import Backoff, CallFailed, classify
from client.fleet.health import Health
from client.fleet.inbox import Inbox
from client.fleet.messages import (
    CONTENT_REFUSED,
    MessageRefused,
    error_code,
    inflate,
    is_expired,
)
from client.fleet.receiving import Admit, Pins, Receiver
from client.fleet.sending import Sender, take_next
from client.fleet.session import Session
from client.fleet.wire import PulledMessage, Reply, Wire, check_flower_version, deflate
from common.errors import Bug, EnvironmentFault, KohortError, RefusedError
from common.storage.lock import FolderLock

MOST_INSTRUCTIONS = 2  # one at work, one that waits
MOST_MESSAGES = 4  # these, replies that are to be sent, and refusals
EAGER_S = 60.0  # how long after a message the server is asked every `poll_s`
IDLE_POLL_S = 5.0
IDLE_GROWTH = 1.5
STOP_WAIT_S = 10.0
WAKE_S = 0.5
AGAIN_S = 10.0  # until a message that met a failing disk has another turn

Handle = Callable[[Message, Context], Message | None]
log = logging.getLogger(__name__)


class FleetClient:
    """The site's connection to the server; `run` is its whole life.

    `pins` returns the app hashes of the approved plans (`common.wire.app_bundle.fab_hash`) and is
    asked for every message. `admit` gets a message's header, its signature and the declared size
    of its payload in bytes; it raises unless the site takes it. `handle` gets the message and an
    empty context. It returns the reply, or None for no reply now; what it raises becomes an
    `Error` with a code. `on_turn` is called at every turn of the pull loop and while it waits,
    for a watchdog; `on_rest` before a turn in which nothing is stored, at work or to be sent.
    """

    def __init__(
        self,
        settings: FleetSettings,
        pins: Pins,
        handle: Handle,
        health: Health,
        on_turn: Callable[[], None] | None = None,
        *,
        admit: Admit,
    ) -> None:
        check_flower_version()
        check_addresses(settings.url, settings.proxy)
        self.settings = settings
        self._pins = pins
        self._admit = admit
        self._handle = handle
        self._health = health
        self._on_turn = on_turn
        self.on_rest: Callable[[], None] | None = None
        self._stop = threading.Event()
        self._session = Session(settings, health)
        self._to_handle: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_message = time.monotonic()
        self._last_call = time.monotonic()

    @property
    def node_id(self) -> int | None:
        """The node id that the server gave this key; None before the first contact."""
        return self._session.node_id

    def reconnect(self) -> None:
        """Connect anew now, with the certificate that is there now."""
        self._session.reconnect()

    def forget_node(self) -> None:
        """Connect anew as another node, with the key that is there now; from `on_rest` alone."""
        self._session.forget()

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
            self._inbox = Inbox(self.settings.state_dir / "inbox", self.settings.inbox_bytes)
            self._sender = Sender(self.settings, self._session, self._inbox, self._health)
            self._receiver = Receiver(
                self.settings, self._session, self._inbox, lambda: self._pins(), self._admit
            )
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
            if self._has_expired(message_id):
                self._inbox.drop(message_id)
            elif self._inbox.reply(message_id):
                self._sender.put(message_id)
            else:
                self._to_handle.put(message_id)

    def _has_expired(self, message_id: str) -> bool:
        """Return whether nobody waits for a stored message any more, or it cannot be read."""
        try:
            stored = self._inbox.reply(message_id)
            if stored is not None:
                return is_expired(Reply.parse(stored).metadata)
            return is_expired(PulledMessage.parse(self._inbox.message(message_id)).metadata)
        except (RefusedError, FileNotFoundError):
            return True

    # --- pulling ------------------------------------------------------------------------------

    def _pull_loop(self) -> None:
        """Pull until stop; no failure ends the loop."""
        wire = self._session.new_wire()
        backoff = Backoff(self.settings)
        wait_s = 0.0
        self._health.set(states.CONNECTING)
        while not self._wait(wait_s):
            try:
                self._rest_a_moment()
                if self._session.ensure_joined(wire):
                    self._last_message = time.monotonic()
                wait_s = self._pull_once(wire, wait_s)
                self._health.set(states.CONNECTED)
                backoff.reset()
            except Exception as error:
                failure = look_closer(classify(error), self.settings)
                self._session.mark_lost()
                log.warning("%s %s", failure.state.code, failure.facts)
                self._health.set(failure.state, failure.facts)
                wait_s = backoff.after(failure)
            self._feed_watchdog()
        wire.close()

    def _rest_a_moment(self) -> None:
        """Call `on_rest` where nothing of a message is here: this thread alone takes the next."""
        if self._inbox.count() == (0, 0) and not self._sender.refusals and self.on_rest:
            self.on_rest()

    def _wait(self, seconds: float) -> bool:
        """Wait, at most until `reconnect`; return whether the client was stopped."""
        generation = self._session.generation
        end = time.monotonic() + seconds
        while generation == self._session.generation and time.monotonic() < end:
            if self._stop.wait(min(end - time.monotonic(), WAKE_S)):
                return True
            self._feed_watchdog()
        return self._stop.is_set()

    def _pull_once(self, wire: Wire, last_wait_s: float) -> float:
        """Pull one message if there is one; return the seconds to wait before the next turn."""
        if not self._has_room():
            return self._rest(wire)
        self._last_call = time.monotonic()
        pulled = wire.pull_message(self._session.own_id)  # (1) pull the shell, if there is room
        if pulled is not None:
            self._last_message = time.monotonic()
            self._receive(wire, pulled)
            return 0.0
        # Nothing waits: ask often after a message, then less and less.
        poll_s = self.settings.poll_s
        if time.monotonic() - self._last_message < EAGER_S:
            return poll_s
        return min(max(last_wait_s, poll_s) * IDLE_GROWTH, max(IDLE_POLL_S, poll_s))

    def _has_room(self) -> bool:
        """Return whether one more message may be stored, and its reply."""
        instructions, replies = self._inbox.count()
        total = instructions + replies + self._sender.refusals
        return instructions < MOST_INSTRUCTIONS and total < MOST_MESSAGES

    def _rest(self, wire: Wire) -> float:
        """Pull nothing; every few seconds, learn whether the server still answers."""
        if time.monotonic() - self._last_call >= IDLE_POLL_S:
            self._last_call = time.monotonic()
            if not self._session.send_heartbeat(wire):
                self._session.mark_lost()
        return self.settings.poll_s

    def _receive(self, wire: Wire, pulled: PulledMessage) -> None:
        """Steps 2 to 6: store and queue a message that passes; answer any other with an error."""
        known = self._inbox.holds(pulled.message_id)
        try:
            if not known:
                self._receiver.receive(wire, pulled, self._feed_watchdog, self._stop)
        except CallFailed as failure:
            if not failure.run_ended:
                raise
            return  # the server wants nothing more of this run
        except MessageRefused as refused:
            self._sender.refuse(pulled, refused)
            return
        except EnvironmentFault:
            # its folder appeared and could not be synced: it has its turn all the same
            if self._inbox.holds(pulled.message_id):
                self._to_handle.put(pulled.message_id)
            raise
        if not known:
            self._to_handle.put(pulled.message_id)
        # (6) confirm to the server
        wire.confirm(self._session.own_id, pulled.metadata.run_id, pulled.message_id)

    def _heartbeat_loop(self) -> None:
        """Send heartbeats until stop, on a connection of their own."""
        self._session.heartbeat_loop(self._session.new_wire(), self._stop)

    def _reply_loop(self) -> None:
        """Send replies until stop, on a connection of their own."""
        self._sender.loop(self._stop)

    # --- working ------------------------------------------------------------------------------

    def _work_loop(self) -> None:
        """Handle stored messages, one at a time, in order of arrival."""
        while (message_id := take_next(self._to_handle, self._stop)) is not None:
            try:
                self._handle_one(message_id)
            except Exception as error:
                log.error("message not handled: %s %s", type(error).__name__, error_code(error))
                self._health.set(states.WORK_FAILED, error_code(error))
                self._note_unhandled(message_id, error)

    def _note_unhandled(self, message_id: str, error: Exception) -> None:
        """Drop a message that cannot be read; give one that met a failing disk another turn."""
        disk_failed = isinstance(error, KohortError | OSError)
        if isinstance(error, RefusedError | FileNotFoundError) or not disk_failed:
            # it would fail again at every start
            with suppress(OSError):
                self._inbox.drop(message_id)
            return
        # without another turn it would take the room of a later one until the next start
        self._stop.wait(AGAIN_S)
        self._to_handle.put(message_id)

    def _handle_one(self, message_id: str) -> None:
        """Steps 7 to 9 for one message."""
        if self._inbox.reply(message_id) is not None:
            # an earlier turn stored it, and failed after that
            self._sender.put(message_id)
            return
        pulled = PulledMessage.parse(self._inbox.message(message_id))
        if is_expired(pulled.metadata):
            log.warning("an instruction had expired when its turn came; the server asks again")
            self._health.set(states.MESSAGE_EXPIRED, "an instruction")
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
        """Deflate the reply once, store it, and queue it for sending.

        A reply for which the inbox has no room is dropped with its instruction: the server asks
        again, and gets the bytes of the outbox.
        """
        reply, objects = deflate(message)
        if not self._inbox.has_room(sum(map(len, objects.values()))):
            self._health.set(states.INBOX_FULL, "a reply")
            self._inbox.drop(message_id)
            return
        self._inbox.store_reply(message_id, reply.to_bytes(), objects)
        self._sender.put(message_id)

    # --- waiting ------------------------------------------------------------------------------

    def _feed_watchdog(self) -> None:
        """Report that the pull loop is alive."""
        if self._on_turn is not None:
            self._on_turn()
