"""The site's own Fleet client: Flower's wire, this site's installed code. The one file that touches Flower's private modules.

In: settings, the pins of approved plans, and `handle`, the installed ClientApp. Out: replies on the wire. Guaranteed:
no code is fetched or run from the server (GetFab is never called); nothing of an app that is not pinned is pulled; a
message is on disk before the server hears that it arrived; every object is what its identifier says; a reply is deflated
once, stored, and sent again with the same bytes; only error codes leave, never text, never a run time; only `stop` ends
the loop. Not covered: TLS, limits of answers, causes of failures (`client/fleet/connection.py`); files (`client/fleet/inbox.py`); what
a message means, whether the operator signed it, which round it belongs to, what may leave (`client/fleet/app.py`, `client/egress/`).

How it runs: `run` pulls; one thread sends heartbeats; one worker thread calls `handle`, one message at a time in order
of arrival, for as long as it takes; one thread sends replies. Each has its own connection. A message lives in
`inbox/<message id>/` as `message` and `objects`, later `reply` and `reply.objects`; the folder goes when the reply is
delivered, expired, or its run has ended. After `kill -9` the inbox is read again: stored replies are sent again, the rest
is handled again, so `handle` must answer a round that it has already done from its own journal.

The steps of one message, as in the threat model:
  1 pull the shell   2 pin the app's hash   3 bound the objects   4 check every object against its identifier
  5 store and sync   6 confirm to the server   7 inflate, with an empty run_config   8 handle   9 store the reply, send it
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, TypeVar

import flwr
import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.fleet import health as states
from client.fleet.connection import (
    CappedClient,
    FleetSettings,
    Pause,
    Trouble,
    classify,
    create_node_key,
    read_node_key,
    tls_context,
)
from client.fleet.health import Health, State
from client.fleet.inbox import MESSAGE_ID, Inbox
from common.errors import Bug, ConfigurationError, EnvironmentFault, KohortError
from common.storage.files import atomic_write, read_capped
from common.storage.lock import FolderLock

FLWR_VERSION = "1.41.0"
HEARTBEAT_S = 10.0
HEARTBEAT_INTERVAL_S = (
    30.0  # what the server is told: it counts the node as offline after twice this
)
PULL_LIMIT_S = 600.0
EAGER_S = 60.0  # how long after a message the server is asked every `poll_s`
IDLE_POLL_S = 5.0
STOP_WAIT_S = 10.0
ERROR_CODE = re.compile(r"E-[A-Z0-9-]{1,40}")

__all__ = ["FleetClient", "FleetSettings", "Handle", "create_node_key", "read_node_key"]

Handle = Callable[[Message, Context], Message | None]
T = TypeVar("T")
log = logging.getLogger(__name__)


# --- the wire --------------------------------------------------------------------------------------------------------


class _VersionHeaders:
    """Flower's version headers. Its own interceptor would end this process when the server says so: not used."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the headers; look at nothing that comes back."""
        context.request.headers.update(self._headers)
        return call_next(context)


class _Wire:
    """One connection, opened on first use from the files as they then are, dropped after any failure."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._client: FleetHttpClient | None = None
        self.public_key = b""

    def call(self, ask: Callable[[FleetHttpClient], T]) -> T:
        """The answer to one request; raises Trouble."""
        try:
            if self._client is None:
                self._client = self._open()
            return ask(self._client)
        except Exception as error:
            self.close()
            raise classify(error) from error

    def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _open(self) -> FleetHttpClient:
        """Flower's client, with its HTTP client replaced by ours."""
        settings = self._settings
        context = tls_context(settings)
        key = read_node_key(settings.node_key_file)
        self.public_key = public_key_to_bytes(key.public_key())
        client = FleetHttpClient(
            settings.url,
            verify=context,
            interceptors=[_VersionHeaders(), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        client._client.close()
        client._client = CappedClient(context, settings.proxy, settings.timeout_s)
        return client


# --- rules about messages, without I/O -------------------------------------------------------------------------------


class _Refused(Exception):
    """A message is not what it should be; `state` says what and the server gets `error`."""

    def __init__(self, state: State, error: Error, facts: str = "") -> None:
        super().__init__(state.code)
        self.state, self.error, self.facts = state, error, facts


def object_ids(pulled: PullMessagesResponse, max_objects: int) -> list[str]:
    """Return the distinct object ids of a pulled message; raises _Refused if they are too many or malformed (step 3)."""
    ids: dict[str, None] = {}
    try:
        for tree in iterate_object_tree(pulled.message_object_trees[0]):
            ids[tree.object_id] = None
            if len(ids) > max_objects:
                raise _Refused(
                    states.MESSAGE_TOO_LARGE,
                    Error(2, "E-MESSAGE-TOO-LARGE"),
                    f"over {max_objects} objects",
                )
    except RecursionError:
        ids = {"": None}
    if not all(MESSAGE_ID.fullmatch(object_id) for object_id in ids):
        raise _Refused(states.MESSAGE_CORRUPT, Error(2, "E-MESSAGE-CORRUPT"), "object identifiers")
    return list(ids)


def check_object(object_id: str, content: bytes) -> None:
    """Raise _Refused unless the content hashes to its identifier and is well formed (step 4; Flower checks neither)."""
    try:
        if sha256(content).hexdigest() != object_id:
            raise ValueError
        validate_object_content(content)
    except Exception as error:
        raise _Refused(
            states.MESSAGE_CORRUPT, Error(2, "E-MESSAGE-CORRUPT"), "object content"
        ) from error


def expanded_bytes(objects: dict[str, bytes]) -> int:
    """Return the size of all arrays once inflated: an array may name the same chunk many times."""
    total = 0
    for content in objects.values():
        kind, children, length = get_object_head_values_from_object_content(content)
        if kind == "Array":
            indices = json.loads(content[len(content) - length :])["arraychunk_ids"]
            total += sum(len(objects[children[index]]) for index in indices)
    return total


def inflate(
    pulled: PullMessagesResponse, objects: dict[str, bytes], node_id: int, max_bytes: int
) -> Message:
    """Return the message of these checked objects (step 7); raises _Refused if it is not the one that was announced."""
    shell, tree = pulled.messages_list[0], pulled.message_object_trees[0]
    corrupt = Error(2, "E-MESSAGE-CORRUPT")
    try:
        if expanded_bytes(objects) > max_bytes:
            raise _Refused(states.MESSAGE_TOO_LARGE, Error(2, "E-MESSAGE-TOO-LARGE"), "arrays")
        message = inflate_object_from_contents(tree.object_id, objects)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _Refused(states.MESSAGE_CORRUPT, corrupt, "structure") from error
    if not isinstance(message, Message) or not message.has_content():
        raise _Refused(states.MESSAGE_CORRUPT, corrupt, "not an instruction")
    meta = message.metadata
    if (meta.run_id, meta.dst_node_id, meta.reply_to_message_id) != (
        shell.metadata.run_id,
        node_id,
        "",
    ):
        raise _Refused(states.MESSAGE_CORRUPT, corrupt, "run or node")
    meta.__dict__["_message_id"] = tree.object_id
    return message


def deflate(reply: Message) -> tuple[PushMessagesRequest, dict[str, bytes]]:
    """Return what is pushed for a reply: the request without a node, and the content of every object by identifier."""
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = {
            object_id: one.deflate() for object_id, one in get_all_nested_objects(reply).items()
        }
        tree = get_object_tree(reply)
    shell = remove_content_from_message(reply) if reply.has_content() else reply
    request = PushMessagesRequest(
        messages_list=[message_to_proto(shell)],
        message_object_trees=[tree],
        clientapp_runtime_list=[0.0],  # Flower's own node reports how long the work took: a leak
    )
    return request, objects


def error_code(error: BaseException) -> str:
    """Return the code of an error, the only part of it that may leave."""
    code = error.code if isinstance(error, KohortError) else "E-BUG"
    return code if ERROR_CODE.fullmatch(code) else "E-BUG"


def expired(metadata: Any) -> bool:
    """Whether a message's or a reply's time to live is over."""
    return bool(metadata.created_at + metadata.ttl < time.time())


# --- the client ------------------------------------------------------------------------------------------------------


class FleetClient:
    """The site's connection to the server. `run` is the whole life of it; see the module's docstring.

    `pins` returns the FAB hashes of the plans that this site approved (`common.wire.app_bundle.fab_hash`) and is asked for every
    message. `handle` gets the message (its signature unchecked) and an empty context, and returns the reply, or None for
    no reply now; what it raises becomes an `Error` with a code. `on_turn` is called after every turn of the loop, whether
    or not the server answered: feed a watchdog from it.
    """

    def __init__(
        self,
        settings: FleetSettings,
        pins: Callable[[], set[str]],
        handle: Handle,
        health: Health,
        on_turn: Callable[[], None] | None = None,
    ) -> None:
        if flwr.__version__ != FLWR_VERSION:
            raise EnvironmentFault(
                f"flwr {flwr.__version__} is installed, expected {FLWR_VERSION}",
                hint="run `make setup`",
            )
        if not re.fullmatch(r"https://[^/\s]+", settings.url):
            raise ConfigurationError(
                f"server address {settings.url!r}: expected https://HOST:PORT, without a path"
            )
        self.settings = settings
        self._pins, self._handle, self._health, self._on_turn = pins, handle, health, on_turn
        self._stop = threading.Event()
        self._node_id: int | None = None
        self._joined = threading.Event()
        self._to_handle: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._to_send: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_message = time.monotonic()

    @property
    def node_id(self) -> int | None:
        """The node id that the server gave this key; None before the first contact."""
        return self._node_id

    def run(self, stop: threading.Event) -> None:
        """Pull, handle and reply until `stop` is set. Raises only before the loop: a bad file, or a second client here."""
        tls_context(self.settings)
        read_node_key(self.settings.node_key_file)
        self._stop = stop
        with FolderLock(self.settings.state_dir / "lock", "a fleet client"):
            self._inbox = Inbox(self.settings.state_dir / "inbox")
            self._node_id = self._stored_node_id()
            for message_id in self._inbox.waiting():
                (self._to_send if self._inbox.reply(message_id) else self._to_handle).put(
                    message_id
                )
            loops = (self._heartbeats, self._work, self._send_replies)
            threads = [
                threading.Thread(target=loop, name=loop.__name__.strip("_"), daemon=True)
                for loop in loops
            ]
            for thread in threads:
                thread.start()
            self._pull_loop()
            for thread in threads:
                thread.join(STOP_WAIT_S)

    # --- pulling ------------------------------------------------------------------------------------------------------

    def _pull_loop(self) -> None:
        """Turn after turn until stop; no failure ends it."""
        wire, pause, wait = _Wire(self.settings), Pause(self.settings), 0.0
        self._health.set(states.CONNECTING)
        while not self._stop.wait(wait):
            try:
                self._ensure_joined(wire)
                wait = self._turn(wire, wait)
                self._health.set(states.CONNECTED)
                pause.reset()
            except Exception as error:
                trouble = classify(error)
                self._joined.clear()
                self._note(trouble)
                wait = pause.after(trouble)
            self._turned()
        wire.close()

    def _turn(self, wire: _Wire, last_wait: float) -> float:
        """Pull one message if there is one; return how long to wait before the next turn."""
        node = self._node()
        pulled = wire.call(lambda client: client.PullMessages(PullMessagesRequest(node=node)))  # 1
        if pulled.messages_list:
            self._last_message = time.monotonic()
            self._receive(wire, node, pulled)
            return 0.0
        if time.monotonic() - self._last_message < EAGER_S:
            return self.settings.poll_s
        return min(
            max(last_wait, self.settings.poll_s) * 1.5, max(IDLE_POLL_S, self.settings.poll_s)
        )

    def _receive(self, wire: _Wire, node: Node, pulled: PullMessagesResponse) -> None:
        """Steps 2 to 6: a message that passes is on disk and in line; one that does not gets an error reply."""
        if len(pulled.messages_list) != 1 or len(pulled.message_object_trees) != 1:
            raise Trouble(states.NOT_THE_SERVER, "more than one message")
        run_id, message_id = (
            pulled.messages_list[0].metadata.run_id,
            pulled.message_object_trees[0].object_id,
        )
        if not MESSAGE_ID.fullmatch(message_id):
            raise Trouble(states.NOT_THE_SERVER, "message identifier")
        try:
            run = wire.call(
                lambda client: client.GetRun(GetRunRequest(node=node, run_id=run_id))
            ).run
            if run.fab_hash not in self._pins():  # 2
                raise _Refused(states.APP_UNPINNED, Error(7, "E-APP-UNPINNED"))
            ids = object_ids(pulled, self.settings.max_objects)  # 3
            self._inbox.store(
                message_id, pulled.SerializeToString(), self._pull_objects(wire, node, run_id, ids)
            )  # 4, 5
        except Trouble as trouble:
            if not trouble.run_ended:
                raise
            return
        except _Refused as refused:
            self._refuse(pulled, refused)
            return
        self._to_handle.put(message_id)
        confirm = ConfirmMessageReceivedRequest(
            node=node, run_id=run_id, message_object_id=message_id
        )
        wire.call(lambda client: client.ConfirmMessageReceived(confirm))  # 6

    def _pull_objects(
        self, wire: _Wire, node: Node, run_id: int, ids: list[str]
    ) -> Iterator[tuple[str, bytes]]:
        """Every object, checked, while their sum stays within the bound."""
        total, deadline = 0, time.monotonic() + PULL_LIMIT_S
        for object_id in ids:
            content = self._pull_object(
                wire, PullObjectRequest(node=node, run_id=run_id, object_id=object_id), deadline
            )
            check_object(object_id, content)
            total += len(content)
            if total > self.settings.max_message_bytes:
                raise _Refused(
                    states.MESSAGE_TOO_LARGE, Error(2, "E-MESSAGE-TOO-LARGE"), f"over {total} bytes"
                )
            yield object_id, content

    def _pull_object(self, wire: _Wire, request: PullObjectRequest, deadline: float) -> bytes:
        """One object, waited for while it is still being uploaded or the line is cut."""
        pause = Pause(self.settings)
        while True:
            self._turned()
            try:
                answer = wire.call(lambda client: client.PullObject(request))
                if not answer.object_found:
                    raise _Refused(
                        states.MESSAGE_CORRUPT, Error(3, "E-MESSAGE-LOST"), "object gone"
                    )
                if answer.object_available:
                    return bytes(answer.object_content)
                trouble = Trouble(states.SERVER_BUSY, "object not there yet")
            except Trouble as error:
                trouble = error
            if (
                trouble.slow
                or trouble.run_ended
                or time.monotonic() > deadline
                or self._stop.wait(pause.after(trouble))
            ):
                raise trouble

    def _refuse(self, pulled: PullMessagesResponse, refused: _Refused) -> None:
        """Store and queue an error reply for a message of which nothing was kept."""
        log.warning("refused a message: %s %s", refused.state.code, refused.facts)
        self._health.set(refused.state, refused.facts)
        message_id = pulled.message_object_trees[0].object_id
        self._inbox.store(message_id, pulled.SerializeToString(), iter(()))
        self._answer(message_id, Message(refused.error, reply_to=_shell(pulled)))

    # --- joining ------------------------------------------------------------------------------------------------------

    def _ensure_joined(self, wire: _Wire) -> None:
        """Be online: by a heartbeat with the remembered node id, else by activation."""
        if self._joined.is_set():
            return
        if self._node_id is None or not self._revived(wire):
            wire.call(lambda client: None)  # opens the connection, which reads the key
            request = ActivateNodeRequest(
                public_key=wire.public_key, heartbeat_interval=HEARTBEAT_INTERVAL_S
            )
            answer = self._activated(wire, request)
            atomic_write(
                self.settings.state_dir / "node-id", f"{answer.node_id}\n".encode(), mode=0o600
            )
            self._node_id = int(answer.node_id)
            self._health.beat()
        self._last_message = time.monotonic()
        self._joined.set()

    def _activated(self, wire: _Wire, request: ActivateNodeRequest) -> Any:
        """The answer to an activation; a key that had a node id and has none any more was revoked."""
        try:
            return wire.call(lambda client: client.ActivateNode(request))
        except Trouble as trouble:
            if trouble.state is states.KEY_NOT_ADMITTED and self._node_id is not None:
                raise Trouble(states.KEY_UNKNOWN, trouble.facts, slow=True) from trouble
            raise

    def _revived(self, wire: _Wire) -> bool:
        """Whether the server takes a heartbeat for the remembered node id (it would not take a second activation)."""
        try:
            return self._beat(wire)
        except Trouble as trouble:
            if trouble.state is not states.KEY_UNKNOWN:
                raise
            return (
                False  # the id may be of another server; activation tells whether the key is known
            )

    def _heartbeats(self) -> None:
        """Every ten seconds, whatever else goes on."""
        wire = _Wire(self.settings)
        while not self._stop.wait(HEARTBEAT_S):
            if not self._joined.is_set():
                continue
            try:
                if not self._beat(wire):
                    self._joined.clear()
            except Exception as error:
                log.info("heartbeat: %s", classify(error).state.code)
        wire.close()

    def _beat(self, wire: _Wire) -> bool:
        """One heartbeat; whether the server took it."""
        request = SendNodeHeartbeatRequest(
            node=self._node(), heartbeat_interval=HEARTBEAT_INTERVAL_S
        )
        if not wire.call(lambda client: client.SendNodeHeartbeat(request)).success:
            return False
        self._health.beat()
        return True

    def _node(self) -> Node:
        """This site, as Flower names it."""
        return Node(node_id=self._node_id or 0)

    def _stored_node_id(self) -> int | None:
        """The node id of the last session; None if there is none or it is not a number."""
        path = self.settings.state_dir / "node-id"
        text = read_capped(path, 64).decode(errors="replace").strip() if path.exists() else ""
        return int(text) if text.isdecimal() else None

    # --- working ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Handle stored messages, one at a time, in order of arrival."""
        while (message_id := self._next(self._to_handle)) is not None:
            try:
                self._handle_one(message_id)
            except Exception as error:
                log.error("message not handled: %s %s", type(error).__name__, error_code(error))
                self._health.set(states.WORK_FAILED, error_code(error))
                if not isinstance(error, KohortError):
                    self._inbox.drop(
                        message_id
                    )  # unreadable: keeping it would fail again at every start

    def _handle_one(self, message_id: str) -> None:
        """Steps 7 to 9 for one message. An exception becomes a code, unless we are stopping: then it is for next time."""
        pulled = PullMessagesResponse()
        pulled.ParseFromString(self._inbox.message(message_id))
        shell = _shell(pulled)
        if expired(shell.metadata):
            self._inbox.drop(message_id)
            return
        try:
            objects = self._inbox.objects(message_id)
            message = inflate(
                pulled, objects, self._node_id or 0, self.settings.max_message_bytes
            )  # 7
            run_id = message.metadata.run_id
            context = Context(
                run_id, self._node_id or 0, node_config={}, state=RecordDict(), run_config={}
            )
            reply = self._handle(message, context)  # 8
            if reply is not None and reply.metadata.reply_to_message_id != message_id:
                raise Bug("the handler's reply is for another message")
            self._health.clear("message")
        except _Refused as refused:
            self._health.set(refused.state, refused.facts)
            reply = Message(refused.error, reply_to=shell)
        except Exception as error:
            if self._stop.is_set():
                return
            log.error("work failed: %s %s", type(error).__name__, error_code(error))
            self._health.set(states.WORK_FAILED, error_code(error))
            reply = Message(Error(2, error_code(error)), reply_to=shell)
        if reply is None:
            self._inbox.drop(message_id)
        else:
            self._answer(message_id, reply)  # 9

    def _answer(self, message_id: str, reply: Message) -> None:
        """Deflate the reply once, store it, and put it in line."""
        request, objects = deflate(reply)
        self._inbox.store_reply(message_id, request.SerializeToString(), objects)
        self._to_send.put(message_id)

    # --- replying -----------------------------------------------------------------------------------------------------

    def _send_replies(self) -> None:
        """Send stored replies; one that cannot be sent now goes to the end of the line."""
        wire, pause = _Wire(self.settings), Pause(self.settings)
        while (message_id := self._next(self._to_send)) is not None:
            if not self._wait_joined():
                break
            try:
                self._send(wire, message_id)
                self._health.clear("reply")
                pause.reset()
            except Exception as error:
                trouble = classify(error)
                log.info("reply not sent yet: %s", trouble.state.code)
                if trouble.state is states.BODY_REFUSED:
                    self._health.set(trouble.state, trouble.facts)
                self._to_send.put(message_id)
                self._stop.wait(pause.after(trouble))
        wire.close()

    def _send(self, wire: _Wire, message_id: str) -> None:
        """Push one stored reply; its folder goes once the server has all of it, or wants none of it any more."""
        stored = self._inbox.reply(message_id)
        if stored is None:
            return
        request = PushMessagesRequest()
        request.ParseFromString(stored)
        if expired(request.messages_list[0].metadata):
            log.warning(
                "a reply was ready after its instruction had expired; the server asks again"
            )
            self._inbox.drop(message_id)
            return
        node, run_id = self._node(), request.messages_list[0].metadata.run_id
        request.node.CopyFrom(node)
        objects = self._inbox.reply_objects(message_id)
        try:
            answer = wire.call(lambda client: client.PushMessages(request))
            for object_id in answer.objects_to_push:
                if object_id in objects:
                    push = PushObjectRequest(
                        node=node, run_id=run_id, object_id=object_id, session_id=answer.session_id
                    )
                    push.object_content = objects[object_id]
                    self._push_object(wire, push)
        except Trouble as trouble:
            if not trouble.run_ended:
                raise
        self._inbox.drop(message_id)

    def _push_object(self, wire: _Wire, request: PushObjectRequest) -> None:
        """One object, tried until the server's upload window (180 s) would be over."""
        pause, deadline = Pause(self.settings), time.monotonic() + 120.0
        while True:
            try:
                if wire.call(lambda client: client.PushObject(request)).stored:
                    return
                raise Trouble(states.SERVER_BUSY, "upload window closed", run_ended=False)
            except Trouble as trouble:
                closed = trouble.facts == "upload window closed"
                if closed or trouble.slow or trouble.run_ended or time.monotonic() > deadline:
                    raise
                if self._stop.wait(pause.after(trouble)):
                    raise

    # --- small --------------------------------------------------------------------------------------------------------

    def _turned(self) -> None:
        """Tell the watchdog that the loop lives."""
        if self._on_turn is not None:
            self._on_turn()

    def _next(self, line: queue.SimpleQueue[str]) -> str | None:
        """The next id in line; None when stopped."""
        while not self._stop.is_set():
            try:
                return line.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def _wait_joined(self) -> bool:
        """Wait until the server knows us; False when stopped."""
        while not self._stop.is_set():
            if self._joined.wait(0.2):
                return True
        return False

    def _note(self, trouble: Trouble) -> None:
        """Say in the log and in the health states why the server is not reached."""
        log.warning("%s %s", trouble.state.code, trouble.facts)
        self._health.set(trouble.state, trouble.facts)


def _shell(pulled: PullMessagesResponse) -> Message:
    """The pulled message without content, with its identifier: enough to reply to."""
    message = message_from_proto(pulled.messages_list[0])
    message.metadata.__dict__["_message_id"] = pulled.message_object_trees[0].object_id
    return message
