"""Opens what lies in the operator's state folder, and closes it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigurationError
from common.study.plan import Study
from common.wire import signing
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.record import StudyRecord


def load_operator_key(state: ServerState) -> Ed25519PrivateKey:
    """Return the operator's signing key; raises ConfigurationError where no server is set up."""
    if not state.operator_key.is_file():
        raise ConfigurationError(
            f"{state.root}: no server is set up here",
            hint="`kohort-server init` sets one up; --state names its folder",
        )
    return signing.load_private(state.operator_key)


@contextmanager
def open_registry(state: ServerState) -> Iterator[Registry]:
    """Yield the sites' registry of a state folder that is set up."""
    load_operator_key(state)
    registry = Registry(state.sites)
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def open_record(state: ServerState, study: Study) -> Iterator[StudyRecord]:
    """Yield the record of a study."""
    record = StudyRecord(state.study(study.hash()), study)
    try:
        yield record
    finally:
        record.close()
