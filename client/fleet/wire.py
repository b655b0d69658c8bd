"""Flower's Fleet API: the only module of the site that imports Flower's private modules.

In: settings, and requests as plain values.
Out: Flower's answers, or a `CallFailed` that says why there is none.
Guarantees: no code is fetched (GetFab is never called); a reply reports no run time; no message
of the server ends this process.
Not covered: whether a message is acceptable (messages.py); TLS and limits (connection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import flwr
import httpx
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
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
from client.fleet.connection import CappedClient, FleetSettings, read_node_key, tls_context
from client.fleet.failures import CallFailed, classify
from client.fleet.inbox import MESSAGE_ID
from client.fleet.own_certificate import check_own_certificate
from common.errors import EnvironmentFault, RefusedError, damage_named

FLWR_VERSION = "1.41.0"
# The server counts a node as offline after twice this interval.
HEARTBEAT_INTERVAL_S = 30.0
SHELL_CAP_BYTES = 1 << 20
T = TypeVar("T")


def check_flower_version() -> None:
    """Raise EnvironmentFault unless the installed flwr is the release this module is for."""
    if flwr.__version__ != FLWR_VERSION:
        raise EnvironmentFault(
            f"flwr {flwr.__version__} is installed, expected {FLWR_VERSION}",
            hint="run `make setup`",
        )


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PulledMessage:
    """One message as the server announced it: metadata and the tree of its objects, no content."""

    response: PullMessagesResponse

    @classmethod
    def parse(cls, data: bytes) -> PulledMessage:
        """Return the message that `to_bytes` wrote; raises RefusedError for anything else."""
        response = PullMessagesResponse()
        with damage_named(_damage()):
            response.ParseFromString(data)
        return cls.of(response)

    @classmethod
    def of(cls, response: PullMessagesResponse) -> PulledMessage:
        """Return the one message of an answer; raises RefusedError unless it can be replied to."""
        if len(response.messages_list) != 1 or len(response.message_object_trees) != 1:
            raise _damage()
        pulled = cls(response)
        if not MESSAGE_ID.fullmatch(pulled.message_id):
            raise _damage()
        pulled.shell()
        return pulled

    def to_bytes(self) -> bytes:
        """Return the message for the inbox."""
        return bytes(self.response.SerializeToString())

    @property
    def message_id(self) -> str:
        """The identifier of the message: the hash at the root of its tree."""
        return str(self.response.message_object_trees[0].object_id)

    @property
    def metadata(self) -> Any:
        """Flower's metadata: run, receiver, time of creation, time to live."""
        return self.response.messages_list[0].metadata

    def object_ids(self) -> Iterator[str]:
        """Yield the identifiers in the tree; raises RecursionError if it is nested too deeply."""
        for node in iterate_object_tree(self.response.message_object_trees[0]):
            yield node.object_id

    def shell(self) -> Message:
        """Return the message without content, with its identifier: enough to reply to.

        Raises RefusedError for a message that Flower itself would not make.
        """
        with damage_named(_damage()):
            message = message_from_proto(self.response.messages_list[0])
        set_message_id(message, self.message_id)
        return message


@dataclass(frozen=True)
class Reply:
    """A reply as it is pushed: the request without a node. Its bytes never change."""

    request: PushMessagesRequest

    @classmethod
    def parse(cls, data: bytes) -> Reply:
        """Return the reply that `to_bytes` wrote; raises RefusedError for anything else."""
        request = PushMessagesRequest()
        with damage_named(_damage()):
            request.ParseFromString(data)
        if len(request.messages_list) != 1:
            raise _damage()
        return cls(request)

    def to_bytes(self) -> bytes:
        """Return the reply for the inbox."""
        return bytes(self.request.SerializeToString())

    @property
    def metadata(self) -> Any:
        """Flower's metadata: run, time of creation, time to live."""
        return self.request.messages_list[0].metadata


def _damage() -> RefusedError:
    """The refusal of a message that cannot be read."""
    return RefusedError("message: not one message of Flower's", code="E-MESSAGE-CORRUPT")


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its identifier; Flower offers no setter."""
    message.metadata.__dict__["_message_id"] = message_id


def deflate(message: Message) -> tuple[Reply, dict[str, bytes]]:
    """Return what is pushed for a reply, and the content of every object by identifier."""
    # A reply that is built anew has another identifier: compute it once.
    with no_object_id_recompute():
        set_message_id(message, message.object_id)
        objects = {
            object_id: nested.deflate()
            for object_id, nested in get_all_nested_objects(message).items()
        }
        tree = get_object_tree(message)
    shell = message
    if message.has_content():
        shell = remove_content_from_message(message)
    request = PushMessagesRequest(
        messages_list=[message_to_proto(shell)],
        message_object_trees=[tree],
        # Flower's own node reports here how long the work took, which tells about the data.
        clientapp_runtime_list=[0.0],
    )
    return Reply(request), objects


def inflate_object(object_id: str, objects: dict[str, bytes]) -> object:
    """Return the Flower object with this identifier, built from the contents of all its objects."""
    return inflate_object_from_contents(object_id, objects)


def check_object_form(content: bytes) -> None:
    """Raise unless the content is a well-formed Flower object."""
    validate_object_content(content)


def split_object(content: bytes) -> tuple[str, list[str], bytes]:
    """Return an object's kind, the identifiers of its children, and its body."""
    kind, children, length = get_object_head_values_from_object_content(content)
    return kind, children, content[len(content) - length :]


# --- calls ------------------------------------------------------------------------------------


class _VersionHeaders:
    """Add Flower's version headers. Flower's own interceptor lets the server end this process."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the headers; ignore what comes back."""
        context.request.headers.update(self._headers)
        return call_next(context)


class Wire:
    """One connection: opened on first use from the files on disk, closed after any failure.

    Every method is one request and raises CallFailed. A new `generation` opens it anew.
    """

    def __init__(self, settings: FleetSettings, generation: Callable[[], int] = lambda: 0) -> None:
        self._settings = settings
        self._generation = generation
        self._opened = 0
        self._client: FleetHttpClient | None = None
        self._public_key = b""

    def activate(self) -> int:
        """Register this site's key as online; return the node id that the server gave it."""
        self._call(lambda client: None)  # opens the connection, which reads the key
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_INTERVAL_S
        )
        return int(self._call(lambda client: client.ActivateNode(request)).node_id)

    def send_heartbeat(self, node_id: int) -> bool:
        """Return whether the server accepted a heartbeat."""
        request = SendNodeHeartbeatRequest(
            node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_INTERVAL_S
        )
        return bool(self._call(lambda client: client.SendNodeHeartbeat(request)).success)

    def pull_message(self, node_id: int) -> PulledMessage | None:
        """Return the next message, or None if none waits."""
        request = PullMessagesRequest(node=Node(node_id=node_id))
        response = self._call(lambda client: client.PullMessages(request))
        if not response.messages_list:
            return None
        # a reply repeats some of it
        if response.ByteSize() > SHELL_CAP_BYTES:
            raise CallFailed(states.ANSWER_TOO_LARGE, "a message without content")
        try:
            return PulledMessage.of(response)
        except RefusedError as error:
            raise CallFailed(states.NOT_THE_SERVER, "message") from error

    def app_hash(self, node_id: int, run_id: int) -> str:
        """Return the hash of the app that a run was started with."""
        request = GetRunRequest(node=Node(node_id=node_id), run_id=run_id)
        return str(self._call(lambda client: client.GetRun(request)).run.fab_hash)

    def pull_object(self, node_id: int, run_id: int, object_id: str) -> PullObjectResponse:
        """Return the answer about one object: whether found, whether available, its content."""
        request = PullObjectRequest(node=Node(node_id=node_id), run_id=run_id, object_id=object_id)
        return self._call(lambda client: client.PullObject(request))

    def confirm(self, node_id: int, run_id: int, message_id: str) -> None:
        """Tell the server that the message has arrived."""
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=node_id), run_id=run_id, message_object_id=message_id
        )
        self._call(lambda client: client.ConfirmMessageReceived(request))

    def push_reply(self, node_id: int, reply: Reply) -> PushMessagesResponse:
        """Push a reply without its objects; the answer names the objects that the server lacks."""
        request = PushMessagesRequest()
        request.CopyFrom(reply.request)
        request.node.CopyFrom(Node(node_id=node_id))
        return self._call(lambda client: client.PushMessages(request))

    def push_object(
        self, node_id: int, run_id: int, object_id: str, session_id: str, content: bytes
    ) -> bool:
        """Push one object of a reply; return whether the server stored it."""
        request = PushObjectRequest(
            node=Node(node_id=node_id), run_id=run_id, object_id=object_id, session_id=session_id
        )
        request.object_content = content
        return bool(self._call(lambda client: client.PushObject(request)).stored)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _call(self, ask: Callable[[FleetHttpClient], T]) -> T:
        """Return the answer to one request; raises CallFailed."""
        try:
            if self._opened != self._generation():
                self.close()
            if self._client is None:
                self._opened = self._generation()
                self._client = self._open()
            return ask(self._client)
        except Exception as error:
            self.close()
            raise classify(error, proxied=self._settings.proxy is not None) from error

    def _open(self) -> FleetHttpClient:
        """Return Flower's client with its HTTP client replaced by ours."""
        settings = self._settings
        context = tls_context(settings)
        check_own_certificate(settings)
        key = read_node_key(settings.node_key_file)
        self._public_key = public_key_to_bytes(key.public_key())
        client = FleetHttpClient(
            settings.url,
            verify=context,
            interceptors=[_VersionHeaders(), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        # Flower offers no other way to set limits on answers.
        client._client.close()
        client._client = CappedClient(context, settings.proxy, settings.timeout_s)
        return client
