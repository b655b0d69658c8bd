"""`kohort-server study` and `status`: the ways out of a study that waits, and how it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import PolicyError
from server.cli.publish import check_complete
from server.rounds.record import StudyRecord
from tests.federation import Federation
from tests.server.cli.reports import Kohort


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)


@pytest.fixture
def record(federation: Federation) -> StudyRecord:
    return federation.open().record


def test_status_says_why_a_study_is_paused_since_when_and_what_to_do(
    federation: Federation, record: StudyRecord, kohort: Kohort
) -> None:
    place = record.place("train", "gan", 0)
    record.note_paused(place, "E-QUORUM", "waiting for hospital-b, hospital-c")
    since = record.progress().since
    _, output, _ = kohort("status", "--state", federation.state.root)
    assert "0 of 4 rounds: train gan round 1 of 2 waiting for hospital-b, hospital-c\n" in output
    assert f"paused since {since} (E-QUORUM)" in output
    assert "study extend small" in output and "study abandon small" in output
    _, output, _ = kohort("status", "--state", federation.state.root, "--json")
    (row,) = json.loads(output)["studies"]
    assert (row["code"], row["since"], row["abandoned"]) == ("E-QUORUM", since, False)


def test_extend_names_the_round_and_the_quorum_that_stays(
    federation: Federation, record: StudyRecord, kohort: Kohort
) -> None:
    state = federation.state.root
    code, output, _ = kohort("study", "extend", "small", "--state", state, "--by", "600")
    assert code == 0 and "train gan round 1 of 2 waits 600 s from now" in output
    assert "its quorum stays 2 of 3 sites" in output
    entry = record.journal.latest(record.place("train", "gan", 0) + "/deadline")
    assert entry is not None and entry.data == {"seconds": 600.0}
    # without --by it is the plan's own deadline; a hash will do for a name
    prefix = federation.study.hash()[:12]
    code, output, _ = kohort("study", "extend", prefix, "--state", state)
    assert code == 0 and f"waits {federation.study.round_deadline_s:g} s from now" in output


def test_abandon_ends_a_study_once(
    federation: Federation, record: StudyRecord, kohort: Kohort
) -> None:
    state = federation.state.root
    code, output, _ = kohort("study", "abandon", "small", "--state", state)
    assert code == 0 and "study small is abandoned" in output and record.abandoned()
    code, output, _ = kohort("study", "abandon", "small", "--state", state)
    assert code == 0 and "was abandoned before" in output
    _, output, _ = kohort("status", "--state", state)
    assert "0 of 4 rounds: abandoned" in output and "paused" not in output
    with pytest.raises(PolicyError, match="was abandoned"):
        check_complete(record, state)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("stop", "small"), "expected `abandon NAME`, `extend NAME` or `next NAME`"),
        (("abandon", "other"), "found 0; known: small ("),
        (("abandon", "small", "--by", "5"), "for `study extend` alone"),
        (("extend", "small", "--by", "0"), "expected more than 0"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_words(
    federation: Federation,
    record: StudyRecord,
    kohort: Kohort,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    code, _, errors = kohort("study", *arguments, "--state", federation.state.root)
    assert code != 0 and words in errors and "hint:" in errors
    assert not record.abandoned() and not record.journal.entries(federation.study.hash())
