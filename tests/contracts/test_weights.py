"""The global weights that a site takes come from the path that the signed plan implies.

Rules 15 to 18, each through the daemon; a refused instruction spends nothing and computes nothing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.daemon import path
from client.state.seen_weights import Place, SeenWeights
from common.errors import KohortError, PolicyError, RefusedError
from common.privacy.global_weights import Known, check_move, largest_move
from common.wire import tensors
from common.wire.messages import Header, digest_of, seal, unseal
from tests.path_weights import START, keep_fixed, moved
from tests.sites import Children, Hospital, Killed, make_hospital, scripted

BOUND = 10.0  # the plan's max_update_norm
ROUNDS = 4


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(
        tmp_path,
        weights=START,
        models__gan__rounds=ROUNDS,
        models__gan__trainable=["critic.a"],
        models__glow__rounds=ROUNDS,
    )


@pytest.fixture
def children(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Children:
    children = scripted(monkeypatch, hospital.study)
    children.change = keep_fixed
    return children


def train(hospital: Hospital, number: int, weights: Any = None, model: str = "gan") -> Any:
    """The reply of a freshly started daemon to one training round."""
    asked = hospital.ask("train", model=model, round=number, weights=weights or START[model])
    return hospital.site().answer(asked)


def synthesize(hospital: Hospital, gan: Any = None, glow: Any = None, **fields: Any) -> Any:
    """The reply of a freshly started daemon that asks nobody for a review."""
    weights = {**(gan or START["gan"]), **(glow or START["glow"])}
    asked = hospital.ask("synthesize", weights=weights, trained=False, **fields)
    return hospital.site(review="not_required").answer(asked)


def spent(hospital: Hospital) -> int:
    return len(hospital.site().ledger().rows())


def refused(call: Callable[[], object], code: str) -> None:
    with pytest.raises(KohortError) as caught:
        call()
    assert caught.value.code == code


def see_training(hospital: Hospital) -> None:
    """Let the site take part in a round of both models."""
    train(hospital, 0)
    train(hospital, 0, model="glow")


# --- (17) the order of the plan -------------------------------------------------------------------


def test_no_synthesis_before_training(hospital: Hospital, children: Children) -> None:
    refused(lambda: synthesize(hospital), "E-GATE-17")
    train(hospital, 0)
    refused(lambda: synthesize(hospital), "E-GATE-17")  # the flow's rounds are still missing
    assert children.runs == 1
    train(hospital, 0, model="glow")
    synthesize(hospital)


def test_no_training_after_synthesis(hospital: Hospital, children: Children) -> None:
    see_training(hospital)
    synthesize(hospital)
    before = spent(hospital)
    refused(lambda: train(hospital, 1), "E-GATE-17")
    refused(lambda: train(hospital, 1, model="glow"), "E-GATE-17")
    assert (children.runs, spent(hospital)) == (3, before)


def test_no_training_after_a_synthesis_that_a_crash_ended(
    hospital: Hospital, children: Children
) -> None:
    see_training(hospital)
    children.script = ["die"]
    with pytest.raises(Killed):
        synthesize(hospital)
    refused(lambda: train(hospital, 1, model="glow"), "E-GATE-17")


def test_no_round_after_a_later_one(hospital: Hospital, children: Children) -> None:
    first = train(hospital, 0)
    train(hospital, 2)
    refused(lambda: train(hospital, 1), "E-GATE-17")
    assert train(hospital, 0) == first  # answered: the stored bytes
    train(hospital, 0, model="glow")
    refused(lambda: train(hospital, 3), "E-GATE-17")  # models train one after the other
    assert children.runs == 3


def test_a_site_that_was_offline_goes_on_with_a_later_round(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 1, moved(BOUND))
    train(hospital, 3, moved(3 * BOUND))
    train(hospital, 2, moved(2 * BOUND, "glow"), model="glow")
    synthesize(hospital, moved(4 * BOUND), moved(4 * BOUND, "glow"))
    assert children.runs == 4


# --- (18) one set of weights for one round --------------------------------------------------------


def test_one_round_has_one_set_of_weights(hospital: Hospital, children: Children) -> None:
    children.script = ["die"]
    with pytest.raises(Killed):
        train(hospital, 1, moved(1.0))
    before = spent(hospital)
    refused(lambda: train(hospital, 1, moved(1.5)), "E-GATE-18")
    assert spent(hospital) == before
    train(hospital, 1, moved(1.0))


@pytest.mark.parametrize("place", [0, 15, 16, 31, 32, 63])
def test_the_weights_of_a_round_are_compared_to_the_last_digit(
    hospital: Hospital, place: int
) -> None:
    """On digests alone: no weights are known whose digests begin alike."""
    header = Header.model_validate_json(hospital.ask("train", weights=START["gan"]).header)
    other = "f" if header.digest[place] == "0" else "0"
    changed = header.digest[:place] + other + header.digest[place + 1 :]
    assert path._is_known(header, [Place("train", "gan", 0, header.digest)])
    with pytest.raises(RefusedError) as refused:
        path._is_known(header, [Place("train", "gan", 0, changed)])
    assert refused.value.code == "E-GATE-18"


def test_an_answered_round_gets_its_stored_bytes_whatever_weights_come(
    hospital: Hospital, children: Children
) -> None:
    first = train(hospital, 1, moved(1.0))
    assert train(hospital, 1, moved(1e30)) == first
    assert children.runs == 1


def test_synthesis_is_asked_again_with_the_same_weights_alone(
    hospital: Hospital, children: Children
) -> None:
    see_training(hospital)
    children.script = ["die"]
    with pytest.raises(Killed):
        synthesize(hospital, moved(1.0))
    refused(lambda: synthesize(hospital, moved(2.0)), "E-GATE-18")
    synthesize(hospital, moved(1.0))


# --- (15) what the plan does not train ------------------------------------------------------------

ONE_BIT_OFF = {
    "the last bit": np.array([np.nextafter(np.float32(0.5), np.float32(1)), -0.0, 1e-40]),
    "the sign of a zero": np.array([0.5, 0.0, 1e-40]),
    "a denormal number flushed to zero": np.array([0.5, -0.0, 0.0]),
}


@pytest.mark.parametrize("fixed", ONE_BIT_OFF.values(), ids=ONE_BIT_OFF.keys())
def test_an_untrained_tensor_is_the_pinned_one_bit_for_bit(
    hospital: Hospital, children: Children, fixed: Any
) -> None:
    other = moved(1.0, **{"critic.fixed": fixed.astype(np.float32)})
    refused(lambda: train(hospital, 1, other), "E-GATE-15")
    see_training(hospital)
    refused(lambda: synthesize(hospital, other), "E-GATE-15")
    assert children.runs == 2


def test_training_begins_with_the_pinned_checkpoint_bit_for_bit(
    hospital: Hospital, children: Children
) -> None:
    refused(lambda: train(hospital, 0, moved(1e-6)), "E-GATE-15")
    plus_zero = moved(0, **{"critic.a": np.array([1, 0.0, 1e-40, 3], np.float32)})
    refused(lambda: train(hospital, 0, plus_zero), "E-GATE-15")
    assert (children.runs, spent(hospital)) == (0, 1)


# --- (16) how far the trained tensors moved -------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3])
def test_trained_weights_stay_within_a_norm_a_round_of_the_start(
    hospital: Hospital, children: Children, number: int
) -> None:
    refused(lambda: train(hospital, number, moved(number * BOUND * 1.0001)), "E-GATE-16")
    assert (children.runs, spent(hospital)) == (0, 1)
    train(hospital, number, moved(number * BOUND))


def test_trained_weights_stay_within_a_norm_a_round_of_those_seen_last(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 2, moved(2 * BOUND))
    # within three rounds of the start, and four rounds' distance away from what was seen
    refused(lambda: train(hospital, 3, moved(-2 * BOUND)), "E-GATE-16")
    refused(lambda: train(hospital, 3, moved(BOUND * 0.999)), "E-GATE-16")
    train(hospital, 3, moved(BOUND))


def test_synthesis_gets_weights_within_the_bound_of_the_whole_training(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 0)
    train(hospital, 3, moved(0.0, "glow"), model="glow")
    far = moved(ROUNDS * BOUND * 1.0001)
    refused(lambda: synthesize(hospital, far), "E-GATE-16")
    # the flow was seen before its last round, and so may move by one round alone
    refused(lambda: synthesize(hospital, glow=moved(BOUND * 1.0001, "glow")), "E-GATE-16")
    assert children.runs == 2
    synthesize(hospital, moved(ROUNDS * BOUND), moved(BOUND, "glow"))


HOSTILE = {
    "1e30": (moved(1e30), "E-GATE-16"),
    "the largest float32": (
        moved(0, **{"critic.a": np.full(4, np.finfo(np.float32).max, np.float32)}),
        "E-GATE-16",
    ),
    "not a number": (moved(0, **{"critic.a": np.full(4, np.nan, np.float32)}), "E-GATE-07"),
    "infinity": (moved(0, **{"critic.a": np.full(4, np.inf, np.float32)}), "E-GATE-07"),
    "float64": (moved(0, **{"critic.a": np.ones(4)}), "E-GATE-06"),
    "whole numbers": (moved(0, **{"critic.a": np.ones(4, np.int32)}), "E-GATE-06"),
    "another shape": (moved(0, **{"critic.a": np.ones((2, 2), np.float32)}), "E-GATE-06"),
    "a tensor more": (moved(0, **{"critic.b": np.ones(1, np.float32)}), "E-GATE-05"),
}


@pytest.mark.parametrize(("weights", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_weights_that_no_honest_server_has_are_refused(
    hospital: Hospital, children: Children, weights: Any, code: str
) -> None:
    refused(lambda: train(hospital, 1, weights), code)
    see_training(hospital)
    before = spent(hospital)
    refused(lambda: synthesize(hospital, weights), code)
    assert (children.runs, spent(hospital)) == (2, before)


def test_a_payload_in_another_spelling_is_refused(hospital: Hospital, children: Children) -> None:
    payload = tensors.dumps(START["gan"], {"from": "elsewhere"})
    header = Header.model_validate_json(hospital.ask("train", weights=START["gan"]).header)
    header = header.model_copy(update={"digest": digest_of(payload)})
    asked = seal(header, payload, hospital.operator)
    refused(lambda: hospital.site().answer(asked), "E-GATE-04")


def test_a_plan_without_a_starting_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, weights={"glow": START["glow"]})
    scripted(monkeypatch, hospital.study)
    refused(lambda: train(hospital, 0), "E-PLAN-START")


# --- what is on disk ------------------------------------------------------------------------------


def test_a_refused_instruction_changes_nothing_that_was_seen(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 1, moved(1.0))
    places = SeenWeights(hospital.site().state, hospital.study.hash()).places()
    refused(lambda: train(hospital, 2, moved(-BOUND)), "E-GATE-16")
    refused(lambda: train(hospital, 0), "E-GATE-17")
    assert SeenWeights(hospital.site().state, hospital.study.hash()).places() == places
    train(hospital, 2, moved(1.0 + BOUND))


def test_the_weights_seen_last_are_in_one_protected_file_a_model(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 0)
    train(hospital, 1, moved(1.0))
    train(hospital, 0, model="glow")
    folder = hospital.root / "weights" / hospital.study.hash()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["gan-000001.safetensors", "glow-000000.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    synthesize(hospital, moved(1.0))
    assert not folder.exists()  # nothing is compared with them any more


def test_weights_that_were_lost_or_changed_on_disk_stop_the_plan(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 1, moved(1.0))
    path = hospital.root / "weights" / hospital.study.hash() / "gan-000001.safetensors"
    kept = path.read_bytes()
    path.write_bytes(tensors.dumps(moved(2.0)))
    refused(lambda: train(hospital, 2, moved(2.0)), "E-WEIGHTS-LOST")
    path.unlink()
    refused(lambda: train(hospital, 2, moved(2.0)), "E-WEIGHTS-LOST")
    path.write_bytes(kept)
    train(hospital, 2, moved(2.0))


KILLED = """
import os, signal, sys
from pathlib import Path
import client.state.seen_weights as seen
from client.state.config import load_site
from client.daemon.site import Site
from client.state.membership import read_membership
from client.state.folder import State
from common.storage.journal import Journal
from common.wire.messages import Sealed

root, asked = map(Path, sys.argv[1:3])
die = lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "before the weights":
    seen.atomic_write = die
elif sys.argv[3] == "before the journal":
    Journal.append = die
else:
    seen.SeenWeights._drop_older = die
parts = [bytes.fromhex(line) for line in asked.read_text().splitlines()]
Site(State(root), load_site(root), read_membership(root / "membership.json")).answer(Sealed(*parts))
"""


@pytest.mark.parametrize("when", ["before the weights", "before the journal", "after the journal"])
def test_after_kill_9_the_site_knows_the_weights_that_it_saw(
    hospital: Hospital, children: Children, tmp_path: Path, when: str
) -> None:
    train(hospital, 1, moved(1.0))
    site = hospital.site()
    site.state.membership.write_text(site.membership.model_dump_json())
    asked = hospital.ask("train", round=2, weights=moved(2.0))
    (tmp_path / "asked").write_text("\n".join(part.hex() for part in asked))
    command = [sys.executable, "-c", KILLED, str(hospital.root), str(tmp_path / "asked"), when]
    killed = subprocess.run(
        command, check=False, cwd=Path(__file__).parents[2], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    # what was not journaled was not seen; what was, binds
    other = lambda: train(hospital, 2, moved(2.5))  # noqa: E731
    if when == "after the journal":
        refused(other, "E-GATE-18")
        train(hospital, 2, moved(2.0))
    else:
        other()
    refused(lambda: train(hospital, 3, moved(-BOUND)), "E-GATE-16")


def test_an_instruction_of_an_earlier_version_counts_for_the_order(
    hospital: Hospital, children: Children
) -> None:
    train(hospital, 0)
    state = hospital.site().state
    key = Header.model_validate_json(hospital.ask("train", round=2).header).key
    state.journal.append(key, "reserved", {"folder": "gone", "reservation": ""})
    refused(lambda: train(hospital, 1), "E-GATE-17")


# --- what is signed -------------------------------------------------------------------------------


def test_the_digest_of_the_weights_is_signed_and_in_the_ledger(
    hospital: Hospital, children: Children
) -> None:
    key = hospital.site().state.signing_key().public_key()
    used = []
    for asked in (
        hospital.ask("train", round=1, weights=moved(1.0)),
        hospital.ask("train", model="glow", weights=START["glow"]),
        hospital.ask("synthesize", weights={**moved(2.0), **START["glow"]}, trained=False),
    ):
        reply = hospital.site(review="not_required").answer(asked)
        header = unseal(reply, key, max_bytes=1 << 20)
        assert header.statement["weights"] == digest_of(asked.payload)
        used.append(digest_of(asked.payload))
    rows = hospital.site().ledger().rows()
    entries = [row.data["weights"] for row in rows if row.kind in ("reserve", "declare")]
    assert entries == used


def test_the_gate_clears_nothing_that_was_reserved_for_other_weights(
    hospital: Hospital, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    children.script = ["die after"]
    with pytest.raises(Killed):
        train(hospital, 1, moved(1.0))
    # as if the path let them pass
    monkeypatch.setattr("client.daemon.site.admit", lambda *_: None)
    refused(lambda: train(hospital, 1, moved(1.5)), "E-GATE-21")
    children.script = ["die after"]
    with pytest.raises(Killed):
        synthesize(hospital, moved(1.0))
    refused(lambda: synthesize(hospital, moved(1.5)), "E-GATE-21")
    assert (children.runs, list((hospital.root / "outbox").glob("*.sealed"))) == (2, [])


def test_a_distance_that_is_no_number_is_too_far(hospital: Hospital) -> None:
    plan = hospital.study.models.trained()["gan"]
    start = {"critic.a": np.zeros(2, np.float32)}
    with pytest.raises(RefusedError) as refused:
        check_move({"critic.a": np.array([0, np.nan], np.float32)}, Known(0, start), 1, plan)
    assert refused.value.code == "E-GATE-16"


def test_the_bound_of_no_round_is_zero(hospital: Hospital) -> None:
    plan = hospital.study.models.trained()["gan"]
    assert largest_move(plan, 0, 1e30) == 0
    assert BOUND < largest_move(plan, 1, 0.0) < BOUND * 1.00001


def test_a_refusal_says_what_was_expected(hospital: Hospital, children: Children) -> None:
    with pytest.raises(RefusedError, match="1 rounds move by at most 10") as refused_move:
        train(hospital, 1, moved(11))
    assert "tell the operator" in refused_move.value.hint
    with pytest.raises(RefusedError, match="this site saw no training round of gan"):
        synthesize(hospital)
    with pytest.raises(PolicyError):
        synthesize(hospital, round=1)
