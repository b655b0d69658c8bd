"""Issues what sites have asked for, again and again, beside a study or between two.

In: the state folder, the registry. Out: new certificates (renewals.py), a line for each.
Guarantees: a fault ends nothing and is said once, until it is another one or gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import KohortError
from server.operator.renewals import issue_waiting
from server.operator.sites import Registry
from server.operator.state import ServerState

EVERY_S = 5.0


@dataclass
class Issuer:
    """The mailbox of one state folder; `say` gets what a person should read."""

    state: ServerState
    registry: Registry
    say: Callable[[str], None]
    _next: float = 0.0
    _fault: str = ""

    def turn(self) -> None:
        """Look into the mailbox, at most every `EVERY_S`."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        try:
            for line in issue_waiting(self.state, self.registry):
                self.say(line)
            self._fault = ""
        except KohortError as error:
            if str(error) != self._fault:
                self._fault = str(error)
                self.say(f"certificates of sites cannot be renewed: {error} ({error.hint})")
