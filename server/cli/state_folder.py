"""Opens what lies in the operator's state folder, and closes it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from common.errors import ConfigurationError, KohortError
from common.storage.files import read_capped
from common.study.bundle import open_bundle
from common.study.plan import Study
from common.wire import signing
from server.operator.folder import keep_folder_private
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.record import StudyRecord


def check_set_up(state: ServerState) -> None:
    """Raise ConfigurationError where no server is set up, or the folder is another account's."""
    if not state.operator_key.is_file():
        raise ConfigurationError(
            f"{state.root}: no server is set up here",
            hint="`kohort-server init` sets one up; --state names its folder",
        )
    keep_folder_private(state.root)


def load_operator_key(state: ServerState) -> Ed25519PrivateKey:
    """Return the operator's signing key; raises ConfigurationError where no server is set up."""
    check_set_up(state)
    return signing.load_private(state.operator_key)


def load_operator_public(state: ServerState) -> Ed25519PublicKey:
    """Return the operator's public key, for commands that sign nothing."""
    check_set_up(state)
    path = state.operator_key.with_suffix(".pub")
    if not path.is_file():
        return signing.load_private(state.operator_key).public_key()
    text = read_capped(path, signing.KEY_CAP_BYTES)
    return signing.parse_public(text.decode(errors="replace"))


@contextmanager
def open_registry(state: ServerState) -> Iterator[Registry]:
    """Yield the sites' registry of a state folder that is set up."""
    check_set_up(state)
    registry = Registry(state.sites)
    try:
        yield registry
    finally:
        registry.close()


def read_studies(state: ServerState) -> tuple[list[Study], dict[str, KohortError]]:
    """Return the studies of a state folder, and the faults of those that cannot be read, by hash.

    One of an older version, or a damaged one, does not hide the others.
    """
    public = load_operator_public(state)
    studies = []
    faults = {}
    for bundle in sorted((state.root / "studies").glob("*/bundle")):
        try:
            studies.append(open_bundle(bundle, public))
        except KohortError as error:
            faults[bundle.parent.name] = error
    return studies, faults


def find_study(state: ServerState, name: str) -> Study:
    """Return the study of this name, or of the hash that starts so; raises ConfigurationError."""
    studies, _ = read_studies(state)
    found = [one for one in studies if one.name == name or one.hash().startswith(name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{one.name} ({one.hash()[:12]})" for one in studies) or "none"
    raise ConfigurationError(
        f"study {name!r}: expected the name of one study, found {len(found)}; known: {known}",
        hint="give its name, or the start of its hash where several have the name",
    )


@contextmanager
def open_record(state: ServerState, study: Study) -> Iterator[StudyRecord]:
    """Yield the record of a study."""
    record = StudyRecord(state.study(study.hash()), study)
    try:
        yield record
    finally:
        record.close()
