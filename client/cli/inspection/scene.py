"""What the looks are given, and how they name what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from client.fleet import health
from client.fleet.connection import FleetSettings
from client.fleet.failures import CallFailed
from client.fleet.settings import fleet_settings
from client.state.config import SiteConfig, load_site
from client.state.folder import State
from client.state.membership import read_membership
from common.alerts import Alert
from common.errors import KohortError
from common.storage.heartbeat import Life

CALL_TIMEOUT_S = 10

# yields a fault as an Alert, a note as a text, or raises a KohortError
Part = Callable[["Scene"], Iterator[Alert | str]]


@dataclass(frozen=True)
class Scene:
    """What the parts look at; what cannot be read is a fault of the part that asks first."""

    root: Path
    offline: bool
    daemon: Life
    brief: bool = False

    @property
    def place(self) -> State:
        """The state folder."""
        return State(self.root)

    @property
    def config(self) -> SiteConfig:
        """site.yaml."""
        return load_site(self.root)

    @property
    def settings(self) -> FleetSettings:
        """How the server is reached."""
        membership = read_membership(self.place.membership)
        settings = fleet_settings(self.place, self.config, membership)
        return replace(settings, timeout_s=CALL_TIMEOUT_S)


def list_faults(error: KohortError) -> Iterator[Alert]:
    """Yield one fault for each problem of an error."""
    for line in getattr(error, "problems", ()) or (str(error),):
        yield Alert("error", error.code, line, error.hint)


def name_fault(code: str, text: str, fix: str) -> Alert:
    """A fault by its code (common/codes.toml)."""
    return Alert("error", code, text, fix)


def name_failure(failure: CallFailed, url: str = "") -> Alert:
    """A failed call as a fault."""
    state = failure.state
    where = f"{url}: " if url and state is not health.CLOCK_OFF else ""
    facts = f" ({failure.facts})" if failure.facts else ""
    return name_fault(state.code, f"{where}{state.text}{facts}", state.fix)
