"""Promises of the gate and the daemon: what leaves a hospital, and what never runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.egress.decisions import Choice, chain, record_decision
from client.egress.evidence import Evidence
from client.egress.gate import Cleared
from client.egress.outbox import Outbox
from client.egress.review import Reviews
from client.state.folder import State
from client.state.group_store import Group, Stratum
from client.state.ledger_file import of_kind
from client.state.plan_check import check_plan
from common.errors import Bug, KohortError, PolicyError, RefusedError
from common.privacy.mechanisms import SubsampledGaussian, mechanism_from
from common.storage.journal import Journal
from common.study.bundle import open_bundle, write_bundle
from common.wire import signing, tensors
from common.wire.messages import Header, digest_of, unseal
from tests.sites import WEIGHTS, Hospital, Killed, make_hospital, pseudonym, scripted


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def refused(call: Any) -> str:
    """The code under which a call is refused."""
    with pytest.raises(KohortError) as caught:
        call()
    return caught.value.code


def test_only_the_gate_makes_a_cleared(hospital: Hospital) -> None:
    header = Header(
        kind="update",
        study="0" * 64,
        phase="train",
        model="gan",
        round=0,
        sender="x",
        digest=digest_of(b""),
    )
    with pytest.raises(Bug):
        Cleared(object(), header, b"")
    with pytest.raises(Bug):
        Cleared(None, header, b"")


def test_a_cleared_cannot_be_changed(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Cleared] = []
    store = Outbox.store
    monkeypatch.setattr(
        Outbox,
        "store",
        lambda self, cleared, key: (kept.append(cleared), store(self, cleared, key))[1],
    )
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    with pytest.raises(Bug):
        kept[0].payload = b"other"
    with pytest.raises(Bug):
        del kept[0].header


def test_the_outbox_takes_nothing_but_cleared(hospital: Hospital) -> None:
    header = Header(
        kind="update",
        study="0" * 64,
        phase="train",
        model="gan",
        round=0,
        sender="x",
        digest=digest_of(b""),
    )
    pretender = type("Pretender", (), {"header": header, "payload": b""})()
    with pytest.raises(Bug):
        Outbox(hospital.root / "outbox").store(pretender, signing.new_key())
    assert not list((hospital.root / "outbox").glob("*"))


SMUGGLED: dict[str, tuple[str, Any]] = {
    "one tensor more": ("E-GATE-05", lambda a: a | {"critic.patients": np.ones(1, np.float32)}),
    "one tensor fewer": ("E-GATE-05", lambda a: {"critic.a": a["critic.a"]}),
    "a tensor under another name": (
        "E-GATE-05",
        lambda a: {"critic.b": a["critic.a"], "generator.a": a["generator.a"]},
    ),
    "double precision": ("E-GATE-06", lambda a: a | {"critic.a": a["critic.a"].astype(np.float64)}),
    "another shape": ("E-GATE-06", lambda a: a | {"generator.a": a["generator.a"].T.copy()}),
    "a number that is not one": (
        "E-GATE-07",
        lambda a: a | {"critic.a": np.full(4, np.nan, np.float32)},
    ),
    "an infinite number": (
        "E-GATE-07",
        lambda a: a | {"critic.a": np.full(4, -np.inf, np.float32)},
    ),
    "more than the plan's norm": (
        "E-GATE-09",
        lambda a: a | {"critic.a": np.full(4, 5.1, np.float32)},
    ),
}


@pytest.mark.parametrize("case", SMUGGLED, ids=lambda case: case.replace(" ", "-"))
def test_nothing_but_the_declared_tensors_passes_the_gate(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    code, change = SMUGGLED[case]
    scripted(monkeypatch, hospital.study).change = change
    assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == code
    assert not list((hospital.root / "outbox").glob("*"))


def test_metadata_cannot_ride_along(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, hospital.study)
    write = tensors.write
    monkeypatch.setattr(
        tensors, "write", lambda path, arrays: write(path, arrays, {"patient": "Mueller"})
    )
    assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == "E-GATE-04"


def test_a_reply_says_the_plans_constants_and_a_commitment_alone(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    reply = site.answer(hospital.ask("train"))
    header = unseal(reply, site.state.signing_key().public_key(), max_bytes=1 << 20)
    assert set(header.statement) == {
        "unit",
        "adjacency",
        "epsilon",
        "delta",
        "sampling_rate",
        "noise_multiplier",
        "clip",
        "steps",
        "weights",
        "head_commitment",
    }
    (taken,) = Journal(site.state.heads).entries()
    assert header.statement["head_commitment"] == taken.data["commitment"]
    assert (header.sender, header.receipts) == ("hospital-a", ())


def test_an_unapproved_plan_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = make_hospital(tmp_path, approve=False)
    children = scripted(monkeypatch, hospital.study)
    assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == "E-PLAN-UNAPPROVED"
    assert children.runs == 0
    assert not (hospital.root / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    "what", ["a byte of the plan", "the signature", "a checkpoint", "another signed plan"]
)
def test_an_altered_plan_never_runs(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    children = scripted(monkeypatch, hospital.study)
    folder = hospital.root / "plans" / hospital.study.hash()
    if what == "a byte of the plan":
        text = (folder / "study.yaml").read_text()
        (folder / "study.yaml").write_text(text.replace("clip: 1.0", "clip: 9.0"))
    elif what == "the signature":
        signature = signing.sign(signing.new_key(), signing.PLAN, hospital.study.hash().encode())
        (folder / "study.sig").write_bytes(signature)
    elif what == "another signed plan":
        other = make_hospital(hospital.root.parent / "other", approve=False, models__gan__clip=9.0)
        write_bundle(other.bundle.parent / "study.yaml", hospital.operator, folder)
    else:
        tensors.write(
            folder / "checkpoints" / "gan.safetensors", {"generator.a": np.zeros(1, np.float32)}
        )
    code = "E-PLAN-ALTERED" if what == "another signed plan" else "E-REFUSED"
    assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == code
    assert children.runs == 0


def test_only_the_operator_can_instruct(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    assert (
        refused(lambda: hospital.site().answer(hospital.ask("train", key=signing.new_key())))
        == "E-REFUSED"
    )
    sealed = hospital.ask("train")
    changed = sealed._replace(header=sealed.header.replace(b'"round":0', b'"round":1'))
    assert refused(lambda: hospital.site().answer(changed)) == "E-REFUSED"
    assert children.runs == 0


OUT_OF_PLAN: dict[str, dict[str, Any]] = {
    "a round after the last": {"round": 2},
    "a model that the plan does not train": {"model": "wgan", "weights": WEIGHTS["gan"]},
    "a phase that is not the kind's": {"phase": "synthesize"},
    "two parts": {"parts": 2},
    "a sender who is a site": {"sender": "hospital-b"},
}


@pytest.mark.parametrize("case", OUT_OF_PLAN, ids=lambda case: case.replace(" ", "-"))
def test_an_instruction_beyond_the_plan_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    children = scripted(monkeypatch, hospital.study)
    assert (
        refused(lambda: hospital.site().answer(hospital.ask("train", **OUT_OF_PLAN[case])))
        == "E-GATE-01"
    )
    assert children.runs == 0


def test_global_weights_of_another_shape_are_refused_before_training(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    weights = WEIGHTS["gan"] | {"critic.a": np.ones((9,), np.float32)}
    assert (
        refused(lambda: hospital.site().answer(hospital.ask("train", weights=weights)))
        == "E-GATE-06"
    )
    assert children.runs == 0


EARLIER = SubsampledGaussian(0.16, 0.9, 40)  # another study that spent 8.9 of the site's 10

TOO_MUCH: dict[str, dict[str, Any]] = {
    "epsilon": {"max_epsilon": 7.9},
    "delta": {"max_delta": 1e-6},
    "k": {"min_k": 6},
    "noise": {"min_noise_multiplier": 4.1},
    "grouping": {"groupings": ("random",)},
    "images": {"max_images": 39},
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_plan_above_the_sites_policy_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site(**TOO_MUCH[what])
    with pytest.raises(PolicyError):
        check_plan(hospital.study, site.config.policy, "hospital-a")
    assert refused(lambda: site.answer(hospital.ask("train"))) == "E-POLICY-PLAN"
    assert children.runs == 0


def test_a_plan_of_other_sites_is_refused(hospital: Hospital) -> None:
    assert (
        refused(lambda: check_plan(hospital.study, hospital.site().config.policy, "hospital-z"))
        == "E-POLICY-PLAN"
    )


def test_a_plan_that_would_pass_the_cap_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, models__gan__rounds=30, models__gan__local_steps=30)
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.ledger().reserve(EARLIER, "f" * 64)
    assert refused(lambda: site.answer(hospital.ask("train"))) == "E-POLICY-CAP"
    assert children.runs == 0
    assert [row.kind for row in site.ledger().rows()] == ["open", "reserve"]


def test_a_plan_above_its_own_epsilon_is_refused_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, models__gan__rounds=500, models__gan__local_steps=50)
    children = scripted(monkeypatch, hospital.study)
    site = hospital.site()
    assert refused(lambda: site.answer(hospital.ask("train"))) == "E-PLAN-BUDGET"
    assert children.runs == 0
    assert [row.kind for row in site.ledger().rows()] == ["open"]


def test_a_resent_reply_has_the_same_bytes(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    first = hospital.site().answer(hospital.ask("train"))
    other = {name: array * 2 for name, array in WEIGHTS["gan"].items()}
    assert hospital.site().answer(hospital.ask("train")) == first
    assert hospital.site().answer(hospital.ask("train", weights=other)) == first
    assert children.runs == 1


def test_a_crash_leaves_its_reservation_spent_and_no_result_is_computed_twice_for_one(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, "die", "crash", "finish")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    site = hospital.site()
    site.answer(hospital.ask("train"))
    assert children.runs == 3
    assert len(set(children.reservations)) == 3
    kinds = [row.kind for row in site.ledger().rows()]
    assert kinds.count("reserve") == 3
    assert kinds.count("commit") == 1


def test_a_finished_output_survives_kill_9_and_is_the_one_that_is_sent(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, "die after")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    outputs = list((hospital.root / "jobs").glob("*/out.safetensors"))
    made = outputs[0].read_bytes()
    reply = hospital.site().answer(hospital.ask("train"))
    assert reply.payload == made
    assert children.runs == 1


DEATHS = {
    "after the ledger, before the journal": ("client.daemon.jobs._job", False),
    "in the gate": ("client.state.ledger.Ledger.commit", False),
    "after the gate, before the outbox": ("client.egress.outbox.Outbox.store", False),
}


@pytest.mark.parametrize("where", DEATHS, ids=lambda case: case.replace(" ", "-").replace(",", ""))
def test_a_restart_continues_wherever_the_daemon_was_killed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    children = scripted(monkeypatch, hospital.study)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(DEATHS[where][0], die)
        with pytest.raises(Killed):
            hospital.site().answer(hospital.ask("train"))
    site = hospital.site()
    assert hospital.site().answer(hospital.ask("train")) == site.answer(hospital.ask("train"))
    assert children.runs == 1
    rows = site.ledger().rows()
    assert [row.kind for row in rows].count("commit") == 1
    assert [row.kind for row in rows].count("reserve") == 1


def test_one_ledger_entry_has_one_artefact(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study, "die after")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    site = hospital.site()
    reservation = json.loads(site.state.journal.entries()[-1].data["reservation"])
    from client.state.ledger import Reservation

    site.ledger().commit(Reservation.from_json(json.dumps(reservation)), "1" * 64)
    assert refused(lambda: site.answer(hospital.ask("train"))) == "E-GATE-21"
    assert children.runs == 1


def test_an_update_leaves_only_for_a_reservation_of_its_own_plan(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plans may spend the same; what one reserved does not pay for the other."""
    scripted(monkeypatch, hospital.study, "die after")
    with pytest.raises(Killed):
        hospital.site().answer(hospital.ask("train"))
    site = hospital.site()
    (own,) = of_kind(site.ledger().rows(), "reserve")
    event = mechanism_from(json.dumps(own.data["event"]))
    other = site.ledger().reserve(event, "f" * 64, weights=own.data["weights"])
    with monkeypatch.context() as patch:
        patch.setattr("client.daemon.spending._reservation", lambda _: other)
        assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == "E-GATE-21"
    assert not list((hospital.root / "outbox").glob("*"))
    hospital.site().answer(hospital.ask("train"))  # its own one does


# --- images


def images_reply(hospital: Hospital, **policy: Any) -> Any:
    """What the site answers when it is asked for its images."""
    return hospital.site(**policy).answer(hospital.ask("synthesize"))


def test_an_unreviewed_batch_cannot_leave(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.stop.set()  # the wait for a person ends at once, without an answer
    assert refused(lambda: site.answer(hospital.ask("synthesize"))) == "E-STOPPED"
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    assert refused(lambda: images_reply(hospital)) == "E-GATE-25"
    assert not list((hospital.root / "outbox").glob("*"))


def test_a_rejected_batch_cannot_leave(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    monkeypatch.setattr(
        site.stop, "wait", lambda _: site.reviews.decide("", approve=False, reviewer="R") is None
    )
    assert refused(lambda: site.answer(hospital.ask("synthesize"))) == "E-REVIEW-REJECTED"
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    assert refused(lambda: images_reply(hospital, review="not_required")) == "E-GATE-25"


def test_an_approval_counts_for_exactly_the_bytes_that_were_seen(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    site.stop.set()
    refused(lambda: site.answer(hospital.ask("synthesize")))
    site.reviews.decide("", approve=True, reviewer="R")
    out = next((hospital.root / "jobs").glob("*/out.safetensors"))
    arrays = tensors.read(out, max_bytes=1 << 20)
    arrays["images"][0, 0, 0, 0] ^= 1
    tensors.write(out, arrays)
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    assert refused(lambda: images_reply(hospital)) == "E-GATE-25"


def approve_as(hospital: Hospital, *names: str, **fields: Any) -> None:
    """Let these persons approve what waits; `fields` replace the reviews' own."""
    settings: dict[str, Any] = {
        "folder": State(hospital.root).reviews,
        "key": State(hospital.root).signing_key,
        "reviewers": len(names),
    }
    reviews = Reviews(**(settings | fields))
    for name in names:
        reviews.decide("", approve=True, reviewer=name)
    reviews.close()


def approve_unsigned(hospital: Hospital) -> None:
    """Write an approval into the journal past the program."""
    journal = Journal(State(hospital.root).reviews / "decisions.sqlite")
    digest = journal.entries()[0].key
    fields = {"reviewer": "Dr. A", "pages": [], "previous": chain(journal.entries())}
    journal.append(digest, "approved", fields)
    journal.close()


def approve_twice(hospital: Hospital) -> None:
    """Approve, and repeat the same person's approval past the program."""
    approve_as(hospital, "Dr. A")
    key = State(hospital.root).signing_key()
    journal = Journal(State(hospital.root).reviews / "decisions.sqlite")
    digest = journal.entries()[0].key
    again = Choice("approved", "dr. a")
    journal.append_after(digest, "approved", lambda b: record_decision(digest, again, [], b, key))
    journal.close()


UNEARNED: dict[str, tuple[int, Callable[[Hospital], object]]] = {
    "by nobody": (1, lambda hospital: None),
    "by one person where two are asked for": (2, lambda hospital: approve_as(hospital, "Dr. A")),
    "twice by one person": (2, approve_twice),
    "without a signature": (1, approve_unsigned),
    "signed with another key": (
        1,
        lambda hospital: approve_as(hospital, "Dr. A", key=signing.new_key),
    ),
}


@pytest.mark.parametrize("case", UNEARNED, ids=lambda case: case.replace(" ", "-"))
def test_a_batch_leaves_only_with_the_signed_approvals_that_the_policy_asks_for(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The wait is left out: the gate looks for itself."""
    reviewers, approve = UNEARNED[case]
    scripted(monkeypatch, hospital.study)
    site = hospital.site(reviewers=reviewers)
    site.stop.set()
    assert refused(lambda: site.answer(hospital.ask("synthesize"))) == "E-STOPPED"
    approve(hospital)
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    assert refused(lambda: images_reply(hospital, reviewers=reviewers)) == "E-GATE-25"
    assert not list((hospital.root / "outbox").glob("*"))


def test_a_batch_that_two_persons_approved_leaves(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site(reviewers=2)
    site.stop.set()
    refused(lambda: site.answer(hospital.ask("synthesize")))
    approve_as(hospital, "Dr. A", "Dr. B")
    images_reply(hospital, reviewers=2)
    assert list((hospital.root / "outbox").glob("*.sealed"))


def test_an_approved_batch_leaves_once_and_its_groups_are_frozen(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    first = images_reply(hospital, review="not_required")
    assert images_reply(hospital, review="not_required") == first
    assert (
        hospital.site().answer(hospital.ask("synthesize", round=1, statement={"done": True}))
        == first
    )
    assert children.runs == 1
    from client.state.group_store import GroupStore

    with GroupStore(hospital.root / "groups.sqlite") as groups:
        assert len(groups.groups()) == 2


WRONG_IMAGES: dict[str, tuple[str, Any]] = {
    "one tensor more": ("E-GATE-10", lambda a: a | {"count": np.array([3])}),
    "labels as floats": ("E-GATE-10", lambda a: a | {"labels": a["labels"].astype(np.float64)}),
    "another size": ("E-GATE-11", lambda a: a | {"images": a["images"][:, :16].copy()}),
    "a label beyond the strata": ("E-GATE-13", lambda a: a | {"labels": np.array([0, 3])}),
    "a flag above one": ("E-GATE-14", lambda a: a | {"privatized": np.array([0, 2], np.uint8)}),
    "more images than groups are named": (
        "E-GATE-22",
        lambda a: {n: np.concatenate([v, v]) for n, v in a.items()},
    ),
    "a label that is not the group's": ("E-GATE-23", lambda a: a | {"labels": np.array([1, 0])}),
}


@pytest.mark.parametrize("case", WRONG_IMAGES, ids=lambda case: case.replace(" ", "-"))
def test_nothing_but_the_declared_images_passes_the_gate(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    code, change = WRONG_IMAGES[case]
    scripted(monkeypatch, hospital.study).change = change
    assert refused(lambda: images_reply(hospital, review="not_required")) == code
    assert not list((hospital.root / "outbox").glob("*"))


def members(*patients: int) -> tuple[str, ...]:
    return tuple(pseudonym(p) for p in patients)


WRONG_GROUPS: dict[str, tuple[str, Any]] = {
    "patients who are not in the cohort": (
        "E-GATE-22",
        lambda e: replaced(e, members(*range(100, 108)), 5),
    ),
    "fewer than the policy's k": ("E-GATE-22", lambda e: replaced(e, members(0, 1, 2), 3)),
    "an image that failed the audit": (
        "E-GATE-24",
        lambda e: dataclasses.replace(e, audit=("A-COPY",)),
    ),
}


def replaced(evidence: Evidence, names: tuple[str, ...], k: int) -> Evidence:
    """The evidence with other people in the first group."""
    return dataclasses.replace(
        evidence, groups=(Group(names, Stratum(0, 2), k), evidence.groups[1])
    )


@pytest.mark.parametrize(
    "case", WRONG_GROUPS, ids=lambda case: case.replace(" ", "-").replace("'", "")
)
def test_every_image_that_leaves_aggregates_k_distinct_persons_of_the_cohort(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    code, change = WRONG_GROUPS[case]
    scripted(monkeypatch, hospital.study).evidence = change
    assert refused(lambda: images_reply(hospital, review="not_required")) == code
    assert not list((hospital.root / "outbox").glob("*"))


def test_k_is_the_larger_of_the_plans_and_the_policys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six patients are enough for the policy's k of 5, and not for the plan's of 7."""
    large = make_hospital(tmp_path, synthesis__k=7)
    scripted(monkeypatch, large.study).evidence = lambda e: replaced(e, members(*range(6)), 5)
    act = lambda: images_reply(large, review="not_required", min_k=5)  # noqa: E731
    assert refused(act) == "E-GATE-22"
    assert not list((large.root / "outbox").glob("*"))


def test_an_image_of_a_group_that_is_not_frozen_cannot_leave(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    monkeypatch.setattr("client.state.group_store.GroupStore.release", lambda *_: None)
    assert refused(lambda: images_reply(hospital, review="not_required")) == "E-GATE-23"


def test_aliases_of_one_person_count_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    index = hospital.site().state.cohort(hospital.study.intake) / "index.sqlite"
    with sqlite3.connect(index) as db:
        db.executemany("INSERT INTO alias VALUES (?, ?)", [(f"{i:064x}", 0) for i in range(4)])
    db.close()
    names = (*members(0), *(f"{i:064x}" for i in range(4)))
    scripted(monkeypatch, hospital.study).evidence = lambda e: replaced(e, names, 5)
    assert refused(lambda: images_reply(hospital, review="not_required")) == "E-GATE-22"


def test_laplace_noise_with_a_claim_per_patient_is_composed_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"share": 1.0, "radius": 0.2, "scale": 10.0}
    hospital = make_hospital(tmp_path, synthesis__grouping="random", synthesis__privatize=section)
    children = scripted(monkeypatch, hospital.study)
    # alone the plan keeps its 8 and the cap of 10; beside an earlier study it does not
    hospital.site().ledger().reserve(EARLIER, "f" * 64)
    assert refused(lambda: images_reply(hospital, review="not_required")) == "E-POLICY-CAP"
    assert children.runs == 0


def test_laplace_noise_that_breaks_the_plans_own_promise_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"share": 1.0, "radius": 0.8, "scale": 10.0}  # epsilon 24.6 an average
    hospital = make_hospital(tmp_path, synthesis__grouping="random", synthesis__privatize=section)
    children = scripted(monkeypatch, hospital.study)
    assert refused(lambda: hospital.site().answer(hospital.ask("train"))) == "E-PLAN-BUDGET"
    assert refused(lambda: images_reply(hospital, review="not_required")) == "E-PLAN-BUDGET"
    assert children.runs == 0
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open"]


def test_laplace_noise_on_similar_groups_is_declared_before_the_child_starts(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study, "die")
    with pytest.raises(Killed):
        images_reply(hospital, review="not_required")
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open", "declare"]


def test_the_bundle_of_the_tests_is_a_signed_one(hospital: Hospital) -> None:
    assert open_bundle(hospital.bundle, hospital.operator.public_key()) == hospital.study
    with pytest.raises(RefusedError):
        open_bundle(hospital.bundle, signing.new_key().public_key())
