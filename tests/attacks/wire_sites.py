"""A handful of hostile sites over the real wire: client, front, SuperLink, executor and all.

In: cases of the tables of hostile_sites.py, by name. Out: a row, held or not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from server.operator.sites import Registry
from server.rounds.record import StudyRecord
from tests.attacks.environment import environment
from tests.attacks.hostile_sites import CASES, describe
from tests.attacks.rows import Row
from tests.attacks.server import Target, running_server
from tests.attacks.site_bytes import MARKER
from tests.attacks.site_cases import HOSTILE, Case
from tests.attacks.site_nodes import HONEST

NAMES = (
    "a tensor of 70 dimensions",
    "a byte that is no ASCII in the signature",
    "an update of 1e30",
    "an array of pickled objects",
)
# no front takes an object as large: the answer never arrives
NEVER_ARRIVES = "ten megabytes beside the header"
END_S = 300.0


def rows() -> Iterator[Row]:
    """Play the handful, each against a server of its own."""
    for case in CASES:
        if case.attack in (*NAMES, NEVER_ARRIVES):
            with tempfile.TemporaryDirectory() as name:
                marker = Path(name) / "code-ran"
                with environment(MARKER, str(marker)), running_server("embedded") as target:
                    yield play(case, target, marker)


def play(case: Case, target: Target, marker: Path) -> Row:
    """Make one of the three sites hostile while the first round is open, and let it go on."""
    sites = {toy.name: toy for toy in target.toys}
    for toy in target.toys:
        toy.forge = None
    federation: Any = SimpleNamespace(sites=sites)
    scripts = case.prepare(federation)
    if HOSTILE in scripts:
        sites[HOSTILE].fate = scripts[HOSTILE][0]
    target.gate.set()
    ended = target.process.wait(END_S)
    record = StudyRecord(target.state.study(target.study.hash()), target.study)
    batches = tuple(batch.site for batch in record.batches())
    record.close()
    registry = Registry(target.state.sites)
    site = registry.get(HOSTILE)
    registry.close()
    faults = []
    if ended != 0 or batches != HONEST:
        faults.append(f"exit {ended}, images of {batches}")
    arrives = case.attack != NEVER_ARRIVES
    if arrives and (site.state != "quarantined" or site.code not in case.codes):
        faults.append(f"the site is {site.state} {site.code}")
    if marker.exists():
        faults.append("its code ran")
    outcome = "; ".join(faults) or describe(site.code)
    return Row("one site of three", f"{case.attack}, over the wire", "a reply", outcome, not faults)
