"""Everything that would stop a run, found before it starts, all of it at once.

In: the state folder. Out: one `Look` for each thing that is looked at, with every fault in it: a
code, the true cause, the fix.
Guarantees: one broken thing hides no other: each part is looked at by itself; nothing is changed.
Beside a daemon that runs nothing is asked of the server: what that daemon knows is told.
Not covered: faults that only work shows, such as a GPU that fails later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.cli.inspection.certificates import look_at_endings, look_at_own_certificate
from client.cli.inspection.configuration import (
    look_at_choices,
    look_at_config,
    look_at_data,
    look_at_keys,
    look_at_labels,
    look_at_membership,
    look_at_open_keys,
    look_at_tls,
)
from client.cli.inspection.machine import (
    look_at_device,
    look_at_disk,
    look_at_lock,
    look_at_packages,
)
from client.cli.inspection.plans import look_at_plans, look_at_state
from client.cli.inspection.scene import Part, Scene, list_faults
from client.cli.inspection.server import look_at_server
from client.state.config import FILE, load_site
from common.alerts import Alert
from common.errors import KohortError
from common.storage.heartbeat import life_of


@dataclass(frozen=True)
class Look:
    """What one look found: faults to mend, and notes that are none."""

    name: str
    faults: tuple[Alert, ...]
    notes: tuple[str, ...]


def inspect_site(state: Path, *, offline: bool = False, brief: bool = False) -> Iterator[Look]:
    """Yield one look after the other; a fault that several of them meet is named once.

    `brief`: the labels file is not compared with the data folder. Raises ConfigurationError for a
    folder that is no site's.
    """
    if not (state / FILE).is_file():
        load_site(state)
    scene = Scene(state, offline, life_of(state), brief)
    looks: dict[str, tuple[Part, ...]] = {
        "configuration": (
            look_at_config,
            look_at_keys,
            look_at_open_keys,
            look_at_data,
            look_at_choices,
            look_at_labels,
            look_at_membership,
            look_at_tls,
        ),
        "certificates": (look_at_own_certificate, look_at_endings),
        "program": (look_at_packages,),
        "machine": (look_at_disk, look_at_lock),
        "device": (look_at_device,),
        "plans": (look_at_plans,),
        "state": (look_at_state,),
    }
    if not offline:
        looks["server"] = (look_at_server,)
    known: set[Alert] = set()
    for name, parts in looks.items():
        faults: dict[Alert, None] = {}
        notes: list[str] = []
        for part in parts:
            for found in _tried(part, scene):
                if isinstance(found, str):
                    notes.append(found)
                else:
                    faults[found] = None
        yield Look(name, tuple(fault for fault in faults if fault not in known), tuple(notes))
        known |= set(faults)


def _tried(part: Part, scene: Scene) -> Iterator[Alert | str]:
    """Yield what a part finds; a KohortError is a fault, too."""
    try:
        yield from part(scene)
    except KohortError as error:
        yield from list_faults(error)
