"""What changed between two plans: one line a key, old and new, for the people who approve.

In: two plans. Out: lines, in the order of the plan's file; none for equal plans.
Guarantees: every field that the plan's hash covers is compared, and each difference is a line.
Not covered: what a change means for a site's policy (client/state/plan_check.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.config import FrozenModel
from common.study.plan import Study
from common.study.sections import SitePlan

NONE = "none"
DIGEST_DIGITS = 12
# Where a larger number protects patients less, and where a smaller one does.
LARGER_PROTECTS_LESS = (
    "privacy.epsilon",
    "privacy.delta",
    ".rounds",
    ".local_steps",
    ".patients_per_step",
    "synthesis.max_images_per_site",
    "synthesis.outputs_per_group",
    "synthesis.coarse_cells",
    "synthesis.anchors.threshold_delta",
    "synthesis.privatize.epsilon",
    "synthesis.privatize.delta",
)
SMALLER_PROTECTS_LESS = (
    "synthesis.k",
    ".noise_multiplier",
    "synthesis.privatize.scale",
)


@dataclass(frozen=True)
class Value:
    """One field of a plan: its value, that value in words, and what the field is."""

    value: object
    words: str
    meaning: str


def changes(old: Study, new: Study) -> tuple[str, ...]:
    """Return one line for each key that differs: `key: old → new (what it is; its effect)`."""
    before = dict(_values(old))
    after = dict(_values(new))
    lines = []
    # keys of both in the new plan's order, then those that it no longer has
    for key in (*after, *(key for key in before if key not in after)):
        one = before.get(key)
        other = after.get(key)
        if one is None or other is None or one.value != other.value:
            lines.append(_line(key, one, other))
    # the hash covers the order, too
    if not lines and [site.name for site in old.sites] != [site.name for site in new.sites]:
        lines.append("sites: the same hospitals in another order")
    return tuple(lines)


def _line(key: str, old: Value | None, new: Value | None) -> str:
    """One difference in words."""
    known = new or old
    assert known is not None
    text = f"{key}: {old.words if old else NONE} → {new.words if new else NONE}"
    effect = _effect(key, old, new)
    notes = "; ".join(filter(None, (known.meaning, effect)))
    return f"{text} ({notes})" if notes else text


def _effect(key: str, old: Value | None, new: Value | None) -> str:
    """Whether patients are protected less or more, where the number alone says so."""
    if old is None or new is None:
        return ""
    before = old.value
    after = new.value
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return ""
    grows = after > before
    if key.endswith(LARGER_PROTECTS_LESS):
        return "protects patients less" if grows else "protects patients more"
    if key.endswith(SMALLER_PROTECTS_LESS):
        return "protects patients more" if grows else "protects patients less"
    return ""


def _values(model: FrozenModel, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yield every field of a section and of those below it, by its dotted key."""
    for name, field in type(model).model_fields.items():
        key = f"{prefix}{name}"
        value = getattr(model, name)
        if isinstance(value, FrozenModel):
            yield from _values(value, f"{key}.")
        elif value is not None and key == "sites":
            yield from _sites(value)
        elif value is not None:
            yield key, Value(value, _spell(key, value), _first_clause(field.description))


def _sites(sites: tuple[SitePlan, ...]) -> Iterator[tuple[str, Value]]:
    """Yield each hospital by its name: their order says nothing."""
    for site in sites:
        yield (
            f"sites.{site.name}",
            Value(site.weight, f"weight {site.weight:g}", "a hospital that may take part"),
        )


def _spell(key: str, value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or NONE
    if isinstance(value, dict):
        return ", ".join(f"{one} as {other}" for one, other in sorted(value.items())) or NONE
    if key.endswith(".sha256"):
        return str(value)[:DIGEST_DIGITS]
    return str(value)


def _first_clause(description: str | None) -> str:
    """What a field is, without the details behind a semicolon or a colon."""
    text = description or ""
    for mark in (";", ": "):
        text = text.partition(mark)[0]
    return text.replace("`", "")
