"""Which figures of a report become a plot, and where its bars end.

In: the findings of a report. Out: plots of bars with an interval and a mark.
Guarantees: a figure that was not evaluated is named and never drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UTILITY = (
    ("downstream accuracy on real images", "trained on this release"),
    (
        "downstream accuracy on real images, trained on as many real images",
        "trained on as many real images",
    ),
    (
        "downstream accuracy on real images, trained on all real images",
        "trained on all real images",
    ),
)
PAIR_UTILITY = (
    (
        "segmentation DSC, trained on the release, tested on public reference pairs",
        "trained on this release",
    ),
    (
        "segmentation DSC, trained on public reference pairs, tested on others",
        "trained on public pairs",
    ),
)
ATTACKS = (
    ("membership inference, AUC of the worst attacker", "worst attacker on this release"),
    (
        "membership inference, AUC of the worst attacker on samples of the generator",
        "the same on samples of the generator",
    ),
    ("membership inference, AUC by chance", "what luck gives in 1 of 20 cases"),
)


@dataclass(frozen=True)
class Bar:
    """One bar: its words, its length between 0 and 1, its value as a person reads it.

    `low`, `high`: the ends of its 95 % interval, None where there is none.
    """

    words: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Plot:
    """Bars under one title; `mark` is a value to compare with, `mark_words` what it is."""

    title: str
    about: str
    bars: tuple[Bar, ...]
    mark: float | None = None
    mark_words: str = ""


def count_plot(counts: Mapping[str, int]) -> Plot:
    """Return the images of each label; the longest bar is the largest label."""
    most = max([*counts.values(), 1])
    bars = tuple(Bar(label, count / most, str(count)) for label, count in counts.items())
    return Plot("Images of each label", "", bars)


def plots(findings: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the plots of utility and attacks whose figures were evaluated."""
    found = []
    known = {one["name"]: one for one in findings if one["status"] == "shown"}
    bars = _bars(known, UTILITY)
    if bars:
        found.append(
            Plot(
                "Use: accuracy of a small classifier on real people who took no part",
                "Higher is better.",
                bars,
            )
        )
    bars = _bars(known, PAIR_UTILITY)
    if bars:
        found.append(Plot("Use: Dice of a segmentation on public pairs", "Higher is better.", bars))
    bars = _bars(known, ATTACKS)
    if bars:
        found.append(
            Plot(
                "Attack: is a person behind the release recognized (AUC)",
                "Lower is better. Measured in a rehearsal on public people.",
                bars,
                0.5,
                "0.5 is a guess",
            )
        )
    return found


def not_evaluated(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of what was not evaluated."""
    return [str(one["name"]) for one in findings if one["status"] != "shown"]


def _bars(
    known: Mapping[str, Mapping[str, Any]], wanted: Iterable[tuple[str, str]]
) -> tuple[Bar, ...]:
    """A bar for each wanted figure that was measured."""
    bars = []
    for name, words in wanted:
        one = known.get(name)
        if one is not None and _fits(one):
            low, high = one.get("interval") or (None, None)
            value = float(one["value"])
            bars.append(Bar(words, value, f"{value:.2f}", low, high))
    return tuple(bars)


def _fits(one: Mapping[str, Any]) -> bool:
    """Whether a value is a share."""
    value = one["value"]
    return isinstance(value, int | float) and 0 <= value <= 1
