"""The site's Fleet client against a scripted server: what it does in which order, and every way a server can misbehave."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

import client.fleet.client as fleet
import client.fleet.connection as connection
from client.fleet import health as states
from client.fleet.client import FleetClient, FleetSettings, create_node_key, deflate, expanded_bytes
from client.fleet.connection import classify
from client.fleet.health import Health
from common.errors import ConfigurationError, EnvironmentFault, PolicyError
from server.operator.certificates import (
    ServerFiles,
    create_authority,
    issue_server_certificate,
    load_authority,
)
from tests.fleet_server import NODE_ID, PIN, PROTOBUF, RUN_ID, Answer, FleetServer, instruction
from tests.transport import until

MARKER = "PATIENT-MUELLER"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    folder = tmp_path_factory.mktemp("tls")
    return issue_server_certificate(create_authority(folder / "ca"), folder / "server")


@pytest.fixture
def server(files: ServerFiles) -> Iterator[FleetServer]:
    fake = FleetServer(files)
    yield fake
    fake.close()


class Running:
    """A client in a thread, with what its handler saw."""

    def __init__(
        self, server: FleetServer, files: ServerFiles, folder: Path, handle: Any = None, **more: Any
    ) -> None:
        self.folder, self.seen, self.health = folder, [], Health()
        if not (folder / "node.key").exists():
            create_node_key(folder / "node.key", folder / "node.pub", "site")
        fast: dict[str, Any] = {
            "poll_s": 0.02,
            "retry_first_s": 0.05,
            "retry_cap_s": 0.1,
            "refused_retry_s": 0.2,
        }
        self.settings = FleetSettings(
            **{
                "url": server.url,
                "ca_file": files.ca,
                "node_key_file": folder / "node.key",
                "state_dir": folder / "fleet",
            }
            | fast
            | more
        )
        self._handle = handle or self.echo
        self.pins = {PIN}
        self.stop = threading.Event()
        self.client = FleetClient(self.settings, lambda: self.pins, self._watched, self.health)
        self.thread = threading.Thread(target=self.client.run, args=(self.stop,), daemon=True)
        self.thread.start()

    @staticmethod
    def echo(message: Message, context: Context) -> Message:
        """The payload, backwards."""
        array = next(iter(message.content.array_records["payload"].values())).numpy()
        return Message(RecordDict({"payload": ArrayRecord([array[::-1].copy()])}), reply_to=message)

    def _watched(self, message: Message, context: Context) -> Message | None:
        self.seen.append((message, context))
        reply: Message | None = self._handle(message, context)
        return reply

    def end(self) -> None:
        self.stop.set()
        self.thread.join(15)
        assert not self.thread.is_alive()

    def code(self, subject: str = "connection") -> str:
        active = self.health.get(subject)
        return active.state.code if active else ""

    def waiting(self) -> list[Path]:
        return sorted((self.folder / "fleet" / "inbox").glob("*"))


@pytest.fixture
def site(server: FleetServer, files: ServerFiles, tmp_path: Path) -> Iterator[Running]:
    running = Running(server, files, tmp_path)
    yield running
    running.end()


def error_of(server: FleetServer) -> tuple[int, str]:
    """The first reply must be an error: its code and reason."""
    reply = until(lambda: server.replies())[0]
    assert reply.HasField("error")
    return reply.error.code, reply.error.reason


# --- the order of one message ----------------------------------------------------------------------------------------


def test_a_message_is_answered_and_its_steps_come_in_order(
    server: FleetServer, site: Running
) -> None:
    on_disk: list[bool] = []
    server.on_confirm = lambda message_id: on_disk.append(
        (site.folder / "fleet/inbox" / message_id / "objects").exists()
    )
    message_id, objects = server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    names = [
        name for name in server.names() if name not in ("pull-messages", "send-node-heartbeat")
    ]
    # the reply may overtake the confirmation: they travel on two connections
    assert names[:2] == ["activate-node", "get-run"]
    assert names[2 : 2 + len(objects)] == ["pull-object"] * len(objects)
    assert "push-messages" in names
    assert on_disk == [True]
    assert not {"get-fab", "register-node", "unregister-node"} & set(names)
    message, context = site.seen[0]
    assert message.metadata.message_id == message_id
    assert (context.run_config, context.node_config, dict(context.state)) == ({}, {}, {})
    assert server.replies()[0].metadata.reply_to_message_id == message_id


def test_the_run_time_on_the_wire_is_zero(server: FleetServer, site: Running) -> None:
    server.queue(instruction())
    until(lambda: server.pushed)
    pushed = [request for name, request, _ in server.calls if name == "push-messages"]
    assert list(pushed[0].clientapp_runtime_list) == [0.0]


def test_an_unpinned_app_is_refused_and_nothing_of_it_is_pulled(
    server: FleetServer, site: Running
) -> None:
    site.pins.clear()
    server.queue(instruction())
    assert error_of(server) == (7, "E-APP-UNPINNED")
    assert "pull-object" not in server.names()
    assert site.seen == []
    assert site.code("message") == "APP-UNPINNED"


@pytest.mark.parametrize("which", ["payload bytes", "message bytes", "another valid object"])
def test_content_that_does_not_hash_to_its_identifier_is_refused(
    which: str, server: FleetServer, site: Running
) -> None:
    def tamper(objects: dict[str, bytes]) -> None:
        ids = list(objects)
        if which == "another valid object":
            objects[ids[0]] = objects[ids[1]]
        else:
            index = ids[0] if which == "payload bytes" else ids[-1]
            objects[index] = objects[index][:-1] + bytes([objects[index][-1] ^ 1])

    server.queue(instruction(), tamper=tamper)
    assert error_of(server) == (2, "E-MESSAGE-CORRUPT")
    assert site.seen == []


def test_too_many_objects_are_refused_before_any_is_pulled(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, max_objects=3)
    server.queue(instruction())
    assert error_of(server) == (2, "E-MESSAGE-TOO-LARGE")
    assert "pull-object" not in server.names()
    site.end()


def test_too_many_bytes_are_refused_while_they_come(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, max_message_bytes=100_000)
    _, objects = server.queue(instruction(np.zeros(200_000, np.uint8)))
    assert error_of(server) == (2, "E-MESSAGE-TOO-LARGE")
    assert server.names().count("pull-object") < len(objects)
    assert site.seen == []
    site.end()


def test_an_array_that_names_one_chunk_many_times_counts_each_time() -> None:
    message = instruction(np.zeros(1000, np.uint8))
    objects = {
        object_id: one.deflate() for object_id, one in get_all_nested_objects(message).items()
    }
    honest = expanded_bytes(objects)
    array_id = next(
        object_id for object_id, content in objects.items() if content.startswith(b"Array ")
    )
    objects[array_id] = objects[array_id].replace(
        b'"arraychunk_ids": [0]', b'"arraychunk_ids": [0, 0, 0, 0]'
    )
    head, body = objects[array_id].split(b"\x00", 1)
    objects[array_id] = b" ".join([*head.split(b" ")[:2], str(len(body)).encode()]) + b"\x00" + body
    assert expanded_bytes(objects) == 4 * honest
    pulled = PullMessagesResponse(
        messages_list=[message_to_proto(message)], message_object_trees=[get_object_tree(message)]
    )
    with pytest.raises(fleet._Refused) as refused:
        fleet.inflate(pulled, objects, NODE_ID, 2 * honest)
    assert refused.value.state is states.MESSAGE_TOO_LARGE


def test_a_message_for_another_node_is_refused(server: FleetServer, site: Running) -> None:
    server.queue(instruction(node_id=NODE_ID + 1))
    assert error_of(server) == (2, "E-MESSAGE-CORRUPT")
    assert site.seen == []


# --- what leaves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RuntimeError(MARKER), "E-BUG"),
        (PolicyError(MARKER, hint=MARKER, code="E-CAP"), "E-CAP"),
        (PolicyError(MARKER, code=f"E-{MARKER} {MARKER}"), "E-BUG"),
    ],
)
def test_an_exception_crosses_the_line_as_a_code_alone(
    raised: Exception,
    code: str,
    server: FleetServer,
    files: ServerFiles,
    tmp_path: Path,
    caplog: Any,
) -> None:
    def handle(message: Message, context: Context) -> Message:
        raise raised

    with caplog.at_level(logging.DEBUG, "client"):
        site = Running(server, files, tmp_path, handle)
        server.queue(instruction())
        assert error_of(server) == (2, code)
        until(lambda: not site.waiting())
        site.end()
    assert not any(MARKER.encode() in data for _, _, data in server.calls)
    assert MARKER not in caplog.text


def test_a_stored_reply_is_sent_again_with_the_same_bytes(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction())
    until(lambda: server.names().count("push-messages") >= 2)
    site.end()
    assert len(site.waiting()) == 1
    server.instead.clear()
    again = Running(server, files, tmp_path)
    until(lambda: server.pushed and not again.waiting())
    again.end()
    pushes = {data for name, _, data in server.calls if name == "push-messages"}
    assert len(pushes) == 1
    assert again.seen == []
    assert all(
        hashlib.sha256(content).hexdigest() == object_id
        for object_id, content in server.pushed.items()
    )


def test_one_failed_object_is_tried_again_and_not_the_whole_reply(
    server: FleetServer, site: Running
) -> None:
    failures = iter([(502, {}, b""), (502, {}, b"")])
    server.instead["push-object"] = lambda request: next(failures, None)
    server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    assert server.names().count("push-messages") == 1
    assert set(server.pushed) == {object_id for object_id in server.pushed if len(object_id) == 64}


def test_deflating_is_done_once_because_a_rebuilt_reply_has_another_identifier() -> None:
    message = instruction()
    message.metadata.__dict__["_message_id"] = message.object_id
    first, _ = deflate(Running.echo(message, None))  # type: ignore[arg-type]
    time.sleep(0.01)
    second, _ = deflate(Running.echo(message, None))  # type: ignore[arg-type]
    assert first.message_object_trees[0].object_id != second.message_object_trees[0].object_id


def test_a_run_that_ended_drops_the_message(server: FleetServer, site: Running) -> None:
    server.instead["push-messages"] = lambda request: (403, {}, b'{"code": 2007, "detail": "x"}')
    server.queue(instruction())
    until(lambda: "push-messages" in server.names() and not site.waiting())
    assert server.pushed == {}


def test_an_expired_message_is_not_handled(server: FleetServer, site: Running) -> None:
    server.queue(instruction(ttl=-1.0))
    until(lambda: "confirm-message-received" in server.names() and not site.waiting())
    assert site.seen == []


# --- work that takes long --------------------------------------------------------------------------------------------


def test_pulling_and_heartbeats_go_on_while_a_handler_works(
    server: FleetServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "HEARTBEAT_S", 0.05)
    release, running = threading.Event(), []

    def handle(message: Message, context: Context) -> Message:
        running.append(message)
        assert len(running) == 1  # handlers are never concurrent
        release.wait(20)
        running.pop()
        return Running.echo(message, context)

    site = Running(server, files, tmp_path, handle)
    first, _ = server.queue(instruction())
    until(lambda: running)
    second, _ = server.queue(instruction(np.ones(5, np.uint8)))
    before = len(server.calls)
    until(lambda: server.names()[before:].count("confirm-message-received") == 1)
    until(lambda: server.names()[before:].count("send-node-heartbeat") >= 3)
    assert server.replies() == []
    release.set()
    until(lambda: len(server.replies()) == 2)
    assert [reply.metadata.reply_to_message_id for reply in server.replies()] == [first, second]
    site.end()


def test_work_interrupted_by_stop_is_done_at_the_next_start(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    started = threading.Event()

    def interrupted(message: Message, context: Context) -> Message:
        started.set()
        site.stop.wait(20)
        raise RuntimeError("stopped")

    site = Running(server, files, tmp_path, interrupted)
    message_id, _ = server.queue(instruction())
    assert started.wait(20)
    site.end()
    assert server.replies() == []
    again = Running(server, files, tmp_path)
    until(lambda: server.replies())
    assert server.replies()[0].metadata.reply_to_message_id == message_id
    assert not server.replies()[0].HasField("error")
    again.end()


def test_no_reply_now_drops_the_message(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, lambda message, context: None)
    server.queue(instruction())
    until(lambda: site.seen and not site.waiting())
    assert server.replies() == []
    site.end()


# --- joining ---------------------------------------------------------------------------------------------------------


def test_a_restart_begins_with_a_heartbeat_for_the_remembered_node_id(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    first = Running(server, files, tmp_path)
    until(lambda: first.code() == "CONNECTED")
    first.end()
    server.calls.clear()
    second = Running(server, files, tmp_path)
    until(lambda: second.code() == "CONNECTED")
    assert second.client.node_id == NODE_ID
    second.end()
    assert server.names()[0] == "send-node-heartbeat"
    assert "activate-node" not in server.names()


def test_a_node_id_that_the_server_does_not_know_is_replaced(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "node-id").write_text("12\n")
    server.instead["send-node-heartbeat"] = lambda request: (
        (401, {}, b"") if request.node.node_id == 12 else None
    )
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    site.end()
    assert (tmp_path / "fleet" / "node-id").read_text() == f"{NODE_ID}\n"


def test_a_second_client_on_the_same_folder_is_refused(server: FleetServer, site: Running) -> None:
    until(lambda: site.code() == "CONNECTED")
    other = FleetClient(site.settings, set, Running.echo, Health())
    with pytest.raises(EnvironmentFault) as refused:
        other.run(threading.Event())
    assert refused.value.code == "E-LOCKED"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "127.0.0.1:1", "https://host/path", "https://"]
)
def test_an_address_without_tls_or_with_a_path_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        FleetClient(FleetSettings(url, tmp_path, tmp_path, tmp_path), set, Running.echo, Health())


# --- a hostile or broken server --------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["another authority", "expired", "TLS 1.2"])
def test_a_server_that_cannot_prove_itself_gets_no_request(
    why: str, files: ServerFiles, tmp_path: Path
) -> None:
    authority = (
        create_authority(tmp_path / "ca")
        if why == "another authority"
        else load_authority(files.ca.parents[1] / "ca")
    )
    shown = issue_server_certificate(
        authority, tmp_path / "shown", days=-1 if why == "expired" else 1
    )
    newest = ssl.TLSVersion.TLSv1_2 if why == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
    impostor = FleetServer(shown, newest_tls=newest)
    site = Running(impostor, files, tmp_path)
    code = {
        "another authority": "SERVER-CA-UNKNOWN",
        "expired": "SERVER-CERTIFICATE-EXPIRED",
        "TLS 1.2": "TLS-FAILED",
    }[why]
    until(lambda: site.code() == code)
    site.end()
    impostor.close()
    assert impostor.calls == []


def test_a_redirect_is_not_followed(server: FleetServer, site: Running, files: ServerFiles) -> None:
    until(lambda: site.code() == "CONNECTED")
    elsewhere = FleetServer(files)
    for status in (301, 307, 308):
        location = {"location": f"{elsewhere.url}/v1/fleet/pull-messages"}
        server.instead["pull-messages"] = lambda request, status=status, location=location: (
            status,
            location,
            b"",
        )
        until(lambda: site.code() == "REDIRECTED")
        server.instead.clear()
        until(lambda: site.code() == "CONNECTED")
    assert elsewhere.calls == []
    elsewhere.close()


def test_an_endless_answer_is_cut(
    server: FleetServer, site: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_CAP_BYTES", 1 << 20)
    server.instead["pull-messages"] = lambda request: (
        200,
        {**PROTOBUF, "transfer-encoding": "chunked"},
        b"",
    )
    until(lambda: site.code() == "ANSWER-TOO-LARGE")
    server.instead.clear()
    until(lambda: site.code() == "CONNECTED")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, {"content-type": "text/html"}, b"<html>log in</html>"), "NOT-THE-SERVER"),
        ((200, {"content-type": "text/html"}, b""), "NOT-THE-SERVER"),
        ((200, PROTOBUF, b"\xff\xff\xff"), "NOT-THE-SERVER"),
        ((200, {**PROTOBUF, "content-encoding": "gzip"}, b"\x1f\x8b"), "NOT-THE-SERVER"),
        ((404, {}, b""), "NOT-THE-SERVER"),
        ((503, {}, b""), "SERVER-BUSY"),
        ((429, {}, b""), "SERVER-BUSY"),
        ((403, {}, b""), "FORBIDDEN"),
        ((400, {}, b"No required SSL certificate was sent"), "CLIENT-CERTIFICATE-REFUSED"),
        (
            (412, {}, b'{"code": 1001, "detail": "RUNTIME_VERSION_INCOMPATIBLE update now"}'),
            "NOT-THE-SERVER",
        ),
        ((200, PROTOBUF, b"\x12\x00\x12\x00\x1a\x00\x1a\x00"), "NOT-THE-SERVER"),
    ],
)
def test_no_answer_ends_the_loop(
    answer: Answer, code: str, server: FleetServer, site: Running
) -> None:
    server.instead["pull-messages"] = lambda request: answer
    until(lambda: site.code() == code)
    server.instead.clear()
    until(lambda: site.code() == "CONNECTED")


def test_no_error_of_our_own_ends_the_loop(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    asked: list[int] = []

    def broken() -> set[str]:
        asked.append(1)
        raise OSError("the store of plans")

    site.client._pins = broken
    server.queue(instruction())
    until(lambda: asked)
    site.client._pins = lambda: {PIN}
    server.queue(instruction())
    until(lambda: server.replies())
    assert site.thread.is_alive()
    site.end()


def test_a_version_message_of_the_server_does_not_end_this_process(
    server: FleetServer, site: Running
) -> None:
    from flwr.supercore.constant import VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY as KEY
    from flwr.supercore.error import ApiErrorCode

    body = f'{{"code": {int(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE)}, "detail": "no", "extra": "exit now"}}'.encode()
    server.instead["pull-messages"] = lambda request: (412, {KEY: "exit now"}, body)
    until(lambda: site.code() == "NOT-THE-SERVER")
    assert site.thread.is_alive()


def test_the_proxy_of_the_environment_is_not_used(
    server: FleetServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    site.end()


def test_a_configured_proxy_is_used(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, proxy="http://127.0.0.1:9")
    until(lambda: site.code() in ("NOTHING-LISTENS", "PROXY-REFUSED"))
    site.end()
    assert server.calls == []


def request_error(
    status: int, body: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://x")
    return httpx.HTTPStatusError(
        "", request=request, response=httpx.Response(status, content=body, headers=headers)
    )


def verification(code: int) -> httpx.ConnectError:
    cause = ssl.SSLCertVerificationError(1, "verify failed")
    cause.verify_code = code
    error = httpx.ConnectError("tls")
    error.__cause__ = cause
    return error


def named(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TABLE = [
    (verification(10), states.SERVER_CERTIFICATE_EXPIRED, False),
    (verification(20), states.SERVER_CA_UNKNOWN, False),
    (verification(18), states.SERVER_CA_UNKNOWN, False),
    (verification(62), states.SERVER_NAME_WRONG, False),
    (verification(64), states.SERVER_NAME_WRONG, False),
    (
        named(httpx.ReadError("x"), ssl.SSLError(1, "TLSV13_ALERT_CERTIFICATE_REQUIRED")),
        states.CLIENT_CERTIFICATE_REFUSED,
        True,
    ),
    (
        named(httpx.ConnectError("x"), ssl.SSLError(1, "TLSV1_ALERT_PROTOCOL_VERSION")),
        states.TLS_FAILED,
        False,
    ),
    (named(httpx.ConnectError("x"), __import__("socket").gaierror(-2)), states.NAME_UNKNOWN, False),
    (httpx.ConnectError("refused"), states.NOTHING_LISTENS, False),
    (httpx.ReadTimeout("slow"), states.TIMED_OUT, False),
    (httpx.ProxyError("407 Proxy Authentication Required"), states.PROXY_LOGIN, False),
    (httpx.ProxyError("403 Forbidden"), states.PROXY_REFUSED, False),
    (httpx.ReadError("cut"), states.SERVER_BUSY, False),
    (request_error(401), states.KEY_UNKNOWN, True),
    (request_error(401, headers={"date": "Mon, 01 Jan 2024 00:00:00 GMT"}), states.CLOCK_OFF, True),
    (request_error(412, b'{"code": 2004}'), states.KEY_NOT_ADMITTED, False),
    (request_error(413), states.BODY_REFUSED, True),
    (request_error(502), states.SERVER_BUSY, False),
    (request_error(302, headers={"location": "https://y"}), states.REDIRECTED, True),
    (RuntimeError("anything"), states.NOT_THE_SERVER, False),
]


@pytest.mark.parametrize(
    ("error", "state", "slow"), TABLE, ids=lambda value: getattr(value, "code", None)
)
def test_every_failure_has_a_declared_cause(
    error: Exception, state: states.State, slow: bool
) -> None:
    trouble = classify(error)
    assert (trouble.state, trouble.slow) == (state, slow)


def test_every_state_has_a_text_and_what_is_not_info_a_fix() -> None:
    for state in states.STATES.values():
        assert state.text
        assert state.fix or state.severity == "info"


# --- the private surface of flwr 1.41.0 ------------------------------------------------------------------------------

SURFACE = {
    "flwr.app.message.message": {"remove_content_from_message": ["message"]},
    "flwr.common.serde": {"message_from_proto": ["message_proto"], "message_to_proto": ["message"]},
    "flwr.supercore.inflatable.inflatable_object": {
        "get_all_nested_objects": ["obj"],
        "get_object_head_values_from_object_content": ["object_content"],
        "get_object_tree": ["obj"],
        "iterate_object_tree": ["tree"],
        "no_object_id_recompute": [],
    },
    "flwr.supercore.inflatable.inflatable_utils": {
        "inflate_object_from_contents": [
            "object_id",
            "object_contents",
            "keep_object_contents",
            "objects",
        ],
        "validate_object_content": ["content"],
    },
    "flwr.supercore.primitives.asymmetric": {"public_key_to_bytes": ["public_key"]},
    "flwr.supercore.runtime_version_compatibility": {"RuntimeVersionMetadata": None},
    "flwr.supernode.fleet_http_client": {
        "FleetHttpClient": ["base_url", "interceptors", "verify", "timeout", "retry_invoker"]
    },
    "flwr.supernode.node_auth_http_interceptor": {
        "NodeAuthHttpInterceptor": ["private_key", "public_key"]
    },
}


@pytest.mark.parametrize("module", SURFACE)
def test_the_private_surface_of_flower_is_what_we_wrote_for(module: str) -> None:
    loaded = importlib.import_module(module)
    for name, expected in SURFACE[module].items():
        if expected is not None:
            assert list(inspect.signature(getattr(loaded, name)).parameters) == expected, name
        else:
            assert hasattr(loaded, name)


def test_fleet_is_the_only_file_that_imports_private_modules_of_flower() -> None:
    root = Path(fleet.__file__).parents[2]
    public = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
    for path in [
        *root.glob("client/**/*.py"),
        *root.glob("server/**/*.py"),
        *root.glob("common/**/*.py"),
    ]:
        for line in path.read_text().splitlines():
            words = line.split()
            if (
                len(words) > 1
                and words[0] in ("from", "import")
                and words[1].split(".")[0] == "flwr"
            ):
                assert path.name == "fleet.py" or words[1] in public, f"{path.name}: {line}"


GOLDEN = {
    "pull-messages": "0a02084d",
    "send-node-heartbeat": "0a02084d11 0000000000003e40",
    "get-run": "0a02084d1005",
}


def test_requests_are_the_bytes_that_flower_1_41_reads(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "node-id").write_text(str(NODE_ID))
    site = Running(server, files, tmp_path)
    server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    site.end()
    for name, expected in GOLDEN.items():
        data = next(data for called, _, data in server.calls if called == name)
        assert data.hex() == expected.replace(" ", ""), name
    push = next(request for name, request, _ in server.calls if name == "push-messages")
    assert [push.node.node_id, push.messages_list[0].metadata.run_id] == [NODE_ID, RUN_ID]
    assert not push.messages_list[0].content.items


def test_an_error_reply_carries_no_content() -> None:
    message = instruction()
    message.metadata.__dict__["_message_id"] = message.object_id
    request, objects = deflate(Message(Error(2, "E-BUG"), reply_to=message))
    assert len(objects) == 1
    assert request.messages_list[0].error.reason == "E-BUG"
