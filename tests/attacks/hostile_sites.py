"""One hostile site of three against the server's own loop: the other two complete the study.

In: a case of site_updates.py, site_bytes.py or site_nodes.py. Out: a row, held or not.
Held means: the study is complete, its images are those of the other two, the hostile site is named
by `kohort-server status` and in the release under the code of its fault, no text of it stands in
journal or log, and no code of it ran.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kohort.verification import verify
from server.cli.publish import batches_without, sites_in_quarantine
from server.cli.status import status
from server.release.build import build_release
from server.release.items import ReleaseInputs
from server.rounds.loop import run_study
from server.rounds.study_run import StudyRun
from tests.attacks.environment import environment
from tests.attacks.rows import Row
from tests.attacks.site_bytes import MARKER, PAYLOADS, RECORDS, SIGNATURES
from tests.attacks.site_cases import HOSTILE, Case
from tests.attacks.site_nodes import HONEST, IMAGES, NODES
from tests.attacks.site_updates import HEADERS, NUMBERS, STATEMENTS
from tests.federation import Federation
from tests.releases import ACCOUNT

CASES = [
    *NUMBERS,
    *HEADERS,
    *STATEMENTS,
    *PAYLOADS,
    *SIGNATURES,
    *RECORDS,
    *NODES,
    *IMAGES,
]
PRIVATE = ("oe^J", "e-doe", "1931")  # what the hostile site would like to see repeated


def play(case: Case, folder: Path) -> Row:
    """Run a whole study with the hostile site in it and return what came of it."""
    federation = Federation.create(folder, **case.changes)
    marker = folder / "code-ran"
    scripts = case.prepare(federation)
    run = federation.open()
    with captured_log() as log, environment(MARKER, str(marker)):
        run_study(run, federation.grid(scripts))
    faults = list(find_faults(case, federation, run))
    if marker.exists():
        faults.append("its code ran")
    written = log.getvalue() + str([entry.data for entry in run.record.journal.entries()])
    if any(text in written for text in PRIVATE):
        faults.append("its text was repeated")
    code = run.registry.get(HOSTILE).code
    run.record.close()
    run.registry.close()
    outcome = "; ".join(faults) or describe(code)
    return Row("one site of three", case.attack, "a reply", outcome, not faults)


def describe(code: str) -> str:
    """What the table says of a case that held."""
    if code:
        return f"{code}, quarantine; the others complete"
    return "not waited for; the others complete"


def find_faults(case: Case, federation: Federation, run: StudyRun) -> Iterator[str]:
    """Yield what should not be so."""
    if not run.record.complete():
        yield "the study is not complete"
    batches = {batch.site for batch in run.record.batches()}
    if not batches >= set(HONEST):
        yield f"images of {sorted(batches)} alone"
    told = shown(federation)
    row = next(row for row in told["sites"] if row["site"] == HOSTILE)
    if case.codes and (row["state"], row["code"] in case.codes) != ("quarantined", True):
        yield f"status says {row['state']} {row['code']}, expected one of {case.codes}"
    if not case.codes and HOSTILE not in told["studies"][0]["missing"]:
        yield "status does not say that it is missing"
    if not case.codes and HOSTILE in batches:
        yield "a site that never answered has images"
    if not any(line.startswith(f"{HOSTILE} ") for line in absent(federation, run)):
        yield "the release does not name it"
    for name in HONEST:
        if run.registry.get(name).state != "registered":
            yield f"{name} is {run.registry.get(name).state}"


def absent(federation: Federation, run: StudyRun) -> list[str]:
    """What the release says of missing sites; it is built as `kohort-server release` does."""
    quarantined = sites_in_quarantine(run.registry)
    root = federation.state.root.parent
    inputs = ReleaseInputs(
        study=run.study,
        bundle=root / "bundle",
        batches=batches_without(run.record, quarantined),
        account=ACCOUNT,
        quarantined=quarantined,
    )
    folder = build_release(inputs, root / "releases", federation.key)
    verify(folder)
    found: list[str] = json.loads((folder / "privacy_statement.json").read_text())["absent"]
    return found


def shown(federation: Federation) -> dict[str, list[dict[str, Any]]]:
    """What `kohort-server status --json` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status(federation.state.root, as_json=True)
    found: dict[str, list[dict[str, Any]]] = json.loads(output.getvalue())
    return found


@contextlib.contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """The server's log as text."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger = logging.getLogger("kohort.server")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.removeHandler(handler)


def rows(cases: list[Case]) -> Iterator[Row]:
    """Play cases one after the other."""
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="kohort-attack-") as folder:
            try:
                yield play(case, Path(folder))
            except Exception as error:
                outcome = f"the study ended: {type(error).__name__}"
                yield Row("one site of three", case.attack, "a reply", outcome, False)
