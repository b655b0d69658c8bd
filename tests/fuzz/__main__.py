"""`python -m tests.fuzz --inputs 1000000 [--target NAME] [--seed N] [--workers N]`.

Prints a table: target, inputs, inputs a second, slowest ms, peak MiB, faults. Each failing input is
kept below `--keep`; `--replay FILE` runs one again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import harness
from tests.fuzz.harness import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.worker import start, wait

HEAD = (
    f"{'target':<26}{'inputs':>10}{'inputs/s':>10}{'slowest ms':>12}{'peak MiB':>10}{'faults':>8}"
)


@dataclass(frozen=True)
class Row:
    """One target's figures."""

    target: str
    inputs: int
    returned: int
    inputs_per_s: int
    slowest_ms: float
    peak_mib: float
    cap_mib: int
    faults: int


def main() -> int:
    """Run what the command line names; 1 where a fault was found."""
    options = _options()
    if options.replay:
        return _replay(options.target[0], Path(options.replay))
    names = options.target or list(TARGETS)
    print(HEAD)
    rows = []
    for name in names:
        row = _run(TARGETS[name], options)
        rows.append(row)
        if options.json:
            _merge(Path(options.json), rows)
        print(
            f"{row.target:<26}{row.inputs:>10}{row.inputs_per_s:>10}{row.slowest_ms:>12.1f}"
            f"{row.peak_mib:>10.1f}{row.faults:>8}",
            flush=True,
        )
    return int(any(row.faults for row in rows))


def _options() -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs of each target")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most so long a target")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="all, if left out")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", default="fuzz-faults", help="folder for failing inputs")
    parser.add_argument("--json", help="file for the figures; those of other targets stay")
    parser.add_argument("--replay", help="run one kept input again; needs --target")
    return parser.parse_args()


def _replay(name: str, path: Path) -> int:
    """One kept input again, with its traceback."""
    with harness.memory_folder() as folder:
        parser = TARGETS[name].build(folder)
        fault = harness.replay(TARGETS[name], parser, path.read_bytes())
        print(fault.what if fault else "no fault")
        if fault:
            parser.call(path.read_bytes())
    return int(fault is not None)


def _run(target: Target, options: Any) -> Row:
    """One target in its own processes; one that ends or hangs is a fault of its last input."""
    share = -(-options.inputs // options.workers)
    began = time.monotonic()
    with harness.memory_folder() as folder:
        workers = [
            start(target, share, f"{options.seed}/{number}", options.seconds, folder, number)
            for number in range(options.workers)
        ]
        outcomes = [wait(*worker) for worker in workers]
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    _keep(Path(options.keep), target.name, faults)
    inputs = sum(outcome.inputs for outcome in outcomes)
    seconds = max(outcome.seconds for outcome in outcomes) or time.monotonic() - began
    return Row(
        target.name,
        inputs,
        sum(outcome.returned for outcome in outcomes),
        round(inputs / max(seconds, 1e-3)),
        round(1000 * max(outcome.slowest_s for outcome in outcomes), 1),
        round(max(outcome.grown_mib for outcome in outcomes), 1),
        target.memory_mib,
        len({fault.what for fault in faults}),
    )


def _keep(folder: Path, name: str, faults: Sequence[harness.Fault]) -> None:
    """Write every failing input to a file and print its command."""
    for fault in faults:
        digest = hashlib.sha256(fault.data).hexdigest()[:12]
        path = folder / f"{name}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fault.data)
        print(f"  {fault.what}: python -m tests.fuzz --target {name} --replay {path}", flush=True)


def _merge(path: Path, rows: Sequence[Row]) -> None:
    """Write the figures into a file; those of other targets stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {row.target: asdict(row) for row in rows}
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
