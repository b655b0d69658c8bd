"""What the server promises about replies, as theorems.

Only checked replies move a weight; no single update is released.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import Bug, PolicyError, RefusedError
from common.wire import signing, tensors
from common.wire.messages import Header, Sealed, seal
from server.rounds import aggregate, intake
from server.rounds.intake import Accepted, Instruction, accept
from server.rounds.loop import train_round
from tests.federation import Federation, ToySite, crashed, delayed, dropped, failed

Forge = Callable[[dict[str, Any], tensors.Arrays], None]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


def change(name: str, make: Callable[[Any], Any]) -> Forge:
    """A forgery of one tensor."""

    def forge(fields: dict[str, Any], arrays: tensors.Arrays) -> None:
        arrays[name] = make(arrays[name])

    return forge


def say(**fields: Any) -> Forge:
    """A forgery of header fields."""
    return lambda header, arrays: header.update(fields)


def state(key: str, value: Any) -> Forge:
    """A forgery of the statement."""
    return lambda header, arrays: header.update(statement=header["statement"] | {key: value})


UPDATES: dict[str, tuple[Forge, str]] = {
    "one number is NaN": (
        change("critic.b", lambda a: np.where(a == a[0, 0], np.nan, a).astype("f4")),
        "E-GATE-07",
    ),
    "one number is infinite": (change("critic.b", lambda a: a + np.float32(np.inf)), "E-GATE-07"),
    "the update is a million times too large": (
        change("generator.a", lambda a: a * np.float32(1e6)),
        "E-GATE-09",
    ),
    "a tensor has another shape": (change("generator.a", lambda a: a.T.copy()), "E-GATE-06"),
    "a tensor is float64": (change("critic.a", lambda a: a.astype("f8")), "E-GATE-06"),
    "a tensor is made of integers": (change("critic.a", lambda a: a.astype("i8")), "E-GATE-06"),
    "a tensor more": (lambda f, arrays: arrays.update(loss=np.zeros(1, "f4")), "E-GATE-05"),
    "a tensor less": (lambda f, arrays: arrays.__delitem__("critic.a"), "E-GATE-05"),
    "the statement tells a loss": (state("loss", 0.25), "E-GATE-02"),
    "the statement claims another epsilon": (state("epsilon", 0.1), "E-GATE-02"),
    "other weights were used than were sent": (state("weights", "0" * 64), "E-INTAKE-WEIGHTS"),
    "another round is answered": (say(round=1), "E-INTAKE-ANSWER"),
    "another model is answered": (say(model="glow"), "E-INTAKE-ANSWER"),
    "images where an update was asked": (
        say(kind="images", phase="synthesize", model=""),
        "E-INTAKE-ANSWER",
    ),
    "signed for another study": (say(study="0" * 64), "E-INTAKE-ANSWER"),
    "signed under another site's name": (say(sender="hospital-b"), "E-INTAKE-SENDER"),
}


@pytest.mark.parametrize("sentence", UPDATES)
def test_an_update_is_refused_and_its_site_quarantined_when(
    sentence: str, federation: Federation
) -> None:
    forge, code = UPDATES[sentence]
    federation.sites["hospital-a"].forge = forge
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    site = run.registry.get("hospital-a")
    closed = run.record.closing_entry("train", "gan", 0)
    assert (site.state, site.code) == ("quarantined", code)
    assert closed is not None and closed.data["accepted"] == ["hospital-b", "hospital-c"]
    assert closed.data["refused"] == {"hospital-a": code}


def test_a_reply_of_another_key_is_refused(federation: Federation) -> None:
    site = federation.sites["hospital-a"]
    site.spoil = lambda sealed: seal(
        Header.model_validate_json(sealed.header), sealed.payload, signing.new_key()
    )
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    assert run.registry.get("hospital-a").code == "E-INTAKE-SIGNATURE"


def test_a_payload_that_changed_on_the_way_is_refused(federation: Federation) -> None:
    federation.sites["hospital-a"].spoil = lambda s: Sealed(
        s.header, s.payload[:-1] + b"\0", s.signature
    )
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    assert run.registry.get("hospital-a").code in ("E-DIGEST", "E-INTAKE-SIGNATURE")


def test_a_second_different_payload_for_one_instruction_quarantines_and_is_not_averaged(
    federation: Federation,
) -> None:
    site, run = federation.sites["hospital-a"], federation.open()
    site.forget = True  # every answer has other numbers
    scripts = {"hospital-a": [delayed(0.5)], "hospital-b": [delayed(1.5), *[dropped] * 9]}
    train_round(run, federation.grid(scripts), "gan", 0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert run.registry.get("hospital-a").code == "E-INTAKE-SECOND"
    assert closed is not None and closed.data["accepted"] == ["hospital-b", "hospital-c"]


def test_the_same_payload_twice_changes_nothing(federation: Federation) -> None:
    run = federation.open()
    train_round(
        run,
        federation.grid(
            {"hospital-a": [delayed(0.5)], "hospital-b": [delayed(1.0), *[dropped] * 9]}
        ),
        "gan",
        0,
    )
    assert all(site.state == "registered" for site in run.registry.sites().values())


def test_no_update_of_a_single_site_ever_becomes_the_average(tmp_path: Path) -> None:
    """Quorum 2, two sites dead: nothing is aggregated, however long the deadline is past."""
    federation = Federation.create(tmp_path, round_deadline_s=0.2)
    study_run = federation.open()
    grid = federation.grid()
    grid.online = {100}
    thread = threading.Thread(target=lambda: train_round(study_run, grid, "gan", 0), daemon=True)
    thread.start()
    thread.join(1.5)
    assert thread.is_alive() and study_run.record.closing_entry("train", "gan", 0) is None
    assert not study_run.record.weights_file("gan", 1).exists()
    assert study_run.record.progress().waiting == "waiting for hospital-b, hospital-c"
    grid.online = {100, 101}  # one comes back: now the round may close
    thread.join(10.0)
    closed = study_run.record.closing_entry("train", "gan", 0)
    assert closed is not None and closed.data["accepted"] == ["hospital-a", "hospital-b"]
    assert closed.data["missing"] == ["hospital-c"]


def test_below_the_quorum_the_average_itself_refuses(federation: Federation) -> None:
    weights: tensors.Arrays = {"critic.a": np.zeros(3, np.float32)}

    def never(site: str) -> Accepted:
        raise AssertionError("read below the quorum")

    with pytest.raises(PolicyError) as caught:
        aggregate.average(weights, {"hospital-a": 1.0}, 2, never)
    assert caught.value.code == "E-QUORUM"


def test_only_the_intake_makes_an_accepted() -> None:
    sealed = Sealed(b"", b"", b"")
    with pytest.raises(Bug):
        Accepted(object(), None, {}, sealed)  # type: ignore[arg-type]
    with pytest.raises(Bug):
        Accepted(None, None, {}, sealed)  # type: ignore[arg-type]


def test_the_order_of_arrival_changes_no_byte(tmp_path: Path) -> None:
    orders = [
        ("hospital-a", "hospital-b", "hospital-c"),
        ("hospital-c", "hospital-a", "hospital-b"),
    ]
    digests = []
    for number, order in enumerate(orders):
        federation = Federation.create(tmp_path / str(number))
        scripts = {name: [delayed(0.15 * place)] for place, name in enumerate(order)}
        run = federation.open()
        train_round(run, federation.grid(scripts), "gan", 0)
        closed = run.record.closing_entry("train", "gan", 0)
        assert closed is not None
        digests.append(closed.data["weights"])
    assert digests[0] == digests[1]


def test_lost_messages_and_dead_sites_are_asked_again_until_all_have_answered(
    federation: Federation,
) -> None:
    scripts = {
        "hospital-a": [dropped, failed(3, "lost"), failed(5, "offline")],
        "hospital-b": [crashed, failed(2, "E-PLAN-UNAPPROVED"), failed(7, "E-APP-UNPINNED")],
        "hospital-c": [failed(4, "lost"), crashed],
    }
    run = federation.open()
    train_round(run, federation.grid(scripts), "gan", 0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert closed is not None and closed.data["accepted"] == [
        "hospital-a",
        "hospital-b",
        "hospital-c",
    ]
    assert all(len({h.digest for h in site.asked}) == 1 for site in federation.sites.values())


def test_a_site_that_answers_with_codes_is_asked_again_long_before_a_silent_one(
    federation: Federation,
) -> None:
    federation.limits = federation.limits.model_copy(update={"reask_s": 3600.0})
    codes = [failed(code, "E-X") for code in (2, 3, 4, 5, 7, 8)]
    run = federation.open()
    train_round(run, federation.grid({"hospital-a": codes}), "gan", 0)
    closed = run.record.closing_entry("train", "gan", 0)
    assert closed is not None and "hospital-a" in closed.data["accepted"]


def test_no_text_of_a_site_is_repeated_by_the_server(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    scripts = {
        "hospital-a": [
            failed(2, "Doe^Jane 1931-05-05"),
            failed(2, "E-Doe^Jane"),
            failed(8, "e-doe"),
        ]
    }
    run = federation.open()
    with caplog.at_level("DEBUG", logger="kohort.server"):
        train_round(run, federation.grid(scripts), "gan", 0)
    written = caplog.text + str([entry.data for entry in run.record.journal.entries()])
    assert "oe^" not in written and "e-doe" not in written and "E-FLOWER-2" in written


IMAGES: dict[str, tuple[Forge, str]] = {
    "an image has another size": (change("images", lambda a: a[:, :16, :16].copy()), "E-GATE-11"),
    "a label is out of range": (change("labels", lambda a: a + 9), "E-GATE-13"),
    "a flag is neither 0 nor 1": (change("privatized", lambda a: a + np.uint8(2)), "E-GATE-14"),
    "there are more than the plan allows": (
        lambda f, arrays: arrays.update(many(arrays, 60)),
        "E-GATE-12",
    ),
    "there are none": (lambda f, arrays: arrays.update(many(arrays, 0)), "E-GATE-12"),
    "file names come along": (
        lambda f, arrays: arrays.update(names=np.zeros(4, np.uint8)),
        "E-GATE-10",
    ),
    "a count of patients stands in the statement": (state("patients", 63), "E-GATE-02"),
}


def many(arrays: tensors.Arrays, count: int) -> tensors.Arrays:
    """The batch with another number of images."""
    return {name: np.resize(a, (count, *a.shape[1:])).astype(a.dtype) for name, a in arrays.items()}


@pytest.mark.parametrize("sentence", IMAGES)
def test_a_batch_is_refused_when(sentence: str, federation: Federation) -> None:
    site = ToySite("hospital-a", federation.study, federation.key.public_key())
    site.forge, code = IMAGES[sentence]
    asked = Instruction(federation.study, "synthesize", "", 0, weights="0" * 64)
    question = Header(
        kind="synthesize",
        study=federation.study.hash(),
        phase="synthesize",
        round=0,
        sender="operator",
        digest="0" * 64,
    )
    sealed = site._made(question, {})
    with pytest.raises(RefusedError) as caught:
        accept(sealed, "hospital-a", signing.public_text(site.key.public_key()), asked)
    assert caught.value.code == code


def test_images_are_counted_over_all_parts(federation: Federation) -> None:
    site = ToySite("hospital-a", federation.study, federation.key.public_key(), image_parts=8)
    question = Header(
        kind="synthesize",
        study=federation.study.hash(),
        phase="synthesize",
        round=0,
        part=7,
        parts=8,
        sender="operator",
        digest="0" * 64,
    )
    asked = Instruction(
        federation.study,
        "synthesize",
        "",
        0,
        part=7,
        parts=8,
        images_before=35,
        weights="0" * 64,
    )
    line = signing.public_text(site.key.public_key())
    with pytest.raises(RefusedError, match="41 images"):
        intake.accept(site._made(question, {}), "hospital-a", line, asked)
