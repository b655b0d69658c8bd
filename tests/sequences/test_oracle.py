"""The oracle finds what it is there to find: each of its invariants is broken once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from common.arrays import Images
from tests.sequences.composition import Loss, compose
from tests.sequences.oracle import Broken, Oracle, Picture, Plan

DRAW = Loss("gaussian", 2.0)
ROUND = Loss("sampled", 4.0, 0.16, 2)
PLAIN = Plan("plain", "a" * 64, k=3, epsilon=1.0, covered=False)
COVERED = Plan("covered", "b" * 64, k=3, epsilon=1.0, covered=True)


def image(number: int) -> Images:
    """An image that is unlike every other."""
    return np.full((2, 2, 3), number, np.uint8)


def average(oracle: Oracle, number: int, *people: int, noised: bool = False) -> Images:
    """An image of these people's first photographs, as a child would make it."""
    made = image(number)
    noise = DRAW if noised else None
    oracle.note_picture(made, Picture(frozenset((one, 0) for one in people), noise))
    return made


def send(oracle: Oracle, key: str, plan: Plan, *images: Images) -> None:
    """A batch that leaves."""
    oracle.leave_images(key, plan, b"".join(one.tobytes() for one in images), list(images))


def train(oracle: Oracle, name: str, *, sent: bool = True) -> None:
    """One round of training of persons 1 to 4, answered or not."""
    work = oracle.note_work(PLAIN.name, (ROUND,), frozenset({1, 2, 3, 4}))
    oracle.note_payload(name.encode(), work)
    if sent:
        oracle.leave_update(name, PLAIN, name.encode())


def overlapping(oracle: Oracle) -> None:
    send(oracle, "one", PLAIN, average(oracle, 1, 1, 2, 3, 4))
    send(oracle, "two", PLAIN, average(oracle, 2, 1, 2, 3))


def averaged_twice(oracle: Oracle) -> None:
    send(oracle, "one", PLAIN, average(oracle, 1, 1, 2, 3))
    send(oracle, "two", PLAIN, average(oracle, 2, 1, 2, 3))


def plain_after_privatized(oracle: Oracle) -> None:
    send(oracle, "one", PLAIN, average(oracle, 1, 1, 2, 3, noised=True))
    send(oracle, "two", PLAIN, average(oracle, 2, 1, 2, 3))


def privatized_after_plain(oracle: Oracle) -> None:
    send(oracle, "one", PLAIN, average(oracle, 1, 1, 2, 3))
    send(oracle, "two", PLAIN, average(oracle, 2, 1, 2, 3, noised=True))


def too_many_draws(oracle: Oracle) -> None:
    oracle.cap_average = 3.0
    for number in range(9):
        send(oracle, f"{number}", PLAIN, average(oracle, number, 1, 2, 3, noised=True))


def plain_under_a_claim(oracle: Oracle) -> None:
    send(oracle, "one", COVERED, average(oracle, 1, 1, 2, 3))


def too_few(oracle: Oracle) -> None:
    send(oracle, "one", PLAIN, average(oracle, 1, 1, 2))


def another_answer(oracle: Oracle) -> None:
    train(oracle, "one")
    oracle.leave_update("one", PLAIN, b"other")


def a_withdrawn_person(oracle: Oracle) -> None:
    made = average(oracle, 1, 1, 2, 3)
    oracle.withdraw(2, set())
    send(oracle, "one", PLAIN, made)


def a_short_ledger(oracle: Oracle) -> None:
    train(oracle, "one")
    oracle.check_ledger(Counter(), 10.0)


def a_small_epsilon(oracle: Oracle) -> None:
    train(oracle, "one")
    oracle.check_ledger(Counter({ROUND._replace(steps=1): 2}), 0.1)


def more_than_claimed(oracle: Oracle) -> None:
    for number in range(30):
        train(oracle, f"round {number}")


def an_old_state_that_spends(oracle: Oracle) -> None:
    before = oracle.snapshot()
    train(oracle, "one")
    oracle.restore(before, whole=True)
    oracle.met = True
    train(oracle, "two", sent=False)


def an_old_ledger_that_spends(oracle: Oracle) -> None:
    train(oracle, "one")
    oracle.restore(None, whole=False)
    train(oracle, "two", sent=False)


def an_old_state_that_sends(oracle: Oracle) -> None:
    before = oracle.snapshot()
    train(oracle, "one")
    made = average(oracle, 1, 1, 2, 3)
    oracle.restore(before, whole=True)
    oracle.met = True
    send(oracle, "two", PLAIN, made)


def other_groups(oracle: Oracle) -> None:
    oracle.note_groups("covered", ["a"], ["b"])


FAULTS: dict[Callable[[Oracle], None], int] = {
    overlapping: 1,
    averaged_twice: 2,
    plain_after_privatized: 3,
    privatized_after_plain: 3,
    too_many_draws: 14,
    plain_under_a_claim: 4,
    too_few: 5,
    another_answer: 6,
    a_withdrawn_person: 7,
    a_short_ledger: 8,
    a_small_epsilon: 8,
    more_than_claimed: 9,
    an_old_state_that_spends: 10,
    an_old_ledger_that_spends: 10,
    an_old_state_that_sends: 10,
    other_groups: 11,
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_oracle_finds_every_fault(fault: Callable[[Oracle], None]) -> None:
    with pytest.raises(Broken) as broken:
        fault(Oracle(1e-5))
    assert broken.value.number == FAULTS[fault]


def test_the_oracle_finds_nothing_where_nothing_is_wrong() -> None:
    oracle = Oracle(1e-5)
    first, second = average(oracle, 1, 1, 2, 3), average(oracle, 2, 4, 5, 6)
    send(oracle, "one", PLAIN, first)
    # the same group again is the same bytes; others share nobody
    send(oracle, "two", PLAIN, first, second)
    train(oracle, "three")
    before = oracle.snapshot()
    # what never left may be lost with an old state
    train(oracle, "four", sent=False)
    oracle.restore(before, whole=True)
    train(oracle, "five")
    oracle.check_ledger(Counter({ROUND._replace(steps=1): 4}), 0.5)
    # what was signed before a withdrawal may still leave
    oracle.withdraw(4, {second.tobytes()})
    send(oracle, "six", PLAIN, second)


def test_the_newest_copy_ends_a_rollback() -> None:
    oracle = Oracle(1e-5)
    old = oracle.snapshot()
    train(oracle, "one")
    newest = oracle.snapshot()
    oracle.restore(old, whole=True)
    assert not oracle.behind
    oracle.met = True
    assert oracle.behind
    oracle.restore(newest, whole=True)
    assert not oracle.behind
    train(oracle, "two")


def test_the_oracle_composes_below_and_near_the_closed_form() -> None:
    # one Gaussian of noise 1: delta(1.5) = 0.0567, by Balle and Wang 2018, theorem 8
    assert compose([Loss("gaussian", 1.0)], 0.056696) == pytest.approx(1.5, abs=0.01)
    assert compose([Loss("pure", 0.5), Loss("pure", 0.25)], 1e-5) == 0.75
    assert compose([], 1e-5) == 0.0
