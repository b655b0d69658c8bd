"""A plan's report without accountants: tests of the commands look at the decision behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.privacy.accounting import Spent
from common.privacy.events import round_event
from common.privacy.plan_report import PlanReport
from common.privacy.planning import ModelNoise
from common.study.plan import Study

Kohort = Callable[..., tuple[int, str, str]]  # exit code, output, errors


def fake_report(verdict: str) -> Callable[..., PlanReport]:
    """Return a stand-in for `feasibility` that always finds `verdict`."""

    def report(study: Study, counts: dict[str, int], **named: Any) -> PlanReport:
        models = tuple(
            ModelNoise(name, round_event(study, name, counts[name]), plan, len(study.sites))
            for name, plan in study.models.trained().items()
        )
        spent = Spent(1e-5, 7.9, 8.4, 7.9, 0.0)
        fixes = ("fewer rounds",)
        norms = named["norms"]
        return PlanReport(study, models, spent, spent, 10.0, verdict, fixes, norms=norms)

    return report
