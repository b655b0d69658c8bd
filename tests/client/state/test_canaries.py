"""The site's file of canaries: coins drawn once, rounds that count once, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.state.canaries import CanaryFile
from common.errors import RefusedError
from common.privacy.canaries import Tally


def one_round(file: CanaryFile, value: float) -> Tally:
    coins = file.coins()
    return Tally(coins, np.full(len(coins), value), np.full(len(coins), value**2), 2)


def test_coins_are_drawn_once_for_a_model_of_a_plan(tmp_path: Path) -> None:
    coins = CanaryFile(tmp_path, "a" * 64, "gan", 200).coins()
    assert np.array_equal(CanaryFile(tmp_path, "a" * 64, "gan", 200).coins(), coins)
    assert 60 < coins.sum() < 140
    for plan, model in (("b", "gan"), ("a", "glow")):
        assert not np.array_equal(CanaryFile(tmp_path, plan * 64, model, 200).coins(), coins)


def test_a_round_counts_once(tmp_path: Path) -> None:
    file = CanaryFile(tmp_path, "a" * 64, "gan", 8)
    first, second = one_round(file, 1.0), one_round(file, 2.0)
    assert file.with_round(0, first).total.steps == 2  # asking changes nothing
    for _ in range(2):
        file.count_round(0, first)
    tallies = file.with_round(1, second)
    assert (tallies.latest.steps, tallies.total.steps, tallies.total.scores[0]) == (2, 4, 3.0)
    file.count_round(1, second)
    assert file.with_round(1, second).total.steps == 4  # it counts already


def test_the_file_is_the_sites_alone(tmp_path: Path) -> None:
    CanaryFile(tmp_path / "canaries", "a" * 64, "gan", 8).coins()
    (path,) = (tmp_path / "canaries").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_number_of_canaries_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    CanaryFile(tmp_path, "a" * 64, "gan", 8).coins()
    with pytest.raises(RefusedError, match="8 canaries, the plan has 9"):
        CanaryFile(tmp_path, "a" * 64, "gan", 9).coins()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RefusedError):
        CanaryFile(tmp_path, "a" * 64, "gan", 8).coins()
