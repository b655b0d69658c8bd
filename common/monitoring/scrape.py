"""One scrape: the values that hold now, in the text format of Prometheus.

Guarantees: a metric outside the list (names.py), or with other labels, is a Bug; the text depends
on the values alone, not on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.errors import Bug
from common.monitoring.names import METRICS, Metric

Values = dict[tuple[str, ...], float]


class Scrape(Collector):
    """What is known now, by metric and labels."""

    def __init__(self) -> None:
        self._values: dict[str, Values] = {}

    def set(self, metric: Metric, value: float | None, *labels: str) -> None:
        """Note a value; None is not known and leaves the metric out."""
        if METRICS.get(metric.name) != metric or len(labels) != len(metric.labels):
            raise Bug(f"metric {metric.name}: not in the list, or with other labels")
        if value is not None:
            self._values.setdefault(metric.name, {})[labels] = float(value)

    def text(self) -> bytes:
        """Return everything in the text format, in the list's order."""
        # a registry of its own: none of the process's own numbers, which grow with its work
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield each metric that has a value; for prometheus_client."""
        for name, metric in METRICS.items():
            family = GaugeMetricFamily(name, metric.help, labels=metric.labels)
            for labels, value in sorted(self._values.get(name, {}).items()):
                family.add_metric(labels, value)
            if family.samples:
                yield family
