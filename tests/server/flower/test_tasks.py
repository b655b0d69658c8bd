"""The executor's claim: written whole, read totally, bounded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import RefusedError
from server.flower import executor
from server.flower.executor import Executor
from server.flower.link_process import SECRET_FILE
from server.flower.tasks import Claim, ClaimFile
from server.flower.wire import runtime_pb2

PIN = "ab" * 32
CLAIM = Claim(PIN, "token", 3, 4, b"input")


def test_a_claim_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = ClaimFile(tmp_path / "claim.json", PIN)
    assert file.read() is None
    file.write(CLAIM)
    assert file.read() == CLAIM
    assert (tmp_path / "claim.json").stat().st_mode & 0o777 == 0o600
    file.drop()
    assert file.read() is None


def test_a_claim_of_another_plan_is_dropped(tmp_path: Path) -> None:
    ClaimFile(tmp_path / "claim.json", PIN).write(CLAIM)
    assert ClaimFile(tmp_path / "claim.json", "cd" * 32).read() is None
    assert not (tmp_path / "claim.json").exists()


def test_a_claim_that_no_pipe_takes_at_once_is_refused_by_name(tmp_path: Path) -> None:
    file = ClaimFile(tmp_path / "claim.json", PIN)
    file.write(replace(CLAIM, answer=b"x" * 44_000))
    with pytest.raises(RefusedError) as refused:
        file.write(replace(CLAIM, answer=b"x" * 45_000))
    assert refused.value.code == "E-CLAIM-SIZE"


def test_the_executor_fails_a_task_whose_input_is_too_large_and_takes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = b"bundle"
    pin = hashlib.sha256(bundle).hexdigest()
    (tmp_path / SECRET_FILE).write_bytes(b"secret")
    told: list[tuple[str, str]] = []

    class Flower:
        """One task with a huge setting."""

        def PullTaskInput(self, request: Any) -> Any:
            answer = runtime_pb2.PullTaskInputResponse()
            answer.fab.content = bundle
            answer.run.fab_id = "x" * 100_000
            return answer

        def PushTaskOutput(self, request: Any) -> None:
            told.append((request.sub_status, request.details))

    monkeypatch.setattr(executor, "task_client", lambda sockets, token: Flower())
    one = Executor(tmp_path, pin, "app")
    assert one._with_input(replace(CLAIM, pin=pin)) is None
    assert told == [("failed", "E-CLAIM-SIZE")]
    assert not (tmp_path / "claim.json").exists()


BAD = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff",
    b'{"pin":"","token":1,"task_id":1,"run_id":1,"answer":""}',
]
BAD += [json.dumps({**json.loads(CLAIM.to_json()), "task_id": True}).encode()]
BAD += [json.dumps({**json.loads(CLAIM.to_json()), "answer": "*"}).encode()]
BAD += [b"[" * 100_000]


@pytest.mark.parametrize("text", BAD)
def test_a_damaged_claim_is_no_claim(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(RefusedError):
        Claim.from_json(text)
    path = tmp_path / "claim.json"
    path.write_bytes(text)
    assert ClaimFile(path, PIN).read() is None
    assert not path.exists()
