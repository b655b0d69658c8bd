"""Codes as whole numbers: exact sums, distances of the same rounding everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import whole_codes
from client.synthesize.whole_codes import distances, sum_distances, to_whole


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 50),
    dimension=st.integers(1, 300),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
)
def test_codes_become_whole_numbers_whose_sums_are_exact(
    count: int, dimension: int, scale: float, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_t(2, size=(count, dimension)) * scale + 3 * scale
    rows = to_whole(x, 2 * count)
    assert (rows == np.rint(rows)).all()
    largest = int(np.abs(rows).max())
    assert 4 * largest**2 * dimension * 2 * count < 2**53  # four terms make a squared distance
    assert distances(rows, rows).max() <= 2**24  # whole numbers in float32
    exact = [
        [sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in rows[:4].tolist()]
        for r in rows.tolist()
    ]
    assert (distances(rows, rows[:4]) == np.rint(np.sqrt(exact))).all()


@pytest.mark.parametrize("block", [1, 7, 64, 512])
def test_sums_by_blocks_are_those_of_all_distances(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_codes, "BLOCK", block)
    rows = to_whole(np.random.default_rng(3).normal(size=(64, 5)), 20)
    apart = distances(rows, rows).astype(np.float64)
    assert (sum_distances(rows) == apart.sum(axis=1)).all()
    assert (apart == apart.T).all()
