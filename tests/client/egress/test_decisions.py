"""Decisions on images: by different persons, signed, each bound to all records before it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from client.egress.review import Reviews, batch_digest
from common.errors import ConfigurationError, KohortError, PolicyError
from common.storage.journal import Journal
from common.wire import signing

ONE, TWO = batch_digest([b"one"]), batch_digest([b"two"])
STUDY = "f" * 64
KEY = signing.new_key()


def open_folder(folder: Path, reviewers: int = 1) -> Reviews:
    """The reviews in a folder, signed with this site's key."""
    return Reviews(folder, lambda: KEY, reviewers)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"pictures")
    return path


@pytest.fixture
def reviews(tmp_path: Path, sheet: Path) -> Reviews:
    """Two persons must agree; one batch waits."""
    reviews = open_folder(tmp_path / "review", 2)
    reviews.propose(ONE, STUDY, sheet)
    return reviews


def code_of(call: Callable[[], object]) -> str:
    """The code under which a call is refused."""
    with pytest.raises(KohortError) as refused:
        call()
    return refused.value.code


def test_two_different_persons_approve_a_batch(reviews: Reviews) -> None:
    batch = reviews.decide(ONE, approve=True, reviewer="Dr. A")
    assert (batch.state, batch.reviewer) == ("waiting", "Dr. A")
    batch = reviews.decide(ONE, approve=True, reviewer="Dr. B")
    assert (batch.state, batch.reviewer) == ("approved", "Dr. A, Dr. B")
    assert reviews.approvals(ONE) == {"dr. a", "dr. b"}


@pytest.mark.parametrize("name", ["Dr. A", "DR. A", " dr.  a ", "Dr\N{FULLWIDTH FULL STOP} A"])
def test_one_person_is_not_two_by_another_spelling(reviews: Reviews, name: str) -> None:
    reviews.decide(ONE, approve=True, reviewer="Dr. A")
    assert code_of(lambda: reviews.decide(ONE, approve=True, reviewer=name)) == "E-REVIEW-SAME"
    assert reviews.state(ONE) == "waiting"


def test_one_rejection_holds_whoever_approved(reviews: Reviews) -> None:
    reviews.decide(ONE, approve=True, reviewer="Dr. A")
    batch = reviews.decide(ONE, approve=False, reviewer="Dr. B", reason="person", note="on page 2")
    assert batch.state == "rejected"
    assert (batch.decided[-1].reason, batch.decided[-1].note) == ("person", "on page 2")
    again = lambda: reviews.decide(ONE, approve=True, reviewer="Dr. C")  # noqa: E731
    assert code_of(again) == "E-REVIEW-FINAL"


def test_pages_that_were_drawn_anew_are_approved_anew(reviews: Reviews, sheet: Path) -> None:
    reviews.decide(ONE, approve=True, reviewer="Dr. A")
    sheet.write_bytes(b"other pictures")
    reviews.propose(ONE, STUDY, sheet)
    assert reviews.decide(ONE, approve=True, reviewer="Dr. B").state == "waiting"
    assert reviews.approvals(ONE) == {"dr. b"}


def test_of_two_decisions_at_once_one_is_taken(reviews: Reviews, tmp_path: Path) -> None:
    def decide(approve: bool) -> str:
        own = open_folder(tmp_path / "review")
        try:
            return own.decide(ONE, approve=approve, reviewer=f"Dr. {approve}").state
        except PolicyError as error:
            return error.code
        finally:
            own.close()

    with ThreadPoolExecutor(2) as pool:
        found = sorted(pool.map(decide, (True, False)))
    assert found[0] == "E-REVIEW-FINAL"
    assert found[1] in ("approved", "rejected")
    assert reviews.verify()[0] == 2


WRONG_WORDS = {
    "a name of 81 letters": {"reviewer": "a" * 81},
    "a name that moves the cursor": {"reviewer": "Dr. \x1b[2J"},
    "a note of 501 letters": {"note": "a" * 501},
    "a note that hides its direction": {"note": "a\N{RIGHT-TO-LEFT OVERRIDE}b"},
    "an unknown reason": {"reason": "because"},
}


@pytest.mark.parametrize("case", WRONG_WORDS, ids=lambda case: case.replace(" ", "-"))
def test_what_no_record_may_hold_decides_nothing(reviews: Reviews, case: str) -> None:
    words = {"reviewer": "Dr. A", **WRONG_WORDS[case]}
    with pytest.raises(ConfigurationError):
        reviews.decide(ONE, approve=False, **words)
    assert reviews.state(ONE) == "waiting"


# --- the chain


def change(folder: Path, statement: str) -> None:
    """Change the file as somebody does who has it, past its triggers."""
    with closing(sqlite3.connect(folder / "decisions.sqlite")) as db, db:
        db.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete")
        db.execute(statement)


TAMPERING = {
    "a name is changed": "UPDATE entry SET data = replace(data, 'Dr. A', 'Dr. Z')",
    "a reason is changed": "UPDATE entry SET data = replace(data, 'person', 'broken')",
    "a rejection becomes an approval": "UPDATE entry SET state = 'approved' WHERE seq = 2",
    "a decision is moved to another batch": f"UPDATE entry SET key = '{TWO}' WHERE seq = 2",
    "a record in the middle is removed": "DELETE FROM entry WHERE seq = 2",
    "the first record is removed": "DELETE FROM entry WHERE seq = 1",
    "a record is put in between": "UPDATE entry SET seq = seq + 10 WHERE seq > 2",
    "a record is written without its chain": "INSERT INTO entry VALUES (9, 'x', 'waiting', '{}')",
    "a number that is none": "INSERT INTO entry VALUES (9, 'x', 'waiting', '{\"a\": NaN}')",
}


@pytest.mark.parametrize("case", TAMPERING, ids=lambda case: case.replace(" ", "-"))
def test_the_first_record_that_is_not_as_written_is_named(
    reviews: Reviews, sheet: Path, tmp_path: Path, case: str
) -> None:
    reviews.decide(ONE, approve=False, reviewer="Dr. A", reason="person")
    reviews.propose(TWO, STUDY, sheet)
    reviews.decide(TWO, approve=True, reviewer="Dr. B")
    assert reviews.verify()[0] == 4
    change(tmp_path / "review", TAMPERING[case])
    assert code_of(reviews.verify) == "E-REVIEW-CHAIN"
    assert code_of(lambda: reviews.approvals(TWO)) == "E-REVIEW-CHAIN"


def test_a_decision_of_another_key_counts_for_nobody(tmp_path: Path, reviews: Reviews) -> None:
    stranger = Reviews(tmp_path / "review", signing.new_key)
    stranger.decide(ONE, approve=True, reviewer="Dr. A")
    assert code_of(lambda: reviews.approvals(ONE)) == "E-REVIEW-CHAIN"


# --- decisions of versions that signed none


def unsigned(folder: Path, state: str = "approved") -> None:
    """A batch and a decision as version 0.1 wrote them."""
    journal = Journal(folder / "decisions.sqlite")
    journal.append(ONE, "waiting", {"study": STUDY})
    journal.append(ONE, state, {"reviewer": "Dr. Old"})
    journal.close()


def test_an_unsigned_approval_is_shown_and_counts_for_nothing(tmp_path: Path) -> None:
    unsigned(tmp_path / "review")
    reviews = open_folder(tmp_path / "review")
    assert reviews.state(ONE) == "unsigned"
    assert reviews.find(ONE).reviewer == "Dr. Old"
    assert reviews.approvals(ONE) == frozenset()


def test_a_batch_that_was_approved_before_waits_once_it_is_proposed_again(
    tmp_path: Path, sheet: Path
) -> None:
    unsigned(tmp_path / "review")
    reviews = open_folder(tmp_path / "review")
    assert reviews.propose(ONE, STUDY, sheet).state == "waiting"
    assert reviews.decide(ONE, approve=True, reviewer="Dr. New").state == "approved"
    assert reviews.approvals(ONE) == {"dr. new"}
    assert reviews.verify()[0] == 4


def test_an_unsigned_rejection_holds(tmp_path: Path, sheet: Path) -> None:
    unsigned(tmp_path / "review", "rejected")
    reviews = open_folder(tmp_path / "review")
    assert reviews.propose(ONE, STUDY, sheet).state == "rejected"
