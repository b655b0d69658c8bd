"""`python -m deploy.dashboard`: writes the dashboard for Grafana, a panel for each metric.

In: the one list of metrics (common/monitoring/names.py).
Out: deploy/monitoring/dashboard.json, which a test compares with what is committed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.monitoring.names import Metric, Side, of_side
from common.storage.files import atomic_write

TARGET = Path(__file__).parent / "monitoring" / "dashboard.json"
TITLES: dict[Side, str] = {"site": "This hospital's site", "server": "The consortium's server"}
WIDTH, HEIGHT, ACROSS = 8, 6, 3


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "kohort",
        "title": "kohort",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": list(panels()),
    }


def panels() -> Iterator[dict[str, Any]]:
    """Yield a row a side and a panel a metric."""
    top = 0
    for side, title in TITLES.items():
        yield {
            "type": "row",
            "title": title,
            "gridPos": {"x": 0, "y": top, "w": WIDTH * ACROSS, "h": 1},
            "panels": [],
        }
        top += 1
        metrics = of_side(side)
        for place, metric in enumerate(metrics):
            column, row = place % ACROSS, place // ACROSS
            yield panel(metric, WIDTH * column, top + HEIGHT * row)
        top += HEIGHT * (len(metrics) // ACROSS + 1)


def panel(metric: Metric, x: int, y: int) -> dict[str, Any]:
    """Return the panel of one metric."""
    expression, unit = reading(metric)
    kind = "table" if metric.name.endswith("_info") else "timeseries"
    return {
        "type": kind,
        "title": metric.name.removeprefix("kohort_").replace("_", " "),
        "description": metric.help,
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "expr": expression,
                "legendFormat": " ".join(f"{{{{{label}}}}}" for label in metric.labels),
                "instant": kind == "table",
            }
        ],
    }


def reading(metric: Metric) -> tuple[str, str]:
    """Return what a person reads of a metric, and its unit: a time as how far away it is."""
    if metric.name.endswith("_end_seconds"):
        return f"{metric.name} - time()", "s"
    if metric.name.endswith("_seconds"):
        return f"time() - {metric.name}", "s"
    if metric.name.endswith("_bytes"):
        return metric.name, "bytes"
    return metric.name, "short"


def main() -> int:
    """Write the file; return the exit code."""
    atomic_write(TARGET, (json.dumps(dashboard(), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
