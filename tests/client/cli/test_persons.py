"""`kohort-site persons` and persons.csv, as typed: joins are shown, undone and journaled."""

from __future__ import annotations

from pathlib import Path

from client.ingest.refresh import note_decisions
from client.state.folder import State
from client.state.people import PeopleFile
from tests import phantoms
from tests.client.cli.typing_commands import Cli


def test_a_join_is_shown_undone_and_journaled(joined: tuple[Path, Path], cli: Cli) -> None:
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    labels = state.parent / "labels.csv"
    for number, patient in enumerate(("0070001", "70001")):
        path = state.parent / "data" / f"twice{number}.dcm"
        phantoms.write_fundus(path, patient, phantoms.fundus(70 + number), laterality="R")
        labels.write_text(labels.read_text() + f"twice{number}.dcm,,none,R\n")

    # shown by ingest, and later by a command of its own
    code, out, err = cli("ingest", "--state", state)
    assert code == 0, err
    assert "14 files of 13 patients (1 under several ids, 2 ids at most)" in out
    shown = "one person: 0070001 = 70001: one id in two spellings"
    assert shown in out
    code, out, _ = cli("persons", "--state", state)
    assert code == 0
    assert shown in out
    assert "1 joins" in out

    # undone in persons.csv, which site.yaml names
    decisions = state.parent / "persons.csv"
    decisions.write_text("first,second,decision\n0070001,70001,different\n")
    site = state / "site.yaml"
    assert "persons_csv: null" in site.read_text()
    site.write_text(site.read_text().replace("persons_csv: null", f'persons_csv: "{decisions}"'))
    code, out, err = cli("ingest", "--state", state, "--refresh")
    assert code == 0, err
    assert "14 files of 14 patients (0 under several ids, 1 ids at most)" in out
    assert shown not in out

    # journaled once, without an id
    place = State(state)
    noted = [entry.data for entry in place.journal.entries("persons")]
    assert [data["decisions"] for data in noted] == [1]
    assert [entry.event for entry in place.log.entries()].count("persons-decided") == 1
    assert "70001" not in str([entry.data for entry in place.journal.entries()])
    assert len(PeopleFile(place.people).read().parted) == 1
    note_decisions(place)
    assert len(place.journal.entries("persons")) == 1


def test_without_a_plan_it_says_what_to_do(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    code, _, err = cli("persons", "--state", state)
    assert code != 0
    assert "kohort-site approve" in err
