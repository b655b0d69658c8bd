"""The file of frozen groups: private, append-only, and an error with a hint when damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from client.state import group_store
from client.state.artefacts import Artefact, Limit
from client.synthesize import group as g
from common.errors import Bug, EnvironmentFault, PolicyError

KEY = b"k" * 32


def names(count: int) -> list[str]:
    return [f"{i:064x}" for i in range(count)]


def flat_roster(count: int) -> g.Roster:
    return g.roster(names(count), np.arange(count), np.zeros(count, int), key=KEY)


def test_one_patient_in_two_groups_is_a_bug() -> None:
    one, two = (
        group_store.Group(("a", "b"), group_store.Stratum(0), 2),
        group_store.Group(("b", "c"), group_store.Stratum(0), 2),
    )
    with pytest.raises(Bug, match="two places"):
        group_store.Grouping((one, two), ())


def test_the_store_returns_what_was_frozen_and_its_file_is_private(tmp_path: Path) -> None:
    grouping = g.form_groups(flat_roster(12), 5, "random", key=KEY)
    store = group_store.GroupStore(tmp_path / "groups.sqlite")
    store.freeze(grouping)
    store.close()
    again = group_store.GroupStore(tmp_path / "groups.sqlite")
    assert set(again.groups()) == set(grouping.groups)
    assert (tmp_path / "groups.sqlite").stat().st_mode & 0o077 == 0
    again.close()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM member", "UPDATE member SET token = 'x'", "DELETE FROM grouped"]
)
def test_the_store_cannot_be_rewritten_by_a_statement(tmp_path: Path, statement: str) -> None:
    store = group_store.GroupStore(tmp_path / "groups.sqlite")
    store.freeze(g.form_groups(flat_roster(5), 5, "random", key=KEY))
    db = sqlite3.connect(tmp_path / "groups.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        db.execute(statement)
    db.close()
    store.close()


def test_a_damaged_store_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "groups.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EnvironmentFault) as caught:
        group_store.GroupStore(path)
    assert "backup" in caught.value.hint


def test_the_store_itself_keeps_no_second_plain_image_of_a_group(tmp_path: Path) -> None:
    group = group_store.Group(tuple(names(3)), group_store.Stratum(0), 3)
    limit = Limit(1000.0, 1e-5)
    one, two = (
        Artefact(np.full((4, 4, 1), value, np.uint8), "none", "fundus", "", "a" * 64)
        for value in (1, 2)
    )
    with group_store.GroupStore(tmp_path / "groups.sqlite") as store:
        for _ in range(2):  # the same image again is no change
            store.release({group: [one]}, "random", limit)
        with pytest.raises(PolicyError) as refused:
            store.release({group: [two]}, "random", limit)
        assert refused.value.code == "E-GROUP-ARTEFACT"
        assert store.released(group) == (one,)
