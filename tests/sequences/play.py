"""How histories are drawn: without deadline, database or health checks."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import HealthCheck, Phase, settings


def history_settings(histories: int, steps: int, *, shrink: bool = True) -> settings:
    """Return the settings of a run."""
    phases = [Phase.generate]
    if shrink:
        phases.append(Phase.shrink)
    return settings(
        max_examples=histories,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


def lacking(seen: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
    """Return what was seen too seldom: a run that refuses everything proves nothing."""
    return {name: seen.get(name, 0) for name, least in wanted.items() if seen.get(name, 0) < least}
