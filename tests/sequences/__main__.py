"""Plays many histories: `python -m tests.sequences --histories 2000 --seed 1`."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from tests.sequences import machine, oracle
from tests.sequences.play import history_settings, lacking

ENOUGH = 500  # histories that must have seen all of this
SEEN = {
    "update": 2000,
    "images": 200,
    "plain": 1000,
    "covered": 50,
    "again": 500,
    "drawn again": 5,
    "export": 20,
    "kill": 20,
    "E-ROLLBACK": 50,
}
EVERY = 50  # histories between two lines of progress


def main() -> int:
    """Play the histories and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.sequences")
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--only", type=int, nargs="*", help="check these invariants alone")
    options = parser.parse_args()
    if options.only:
        oracle.ignored |= set(range(1, 100)) - set(options.only)
    limits = history_settings(options.histories, options.steps, shrink=not options.no_shrink)
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    played = 0
    shown: list[str] = []

    class Counted(machine.Histories):
        """The same, with progress."""

        def teardown(self) -> None:
            nonlocal played
            super().teardown()
            played += 1
            if played % EVERY == 0:
                print(f"{played} histories, {time.monotonic() - began:.0f} s", flush=True)
            if oracle.found and not shown:
                shown.extend(oracle.found)
                print(f"found after {played} histories, now shrinking: {shown[0]}", flush=True)

    test = seed(options.seed)(run_state_machine_as_test)
    try:
        test(Counted, settings=limits)
    finally:
        print(f"{played} histories, {time.monotonic() - began:.0f} s")
        for name, count in sorted(machine.seen.items()):
            print(f"  {count:6d} {name}")
    few = lacking(machine.seen, SEEN)
    if options.histories >= ENOUGH and few:
        print(f"too seldom seen, so this run proves little: {few}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
