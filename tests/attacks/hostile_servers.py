"""A hostile server against a hospital's real daemon, over TLS: codes leave, and nothing else.

In: a case of server_cases.py or server_wire.py. Out: a row, held or not.
Held means: the outcome is one that the case expects; no child ran, the ledger and the outbox are
byte for byte as before; nothing that must not leave was heard; no code ran; the daemon answers an
honest question afterwards, or stops for good where that is the promise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.attacks.clinic import ANSWERED, Case, Clinic, clinic
from tests.attacks.environment import environment
from tests.attacks.rows import Row
from tests.attacks.server_cases import CASES as INSTRUCTIONS
from tests.attacks.server_wire import CASES as WIRE
from tests.attacks.site_bytes import MARKER

CASES = [*INSTRUCTIONS, *WIRE]


def play(case: Case, place: Clinic, marker: Path) -> Row:
    """Let the server do one thing and return what came of it."""
    before = place.spent()
    outcome = case.act(place)
    faults = []
    if outcome not in case.expected:
        faults.append(f"{outcome}, expected one of {case.expected}")
    # what a test replaced is honest again
    place.server.instead.clear()
    after = place.asked_honestly()
    if after != case.after:
        faults.append(f"an honest question then gets {after}")
    if place.spent() != before:
        faults.append("something was computed, spent or made ready to be sent")
    if left := place.leaks():
        faults.append(f"left: {left}")
    if marker.exists():
        faults.append("code ran")
    told = "; ".join(faults) or outcome
    return Row("a hostile server", case.attack, case.door, told, not faults)


def rows(cases: Sequence[Case]) -> Iterator[Row]:
    """Play cases: one after the other against one daemon, or against one that stops for good."""
    yield from against_one_daemon([case for case in cases if case.after == ANSWERED])
    for case in cases:
        if case.after != ANSWERED:
            yield from against_one_daemon([case])


def against_one_daemon(cases: Sequence[Case]) -> Iterator[Row]:
    """Play cases one after the other."""
    with tempfile.TemporaryDirectory(prefix="kohort-clinic-") as name:
        folder = Path(name)
        marker = folder / "code-ran"
        with environment(MARKER, str(marker)), clinic(folder) as place:
            for case in cases:
                yield play(case, place, marker)
