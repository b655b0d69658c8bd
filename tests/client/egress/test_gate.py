"""The evidence that a child leaves, and what the gate's header holds."""

from __future__ import annotations

import pytest

from client.egress.evidence import Evidence
from client.state.group_store import Group, Stratum
from common.errors import KohortError, RefusedError

GROUP = Group(("a", "b", "c"), Stratum(1, 2), 3)


def test_evidence_survives_the_job_folder() -> None:
    evidence = Evidence((GROUP,), (0, 0), ("A-NEAR",))
    assert Evidence.from_json(evidence.to_json()) == evidence


DAMAGED = {
    "no group of that number": b'{"audit":[],"group_of":[1],"groups":[]}',
    "the number after the last": (
        b'{"audit":[],"group_of":[1],'
        b'"groups":[{"k":2,"label":0,"laterality":0,"members":["a","b"]}]}'
    ),
    "true for one": (
        b'{"audit":[],"group_of":[false],'
        b'"groups":[{"k":2,"label":0,"laterality":0,"members":["a","b"]}]}'
    ),
    "a negative number": (
        b'{"audit":[],"group_of":[-2],'
        b'"groups":[{"k":2,"label":0,"laterality":0,"members":["a","b"]}]}'
    ),
    "one field more": b'{"audit":[],"group_of":[],"groups":[],"patients":3}',
    "one field fewer": b'{"audit":[],"group_of":[]}',
    "no mapping": b"[]",
    "no JSON": b"\xff",
    "depth alone": b"[" * 100_000,
    "an infinite label": (
        b'{"audit":[],"group_of":[],'
        b'"groups":[{"k":2,"label":1e999,"laterality":0,"members":["a","b"]}]}'
    ),
    "a member that no text file could hold": (
        b'{"audit":[],"group_of":[],'
        b'"groups":[{"k":2,"label":0,"laterality":0,"members":["a","\\ud800"]}]}'
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_evidence_is_refused(case: str) -> None:
    with pytest.raises(RefusedError):
        Evidence.from_json(DAMAGED[case])


def test_evidence_cannot_hold_a_group_below_its_k() -> None:
    text = Evidence((GROUP,), (0,), ()).to_json().replace(b'"c"', b'"a"')
    with pytest.raises(KohortError) as refused:
        Evidence.from_json(text)
    assert refused.value.code == "E-GROUP-SIZE"
