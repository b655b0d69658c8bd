"""Attacks succeed where something leaks, and stay at chance where nothing does."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.measure import attack_scores
from common.measure import attacks as at


def population(count: int, seed: int, dimension: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension))


def averages(rows: np.ndarray, k: int) -> np.ndarray:
    return rows.reshape(-1, k, rows.shape[1]).mean(1)


MEMBERS, OTHERS, PUBLIC = population(80, 0), population(60, 1), population(70, 2)
PEOPLE = np.concatenate([MEMBERS, OTHERS])
TRUTH = np.arange(140) < 80


def attack(released: np.ndarray) -> at.Inference:
    scores = {
        "nearest": attack_scores.nearness(PEOPLE, released),
        "ratio": attack_scores.density_ratio(PEOPLE, released, PUBLIC),
    }
    found = at.infer({**scores, "all": attack_scores.combine(scores)}, TRUTH)
    assert found is not None
    return found


RELEASES = {
    "the members themselves": (MEMBERS, 0.999, 1.0, 0.99),
    "averages of two": (averages(MEMBERS, 2), 0.8, 1.0, 0.1),
    "strangers": (population(80, 3), 0.0, 0.62, -1.0),
    "averages of strangers": (averages(population(80, 4), 2), 0.0, 0.62, -1.0),
}


@pytest.mark.parametrize("name", RELEASES)
def test_attackers_fire_on_what_leaks_and_guess_where_nothing_does(name: str) -> None:
    released, low, high, rate = RELEASES[name]
    found = attack(released)
    assert low <= found.worst.auc <= high
    assert found.worst.tpr >= rate
    leaks = name in ("the members themselves", "averages of two")
    assert found.worst.auc > found.chance if leaks else found.worst.auc < found.chance + 0.03
    start, end = found.worst.auc_interval
    assert start <= found.worst.auc <= end


def test_what_chance_gives_the_worst_is_above_a_half_and_grows_with_the_number_of_attackers() -> (
    None
):
    rng = np.random.default_rng(0)
    few, many = (
        at.infer({str(i): rng.normal(size=140) for i in range(n)}, TRUTH, seed=1) for n in (1, 20)
    )
    assert few is not None and many is not None
    assert 0.5 < few.chance < many.chance < 0.65


def test_in_one_of_twenty_cases_chance_is_exceeded_by_luck() -> None:
    rng = np.random.default_rng(5)
    over = 0
    for _ in range(60):
        found = at.infer({str(i): rng.normal(size=60) for i in range(3)}, np.arange(60) < 30)
        assert found is not None
        over += found.worst.auc > found.chance
    assert over <= 9  # 3 expected; more than 9 has probability 0.0006


def test_a_label_alone_gives_nobody_away() -> None:
    stratum = (np.arange(140) % 2) + 2 * 0
    stratum[:80] = np.arange(80) >= 20  # members are mostly of label 1
    stratum[80:] = np.arange(60) >= 45  # the others are not
    score = stratum.astype(float)  # knows the label and nothing else
    blind, strict = at.infer({"label": score}, TRUTH), at.infer({"label": score}, TRUTH, stratum)
    assert blind is not None and strict is not None
    assert blind.worst.auc > 0.7
    assert strict.worst.auc == 0.5
    assert strict.worst.tpr == 0.0 or strict.worst.tpr <= at.FALSE_POSITIVES


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=8, max_size=20),
    st.lists(st.integers(0, 4), min_size=8, max_size=20),
)
def test_the_area_is_the_share_of_pairs_in_the_right_order(
    ours: list[int], theirs: list[int]
) -> None:
    member = np.arange(len(ours) + len(theirs)) < len(ours)
    found = at.infer({"x": np.array([*ours, *theirs], float)}, member)
    assert found is not None
    pairs = [(a > b) + 0.5 * (a == b) for a in ours for b in theirs]
    assert found.worst.auc == pytest.approx(np.mean(pairs))
    above = [
        sum(a > t for a in ours) / len(ours)
        for t in theirs
        if np.mean([b > t for b in theirs]) <= 0.01
    ]
    assert found.worst.tpr == pytest.approx(max(above))


def test_too_few_people_give_no_figure() -> None:
    assert at.infer({"x": np.zeros(20)}, np.arange(20) < 7) is None
    assert (
        at.infer({"x": np.zeros(40)}, np.arange(40) < 20, (np.arange(40) < 20).astype(np.int64))
        is None
    )


def test_links_find_sources_and_strangers_are_linked_by_chance() -> None:
    own = np.arange(140)[None] // 2 == np.arange(40)[:, None]
    apart = attack_scores.distances(averages(MEMBERS, 2), PEOPLE)
    leaks = at.links(apart, own, 2)
    assert leaks is not None and leaks.precision > 0.6 and leaks.chance == pytest.approx(2 / 140)
    none = at.links(attack_scores.distances(population(40, 9), PEOPLE), own, 2)
    assert none is not None and none.interval[0] <= none.chance + 0.02
    assert at.links(np.full((3, 4), np.inf), np.zeros((3, 4), bool), 2) is None


def test_what_is_no_candidate_is_never_linked() -> None:
    apart = np.array([[0.0, 1.0, 2.0, 3.0]])
    linked = np.array([[True, False, True, False]])
    allowed = np.where([[False, True, True, True]], apart, np.inf)
    found = at.links(allowed, linked, 1)
    assert found is not None and found.precision == 0.0 and found.chance == pytest.approx(1 / 3)


def test_pairs_counted_by_ranks_are_the_pairs() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 9, 90).astype(float)  # with ties
    x[:4] = -np.inf
    member, strata = rng.random(90) < 0.4, rng.integers(0, 3, 90)
    ours = rng.integers(0, 4, (5, member.sum())).astype(float)
    theirs = rng.integers(0, 4, (5, (~member).sum())).astype(float)
    a, b = x[member][:, None], x[~member][None]
    same = strata[member][:, None] == strata[~member][None]
    won = same * ((a > b) + 0.5 * (a == b))
    wins, pairs = at._count_wins(x, member, strata, ours, theirs)
    assert np.array_equal(wins, ((ours @ won) * theirs).sum(1))
    assert np.array_equal(pairs, ((ours @ same) * theirs).sum(1))
    # ranks: a member's rank less those of the members below it are the non-members that it beats
    ranks = at._ranks(x, strata)
    counts = [member[strata == s].sum() for s in range(3)]
    least = sum(count * (count + 1) / 2 for count in counts)
    assert ranks[member].sum() - least == won.sum()


def test_memory_grows_with_the_people_not_with_their_pairs() -> None:
    rng = np.random.default_rng(6)
    member = rng.random(8000) < 0.5
    tracemalloc.start()
    try:
        found = at.infer({"nearness": rng.random(8000)}, member)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None and 0.4 < found.worst.auc < 0.6
    assert peak < 200e6  # all pairs take 512 MB, once
