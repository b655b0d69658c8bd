"""What the hospital's own decisions rest on: state folder, configuration, approved plans, ledger.

Not covered: what a person decided on images (client/egress/review.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from client.state.canaries import CanaryFile
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.ledger import Ledger
from client.state.plans import Plans
from common.study.plan import Study

FILTER_ORDER = 4.0


@dataclass(frozen=True)
class Records:
    """The site's records; every call of `ledger` reads the file again."""

    state: State
    config: SiteConfig
    plans: Plans

    def ledger(self) -> Ledger:
        """Return the site's verified ledger under the policy's cap."""
        policy = self.config.policy
        return Ledger.open(
            self.state.ledger,
            cap_epsilon=policy.max_epsilon,
            delta=policy.max_delta,
            cohort=self.state.cohort_name(),
            filter_order=FILTER_ORDER,
        )

    def canaries(self, study: Study, model: str) -> CanaryFile:
        """Return the canaries of one model of a plan."""
        return CanaryFile(self.state.canaries, study.hash(), model, study.privacy.canaries)
