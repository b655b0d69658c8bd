"""The numerics of grouping.

The greedy rule against a plain loop and a whole matrix, swaps, running sums, cells.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import partition as p
from client.synthesize import swaps, whole_codes
from client.synthesize.whole_codes import distances, to_whole


def points(count: int, seed: int = 0, dimension: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension))


def sets(group_of: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(part) for part in p.parts_of(group_of)}


def naive_greedy(x: np.ndarray, k: int, power: int = 1) -> set[frozenset[int]]:
    """The published rule, recomputing every sum; k must divide len(x).

    `power` 2: of squared distances.
    """
    left, found = list(range(len(x))), []
    while left:
        far = max(left, key=lambda i: sum(np.linalg.norm(x[i] - x[j]) ** power for j in left))
        near = sorted((i for i in left if i != far), key=lambda i: np.linalg.norm(x[i] - x[far]))[
            : k - 1
        ]
        found.append(frozenset({far, *near}))
        left = [i for i in left if i not in found[-1]]
    return set(found)


@pytest.mark.parametrize("k", [2, 3, 5, 12])
@pytest.mark.parametrize("rule", [p.greedy, p.greedy_paper])
def test_greedy_gives_the_groups_of_the_published_rule(k: int, rule: p.Rule) -> None:
    x = points(60, seed=k)
    assert sets(rule(x, k)) == naive_greedy(x, k)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.sampled_from([2, 3, 6]))
def test_ties_are_broken_as_the_naive_rule_breaks_them(seed: int, k: int) -> None:
    x = (
        np.random.default_rng(seed).integers(0, 3, (18, 1)).astype(float)
    )  # whole distances: real ties, exact sums
    assert sets(p.greedy_paper(x, k)) == naive_greedy(x, k)


@pytest.mark.parametrize("k", [2, 5])
def test_running_sums_give_the_groups_of_the_squared_rule(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "MOST_BY_DISTANCES", 10)
    x = points(60, seed=k)
    assert sets(p.greedy(x, k)) == naive_greedy(x, k, power=2)
    assert sets(p.greedy_paper(x, k)) == naive_greedy(x, k)  # never in paper


def test_the_remainder_joins_the_group_of_its_nearest_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2], [10.35]])
    for rows in (100, 3):
        monkeypatch.setattr(p, "MOST_BY_DISTANCES", rows)
        parts = sets(p.greedy(x, 3))
        assert {len(part) for part in parts} == {3, 4}
        assert frozenset({0, 1, 2}) in parts


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 60), k=st.integers(2, 9), seed=st.integers(0, 10_000), dense=st.booleans()
)
def test_any_rule_cuts_any_number_of_rows_into_k_to_2k_minus_1(
    count: int, k: int, seed: int, dense: bool
) -> None:
    if count < k:
        return
    x = np.random.default_rng(seed).normal(size=(count, 3)) ** 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p, "MOST_BY_DISTANCES", 10_000 if dense else 1)
        before, after = p.greedy(x, k), p.greedy_with_swaps(x, k)
    for found in (before, after, p.greedy_paper(x, k)):
        sizes = np.bincount(found)
        assert sizes.sum() == count and k <= sizes.min() and sizes.max() <= 2 * k - 1
    assert sorted(np.bincount(before)) == sorted(np.bincount(after))
    assert squared_error(x, after) <= squared_error(x, before)


def squared_error(x: np.ndarray, group_of: np.ndarray) -> float:
    return float(sum(((x[part] - x[part].mean(0)) ** 2).sum() for part in p.parts_of(group_of)))


def best_exchange(x: np.ndarray, group_of: np.ndarray) -> float:
    """How much the best exchange of two rows would lower the squared error."""
    before, best = squared_error(x, group_of), 0.0
    for i in range(len(x)):
        for j in range(i):
            other = group_of.copy()
            other[i], other[j] = group_of[j], group_of[i]
            best = max(best, before - squared_error(x, other))
    return best


@pytest.mark.parametrize("dense", [True, False])
def test_swaps_end_where_no_exchange_helps(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 neighbours of 22 rows every exchange is looked at, so the end is a true optimum."""
    monkeypatch.setattr(p, "MOST_BY_DISTANCES", 10_000 if dense else 1)
    x = points(22, dimension=2)
    before, after = p.greedy(x, 4), p.greedy_with_swaps(x, 4)
    assert best_exchange(x, before) > 0.1
    assert best_exchange(x, after) < 1e-4


@pytest.mark.parametrize("rounded", [True, False])
def test_looking_only_where_something_changed_loses_nothing(rounded: bool) -> None:
    x = points(300, dimension=4)
    rows = to_whole(x, 10)
    start = p.greedy(x, 5)
    state = swaps.Swaps(rows, start, rounded=rounded)
    for _ in range(swaps.SWAP_SWEEPS):
        state.look(np.arange(300))  # every row, every sweep
        if not state.apply().any():
            break
    assert (state.group_of == swaps.swap_pairs(rows, start, rounded=rounded)).all()


def of_a_kind(kind: str, count: int, seed: int) -> np.ndarray:
    """Rows without ties, with many, or each three times."""
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return rng.integers(0, 3, (count, 2)).astype(float)
    if kind == "copies":
        return np.repeat(rng.normal(size=(count // 3 + 1, 4)), 3, axis=0)[:count]
    return rng.standard_t(2, size=(count, 5))


KINDS = st.sampled_from(["no ties", "ties", "copies"])


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 90), k=st.integers(2, 9), kind=KINDS, seed=st.integers(0, 10_000))
def test_distances_on_demand_give_the_groups_of_the_whole_matrix(
    count: int, k: int, kind: str, seed: int
) -> None:
    if count < k:
        return
    x = of_a_kind(kind, count, seed)
    rows = to_whole(x, 2 * k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_codes, "BLOCK", 16)
        found = p.greedy(x, k)
    assert (found == p._greedy_dense(distances(rows, rows).astype(float), k)).all()


@settings(max_examples=40, deadline=None)
@given(count=st.integers(8, 60), kind=KINDS, seed=st.integers(0, 1000), rounded=st.booleans())
def test_exchanges_on_demand_are_those_of_whole_tables(
    count: int, kind: str, seed: int, rounded: bool
) -> None:
    """Every gain and partner, bit for bit, from all distances and all products with means."""
    x = of_a_kind(kind, count, seed)
    rows = to_whole(x, 2 * 4)
    group_of = p.greedy(x, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swaps, "LOOKED", 16)
        patch.setattr(swaps, "BLOCK", 200)
        state = swaps.Swaps(rows, group_of, rounded=rounded)
        state.look(np.arange(count))

    sizes = np.bincount(group_of)
    means = (np.stack([rows[part].sum(0) for part in p.parts_of(group_of)]) @ rows.T) * (
        2.0 / sizes[:, None]
    )
    inner = means.astype(np.float32)
    squared = ((rows[:, None] - rows) ** 2).sum(2).astype(np.float32)
    if rounded:
        squared = distances(rows, rows) ** 2
    for i in range(count):
        a = group_of[i]
        best, partner = np.float32(-np.inf), 0
        # of equal gains the lowest part, and there the first member
        for b in np.unique(group_of[state.neighbours[i]]):
            of_part = []
            share = np.float32(1 / sizes[a] + 1 / sizes[b])
            members = state.table[b][state.table[b] >= 0]
            for j in members if b != a else ():
                of_part.append(squared[i, j] * share + inner[a, j] - inner[b, j])
            if of_part:
                gain = max(of_part) + (inner[b, i] - inner[a, i])
                if gain > best:
                    best, partner = gain, members[int(np.argmax(of_part))]
        if best > -np.inf:
            assert (state.gain[i], state.partner[i]) == (best, partner)


@pytest.mark.parametrize("most", [15_000, 1])
def test_memory_grows_with_the_rows_not_with_their_square(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p, "MOST_BY_DISTANCES", most)
    monkeypatch.setattr(swaps, "BLOCK", 1 << 12)
    monkeypatch.setattr(swaps, "LOOKED", 32)
    monkeypatch.setattr(swaps, "SWAP_SWEEPS", 3)
    peaks = []
    for count in (500, 2000):
        x = points(count, dimension=8)
        tracemalloc.start()
        p.greedy_with_swaps(x, 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 5 * peaks[0]


def test_a_common_offset_costs_no_precision() -> None:
    x = points(40)
    assert sets(p.greedy(x + 1e6, 4)) == sets(p.greedy(x, 4))


def test_equal_rows_are_no_error() -> None:
    assert sorted(np.bincount(p.greedy_with_swaps(np.ones((11, 4)), 3))) == [3, 3, 5]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    centres=st.integers(1, 30),
    least=st.integers(1, 20),
    seed=st.integers(0, 10_000),
)
def test_every_cell_has_enough_rows_or_is_the_only_one(
    count: int, centres: int, least: int, seed: int
) -> None:
    x, c = points(count, seed), points(centres, seed + 1)
    sizes = np.bincount(p.cells_of_rows(x, c, least))
    assert sizes.sum() == count and sizes.min() >= 1
    assert sizes.min() >= least or len(sizes) == 1


def test_a_cell_that_is_large_enough_keeps_its_rows() -> None:
    x = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [4.0]])
    found = p.cells_of_rows(x, np.array([[0.1], [5.1], [4.0], [99.0]]), 3)
    assert found.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        1,
    ]  # the cell of one at 4 joins its neighbour; 99 stays empty


def test_the_nearest_centre_is_each_rows_own_doing() -> None:
    x, c = points(30), points(7, 1)
    alone = [int(p.nearest(row[None], c)[0]) for row in x]
    assert p.nearest(x, c).tolist() == alone
