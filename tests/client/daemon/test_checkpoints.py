"""A plan whose checkpoints are of other sizes spends nothing and starts no child."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import PolicyError
from tests.sites import make_hospital, scripted
from tests.sized_plans import CODE, KINDS, misfit


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_reserved_for_a_checkpoint_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    weights, changes = misfit(kind)
    hospital = make_hospital(tmp_path, weights=weights, **changes)
    children = scripted(monkeypatch, hospital.study)
    model = next(iter(hospital.study.models.trained()))
    with pytest.raises(PolicyError) as refused:
        hospital.site().answer(hospital.ask("train", model=model, weights=weights[model]))
    assert refused.value.code == CODE
    assert children.runs == 0
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open"]
