"""Human review: a decision holds for one digest, with a name, for good."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from client.egress.review import Reviews, batch_digest, page_name
from common.errors import ConfigurationError, PolicyError
from common.storage.journal import Journal
from common.wire import signing

KEY = signing.new_key()


def open_folder(folder: Path, reviewers: int = 1) -> Reviews:
    """The reviews in a folder, signed with this site's key."""
    return Reviews(folder, lambda: KEY, reviewers)


ONE, TWO = batch_digest([b"one"]), batch_digest([b"two"])


@pytest.fixture
def reviews(tmp_path: Path) -> Reviews:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"pictures")
    reviews = open_folder(tmp_path / "review")
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
    batch = open_folder(tmp_path / "review").propose(
        ONE, "f" * 64, tmp_path / "job" / "contact_sheet.png"
    )
    assert {path.name: path.read_bytes() for path in batch.folder.iterdir()} == {
        "contact_sheet.png": b"contact_sheet.png",
        "inversions.png": b"inversions.png",
    }


def paged(folder: Path, count: int) -> Path:
    """A sheet of several pages; returns the first one."""
    folder.mkdir(exist_ok=True)
    for page in range(count):
        (folder / page_name("contact_sheet.png", page)).write_bytes(b"page %d" % page)
    return folder / "contact_sheet.png"


def test_every_page_goes_along_and_is_named_in_order(tmp_path: Path) -> None:
    reviews = open_folder(tmp_path / "review")
    batch = reviews.propose(ONE, "f" * 64, paged(tmp_path / "job", 11), 11)
    names = ["contact_sheet.png", *(f"contact_sheet-{n}.png" for n in range(2, 12))]
    assert [page.name for page in batch.sheets] == names
    assert [page.read_bytes() for page in batch.sheets] == [b"page %d" % n for n in range(11)]
    assert all(page.stat().st_mode & 0o777 == 0o600 for page in batch.sheets)


@pytest.mark.parametrize("page", [0, 1, 2])
@pytest.mark.parametrize("missing", [True, False])
def test_no_batch_is_approved_while_a_page_is_missing_or_altered(
    tmp_path: Path, page: int, missing: bool
) -> None:
    reviews = open_folder(tmp_path / "review")
    sheet = paged(tmp_path / "job", 3)
    batch = reviews.propose(ONE, "f" * 64, sheet, 3)
    if missing:
        batch.sheets[page].unlink()
    else:
        batch.sheets[page].write_bytes(b"another batch's page")
    with pytest.raises(PolicyError) as refused:
        reviews.decide(ONE, approve=True, reviewer="R")
    assert refused.value.code == "E-REVIEW-PAGES"
    assert reviews.state(ONE) == "waiting"
    # the daemon's next start writes it again
    reviews.propose(ONE, "f" * 64, sheet, 3)
    assert reviews.decide(ONE, approve=True, reviewer="R").state == "approved"


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_batch_of_which_a_page_is_missing_is_not_proposed(tmp_path: Path, page: int) -> None:
    """Whoever approves the pages behind a gap has not seen them."""
    reviews = open_folder(tmp_path / "review")
    sheet = paged(tmp_path / "job", 3)
    (tmp_path / "job" / page_name("contact_sheet.png", page)).unlink()
    with pytest.raises(PolicyError, match=f"expected page {page + 1} of 3") as refused:
        reviews.propose(ONE, "f" * 64, sheet, 3)
    assert refused.value.code == "E-REVIEW-PAGES"
    assert reviews.state(ONE) == "unknown"


def test_a_batch_can_be_rejected_whatever_its_pages_are(tmp_path: Path) -> None:
    reviews = open_folder(tmp_path / "review")
    batch = reviews.propose(ONE, "f" * 64, paged(tmp_path / "job", 2), 2)
    batch.sheets[1].unlink()
    assert reviews.decide(ONE, approve=False, reviewer="R").state == "rejected"


def test_the_decision_names_the_pages_that_were_there(tmp_path: Path) -> None:
    reviews = open_folder(tmp_path / "review")
    pages = reviews.propose(ONE, "f" * 64, paged(tmp_path / "job", 2), 2).pages
    reviews.decide(ONE, approve=True, reviewer="R")
    latest = Journal(tmp_path / "review" / "decisions.sqlite").latest(ONE)
    assert latest is not None
    assert latest.data["pages"] == [list(page) for page in pages.items()]
    assert list(pages.values()) == [hashlib.sha256(b"page %d" % n).hexdigest() for n in (0, 1)]


def test_a_sheet_that_was_drawn_anew_is_noted_before_it_is_decided_on(tmp_path: Path) -> None:
    reviews = open_folder(tmp_path / "review")
    sheet = paged(tmp_path / "job", 2)
    reviews.propose(ONE, "f" * 64, sheet, 2)
    sheet.write_bytes(b"drawn anew")
    batch = reviews.propose(ONE, "f" * 64, sheet, 2)
    assert batch.sheets[0].read_bytes() == b"drawn anew"
    assert reviews.decide(ONE, approve=True, reviewer="R").state == "approved"


def test_a_batch_from_before_pages_were_noted_can_be_decided(tmp_path: Path) -> None:
    reviews = open_folder(tmp_path / "review")
    Journal(tmp_path / "review" / "decisions.sqlite").append(ONE, "waiting", {"study": "f" * 64})
    assert reviews.find("").sheets == [reviews.find("").sheet]
    assert reviews.decide("", approve=True, reviewer="R").state == "approved"


def test_a_decision_is_bound_to_the_digest_and_names_the_reviewer(reviews: Reviews) -> None:
    assert reviews.decide("", approve=True, reviewer="Dr. R").state == "approved"
    again = open_folder(reviews.folder)
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
