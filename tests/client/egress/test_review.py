"""Human review: a decision holds for one digest, with a name, for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.egress.review import Reviews, batch_digest
from common.errors import ConfigurationError, PolicyError

ONE, TWO = batch_digest([b"one"]), batch_digest([b"two"])


@pytest.fixture
def reviews(tmp_path: Path) -> Reviews:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"pictures")
    reviews = Reviews(tmp_path / "review")
    reviews.propose(ONE, "f" * 64, sheet)
    return reviews


def test_a_proposed_batch_waits_with_its_sheet(reviews: Reviews) -> None:
    batch = reviews.find("")
    assert (batch.digest, batch.state, batch.sheet.read_bytes()) == (ONE, "waiting", b"pictures")
    assert reviews.state(TWO) == "unknown"


def test_the_picture_of_the_inversions_goes_along_where_the_job_left_one(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    for name in ("contact_sheet.png", "inversions.png", "child.log"):
        (tmp_path / "job" / name).write_bytes(name.encode())
    batch = Reviews(tmp_path / "review").propose(
        ONE, "f" * 64, tmp_path / "job" / "contact_sheet.png"
    )
    assert {path.name: path.read_bytes() for path in batch.folder.iterdir()} == {
        "contact_sheet.png": b"contact_sheet.png",
        "inversions.png": b"inversions.png",
    }


def test_a_decision_is_bound_to_the_digest_and_names_the_reviewer(reviews: Reviews) -> None:
    assert reviews.decide("", approve=True, reviewer="Dr. R").state == "approved"
    again = Reviews(reviews.folder)
    assert again.state(ONE) == "approved"
    assert again.find(ONE[:8]).reviewer == "Dr. R"
    assert again.state(TWO) == "unknown"


def test_a_batch_with_the_same_first_digits_is_another_batch(
    reviews: Reviews, tmp_path: Path
) -> None:
    reviews.decide(ONE, approve=True, reviewer="R")
    other = ONE[:-1] + ("0" if ONE[-1] != "0" else "1")
    assert reviews.state(other) == "unknown"
    assert reviews.propose(other, "f" * 64, tmp_path / "sheet.png").state == "waiting"
    assert reviews.state(ONE) == "approved"


@pytest.mark.parametrize("approve", [True, False])
def test_a_decision_is_final(reviews: Reviews, approve: bool) -> None:
    state = "approved" if approve else "rejected"
    reviews.decide(ONE, approve=approve, reviewer="R")
    assert reviews.decide(ONE, approve=approve, reviewer="R").state == state
    with pytest.raises(PolicyError, match=f"already {state}"):
        reviews.decide(ONE, approve=not approve, reviewer="R")


def test_proposing_again_changes_nothing(reviews: Reviews, tmp_path: Path) -> None:
    reviews.decide(ONE, approve=True, reviewer="R")
    assert reviews.propose(ONE, "f" * 64, tmp_path / "sheet.png").state == "approved"


@pytest.mark.parametrize("batch", ["", "no such digest"])
def test_an_unclear_batch_is_no_decision(reviews: Reviews, tmp_path: Path, batch: str) -> None:
    reviews.propose(TWO, "f" * 64, tmp_path / "sheet.png")
    with pytest.raises(ConfigurationError):
        reviews.decide(batch, approve=True, reviewer="R")
    assert reviews.state(ONE) == reviews.state(TWO) == "waiting"


def test_a_decision_needs_a_name(reviews: Reviews) -> None:
    with pytest.raises(ConfigurationError):
        reviews.decide("", approve=True, reviewer="  ")


def test_the_order_and_number_of_parts_are_in_the_digest() -> None:
    assert len({batch_digest(p) for p in ([b"a", b"b"], [b"b", b"a"], [b"a"], [b"ab"])}) == 4
