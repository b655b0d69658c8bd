"""Finds the studies of a state folder, and opens the record of one.

In: a state folder. Out: studies with a verified bundle, and the faults of those without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ConfigurationError, KohortError
from common.study.bundle import open_bundle
from common.study.plan import Study
from server.operator.hand_over import operator_keys
from server.operator.state import ServerState
from server.rounds.record import StudyRecord


def read_studies(state: ServerState) -> tuple[list[Study], dict[str, KohortError]]:
    """Return the studies of a state folder, and the faults of those that cannot be read, by hash.

    One of an older version, or a damaged one, does not hide the others.
    """
    public = operator_keys(state)
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
