"""What a person should mend now, and how a monitoring system reads it.

In: the alerts of one side. Out: one line and an exit code, as plugins of Nagios and Icinga have.
Guarantees: every alert has a code and a fix; the line holds no line break and no `|`, after which a
monitoring system would read numbers.
Not covered: which alerts there are (client/daemon/standing.py, server/rounds/standing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["warning", "error"]
OK, WARNING, CRITICAL = 0, 1, 2
WORDS = {OK: "OK", WARNING: "WARNING", CRITICAL: "CRITICAL"}
LINE_CHARACTERS = 1000


@dataclass(frozen=True)
class Alert:
    """One thing to mend: `fix` is the command or the deed that mends it."""

    severity: Severity
    code: str
    text: str
    fix: str

    @property
    def line(self) -> str:
        """Return it as a line for a person."""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.severity}: {self.code}: {self.text}{fix}"

    def to_dict(self) -> dict[str, str]:
        """Return the four texts."""
        return asdict(self)


def exit_code(alerts: Sequence[Alert]) -> int:
    """Return 0 for no alert, 1 for warnings alone, 2 for an error."""
    if any(alert.severity == "error" for alert in alerts):
        return CRITICAL
    return WARNING if alerts else OK


def monitor_line(healthy: str, alerts: Sequence[Alert]) -> str:
    """Return one line for a monitoring system, errors first; `healthy` where there is no alert."""
    ordered = sorted(alerts, key=lambda alert: alert.severity)  # error, warning
    texts = [f"{alert.code}: {alert.text} ({alert.fix})" for alert in ordered]
    text = " ".join(f"{WORDS[exit_code(alerts)]}: {'; '.join(texts) or healthy}".split())
    return text.replace("|", "/")[:LINE_CHARACTERS]
