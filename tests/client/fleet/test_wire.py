"""The private modules of flwr 1.41.0 that the wire uses, and the bytes that they send."""

from __future__ import annotations

import importlib
import inspect
import time
from pathlib import Path

import pytest
from flwr.app import Error, Message

from client.fleet import wire
from client.fleet.wire import deflate
from server.operator.certificates import (
    ServerFiles,
)
from tests.client.fleet.running import Running
from tests.fleet_server import NODE_ID, RUN_ID, FleetServer, instruction
from tests.transport import until


def test_deflating_is_done_once_because_a_rebuilt_reply_has_another_identifier() -> None:
    message = instruction()
    message.metadata.__dict__["_message_id"] = message.object_id
    first, _ = deflate(Running.echo(message, None))  # type: ignore[arg-type]
    time.sleep(0.01)
    second, _ = deflate(Running.echo(message, None))  # type: ignore[arg-type]
    assert (
        first.request.message_object_trees[0].object_id
        != second.request.message_object_trees[0].object_id
    )


def test_a_version_message_of_the_server_does_not_end_this_process(
    server: FleetServer, site: Running
) -> None:
    from flwr.supercore.constant import VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY as KEY
    from flwr.supercore.error import ApiErrorCode

    code = int(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE)
    body = f'{{"code": {code}, "detail": "no", "extra": "exit now"}}'.encode()
    server.instead["pull-messages"] = lambda request: (412, {KEY: "exit now"}, body)
    until(lambda: site.code() == "NOT-THE-SERVER")
    assert site.thread.is_alive()


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


def test_one_file_a_side_imports_private_modules_of_flower() -> None:
    root = Path(wire.__file__).parents[2]
    theirs = root / "server" / "flower" / "wire.py"
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
                assert path in (Path(wire.__file__), theirs) or words[1] in public, line


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
    reply, objects = deflate(Message(Error(2, "E-BUG"), reply_to=message))
    assert len(objects) == 1
    assert reply.request.messages_list[0].error.reason == "E-BUG"
