"""One epsilon: the words and the digits with which every command and page shows it.

In: epsilons. Out: lines of text.
Guarantees: what is spent or planned is rounded up, what is left is rounded down: two decimals below
100, whole numbers from there on. A cap stands as it was written.
Not covered: how an epsilon is computed (accounting.py, draws.py), what a site has spent
(client/state/price.py).

| word | means |
| --- | --- |
| planned | what one plan spends of one patient, computed from its public constants |
| promised | the limit that the signed plan sets itself; planned is never above it |
| spent so far | what all plans of a site have spent of one patient, after its ledger |
| left | the cap without what is spent |
| after this plan | what is spent once the plan is complete, beside all that was spent before |
| cap | the most that the site's own policy lets be spent |
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

WHOLE_FROM = 100.0  # from here on without decimals
FLOATING = 1e-9  # what floating point alone adds
UNBOUNDED = "without a bound"
WORD_WIDTH = 17
DIGITS_WIDTH = 8
OF_PATIENT = "epsilon of one patient"
OF_AVERAGE = "epsilon of one average with noise, which claims none of a patient"


# --- digits ---------------------------------------------------------------------------------------


def at_most(value: float) -> str:
    """Return what is spent or planned, rounded up; a NaN counts as unbounded."""
    if not value < math.inf:
        return UNBOUNDED
    step = _step(value)
    found = math.ceil(value / step - FLOATING / step) * step
    # nothing above 0 shows as 0
    return _spell(max(found, step) if value > 0 else 0.0)


def at_least(value: float) -> str:
    """Return what is left, rounded down; below 0, and for a NaN, 0."""
    if not value > 0:
        return "0"
    if math.isinf(value):
        return UNBOUNDED
    step = _step(value)
    return _spell(math.floor(value / step + FLOATING / step) * step)


def exactly(value: float) -> str:
    """Return a limit that a person wrote: a cap, or what a plan promises."""
    return f"{value:,.10g}"


def _step(value: float) -> float:
    """The last digit that is shown."""
    return 1.0 if value >= WHOLE_FROM else 0.01


def _spell(value: float) -> str:
    """Digits without zeros at the end."""
    if value >= WHOLE_FROM:
        return f"{value:,.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".")


# --- one patient ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanPrice:
    """What one plan costs one patient at `delta`; `promised`: the limit that it sets itself."""

    planned: float
    promised: float
    delta: float

    def short(self) -> str:
        """Return both numbers in a few words."""
        return f"planned {at_most(self.planned)}, promised at most {exactly(self.promised)}"

    def lines(self) -> Iterator[str]:
        """Yield one row."""
        yield row(
            "planned",
            at_most(self.planned),
            f"what this plan spends of one patient, at delta {self.delta:g}; "
            f"promised: at most {exactly(self.promised)}",
        )


@dataclass(frozen=True)
class SitePrice:
    """What all plans of a site cost one patient at `delta`. `spent` holds `lost`, too.

    `lost`: what counts as spent since an earlier state was lost. `after`: what is spent once a plan
    is complete; None where no plan is asked about.
    """

    spent: float
    cap: float
    delta: float
    lost: float = 0.0
    after: float | None = None

    @property
    def left(self) -> float:
        """The cap without what is spent; 0 at least."""
        return max(0.0, self.cap - self.spent)

    def short(self) -> str:
        """Return the numbers in a few words."""
        text = f"spent so far {at_most(self.spent)}, left {at_least(self.left)}"
        if self.after is not None:
            text += f", after this plan {at_most(self.after)}"
        return f"{text}, cap {exactly(self.cap)}"

    def lines(self) -> Iterator[str]:
        """Yield one row a number."""
        before = f"; {at_most(self.lost)} of it before a loss of the state" if self.lost else ""
        yield row(
            "spent so far",
            at_most(self.spent),
            f"what all plans of this site have spent of one patient, at delta {self.delta:g}"
            f"{before}",
        )
        yield row("left", at_least(self.left), "the cap without what is spent so far")
        if self.after is not None:
            left = at_least(self.cap - self.after)
            yield row(
                "after this plan",
                at_most(self.after),
                f"what all plans have spent once this one is complete; {left} is left then",
            )
        yield row(
            "cap",
            exactly(self.cap),
            "the most that may be spent of one patient here (policy.max_epsilon)",
        )


# --- one average ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AveragePrice:
    """What one average with noise costs in a plan, where no epsilon per patient is claimed.

    `planned`: one draw at `delta` (0: pure epsilon). `per_coordinate`: the share of one of the
    `numbers` that describe the average.
    """

    planned: float
    per_coordinate: float
    numbers: int
    delta: float

    def short(self) -> str:
        """Return the numbers in a few words."""
        return f"planned {at_most(self.planned)}, per coordinate {at_most(self.per_coordinate)}"

    def lines(self) -> Iterator[str]:
        """Yield one row a number."""
        delta = f", at delta {self.delta:g}" if self.delta else ""
        yield row(
            "planned", at_most(self.planned), f"what one average with noise spends here{delta}"
        )
        yield row(
            "per coordinate",
            at_most(self.per_coordinate),
            f"the most that one of the {self.numbers:,} numbers of an average spends of it",
        )


@dataclass(frozen=True)
class SiteAveragePrice:
    """The most that all draws of one group's average have spent at a site, and its cap."""

    spent: float
    cap: float

    @property
    def left(self) -> float:
        """What the group that spent most may still spend."""
        return max(0.0, self.cap - self.spent)

    def short(self) -> str:
        """Return the numbers in a few words."""
        return (
            f"spent so far {at_most(self.spent)}, left {at_least(self.left)}, "
            f"cap {exactly(self.cap)}"
        )

    def lines(self) -> Iterator[str]:
        """Yield one row a number."""
        yield row(
            "spent so far",
            at_most(self.spent),
            "the most that all averages with noise of one group have spent together",
        )
        yield row("left", at_least(self.left), "the cap without what is spent so far")
        yield row(
            "cap",
            exactly(self.cap),
            "the most that may be spent of one group here (policy.max_epsilon_average)",
        )


def row(word: str, digits: str, meaning: str) -> str:
    """Return one line of a table: the word, the digits, what they mean."""
    return f"    {word:<{WORD_WIDTH}}{digits:>{DIGITS_WIDTH}}   {meaning}"
