"""What every error code means, who mends it and how: the words behind a code that crossed the line.

In: a code. Out: its `Advice`. The words stand in codes.toml, from which docs/reference is made too.
Guarantees: any text gets an answer; a code's own text is repeated only where it has a code's shape.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

from common.privacy.boundary_rules import RULES

SHAPE = re.compile(r"E(-[A-Z0-9]+){1,6}")
FLOWER = re.compile(r"E-FLOWER-[0-9]+")


@dataclass(frozen=True)
class Advice:
    """A code in words. `who`: hospital, operator or researcher."""

    code: str
    who: str
    means: str
    fix: str

    def to_dict(self) -> dict[str, str]:
        """Return the four texts."""
        return asdict(self)

    @property
    def line(self) -> str:
        """Return the code, what it means and what to do, in one line."""
        return f"{self.code}: {self.means} {self.fix}"


@cache
def all_advice() -> dict[str, Advice]:
    """Return the advice of every code that has words of its own."""
    text = files("common").joinpath("codes.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    return {code: Advice(code, row["who"], row["means"], row["fix"]) for code, row in rows.items()}


def advise(code: str) -> Advice:
    """Return what a code means; a general sentence for one that this version does not know."""
    found = all_advice().get(code)
    if found is not None:
        return found
    for rule in RULES.values():
        if rule.code == code:
            return Advice(code, "hospital, operator", rule.sentence, "Report it to the operator.")
    if FLOWER.fullmatch(code):
        return Advice(
            code,
            "operator",
            "Flower answered for the site: it was not reached, or its reply came too late.",
            "Nothing at first: the server asks again. If it stays, ask the hospital for "
            "`kohort-site status`.",
        )
    known = code if SHAPE.fullmatch(code) else "E-UNKNOWN"
    return Advice(
        known, "operator", "This version does not know this code.", "Compare the versions."
    )
