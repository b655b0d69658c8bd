"""A round of one site is the step that every rule of aggregation takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.errors import RefusedError
from common.study.averaging import step_of_one
from server.rounds.aggregate import aggregate
from tests.studies import small_study

RULES: dict[str, dict[str, Any]] = {
    "mean": {"rule": "mean"},
    "norm_weighted": {"rule": "norm_weighted"},
    "trimmed_mean": {"rule": "trimmed_mean", "trim": 0.2},
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rehearsals_step_is_the_servers_for_one_site(tmp_path: Path, rule: str) -> None:
    rng = np.random.default_rng(0)
    weights = {"generator.a": rng.normal(size=(4, 3)).astype(np.float32)}
    delta = {"generator.a": rng.normal(0, 0.1, (4, 3)).astype(np.float32)}
    sites = [{"name": f"hospital-{letter}"} for letter in "abcdefg"]
    study = small_study(sites=sites, quorum=6, aggregation=RULES[rule])
    study = study.model_copy(update={"quorum": 1})
    accepted: Any = SimpleNamespace(arrays=delta)
    found = aggregate(study, "gan", weights, ["hospital-a"], lambda _: accepted, tmp_path)
    assert step_of_one(weights, delta)["generator.a"].tobytes() == found["generator.a"].tobytes()


def test_an_update_that_does_not_fit_moves_nothing() -> None:
    weights = {"a": np.zeros(2, np.float32)}
    for delta in ({"b": np.zeros(2, np.float32)}, {"a": np.full(2, np.nan, np.float32)}):
        with pytest.raises(RefusedError) as refused:
            step_of_one(weights, delta)
        assert refused.value.code == "E-AGGREGATE"
