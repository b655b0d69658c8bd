"""A finding: one statement in a release's report, with value, unit, evidence and status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOT_EVALUATED = "not evaluated"
DOWNSTREAM = "downstream accuracy on real images"
ATTACKS = ("membership inference", "linkage", "re-identification")


@dataclass(frozen=True)
class Finding:
    """One statement; `status` is "shown" or "not evaluated", `interval` the 95 % interval."""

    name: str
    value: float | int | None
    unit: str
    evidence: str
    status: str = "shown"
    interval: tuple[float, float] | None = None


def missing(name: str, evidence: str = "did not run for this release") -> Finding:
    """Return the finding that this was not measured."""
    return Finding(name, None, "", evidence, NOT_EVALUATED)


def with_interval(
    name: str, value: float, interval: tuple[float, float], unit: str, evidence: str
) -> Finding:
    """Return a finding whose unit also tells its 95 % interval."""
    low = round(interval[0], 4) + 0.0  # no -0.0
    high = round(interval[1], 4) + 0.0
    unit = f"{unit}; 95 % interval {low} to {high}"
    return Finding(name, round(value, 4) + 0.0, unit, evidence, interval=(low, high))


def to_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain data."""
    return [asdict(finding) for finding in findings]
