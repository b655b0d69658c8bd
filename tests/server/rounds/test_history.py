"""What the server's loop asks of its journal takes the same work in every round."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import RefusedError
from common.storage import journal as journals
from common.storage.journal import Journal
from server.rounds.history import History
from server.rounds.record import RECEIPTS, StudyRecord
from tests.studies import small_study

STUDY = small_study()
SITES = [site.name for site in STUDY.sites]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[StudyRecord]:
    with contextlib.closing(StudyRecord(tmp_path, STUDY)) as made:
        yield made


def play_round(record: StudyRecord, number: int) -> None:
    """What the loop journals and asks of one round."""
    place = record.place("train", "gan", number)
    for site in SITES:
        record.receipts(site, [f"key of {site}"])
        record.silent_sites(3)
        record.any_closed()
        record.note_accepted(f"{place}/0", site, f"{number} {site}", f"key of {site}")
        record.refusals("train", "gan", number)
    record.progress()
    record.journal.append(place, "closed", {"accepted": SITES[1:], "missing": SITES[:1]})


def test_a_late_round_reads_as_many_rows_as_an_early_one(
    record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = journals._entry
    rows = []
    monkeypatch.setattr(journals, "_entry", lambda row: rows.append(row) or read(row))
    counts = []
    for number in range(40):
        rows.clear()
        play_round(record, number)
        counts.append(len(rows))
    assert counts[-1] == counts[1]


def test_views_are_those_of_the_whole_journal(record: StudyRecord) -> None:
    for number in range(40):
        play_round(record, number)
    with contextlib.closing(StudyRecord(record.root, STUDY)) as again:
        for view in (record, again):
            last = view.receipts(SITES[1], [f"key of {SITES[1]}"])
            assert last == tuple(f"{number} {SITES[1]}" for number in range(40))
            assert view.receipts(SITES[1], ["an earlier key"]) == ()
            assert view.silent_sites(3) == {SITES[0]}
            assert view.silent_sites(41) == set()
            assert view.missing_sites() == (SITES[0],)
            assert view.newest_answer(SITES[2]) == ("train", "gan", 39)
            assert view.newest_answer("nobody") is None


def test_receipts_are_the_newest_and_each_once(record: StudyRecord) -> None:
    key = record.place("train", "gan", 0)
    for number in range(RECEIPTS + 5):
        record.note_accepted(key, "a", str(number), "key")
    record.note_accepted(key, "a", "7", "key")
    assert record.receipts("a", ["key"]) == tuple(str(n) for n in range(5, RECEIPTS + 5))


def test_what_another_process_wrote_is_seen(record: StudyRecord) -> None:
    assert not record.any_closed()
    with contextlib.closing(StudyRecord(record.root, STUDY)) as other:
        play_round(other, 0)
    assert record.any_closed()


def test_a_damaged_row_is_refused_at_every_look(tmp_path: Path) -> None:
    with contextlib.closing(Journal(tmp_path / "j.sqlite")) as journal:
        history = History(journal, "s")
        journal.append("s/a", "closed")
        history.read()
        journal._db.execute("INSERT INTO entry (key, state, data) VALUES ('s', 'x', '{')")
        for _ in range(2):
            with pytest.raises(RefusedError) as caught:
                history.read()
            assert caught.value.code == "E-JOURNAL"
        assert history.closed == {"s/a"}
