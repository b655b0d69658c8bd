"""benchmarks/one_person.py, small: the intake's rules for ids on invented hospitals."""

from __future__ import annotations

import pytest

from benchmarks.one_person import CAUSES, SCHEMES, Scheme, judge, make_hospital

PEOPLE = 300


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_ids_of_one_person_are_joined_and_nobody_elses(scheme: Scheme) -> None:
    found = judge(make_hospital(scheme, PEOPLE, seed=1))
    assert found.recall >= 0.9
    assert found.false == 0
    assert all(found.pairs[cause][1] for cause in CAUSES)


def test_one_study_for_everybody_joins_nobody_falsely() -> None:
    found = judge(make_hospital(SCHEMES[0], PEOPLE, seed=1, one_uid=True), one_uid=True)
    assert (found.false, found.crowded) == (0, 1)
    joined, pairs = found.pairs["spelling"]
    assert joined == pairs
