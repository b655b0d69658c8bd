"""Plays every attack: `python -m tests.attacks`, or `make attacks`.

Prints a table, attack × door → outcome, and a last line with counts. Ends with 1 if there was a
way in.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from common.storage.files import atomic_write
from tests.attacks import below_http, hostile_servers, hostile_sites, load, wire_sites
from tests.attacks.outsiders import local_user, visit
from tests.attacks.page import page
from tests.attacks.rows import Row, count_line, lines
from tests.attacks.server import FRONTS, nginx, running_server
from tests.tables import commit, write_block

PARTS = ("outsiders", "load", "sites", "wire", "servers")
FOUND = Path(__file__).with_name("found.json")
OPEN_S = 3600.0  # the round that stays open while outsiders knock


def fronts() -> list[str]:
    """The fronts that can be tried on this machine."""
    found = [front for front in FRONTS if front != "nginx" or nginx() is not None]
    if len(found) < len(FRONTS):
        sys.stderr.write("nginx is not installed: its front is not attacked\n")
    return found


def outsiders() -> Iterator[Row]:
    """Let outsiders knock at both fronts, and let the study complete afterwards."""
    for front in fronts():
        with running_server(front, round_deadline_s=OPEN_S) as target:
            yield from visit(target)
            if front == FRONTS[0]:
                yield from local_user(target)
            target.gate.set()
            ended = target.process.wait(300)
            outcome = "the study completes" if ended == 0 else f"exit {ended}"
            yield Row("all of them", "end the study", front, outcome, ended == 0)


def rows_of(part: str) -> Iterator[Row]:
    """Play one part."""
    if part == "outsiders":
        yield from outsiders()
    elif part == "sites":
        yield from hostile_sites.rows(hostile_sites.CASES)
    elif part == "wire":
        yield from wire_sites.rows()
    elif part == "servers":
        yield from hostile_servers.rows(hostile_servers.CASES)
        yield from below_http.rows()


def main() -> int:
    """Play the attacks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into the documents, with the figures")
    options = parser.parse_args()
    # what the attacked programs log is not the result
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    rows: list[Row] = []
    for part in options.only:
        sys.stderr.write(f"{part}, after {time.monotonic() - began:.0f} s\n")
        figures: list[load.Figures] = []
        if part == "load":
            figures = [one for front in fronts() for one in load.run(front, load.LONG)]
        found = [*rows_of(part), *(one.row() for one in figures)]
        rows += found
        if options.write:
            keep(part, found, figures)
    sys.stdout.write("\n".join([*lines(rows), count_line(rows)]) + "\n")
    return int(any(not row.held for row in rows))


def keep(part: str, rows: list[Row], figures: list[load.Figures]) -> None:
    """Write what a part found beside what the others found, and the page of all of them."""
    kept = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    kept[part] = {
        "commit": commit(),
        "rows": [asdict(row) for row in rows],
        "figures": [asdict(one) for one in figures],
    }
    atomic_write(FOUND, (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    write_block("attacks", page(kept))


if __name__ == "__main__":
    sys.exit(main())
