"""Rules and dashboard: every metric in them exists, and every alarm names a command that does."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import yaml

from common.monitoring.names import METRICS
from deploy import dashboard
from tests.deploy.programs import check_line, is_ours

RULES = dashboard.TARGET.parent / "rules.yaml"
NAME = re.compile(r"\bkohort_\w+")
MATCHERS = re.compile(r"(kohort_\w+)\{([^}]*)\}")
SYSTEM = {"systemctl", "journalctl", "df", "du"}


def alarms() -> list[dict[str, Any]]:
    """Every alarm."""
    text = RULES.read_text()
    groups = yaml.safe_load(text)["groups"]  # noqa: TID251  # our own file, as Prometheus reads it
    return [rule for group in groups for rule in group["rules"]]


ALARMS = alarms()
NAMES = [alarm["alert"] for alarm in ALARMS]


def test_alarms_have_names_of_their_own() -> None:
    assert len(NAMES) > 20 and len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("alarm", ALARMS, ids=NAMES)
def test_an_alarm_asks_for_metrics_that_exist(alarm: dict[str, Any]) -> None:
    asked = set(NAME.findall(alarm["expr"]))
    assert asked and asked <= set(METRICS)
    for metric, matchers in MATCHERS.findall(alarm["expr"]):
        labels = set(re.findall(r"(\w+)\s*!?=", matchers))
        assert labels <= set(METRICS[metric].labels)
    shown = set(re.findall(r"\$labels\.(\w+)", alarm["annotations"]["summary"]))
    assert shown <= {label for metric in asked for label in METRICS[metric].labels}


@pytest.mark.parametrize("alarm", ALARMS, ids=NAMES)
def test_an_alarm_names_a_command_that_exists(alarm: dict[str, Any]) -> None:
    words = shlex.split(alarm["annotations"]["command"])
    if is_ours(words[0]):
        check_line(words)
    else:
        assert words[0] in SYSTEM
    assert alarm["labels"]["severity"] in ("info", "warning", "critical")
    assert balanced(alarm["expr"])


def balanced(expression: str) -> bool:
    """Whether every bracket of an expression closes."""
    depth = [0]
    for letter in expression:
        depth.append(depth[-1] + (letter in "([{") - (letter in ")]}"))
    return depth[-1] == 0 and min(depth) == 0


def test_the_dashboard_is_what_the_list_of_metrics_gives() -> None:
    assert json.loads(dashboard.TARGET.read_text()) == dashboard.dashboard(), (
        "run `python -m deploy.dashboard`"
    )


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    asked = {
        name
        for panel in dashboard.dashboard()["panels"]
        for target in panel.get("targets", [])
        for name in NAME.findall(target["expr"])
    }
    assert asked == set(METRICS)
