"""The exception tree of kohort/errors.py, for the two sides.

It is written there because the `kohort` distribution imports nothing of the application.
"""

from kohort.errors import (
    Bug,
    ConfigurationError,
    EnvironmentFault,
    KohortError,
    PeerError,
    PolicyError,
    RefusedError,
    damage_named,
    disk_faults_named,
)

__all__ = [
    "Bug",
    "ConfigurationError",
    "EnvironmentFault",
    "KohortError",
    "PeerError",
    "PolicyError",
    "RefusedError",
    "damage_named",
    "disk_faults_named",
]
