"""Meets every point with every fault: `python -m tests.faults`; `make faults` writes the table."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.faults import connection, consortium, hospital
from tests.faults.certificates import certificate_cases
from tests.faults.runs import FAULTS as FAULTS_OF_A_STAGE
from tests.faults.runs import Outcome, Stage
from tests.tables import commit, table, write_block

FAULTS = {**FAULTS_OF_A_STAGE, "network": connection.storms}
MEMORY = Path("/dev/shm")
COMMAND = "make faults"
# how many events lie between two points of a fault; 1: every point
STRIDES = {"kill -9": 1, "power cut": 1, "disk": 3, "suspended": 13, "clock": 13}


def all_scenarios() -> list[Any]:
    """Return the scenarios of both sides."""
    return [*hospital.scenarios(), *connection.scenarios(), *consortium.scenarios()]


def stage_folder() -> Path:
    """Return a new folder, in memory where there is some."""
    home = MEMORY if MEMORY.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="kohort-faults-", dir=home))


def run_scenario(scenario: Any, faults: Sequence[str], sparse: int, out: Path) -> None:
    """Meet all points of one scenario; append one line of JSON a point."""
    folder = stage_folder()
    began = time.monotonic()
    count = 0
    try:
        stage = Stage(scenario, folder)
        for fault in faults:
            if fault not in faults_of(scenario):
                continue
            for outcome in FAULTS[fault](stage, sparse * STRIDES.get(fault, 1), 0):
                count += 1
                _append(out, outcome)
                if outcome.wrong:
                    print(f"  {outcome}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    took = time.monotonic() - began
    print(f"{scenario.side}: {scenario.name}: {count} points, {took:.0f} s", flush=True)


def faults_of(scenario: Any) -> Sequence[str]:
    """Return the faults that a scenario meets; files are torn and restored at a site alone."""
    if hasattr(scenario, "faults_met"):
        return tuple(scenario.faults_met)
    on_disk = ("torn tail", "restored backup")
    if isinstance(scenario, hospital.Hospital):
        return tuple(FAULTS_OF_A_STAGE)
    return tuple(fault for fault in FAULTS_OF_A_STAGE if fault not in on_disk)


def run_certificates(out: Path) -> None:
    """Change a site's certificate while it is connected."""
    with tempfile.TemporaryDirectory() as folder:
        for outcome in certificate_cases(Path(folder)):
            _append(out, outcome)


def _append(out: Path, outcome: Outcome) -> None:
    """Write one outcome down."""
    with out.open("a") as file:
        file.write(json.dumps(vars(outcome)) + "\n")


def in_processes(scenarios: Sequence[Any], options: argparse.Namespace, out: Path) -> None:
    """Share the scenarios among forked processes."""
    running: set[int] = set()
    for scenario in scenarios:
        while len(running) >= options.jobs:
            running.discard(os.wait()[0])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run_scenario(scenario, options.faults, options.sparse, out)
                code = 0
            except BaseException as error:
                _append(out, Outcome("", scenario.name, "", repr(error), repr(error)))
                print(f"{scenario.name}: {error!r}", flush=True)
            finally:
                os._exit(code)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


def read_outcomes(path: Path) -> list[Outcome]:
    """Return what was written down."""
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return the last line: how many points, and how many ended wrong."""
    found = list(outcomes)
    killed = sum(outcome.fault in ("kill -9", "power cut") for outcome in found)
    wrong = sum(bool(outcome.wrong) for outcome in found)
    return (
        f"{len(found)} points, {killed} of them kills; {len(found) - wrong} allowed, {wrong} wrong"
    )


def markdown(outcomes: Sequence[Outcome], minutes: float) -> str:
    """Return the table of the documents: fault × scenario → outcomes."""
    rows = []
    counted: dict[tuple[str, str], Counter[str]] = {}
    for outcome in outcomes:
        counter = counted.setdefault((outcome.fault, outcome.scenario), Counter())
        counter[outcome.result] += 1
    for (fault, scenario), counter in counted.items():
        ended = "; ".join(f"{count} {result}" for result, count in counter.most_common())
        rows.append((fault, scenario, counter.total(), ended))
    head = ("fault", "scenario", "points", "outcomes")
    text = f"Written by `{COMMAND}` at commit {commit()}, in {minutes:.0f} minutes.\n\n"
    return f"{text}{table(head, sorted(rows))}\n{summary(outcomes)}.\n"


def main() -> int:
    """Meet all points, print what came of them, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=[], help="names of scenarios")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--sparse", type=int, default=1, help="meet one point of so many")
    parser.add_argument("--out", type=Path, help="keep the outcomes in this file")
    parser.add_argument("--write", action="store_true", help="write docs/promises/faults.md")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    scenarios = [s for s in all_scenarios() if not options.only or s.name in options.only]
    folder = stage_folder()
    try:
        out = options.out or folder / "outcomes"
        in_processes(scenarios, options, out)
        if not options.only and "network" in options.faults:
            run_certificates(out)
        outcomes = read_outcomes(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = markdown(outcomes, (time.monotonic() - began) / 60)
    print(text)
    if options.write:
        write_block("faults", text)
    print(summary(outcomes))
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
