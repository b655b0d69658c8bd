"""A scripted Fleet API over TLS in this process: the other side of `client/fleet/client.py`.

`FleetServer` delivers queued instructions once, as Flower does, and is honest unless told to
misbehave. It keeps every request as bytes, and a test may replace the answer of a path. It knows
nothing of node authentication: the real SuperLink is in tests/transport.py.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from server.operator.certificates import ServerFiles

NODE_ID, RUN_ID, PIN = 77, 5, "ab" * 32
Answer = tuple[int, dict[str, str], bytes]
PROTOBUF = {"content-type": "application/protobuf"}
REQUESTS: dict[str, Any] = {
    "activate-node": fleet_pb2.ActivateNodeRequest,
    "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest,
    "pull-messages": fleet_pb2.PullMessagesRequest,
    "push-messages": fleet_pb2.PushMessagesRequest,
    "get-run": run_pb2.GetRunRequest,
    "pull-object": message_pb2.PullObjectRequest,
    "push-object": message_pb2.PushObjectRequest,
    "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest,
}


class FleetServer:
    """Serves at `url` and records what was asked.

    `calls` are the requests, `pushed` the objects by their id. `instead` holds hooks per path.
    """

    def __init__(
        self, files: ServerFiles, *, newest_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        self.calls: list[tuple[str, Any, bytes]] = []
        self.pushed: dict[str, bytes] = {}
        self.instead: dict[str, Callable[[Any], Answer | None]] = {}
        self.on_confirm: Callable[[str], None] = lambda message_id: None
        self._queue: list[fleet_pb2.PullMessagesResponse] = []
        self._objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = newest_tls
        context.load_cert_chain(files.certificate, files.key)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self) -> list[str]:
        """The paths asked, in order."""
        return [name for name, _, _ in self.calls]

    def replies(self) -> list[Any]:
        """The shells of the replies pushed."""
        return [
            request.messages_list[0] for name, request, _ in self.calls if name == "push-messages"
        ]

    def queue(
        self, message: Message, *, tamper: Callable[[dict[str, bytes]], None] | None = None
    ) -> tuple[str, dict[str, bytes]]:
        """Deliver an instruction at the next pull and return its id and objects.

        `tamper` may change its objects.
        """
        with no_object_id_recompute():
            nested = get_all_nested_objects(message)
            objects = {object_id: one.deflate() for object_id, one in nested.items()}
            tree = get_object_tree(message)
        if tamper is not None:
            tamper(objects)
        self._objects |= objects
        shell = message_to_proto(remove_content_from_message(message))
        shell.metadata.message_id = tree.object_id
        self._queue.append(
            fleet_pb2.PullMessagesResponse(messages_list=[shell], message_object_trees=[tree])
        )
        return tree.object_id, objects

    def answer(self, name: str, request: Any) -> bytes:
        """What an honest server says."""
        known = {
            "activate-node": lambda: fleet_pb2.ActivateNodeResponse(node_id=NODE_ID),
            "send-node-heartbeat": lambda: heartbeat_pb2.SendNodeHeartbeatResponse(success=True),
            "pull-messages": lambda: (
                self._queue.pop(0) if self._queue else fleet_pb2.PullMessagesResponse()
            ),
            "get-run": lambda: run_pb2.GetRunResponse(run=run_pb2.Run(run_id=RUN_ID, fab_hash=PIN)),
            "pull-object": lambda: self._pull(request.object_id),
            "push-object": lambda: self._push(request),
            "push-messages": lambda: self._wanted(request),
            "confirm-message-received": lambda: self._confirmed(request.message_object_id),
        }
        answer: bytes = known[name]().SerializeToString()
        return answer

    def _pull(self, object_id: str) -> Any:
        return message_pb2.PullObjectResponse(
            object_found=True, object_available=True, object_content=self._objects[object_id]
        )

    def _push(self, request: Any) -> Any:
        self.pushed[request.object_id] = request.object_content
        return message_pb2.PushObjectResponse(stored=True)

    def _wanted(self, request: Any) -> Any:
        def ids(tree: Any) -> list[str]:
            return [tree.object_id, *(one for child in tree.children for one in ids(child))]

        missing = [one for one in ids(request.message_object_trees[0]) if one not in self.pushed]
        return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="s")

    def _confirmed(self, message_id: str) -> Any:
        self.on_confirm(message_id)
        return message_pb2.ConfirmMessageReceivedResponse()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                name = self.path.rsplit("/", 1)[-1]
                request = REQUESTS[name].FromString(data) if name in REQUESTS else None
                fleet.calls.append((name, request, data))
                hook = fleet.instead.get(name)
                status, headers, body = (hook(request) if hook else None) or (
                    200,
                    PROTOBUF,
                    fleet.answer(name, request),
                )
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                if "transfer-encoding" not in headers:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if "transfer-encoding" in headers:
                    self._pour()

            def _pour(self) -> None:
                """An answer without an end."""
                block = b"10000\r\n" + bytes(0x10000) + b"\r\n"
                try:
                    while True:
                        self.wfile.write(block)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def instruction(
    payload: np.ndarray[Any, Any] | None = None,
    *,
    kind: str = "query",
    ttl: float = 60.0,
    node_id: int = NODE_ID,
    header: bytes = b"h",
    signature: bytes = b"s",
) -> Message:
    """An instruction as a ServerApp would send it."""
    array = np.arange(10, dtype=np.uint8) if payload is None else payload
    head = ConfigRecord({"header": header, "signature": signature})
    content = RecordDict({"sealed": head, "payload": ArrayRecord({"payload": Array(array)})})
    metadata = Metadata(
        run_id=RUN_ID,
        message_id="",
        src_node_id=1,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=ttl,
        message_type=kind,
    )
    return make_message(metadata, content)
