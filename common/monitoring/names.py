"""Every metric of both sides, by name: the one list that rules, dashboards and documents follow.

Guarantees: none of a site's metrics depends on how many patients there are.
Not covered: when a value changes. A site's round is answered later where more patients are; so its
metrics are for its own staff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["site", "server"]


@dataclass(frozen=True)
class Metric:
    """One metric: all are gauges. A time is in Unix seconds, a size in bytes.

    A label `plan` holds the first twelve letters of the plan's hash, `study` its name.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def side(self) -> Side:
        """Which program shows it."""
        return "site" if self.name.startswith("kohort_site_") else "server"


METRICS: dict[str, Metric] = {}


def _declare(name: str, text: str, *labels: str) -> Metric:
    """Register a metric under its name."""
    assert name not in METRICS, name
    METRICS[name] = Metric(name, text, labels)
    return METRICS[name]


def of_side(side: Side) -> tuple[Metric, ...]:
    """Return the metrics of one program, in the order of the list."""
    return tuple(metric for metric in METRICS.values() if metric.side == side)


# --- the site

SITE_VERSION = _declare("kohort_site_version_info", "1, for the version that runs", "version")
SITE_START = _declare("kohort_site_start_seconds", "when the daemon started")
SITE_HEARTBEAT = _declare(
    "kohort_site_heartbeat_seconds", "last sign of life of the daemon; every five seconds a new one"
)
SITE_CONTACT = _declare(
    "kohort_site_last_contact_seconds", "when the server last accepted a heartbeat"
)
SITE_CONNECTION = _declare(
    "kohort_site_connection_state",
    "1, for the state of the connection that holds now; CONNECTED is the good one",
    "code",
    "severity",
)
SITE_PROBLEM = _declare(
    "kohort_site_problem",
    "1, for each other health state that holds now and that a person should mend",
    "code",
    "severity",
)
SITE_RESERVE = _declare(
    "kohort_site_disk_reserve_held", "1 while the space for records is held, 0 on a full disk"
)
SITE_STATE_FAULT = _declare(
    "kohort_site_state_fault",
    "1, for the code of what is wrong with the state folder, such as E-ROLLBACK",
    "code",
)
SITE_ROUNDS = _declare(
    "kohort_site_rounds_planned", "rounds of a plan, by model", "study", "plan", "model"
)
SITE_ANSWERED = _declare(
    "kohort_site_rounds_answered",
    "rounds of a plan that this site has answered, by model",
    "study",
    "plan",
    "model",
)
SITE_AT_WORK = _declare(
    "kohort_site_round_at_work",
    "1 while a round of this phase of the plan is begun and not answered",
    "study",
    "plan",
    "phase",
)
SITE_EPSILON_PROMISED = _declare(
    "kohort_site_epsilon_promised",
    "epsilon per patient that a plan promises at most",
    "study",
    "plan",
)
SITE_EPSILON_PLANNED = _declare(
    "kohort_site_epsilon_planned",
    "epsilon per patient planned: what a plan spends, from its public constants",
    "study",
    "plan",
)
SITE_EPSILON_SPENT = _declare(
    "kohort_site_epsilon_spent",
    "epsilon per patient that a plan has spent so far, at the plan's own delta",
    "study",
    "plan",
)
SITE_EPSILON_ALL = _declare(
    "kohort_site_epsilon_spent_all", "epsilon per patient that all plans have spent so far"
)
SITE_EPSILON_CAP = _declare(
    "kohort_site_epsilon_cap", "largest epsilon per patient over all plans, policy.max_epsilon"
)
SITE_CERTIFICATE = _declare(
    "kohort_site_certificate_end_seconds",
    "when a certificate ends: the site's own (`site`) or the authority's (`authority`)",
    "of",
)
SITE_REVIEW = _declare(
    "kohort_site_review_waiting",
    "1 while a batch of images waits for a person",
    "study",
    "plan",
)

# --- the server

SERVER_VERSION = _declare("kohort_server_version_info", "1, for the version that runs", "version")
SERVER_START = _declare("kohort_server_start_seconds", "when the server started")
SERVER_HEARTBEAT = _declare(
    "kohort_server_heartbeat_seconds",
    "last sign of life of the server; every five seconds a new one",
)
SERVER_STUDY_STATE = _declare(
    "kohort_server_study_state",
    "1, for what a study is: running, paused, complete or abandoned",
    "study",
    "plan",
    "state",
)
SERVER_PAUSED = _declare(
    "kohort_server_study_paused",
    "1 while a study waits for more hospitals, with the code of why",
    "study",
    "plan",
    "code",
)
SERVER_ROUNDS = _declare(
    "kohort_server_study_rounds_planned",
    "rounds of a study, those of all models and one of images",
    "study",
    "plan",
)
SERVER_CLOSED = _declare(
    "kohort_server_study_rounds_closed", "rounds of a study that are closed", "study", "plan"
)
SERVER_MISSING = _declare(
    "kohort_server_study_site_missing",
    "1, for each site without an answer in the round that was closed last",
    "study",
    "plan",
    "site",
)
SERVER_SITE_STATE = _declare(
    "kohort_server_site_state",
    "1, for what a site is: enrolled, registered, quarantined or revoked",
    "site",
    "state",
)
SERVER_SITE_SEEN = _declare(
    "kohort_server_site_last_seen_seconds", "when a site last called", "site"
)
SERVER_SITE_CODE = _declare(
    "kohort_server_site_code",
    "1, for the code that a site declared last or is in quarantine for",
    "site",
    "code",
)
SERVER_CERTIFICATE = _declare(
    "kohort_server_certificate_end_seconds",
    "when a certificate ends: of `server`, of `authority`, or of the site of that name "
    "(`site:NAME`)",
    "of",
)
SERVER_FOREIGN = _declare(
    "kohort_server_foreign_runs",
    "runs of another plan that were refused; the newest thousand are counted",
)
SERVER_REFUSED = _declare(
    "kohort_server_front_refusals",
    "requests that the front's process refused since it started, by its answer's status",
    "status",
)
SERVER_USED = _declare(
    "kohort_server_quota_used_bytes",
    "size of a folder with a quota: `inbox`, `studies` or `releases`, once a release was built",
    "folder",
)
SERVER_QUOTA = _declare("kohort_server_quota_bytes", "quota of that folder", "folder")
SERVER_RELEASE = _declare(
    "kohort_server_release_state",
    "1, for what a release is: proposed, signed-off or published",
    "study",
    "plan",
    "state",
)
SERVER_SIGN_OFFS = _declare(
    "kohort_server_release_sign_offs", "people who signed a release off", "study", "plan"
)
