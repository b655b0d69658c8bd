"""All targets: each parser of bytes from outside, by name."""

from __future__ import annotations

from tests.fuzz import (
    config_targets,
    door_targets,
    file_targets,
    ingest_targets,
    picture_targets,
    release_targets,
    renewal_targets,
    restored_targets,
    review_targets,
    wire_targets,
)
from tests.fuzz.harness import Target

MODULES = (wire_targets, config_targets, file_targets, release_targets, ingest_targets)
MODULES += (door_targets, restored_targets, review_targets, renewal_targets)
MODULES += (picture_targets,)
TARGETS: dict[str, Target] = {}
for _module in MODULES:
    for _target in _module.TARGETS:
        assert _target.name not in TARGETS, _target.name
        TARGETS[_target.name] = _target
