"""The operator's calls: what is refused, and Flower's answers as values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto import control_pb2, node_pb2, run_pb2

from client.fleet.connection import create_node_key
from common.errors import PeerError, RefusedError
from common.wire.app_bundle import write_app
from server.flower.calls import OperatorCalls, RunStatus
from server.flower.superlink import SuperLink


class Control:
    """Flower's Control API as a script: what it answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.nodes: list[Any] = []
        self.run = run_pb2.Run()

    def close(self) -> None:
        pass

    def ListNodes(self, request: Any) -> Any:
        return control_pb2.ListNodesResponse(nodes_info=self.nodes)

    def RegisterNode(self, request: Any) -> Any:
        self.asked.append(f"register {request.name}")
        return control_pb2.RegisterNodeResponse(node_id=5)

    def StartRun(self, request: Any) -> Any:
        self.asked.append("start")
        return control_pb2.StartRunResponse(run_id=7)

    def ListRuns(self, request: Any) -> Any:
        return control_pb2.ListRunsResponse(run_dict={request.run_id: self.run})

    def StopRun(self, request: Any) -> Any:
        self.asked.append(f"stop {request.run_id}")
        return control_pb2.StopRunResponse(success=True)

    def UnregisterNode(self, request: Any) -> Any:
        answer = httpx.Response(412, text="[code: 23]", request=httpx.Request("POST", "http://x"))
        raise httpx.HTTPStatusError("no", request=answer.request, response=answer)


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def calls(link: SuperLink, control: Control) -> OperatorCalls:
    link.calls._client = control  # type: ignore[assignment]
    return link.calls


@pytest.fixture
def key(tmp_path: Path) -> Path:
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    return tmp_path / "node.pub"


def node(key: Path, status: str) -> Any:
    """A node of this key as Flower lists it."""
    from cryptography.hazmat.primitives import serialization

    public = serialization.load_ssh_public_key(key.read_bytes())
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return node_pb2.NodeInfo(node_id=3, name="a", status=status, public_key=pem)


def test_a_bundle_with_code_in_it_is_not_submitted(
    calls: OperatorCalls, control: Control, tmp_path: Path
) -> None:
    write_app(tmp_path / "app", b"a: 1\n")
    (tmp_path / "app" / "server.py").write_text("import os")
    with pytest.raises(RefusedError) as refused:
        calls.submit(tmp_path / "app")
    assert refused.value.code == "E-BUNDLE-CODE"
    assert control.asked == []


def test_a_run_whose_hash_differs_from_what_sites_pin_is_stopped(
    calls: OperatorCalls, control: Control, tmp_path: Path
) -> None:
    write_app(tmp_path / "app", b"a: 1\n")
    control.run = run_pb2.Run(fab_hash="00" * 32)
    with pytest.raises(PeerError) as wrong:
        calls.submit(tmp_path / "app")
    assert wrong.value.code == "E-BUNDLE-HASH"
    assert control.asked == ["start", "stop 7"]


def test_a_bundle_that_both_hash_alike_runs(
    calls: OperatorCalls, control: Control, tmp_path: Path
) -> None:
    pin = write_app(tmp_path / "app", b"a: 1\n")
    control.run = run_pb2.Run(fab_hash=pin)
    assert calls.submit(tmp_path / "app") == 7
    assert control.asked == ["start"]


def test_a_key_is_registered_once_and_keeps_its_node(
    calls: OperatorCalls, control: Control, key: Path
) -> None:
    assert calls.register(key, "a") == 5
    control.nodes = [node(key, "online")]
    assert calls.register(key, "a") == 3
    assert control.asked == ["register a"]


def test_a_revoked_key_is_named_as_such(calls: OperatorCalls, control: Control, key: Path) -> None:
    control.nodes = [node(key, "unregistered")]
    with pytest.raises(RefusedError) as refused:
        calls.register(key, "a")
    assert refused.value.code == "E-KEY-REVOKED"
    assert control.asked == []


def test_a_refusal_of_flower_is_told_in_its_words(calls: OperatorCalls) -> None:
    with pytest.raises(PeerError, match="code: 23") as refused:
        calls.unregister(3)
    assert refused.value.code == "E-FLOWER"


def test_a_run_status_is_read_from_flowers_answer(calls: OperatorCalls, control: Control) -> None:
    state = run_pb2.RunStatus(status="finished", sub_status="completed")
    control.run = run_pb2.Run(fab_hash="aa", status=state)
    assert calls.run_status(9) == RunStatus(9, "finished", "completed", "", "aa")
    assert calls.run_status(9).completed
    control.run.status.status = "running"
    assert not calls.run_status(9).finished


def test_a_node_was_heard_two_intervals_before_it_would_count_as_offline(
    calls: OperatorCalls, control: Control, key: Path
) -> None:
    control.nodes = [node(key, "online"), node(key, "registered")]
    control.nodes[0].online_until = 1060.0
    control.nodes[0].heartbeat_interval = 30.0
    assert [one.seen for one in calls.nodes()] == [1000.0, 0.0]
