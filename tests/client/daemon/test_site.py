"""The daemon: its lock, retries, budgets, parts and receipts. Its promises stand in tests/contracts/test_gate.py."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from client.daemon.images import split
from client.fleet.app import build_app, record_of, reply_to, sealed_of
from client.state.jobs import Stopped
from common.errors import KohortError, PolicyError, RefusedError
from common.privacy.boundary import PART_CAP_BYTES
from common.wire import tensors
from common.wire.messages import Sealed, unseal
from tests.sites import WEIGHTS, Hospital, make_hospital, scripted
from tests.studies import VESSELS, small_study


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_the_parent_imports_no_torch() -> None:
    code = "import sys, client.daemon.site, client.fleet.app, client.egress.gate, client.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_child_that_keeps_crashing_is_given_up_with_a_code(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, *["crash"] * 9)
    site = hospital.site()
    for _ in range(2):  # asked again, it spends nothing more
        with pytest.raises(KohortError) as fault:
            site.answer(hospital.ask("train"))
        assert fault.value.code == "E-WORK-CRASHED"
    assert children.runs == 3
    assert sum(row.kind == "reserve" for row in site.ledger().rows()) == 3


def test_what_a_child_refuses_is_not_tried_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, "refuse", "refuse")
    site = hospital.site()
    for _ in range(2):
        with pytest.raises(PolicyError) as refused:
            site.answer(hospital.ask("train"))
        assert refused.value.code == "E-GROUP-SIZE"
    assert children.runs == 1


def test_receipts_in_a_signed_instruction_are_noted(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    first = unseal(
        site.answer(hospital.ask("train")), site.state.signing_key().public_key(), max_bytes=1 << 20
    )
    assert not site.outbox.acknowledged(first.key)
    site.answer(hospital.ask("train", round=1, receipts=(first.digest,)))
    assert site.outbox.acknowledged(first.key)
    assert not site.done.is_set()


def test_a_receipt_for_what_was_never_sent_is_a_rollback(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train", receipts=("0" * 64,)))
    assert refused.value.code == "E-ROLLBACK"
    assert children.runs == 0


def test_an_old_ledger_spends_nothing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.ledger()
    backup = site.state.ledger.read_bytes()
    site.answer(hospital.ask("train"))
    site.state.ledger.write_bytes(backup)
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train", round=1))
    assert refused.value.code == "E-ROLLBACK"
    assert children.runs == 1


def test_the_closing_instruction_sets_done(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    images = site.answer(hospital.ask("synthesize"))
    assert site.answer(hospital.ask("synthesize", round=1, statement={"done": True})) == images
    assert site.done.is_set()


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


def test_a_hopeless_plan_spends_nothing_unless_it_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {
        "gan": {"generator.a": np.ones(3, np.float32), "critic.a": np.ones(40_000, np.float32)},
        "glow": WEIGHTS["glow"],
    }
    for accepts in (False, True):
        hospital = make_hospital(
            tmp_path / str(accepts),
            weights=weights,
            privacy__accept_infeasible=accepts,
            models__gan__max_update_norm=100.0,
        )
        children = scripted(monkeypatch, hospital.study)
        site = hospital.site()
        if accepts:
            site.answer(hospital.ask("train", weights=weights["gan"]))
            assert children.runs == 1
            continue
        with pytest.raises(PolicyError, match="100 patients a site this will not learn") as refused:
            site.answer(hospital.ask("train", weights=weights["gan"]))
        assert (
            refused.value.code == "E-PLAN-INFEASIBLE"
            and "less noise is enough" in refused.value.hint
        )
        assert children.runs == 0 and [row.kind for row in site.ledger().rows()] == ["open"]


def test_an_instruction_with_an_unknown_statement_is_refused(hospital: Hospital) -> None:
    with pytest.raises(RefusedError):
        hospital.site().answer(hospital.ask("train", statement={"epsilon": 99.0}))


def test_a_part_before_the_first_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(PolicyError):
        hospital.site().answer(hospital.ask("synthesize", part=1, parts=2))
    assert children.runs == 0


def test_large_batches_are_split_and_every_part_is_kept(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.daemon.images.PART_CAP_BYTES", (1 << 16) + 3200)
    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    first = site.answer(hospital.ask("synthesize"))
    second = site.answer(hospital.ask("synthesize", part=1, parts=2))
    headers = [
        unseal(s, site.state.signing_key().public_key(), max_bytes=1 << 20) for s in (first, second)
    ]
    assert [(h.part, h.parts) for h in headers] == [(0, 2), (1, 2)]
    labels = [
        tensors.loads(s.payload, max_bytes=1 << 20)["labels"].tolist() for s in (first, second)
    ]
    assert labels == [[0], [1]]


def test_a_part_never_exceeds_the_cap() -> None:
    study = small_study(synthesis__max_images_per_site=20_000)
    arrays: tensors.Arrays = {
        "images": np.zeros((11_000, 32, 32, 3), np.uint8),
        "labels": np.zeros(11_000, np.int64),
        "privatized": np.zeros(11_000, np.uint8),
    }
    parts = split(arrays, study)
    assert len(parts) == 2
    assert all(len(part) <= PART_CAP_BYTES for part in parts)


def test_logs_hold_no_name_and_no_number_of_patients(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted(monkeypatch, hospital.study)
    with caplog.at_level(logging.DEBUG):
        hospital.site().answer(hospital.ask("train"))
    assert [record.getMessage() for record in caplog.records] == [
        "small: train gan round 0: at work",
        "small: train gan round 0: answered",
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


# --- the Flower app


def message_of(content: RecordDict) -> Message:
    """A Flower message without a Flower process."""

    class Bare:
        def __init__(self) -> None:
            self.content = content

    return Bare()  # type: ignore[return-value]


def test_a_sealed_message_survives_the_record() -> None:
    sealed = Sealed(b"header", bytes(range(256)), b"signature")
    assert sealed_of(record_of(sealed)) == sealed


def test_any_other_record_is_refused() -> None:
    whole = record_of(Sealed(b"h", b"p", b"s"))
    for name in ("sealed", "payload"):
        part = RecordDict({key: value for key, value in whole.items() if key != name})
        with pytest.raises(RefusedError):
            sealed_of(part)
    more = RecordDict({**whole, "more": whole["sealed"]})
    with pytest.raises(RefusedError):
        sealed_of(more)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PolicyError("patient Mueller", code="E-POLICY-CAP"), "E-POLICY-CAP"),
        (RefusedError("patient Mueller", code="patient Mueller"), "E-BUG"),
        (ValueError("/data/Mueller.dcm"), "E-BUG"),
    ],
)
def test_an_error_leaves_as_a_code_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    sent: list[object] = []
    monkeypatch.setattr("client.fleet.app.Message", lambda content, reply_to: sent.append(content))

    def answer(_: Sealed) -> Sealed:
        raise error

    reply_to(message_of(record_of(Sealed(b"h", b"p", b"s"))), answer)
    assert (sent[0].code, sent[0].reason) == (2, code)  # type: ignore[attr-defined]


def test_a_stop_is_no_answer() -> None:
    def answer(_: Sealed) -> Sealed:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        reply_to(message_of(record_of(Sealed(b"h", b"p", b"s"))), answer)
    assert build_app(answer) is not None
