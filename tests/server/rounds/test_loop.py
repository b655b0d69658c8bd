"""The round loop on the in-memory grid: whole studies, resumption, parts, quarantine, closing."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.errors import Bug
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed
from server.rounds import gathering
from server.rounds.loop import run_study, train_round
from server.rounds.study_run import StudyRun
from tests.federation import Federation, crashed, delayed, dropped


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


def test_a_study_of_honest_sites_runs_to_its_end(federation: Federation) -> None:
    run = federation.run()
    assert run.record.complete() and run.record.progress().done == run.record.progress().total == 4
    assert [batch.site for batch in run.record.batches()] == [
        "hospital-a",
        "hospital-b",
        "hospital-c",
    ]
    moved = tensors.read(run.record.final_weights()["gan"], max_bytes=1 << 20)
    start = tensors.read(federation.state.study(federation.study.hash()) / "bundle/checkpoints/gan.safetensors", max_bytes=1 << 20)  # fmt: skip  # noqa: E501
    assert all(
        (moved[name] != start[name]).any() and moved[name].dtype == np.float32 for name in start
    )


def test_every_site_gets_the_same_weights_and_receipts_for_its_own_replies(
    federation: Federation,
) -> None:
    federation.run()
    asked = [site.asked for site in federation.sites.values()]
    for headers in zip(*asked, strict=True):
        assert len({header.digest for header in headers}) == 1 and {h.sender for h in headers} == {
            "operator"
        }
    for site in federation.sites.values():
        stored = [Sealed(*sealed) for sealed in site.stored.values()]
        digests = {tensors_digest(sealed) for sealed in stored}
        assert set(site.asked[-1].receipts) == digests and site.asked[-1].statement == {
            "done": True
        }
        assert site.asked[0].receipts == ()


def test_every_instruction_names_the_heads_that_were_accepted_from_its_site(
    federation: Federation,
) -> None:
    federation.run()
    for name, site in federation.sites.items():
        taken = [commitment_of(sealed) for sealed in site.stored.values()]
        assert [header.heads for header in site.asked] == [
            tuple(taken[:count]) for count in range(len(taken) + 1)
        ], name
        # another study: the receipts are the site's, not the study's
        assert federation.open().registry.heads(name) == tuple(taken)


def test_a_site_with_new_keys_begins_without_receipts(federation: Federation) -> None:
    run = federation.run()
    site = federation.sites["hospital-a"]
    run.registry.revoke("hospital-a")
    run.registry.note_unregistered("hospital-a")
    site = dataclasses.replace(site, key=signing.new_key())
    run.registry.enrol(federation.request("hospital-a", site))
    assert run.registry.heads("hospital-a") == ()
    line = run.registry.get("hospital-a").sign_key
    assert run.record.receipts("hospital-a", [line]) == ()
    assert run.registry.heads("hospital-b")


def test_the_newest_heads_of_many_are_named(federation: Federation) -> None:
    registry = federation.open().registry
    taken = [f"{number:064x}" for number in range(20)]
    for commitment in [*taken, taken[-1]]:
        registry.note_head("hospital-a", commitment)
    assert registry.heads("hospital-a") == tuple(taken[-16:])
    assert registry.heads("hospital-b") == ()


def commitment_of(sealed: Sealed) -> str:
    return str(Header.model_validate_json(sealed.header).statement["head_commitment"])


def tensors_digest(sealed: Sealed) -> str:
    from common.wire.messages import digest_of

    return digest_of(sealed.payload)


class Killed(BaseException):
    """Stands for kill -9."""


def kill_at(run: StudyRun, method: str, count: int, patch: pytest.MonkeyPatch) -> None:
    """Let the `count`-th call of a record's method be the last thing that the process does."""
    original, left = getattr(run.record, method), [count]

    def last(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*arguments, **named)

    patch.setattr(run.record, method, last)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("note_accepted", 1),
        ("note_accepted", 2),
        ("note_accepted", 5),
        ("close_round", 1),
        ("close_round", 2),
        ("close_round", 4),
        ("write_weights", 2),
    ],
)
def test_a_killed_server_resumes_with_the_same_bytes(
    method: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Federation.create(tmp_path / "a").run()
    federation = Federation.create(tmp_path / "b")
    killed = federation.open()
    kill_at(killed, method, count, monkeypatch)
    with pytest.raises(Killed):
        run_study(killed, federation.grid())
    resumed = federation.run()
    assert resumed.record.complete()
    for model in ("gan", "glow"):
        files = [run.record.final_weights()[model] for run in (undisturbed, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_resumed_round_does_not_ask_a_site_whose_reply_is_on_disk(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = federation.open()
    kill_at(killed, "close_round", 1, monkeypatch)
    with pytest.raises(Killed):
        run_study(killed, federation.grid())
    before = {name: len(site.asked) for name, site in federation.sites.items()}
    train_round(federation.open(), federation.grid(), "gan", 0)
    assert {name: len(site.asked) for name, site in federation.sites.items()} == before


def test_a_damaged_reply_on_disk_is_asked_anew(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = federation.open()
    kill_at(killed, "close_round", 1, monkeypatch)
    with pytest.raises(Killed):
        run_study(killed, federation.grid())
    path = killed.record.reply_file("train", "gan", 0, "hospital-a", 0)
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"123456789")
    train_round(federation.open(), federation.grid(), "gan", 0)
    assert federation.open().registry.get("hospital-a").state == "registered"
    assert len(federation.sites["hospital-a"].asked) == 2


def test_images_in_parts_are_asked_one_part_after_the_other(federation: Federation) -> None:
    federation.sites["hospital-b"].image_parts = 3
    run = federation.run()
    parts = {batch.site: len(batch.parts) for batch in run.record.batches()}
    assert parts == {"hospital-a": 1, "hospital-b": 3, "hospital-c": 1}
    asked = [
        (h.round, h.part, h.parts)
        for h in federation.sites["hospital-b"].asked
        if h.phase == "synthesize"
    ]
    assert asked == [(0, 0, 1), (0, 1, 3), (0, 2, 3), (1, 0, 1)]


def test_a_study_goes_on_without_a_site_that_crashes_for_good(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, round_deadline_s=0.4)
    run = federation.run({"hospital-c": [crashed] + [dropped] * 100})
    assert run.record.complete()
    assert [batch.site for batch in run.record.batches()] == ["hospital-a", "hospital-b"]


def test_a_quarantined_site_is_asked_again_only_after_its_release(federation: Federation) -> None:
    site = federation.sites["hospital-a"]
    site.spoil = lambda sealed: Sealed(sealed.header, sealed.payload + b"x", sealed.signature)
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    assert run.registry.get("hospital-a").state == "quarantined"
    train_round(run, federation.grid(), "gan", 1)
    assert len(site.asked) == 1
    site.spoil, site.stored = None, {}
    run.registry.release("hospital-a")
    train_round(run, federation.grid(), "glow", 0)
    closed = run.record.closing_entry("train", "glow", 0)
    assert closed is not None and "hospital-a" in closed.data["accepted"]


def test_the_first_round_waits_for_a_hospital_that_enrols_late(federation: Federation) -> None:
    run = federation.open()
    run.registry.revoke("hospital-c")
    late = federation.sites["hospital-c"]
    late.key = signing.new_key()
    registry = run.registry
    registry.enrol(
        federation.request("hospital-c", late).model_copy(update={"node_key": "node new"})
    )
    thread = threading.Thread(
        target=lambda: train_round(run, federation.grid(), "gan", 0), daemon=True
    )
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    federation.open().registry.note_registered("hospital-c", 102)
    thread.join(10.0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert closed is not None and "hospital-c" in closed.data["accepted"]


def test_a_fault_of_the_grid_ends_the_process(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = federation.grid()

    def broken(messages: object) -> list[str]:
        raise ConnectionError("gone")

    monkeypatch.setattr(grid, "push_messages", broken)
    with pytest.raises(ConnectionError):
        run_study(federation.open(), grid)


def test_a_study_without_images_ends_with_a_last_word_about_its_last_round(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path, synthesis=None)
    run = federation.run()
    last = federation.sites["hospital-a"].asked[-1]
    assert run.record.complete() and (last.kind, last.model, last.statement) == (
        "train",
        "glow",
        {"done": True},
    )


def test_a_reply_that_breaks_our_own_code_is_its_sites_fault_and_ends_no_study(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception of the intake: one hostile site of three, the other two complete the study."""
    real = gathering.accept

    def fragile(sealed: Sealed, site: str, *rest: Any) -> Any:
        if site == "hospital-b":
            raise ValueError("a parser's own fault")
        return real(sealed, site, *rest)

    monkeypatch.setattr(gathering, "accept", fragile)
    run = federation.run()
    assert run.record.complete()
    site = run.registry.get("hospital-b")
    assert (site.state, site.code) == ("quarantined", "E-INTAKE-BUG")
    assert [batch.site for batch in run.record.batches()] == ["hospital-a", "hospital-c"]
    evidence = sorted(path.name for path in (run.record.root / "faults").iterdir())
    assert evidence == ["hospital-b.sealed", "hospital-b.txt"]


@pytest.mark.parametrize("error", [KeyError("class"), AttributeError("x"), RecursionError()])
def test_objects_that_flower_cannot_unpack_are_their_sites_fault(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    grid = federation.grid()
    node = federation.open().registry.get("hospital-b").node_id
    real = grid.pull_messages
    sent: dict[str, int] = {}
    deliver = grid._deliver

    def note(message: Any) -> str:
        message_id = deliver(message)
        sent[message_id] = message.metadata.dst_node_id
        return message_id

    def pull(message_ids: Any) -> Any:
        if any(sent[one] == node for one in message_ids):
            raise error
        return real(message_ids)

    monkeypatch.setattr(grid, "_deliver", note)
    monkeypatch.setattr(grid, "pull_messages", pull)
    run = federation.open()
    run_study(run, grid)
    assert run.record.complete()
    assert run.registry.get("hospital-b").code == "E-INTAKE-BUG"
    assert [batch.site for batch in run.record.batches()] == ["hospital-a", "hospital-c"]


@pytest.mark.parametrize("error", [MemoryError(), OSError("disk"), Bug("invariant")])
def test_what_this_machine_lacks_is_no_sites_fault(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(gathering, "accept", fail)
    with pytest.raises(type(error)):
        federation.run()
    assert {site.state for site in federation.open().registry.sites().values()} == {"registered"}


def test_a_site_that_is_revoked_while_a_round_is_open_is_not_averaged_in_it(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = federation.open()
    monkeypatch.setattr(gathering, "REGISTRY_S", 0.05)
    real = gathering.Gathering._count

    def count(self: Any, site: Any, part: int, accepted: Any) -> None:
        real(self, site, part, accepted)
        # the last reply is accepted only after the first site was revoked
        if site.name == "hospital-a":
            run.registry.revoke("hospital-a")

    monkeypatch.setattr(gathering.Gathering, "_count", count)
    scripts = {"hospital-b": [delayed(0.5)], "hospital-c": [delayed(0.5)]}
    train_round(run, federation.grid(scripts), "gan", 0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert closed is not None
    assert closed.data["accepted"] == ["hospital-b", "hospital-c"]


def test_a_site_that_stays_silent_costs_a_deadline_twice_and_no_more(tmp_path: Path) -> None:
    """It is asked all the same, and waited for as soon as it is online again."""
    federation = Federation.create(tmp_path, round_deadline_s=1.0, models__gan__rounds=5)
    run = federation.open()
    grid = federation.grid()
    node = run.registry.get("hospital-c").node_id
    # one round with everybody, so that nobody is waited for as a newcomer
    train_round(run, grid, "gan", 0)
    grid.online.discard(node)
    took = []
    for number in (1, 2, 3):
        began = time.monotonic()
        train_round(run, grid, "gan", number)
        took.append(time.monotonic() - began)
    assert took[0] >= 1.0 and took[1] >= 1.0
    assert took[2] < 1.0
    closed = run.record.closing_entry("train", "gan", 3)
    assert closed is not None and closed.data["missing"] == ["hospital-c"]
    grid.online.add(node)
    train_round(run, grid, "gan", 4)
    closed = run.record.closing_entry("train", "gan", 4)
    assert closed is not None and closed.data["missing"] == []


def test_a_server_that_stood_still_past_the_deadline_takes_the_answers_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation.create(tmp_path, round_deadline_s=300.0)
    store, slept = gathering.store_sealed, []

    def stand_still(path: Path, sealed: Sealed) -> None:
        store(path, sealed)
        slept[:] = [400.0]

    def clock() -> float:
        return time.monotonic() + sum(slept)

    monkeypatch.setattr(gathering, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(gathering, "store_sealed", stand_still)
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert closed is not None
    assert closed.data["missing"] == []
