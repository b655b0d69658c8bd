"""The one list of metrics: names as Prometheus wants them, each with a side and a sentence."""

import re

import pytest

from common.monitoring.names import METRICS, Metric, of_side

NAME = re.compile(r"kohort_(site|server)_[a-z]+(_[a-z]+)*")


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_each_metric_has_a_name_of_its_side_and_a_sentence(metric: Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert metric.help
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)


def test_every_metric_is_of_one_side() -> None:
    assert len(of_side("site")) + len(of_side("server")) == len(METRICS)
