"""Flower's server as our processes meet it: the only server file with Flower's private modules.

In: the folder of the unix sockets, plain values. Out: Flower's answers, its grid, its web app.
Guarantees: every client talks to a unix socket, follows no redirect and reads no environment.
Not covered: what is asked (calls.py, executor.py), and the numbers of a study (server/rounds).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto import control_pb2, fab_pb2, fleet_pb2, message_pb2, runtime_pb2
from flwr.serverapp import Grid
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClient, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from server.flower.pulls import REPLY_CAP_BYTES, BoundedPulls, News
from server.front.sockets import OPERATOR, SocketFolder
from server.rounds.faults import Oversized

__all__ = [
    "TASK_TYPES",
    "ControlHttpClient",
    "DecodeError",
    "RuntimeHttpClient",
    "control_client",
    "control_pb2",
    "executor_client",
    "fab_pb2",
    "fleet_pb2",
    "forget_finished_runs",
    "grid_of",
    "runtime_pb2",
    "superlink_app",
    "task_client",
    "without_control",
]

BASE_URL = "http://superlink"  # a name for the header Host; nothing looks it up
TIMEOUT_S = 30.0
TASK_TYPES = ("flwr-serverapp",)  # no other kind of task is ever asked for
CONTROL_LAYERS = "flwr.superlink.routers.control.middlewares"
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class _Version:
    """Flower's three version headers; unlike Flower's own class it never ends the process."""

    def __init__(self, component: str) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component(component).as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the headers."""
        context.request.headers.update(self._headers)
        return call_next(context)


def _over_socket(client: ProtobufClient, sockets: SocketFolder) -> None:
    """Let a client of Flower's talk to the operator's socket."""
    client._client.close()
    transport = httpx.HTTPTransport(uds=sockets.path(OPERATOR))
    client._client = httpx.Client(
        transport=transport, timeout=TIMEOUT_S, trust_env=False, follow_redirects=False
    )


def control_client(sockets: SocketFolder) -> ControlHttpClient:
    """Return a client of the Control API: sites and runs."""
    client = ControlHttpClient(BASE_URL, interceptors=[_Version("flwr")])
    _over_socket(client, sockets)
    return client


def executor_client(sockets: SocketFolder, secret: bytes) -> RuntimeHttpClient:
    """Return a client that takes tasks with the executor's secret."""
    auth = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])
    client = RuntimeHttpClient(BASE_URL, interceptors=[_Version("flower-superexec"), auth])
    _over_socket(client, sockets)
    return client


def task_client(sockets: SocketFolder, token: str) -> RuntimeHttpClient:
    """Return a client that speaks for one task."""
    token_header = RuntimeTokenHttpInterceptor(token=token)
    client = RuntimeHttpClient(BASE_URL, interceptors=[_Version("flwr-serverapp"), token_header])
    _over_socket(client, sockets)
    return client


def grid_of(
    sockets: SocketFolder, token: str, answer: runtime_pb2.PullTaskInputResponse
) -> tuple[Grid, Context]:
    """Return the grid and the context of a task; the context has no settings of the network.

    Flower's grid sends SIGINT to its own process on a refused token: for a child alone.
    """
    from flwr.superlink.grid import HttpGrid

    class SocketGrid(HttpGrid):
        """Flower's grid on the operator's socket, with a bound on what one reply holds."""

        reply_cap_bytes = REPLY_CAP_BYTES
        _pulling = threading.local()
        _news = News(runtime_pb2.PullAppMessagesResponse)

        def _connect(self) -> None:
            super()._connect()
            assert self._client is not None
            _over_socket(self._client, sockets)

        @property
        def _runtime_client(self) -> Any:
            """The client; while this thread pulls, the one that counts."""
            return getattr(self._pulling, "pulls", None) or super()._runtime_client

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            """Pull replies one by one; raises Oversized for one that no site may send."""
            found: list[Message] = []
            for message_id in message_ids:
                pulls = BoundedPulls(super()._runtime_client, self._news, self.reply_cap_bytes)
                self._pulling.pulls = pulls
                try:
                    found += super().pull_messages([message_id])
                except Oversized:
                    for name in pulls.message_ids:
                        self._forget(pulls, name)
                    raise
                finally:
                    self._pulling.pulls = None
            return found

        def _forget(self, pulls: BoundedPulls, message_id: str) -> None:
            """Let the SuperLink delete the objects of a reply."""
            pulls.ConfirmMessageReceived(
                message_pb2.ConfirmMessageReceivedRequest(
                    node=self.node, run_id=self.run.run_id, message_object_id=message_id
                )
            )

    context = context_from_proto(answer.context)
    context.run_config = {}
    TaskIdentity.task_id = answer.task_id
    TaskIdentity.run_id = answer.run.run_id
    TaskIdentity.node_id = context.node_id
    grid = SocketGrid(BASE_URL.removeprefix("http://"), insecure=True, token=token)
    grid.set_run(run_from_proto(answer.run))
    # connected before any thread shares it: Flower would connect at the first call
    grid._connect()
    return grid, context


def create_database(database: str) -> None:
    """Make a SuperLink's database with all its tables, and close it."""
    from flwr.superlink.config_loader import (
        get_federation_manager,
        get_objectstore_linkstate_factories,
    )

    _, factory = get_objectstore_linkstate_factories(database, get_federation_manager())
    state = factory.state()
    for part in (state, state.object_store):
        engine = getattr(part, "_engine", None)
        if engine is not None:
            engine.dispose()


def forget_finished_runs(database: str) -> None:
    """Delete the messages and objects of every run that has ended; for a SuperLink at rest."""
    from flwr.superlink.config_loader import (
        get_federation_manager,
        get_objectstore_linkstate_factories,
    )

    _, factory = get_objectstore_linkstate_factories(database, get_federation_manager())
    state = factory.state()
    for run in state.get_run_info(statuses=["finished"]):
        state.cleanup_run(run.run_id)


def without_control(app: Any) -> Any:
    """Return the same application without the layers that act on calls of Control alone.

    Every layer costs as much as the call itself; these four pass any other call on unchanged.
    """
    from copy import copy

    lean = copy(app)
    lean.middleware_stack = None
    lean.user_middleware = [
        layer for layer in app.user_middleware if layer.cls.__module__ != CONTROL_LAYERS
    ]
    return lean


def superlink_app(database: str, secret: bytes) -> Any:
    """Return Flower's web application: node authentication, a database, our executor's secret."""
    from importlib import import_module

    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    # the package shadows the module's name
    program = import_module("flwr.superlink.cli.flower_superlink")
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="",
        port=0,
        insecure=False,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=database,
        isolation="process",
        runtime_dependency_install=False,
    )
    return create_app(config, program.SuperLinkLifespan)
