"""The site's file of canaries: drawn once, rounds that count once, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.state.canaries import CanaryFile, history
from common.errors import RefusedError
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource
from common.privacy.tally import Tally
from common.wire.tensors import dumps
from tests.heard import honest_tally

DIMENSION = 1000


def one_round(file: CanaryFile, seed: int) -> Tally:
    """An honest round of two steps."""
    secret = file.secret(DIMENSION)
    event = SubsampledGaussian(0.5, 2.0, 2, DIMENSION + len(secret.own))
    return honest_tally(secret, event, 1.0, 16, SeededNoiseSource(seed))


def test_coins_and_places_are_drawn_once_for_a_model_of_a_plan(tmp_path: Path) -> None:
    secret = CanaryFile(tmp_path, "a" * 64, "gan", 200).secret(DIMENSION)
    again = CanaryFile(tmp_path, "a" * 64, "gan", 200).secret(DIMENSION)
    for name, array in secret.arrays().items():
        assert np.array_equal(again.arrays()[name], array)
    assert 60 < secret.own.sum() < 140 and secret.places.shape == (100, 10)
    for plan, model in (("b", "gan"), ("a", "glow")):
        other = CanaryFile(tmp_path, plan * 64, model, 200).secret(DIMENSION)
        assert not np.array_equal(other.own, secret.own)
        assert not np.array_equal(other.places, secret.places)


def test_a_round_counts_once(tmp_path: Path) -> None:
    file = CanaryFile(tmp_path, "a" * 64, "gan", 8)
    first, second = one_round(file, 1), one_round(file, 2)
    assert file.counted() is None
    assert file.with_round(0, first).total.steps == 2  # asking changes nothing
    assert file.counted() is None
    for _ in range(2):
        file.count_round(0, first)
    tallies = file.with_round(1, second)
    both = first.own.scores + second.own.scores
    assert (tallies.latest.steps, tallies.total.steps) == (2, 4)
    assert np.array_equal(tallies.total.own.scores, both)
    file.count_round(1, second)
    assert file.with_round(1, second).total.steps == 4  # it counts already
    counted = file.counted()
    assert counted is not None and np.array_equal(counted.own.scores, both)


def test_the_file_is_the_sites_alone(tmp_path: Path) -> None:
    CanaryFile(tmp_path / "canaries", "a" * 64, "gan", 8).secret(DIMENSION)
    (path,) = (tmp_path / "canaries").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_number_of_canaries_another_model_or_a_damaged_file_is_refused(
    tmp_path: Path,
) -> None:
    file = CanaryFile(tmp_path, "a" * 64, "gan", 8)
    file.secret(DIMENSION)
    with pytest.raises(RefusedError, match="8 canaries in places"):
        CanaryFile(tmp_path, "a" * 64, "gan", 9).secret(DIMENSION)
    with pytest.raises(RefusedError, match="the plan has 8 among 20 "):
        file.secret(20)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RefusedError):
        file.secret(DIMENSION)


def test_a_tally_of_other_coins_or_without_a_file_is_refused(tmp_path: Path) -> None:
    file = CanaryFile(tmp_path, "a" * 64, "gan", 8)
    other = one_round(CanaryFile(tmp_path, "b" * 64, "gan", 8), 1)
    with pytest.raises(RefusedError, match="missing"):
        file.with_round(0, other)
    file.secret(DIMENSION)
    with pytest.raises(RefusedError, match="different coins"):
        file.with_round(0, other)
    with pytest.raises(RefusedError, match="different coins"):
        file.count_round(0, other)
    # each kind by itself
    own = one_round(file, 1)
    for kind in ("own", "inside"):
        heard = getattr(own, kind)
        changed = replace(heard, included=~heard.included)
        with pytest.raises(RefusedError, match="different coins"):
            file.with_round(0, replace(own, **{kind: changed}))


def test_the_history_grows_with_each_round_and_reads_files_of_version_0_1(tmp_path: Path) -> None:
    file = CanaryFile(tmp_path, "a" * 64, "gan", 8)
    first = one_round(file, 1)
    (path,) = tmp_path.iterdir()
    start = history(path)
    for _ in range(2):  # a round that is redone counts once
        file.count_round(3, first)
    assert len(start) == 1 and history(path) == [*start, b"3"]
    secret = file.secret(DIMENSION)
    assert secret.places.tobytes() in start[0] and secret.own.astype(np.uint8).tobytes() in start[0]
    old = {"included": np.array([1, 0], np.uint8), "rounds": np.array([0, 1])}
    path.write_bytes(dumps(old))
    assert history(path) == [b"\x01\x00", b"0", b"1"]
