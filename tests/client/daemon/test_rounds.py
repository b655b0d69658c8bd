"""An instruction for a part that was never made is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import PolicyError
from tests.sites import Hospital, make_hospital, scripted


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def test_a_part_before_the_first_is_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    with pytest.raises(PolicyError):
        hospital.site().answer(hospital.ask("synthesize", part=1, parts=2))
    assert children.runs == 0
