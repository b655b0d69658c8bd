"""Promises of images that a person left out: they stay, and what leaves was seen anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.daemon.site import Site
from client.egress.review import Reviews
from client.egress.sheet_pictures import SheetPictures
from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.jobs import Stopped
from common.errors import KohortError, PolicyError
from common.wire import tensors
from common.wire.messages import unseal
from tests.shown_batches import EACH, PATIENTS, ShowingChildren, averages, showing_hospital
from tests.sites import Hospital, pseudonym

NOISE = {"share": 1.0, "radius": 0.2, "scale": 10.0}


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    return showing_hospital(tmp_path, monkeypatch)


def ask(site: Site, hospital: Hospital, *decide: Any) -> Any:
    """Ask for images; each call of `decide` is made at one look of the daemon, then it stops."""
    script = list(decide)

    def wait(_: float) -> bool:
        if not script:
            return True
        script.pop(0)(site.reviews)
        return False

    site.stop.wait = wait  # type: ignore[method-assign]
    return site.answer(hospital.ask("synthesize"))


def leave_out(*numbers: int) -> Any:
    """A person's decision that these images stay."""
    return lambda reviews: reviews.leave_out("", numbers, reviewer="Dr. A", reason="person")


def approve(reviews: Reviews) -> None:
    """A person's approval of what waits."""
    reviews.decide("", approve=True, reviewer="Dr. A")


def released(reply: Any, site: Site) -> Any:
    """The tensors of a reply."""
    public = site.state.signing_key().public_key()
    unseal(reply, public, max_bytes=1 << 24)
    return tensors.loads(reply.payload, max_bytes=1 << 24)


def test_the_rest_leaves_in_its_order_once_it_was_seen(hospital: Hospital) -> None:
    site = hospital.site()
    reply = ask(site, hospital, leave_out(2, 7), approve)
    real = np.load(site.state.cohort(hospital.study.intake) / "images.npy")
    rest = [place for place in range(PATIENTS // EACH) if place not in (1, 6)]
    assert (released(reply, site)["images"] == averages(real)[rest]).all()
    first, second = site.reviews.batches()
    assert (first.state, first.left_out, second.state) == ("reduced", (2, 7), "approved")


def test_people_who_stayed_are_in_no_frozen_group(hospital: Hospital) -> None:
    site = hospital.site()
    ask(site, hospital, leave_out(1), approve)
    with GroupStore(site.state.groups) as store:
        members = {member for group in store.groups() for member in group.members}
    assert members == {pseudonym(patient) for patient in range(EACH, PATIENTS)}


def test_the_rest_is_shown_as_it_is_and_waits_for_a_decision_of_its_own(
    hospital: Hospital,
) -> None:
    site = hospital.site()
    with pytest.raises(Stopped):
        ask(site, hospital, leave_out(1, 2, 3))
    batch = site.reviews.find("")
    facts = batch.facts()
    assert facts is not None
    assert [image.persons for image in facts.images] == [EACH] * 5
    shown = SheetPictures(batch.sheets, facts)
    real = np.load(site.state.cohort(hospital.study.intake) / "images.npy")
    for number in range(1, 6):
        place = number + 2
        assert (shown.pixels(number, 0) == averages(real)[place]).all()
        assert (shown.pixels(number, 1) == real[place * EACH]).all()


def test_a_restart_goes_on_with_the_rest(hospital: Hospital) -> None:
    with pytest.raises(Stopped):
        ask(hospital.site(), hospital, leave_out(4))
    waiting = hospital.site().reviews.find("").digest
    with pytest.raises(Stopped):
        ask(hospital.site(), hospital, leave_out(1))
    site = hospital.site()
    reply = ask(site, hospital, approve)
    assert len(released(reply, site)["images"]) == 6
    states = {batch.digest: batch.state for batch in site.reviews.batches()}
    assert list(states.values()) == ["reduced", "reduced", "approved"]
    assert states[waiting] == "reduced"


def test_a_batch_with_images_left_out_never_leaves_itself(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the policy asks for no review, and the daemon forgets to take the rest."""
    with pytest.raises(Stopped):
        ask(hospital.site(), hospital, leave_out(4))
    monkeypatch.setattr("client.daemon.images.keep_rest", lambda _, evidence, __: range(8))
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    monkeypatch.setattr(Reviews, "state", first_as_it_is(Reviews.state))
    with pytest.raises(KohortError) as refused:
        hospital.site(review="not_required").answer(hospital.ask("synthesize"))
    assert refused.value.code == "E-GATE-25"
    assert not list((hospital.root / "outbox").glob("*"))


def first_as_it_is(state: Any) -> Any:
    """The daemon's loop over what was left out sees none; the gate sees the truth."""
    looks: list[str] = []

    def look(self: Reviews, digest: str) -> Any:
        looks.append(digest)
        return "waiting" if len(looks) <= 2 else state(self, digest)

    return look


@pytest.mark.parametrize(
    "synthesis",
    [{"grouping": "random", "privatize": NOISE}, {"grouping": "random", "privatize": None}],
    ids=["epsilon per patient", "groups by chance"],
)
def test_no_single_image_is_left_out_where_nobodys_images_may_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthesis: dict[str, Any]
) -> None:
    changes = {f"synthesis__{name}": value for name, value in synthesis.items()}
    hospital = showing_hospital(tmp_path, monkeypatch, **changes)
    site = hospital.site(max_epsilon=100)
    with pytest.raises(PolicyError) as refused:
        ask(site, hospital, leave_out(1))
    assert refused.value.code == "E-REVIEW-SINGLE"
    assert site.reviews.find("").state == "waiting"


def test_a_sheet_that_shows_other_images_than_would_leave_is_not_proposed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = ShowingChildren(hospital.study)
    children.change = lambda arrays: arrays | {"images": arrays["images"][::-1].copy()}
    monkeypatch.setattr("client.daemon.jobs.run_child", children)
    site = hospital.site()
    with pytest.raises(PolicyError) as refused:
        ask(site, hospital)
    assert refused.value.code == "E-REVIEW-PAGES"
    assert site.reviews.batches() == ()


def test_no_byte_of_a_nearest_real_image_leaves(hospital: Hospital) -> None:
    """The sheet shows each average beside a patient's image: nothing outbound holds one."""
    site = hospital.site()
    reply = ask(site, hospital, leave_out(2), approve)
    real = np.load(State(hospital.root).cohort(hospital.study.intake) / "images.npy")
    sent = b"".join(path.read_bytes() for path in site.state.outbox.iterdir())
    sent += b"".join(bytes(part) for part in reply)
    for image in real:
        assert image.tobytes() not in sent
        assert image[4:8].tobytes() not in sent
    for batch in site.reviews.batches():
        for path in batch.folder.iterdir():
            data = path.read_bytes()
            assert data not in sent
            assert data[:64] not in sent
