"""The words and digits of epsilon."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.price import PlanPrice, SiteAveragePrice, SitePrice, at_least, at_most, exactly

ROUNDED: dict[str, tuple[float, str, str]] = {
    "nothing": (0.0, "0", "0"),
    "a whole number": (8.0, "8", "8"),
    "two decimals": (7.84, "7.84", "7.84"),
    "a little more than two decimals": (7.8310001, "7.84", "7.83"),
    "less than the last digit": (0.0001, "0.01", "0"),
    "floating point alone": (0.1 + 0.2, "0.3", "0.3"),
    "just below 100": (99.999, "100", "99.99"),
    "from 100 on whole numbers": (491.52, "492", "491"),
    "thousands": (3072.1, "3,073", "3,072"),
    "no bound": (math.inf, "without a bound", "without a bound"),
    "not a number": (math.nan, "without a bound", "0"),
    "below nothing": (-0.5, "0", "0"),
}


@pytest.mark.parametrize("case", ROUNDED)
def test_what_is_spent_is_rounded_up_and_what_is_left_down(case: str) -> None:
    value, spent, left = ROUNDED[case]
    assert (at_most(value), at_least(value)) == (spent, left)


@given(st.floats(0, 1e6))
def test_no_digits_say_less_than_was_spent_or_more_than_is_left(value: float) -> None:
    shown_spent = float(at_most(value).replace(",", ""))
    shown_left = float(at_least(value).replace(",", ""))
    assert shown_spent >= value - 1e-8
    assert shown_left <= value + 1e-8
    assert shown_spent - shown_left <= (1.01 if value > 99 else 0.0101)


@given(st.floats(1e-6, 10))
def test_spent_and_left_add_up_to_the_cap(spent: float) -> None:
    price = SitePrice(spent, 10.0, 1e-5)
    total = float(at_most(price.spent)) + float(at_least(price.left))
    assert total == pytest.approx(10.0)


def test_a_cap_stands_as_it_was_written() -> None:
    assert (exactly(8.0), exactly(0.125), exactly(1000.0)) == ("8", "0.125", "1,000")


def test_every_number_of_a_table_has_its_word_and_its_sentence() -> None:
    plan = PlanPrice(7.831, 8.0, 1e-5)
    site = SitePrice(1.0, 10.0, 1e-6, lost=0.5, after=8.5)
    rows = [line.split(maxsplit=2) for line in plan.lines()]
    assert rows[0][:2] == ["planned", "7.84"] and "promised: at most 8" in rows[0][2]
    text = "\n".join(site.lines())
    assert "spent so far" in text and "0.5 of it before a loss" in text and "1e-06" in text
    assert "1.5 is left then" in text
    assert site.short() == "spent so far 1, left 9, after this plan 8.5, cap 10"
    assert SiteAveragePrice(12.3, 1000.0).short() == "spent so far 12.3, left 987, cap 1,000"
