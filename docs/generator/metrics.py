"""The page of metrics, from the one list in common/monitoring/names.py."""

from __future__ import annotations

from common.monitoring.names import Side, of_side
from docs.generator.markdown import page, table


def metrics_page() -> str:
    """Return the page of metrics of both sides."""
    return page(
        "Metrics",
        "`kohort-site run` and `kohort-server run` show these to Prometheus where `metrics:` of",
        "site.yaml or server.yaml says so. All are gauges; a time is in Unix seconds. A metric",
        "whose value is not known is left out. `plan` is the first twelve letters of the plan's",
        "hash, `study` its name.",
        "",
        "No metric of a site holds a number of patients, images or groups, or a share of one.",
        "When a value changes depends on how long the work takes, and so on the size of the",
        "cohort: a site's metrics are for its own staff.",
        "",
        "## Site",
        "",
        *_rows("site"),
        "## Server",
        "",
        *_rows("server"),
    )


def _rows(side: Side) -> list[str]:
    """The table of one program."""
    rows = []
    for metric in of_side(side):
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append((f"`{metric.name}`", labels or "none", metric.help))
    return table(("Metric", "Labels", "Value"), rows)
