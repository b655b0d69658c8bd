"""The daemon: receipts, idempotent answers, its logs, and what a restart sends.

Its promises stand in tests/contracts/test_gate.py.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.daemon.jobs import Ending
from common.errors import PolicyError, RefusedError
from common.wire.messages import unseal
from tests.sites import Hospital, make_hospital, scripted
from tests.studies import VESSELS


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_the_parent_imports_no_torch() -> None:
    modules = "client.daemon.site, client.fleet.app, client.egress.gate, client.cli.main"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_receipts_in_a_signed_instruction_are_noted(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    first = unseal(
        site.answer(hospital.ask("train")), site.state.signing_key().public_key(), max_bytes=1 << 20
    )
    assert not site.outbox.is_acknowledged(first.key)
    site.answer(hospital.ask("train", round=1, receipts=(first.digest,)))
    assert site.outbox.is_acknowledged(first.key)
    assert not site.done.is_set()


def test_a_receipt_for_what_was_never_sent_is_a_rollback(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train", receipts=("0" * 64,)))
    assert refused.value.code == "E-ROLLBACK"
    assert children.runs == 0


def test_the_closing_instruction_sets_done(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    images = site.answer(hospital.ask("synthesize"))
    assert site.answer(hospital.ask("synthesize", round=1, statement={"done": True})) == images
    assert site.done.is_set()


def test_a_study_that_ends_before_a_round_was_answered_computes_nothing(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site()
    with pytest.raises(RefusedError) as refused:
        site.answer(hospital.ask("train", statement={"done": True}))
    assert refused.value.code == "E-STUDY-ENDED"
    assert site.done.is_set() and children.runs == 0
    assert site.ledger().report(prv=False).committed == 0


def test_a_study_of_pairs_trains_its_wgan_and_ends_with_its_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        "wgan": {f"{part}.a": np.ones(3, np.float32) for part in ("generator", "average", "critic")}
    }
    changes = {name: VESSELS[name] for name in ("modality", "intake", "models", "release")}
    hospital = make_hospital(tmp_path, weights=weights, synthesis=None, **changes)
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    ask = {"model": "wgan", "weights": weights["wgan"]}
    site.answer(hospital.ask("train", **ask))
    last = site.answer(hospital.ask("train", round=1, **ask))
    assert not site.done.is_set()
    assert site.answer(hospital.ask("train", round=1, statement={"done": True}, **ask)) == last
    assert site.done.is_set() and site.ledger().report(prv=False).committed == 2
    (event,) = {
        row.data["event"]["dimension"] for row in site.ledger().rows() if row.kind == "reserve"
    }
    assert event == 3 + hospital.study.privacy.canaries  # generator and average cost nothing


def test_an_instruction_with_an_unknown_statement_is_refused(hospital: Hospital) -> None:
    with pytest.raises(RefusedError):
        hospital.site().answer(hospital.ask("train", statement={"epsilon": 99.0}))


def test_logs_hold_no_name_and_no_number_of_patients(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted(monkeypatch, hospital.study)
    with caplog.at_level(logging.DEBUG):
        hospital.site().answer(hospital.ask("train"))
    assert [record.getMessage() for record in caplog.records] == [
        "small: train gan round 1 of 2: at work",
        "small: train gan round 1 of 2: answered",
    ]


KILLED_DAEMON = """
import os, signal, sys
from pathlib import Path
import client.daemon.jobs
from client.state.config import load_site
from client.daemon.site import Site
from client.state.membership import read_membership
from client.state.folder import State
from common.wire.messages import Sealed
from tests.sites import Children
from common.study.plan import load_study

root, asked, plan = map(Path, sys.argv[1:])
children = Children(load_study(plan / "study.yaml"))

def run_child(*arguments):
    children(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

client.daemon.jobs.run_child = run_child
parts = [bytes.fromhex(line) for line in asked.read_text().splitlines()]
Site(State(root), load_site(root), read_membership(root / "membership.json")).answer(Sealed(*parts))
"""


def test_after_kill_9_a_new_daemon_sends_what_the_child_had_finished(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = hospital.ask("train")
    (tmp_path / "asked").write_text("\n".join(part.hex() for part in asked))
    site = hospital.site()
    site.state.membership.write_text(site.membership.model_dump_json())
    command = [
        sys.executable,
        "-c",
        KILLED_DAEMON,
        str(hospital.root),
        str(tmp_path / "asked"),
        str(hospital.bundle),
    ]
    killed = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[3], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    made = next((hospital.root / "jobs").glob("*/out.safetensors")).read_bytes()
    children = scripted(monkeypatch, hospital.study)
    reply = hospital.site().answer(asked)
    assert (reply.payload, children.runs) == (made, 0)
    assert sum(row.kind == "reserve" for row in site.ledger().rows()) == 1


def test_a_child_gets_a_secret_that_does_not_give_the_pseudonym_key_away(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets: list[bytes] = []
    children = scripted(monkeypatch, hospital.study)

    def watched(folder: Path, threads: int, secret: bytes, *rest: Any) -> Ending:
        secrets.append(secret)
        return children(folder, threads, secret, *rest)

    monkeypatch.setattr("client.daemon.jobs.run_child", watched)
    site = hospital.site()
    site.answer(hospital.ask("train"))
    (secret,) = secrets
    assert len(secret) == 32
    assert secret != site.state.pseudonym_bytes()
