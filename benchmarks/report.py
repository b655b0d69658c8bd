"""What a benchmark found, in one form, and the pages of docs/measurements that are made from it.

    python -m benchmarks.report            # write the pages
    python -m benchmarks.report --check    # name the pages that are not current

In: benchmarks/results/NAME[.PART].json, one run each, and the words in benchmarks/pages/NAME.md.
Out: docs/measurements/NAME.md, and its index.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.storage.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TEXTS = ROOT / "benchmarks" / "pages"
PAGES = ROOT / "docs" / "measurements"
FORMAT = "kohort-benchmark/1"
WRITTEN = "written by the run"
QUIET_LOAD = 0.1  # of each core, before a script starts
LOOK_S = 0.5
TRANSCRIBED = "transcribed from the run's printed table"
GENERATED = (
    "<!-- Written by `python -m benchmarks.report` from benchmarks/results/ and"
    " benchmarks/pages/{name}.md. -->"
)
MARKER = "<!-- run: {part} -->"
PROCESSORS = "<!-- runs on processors -->"  # all runs without a marker of their own


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are shown; `note` is one sentence below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(self.columns)} columns, got the row {row}")

    def markdown(self) -> str:
        """The bare table."""
        lines = [_line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Target:
    """What was asked for, what was measured, and whether that is met."""

    target: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Run:
    """One run with its provenance; `figures` are for machines, tables for readers."""

    benchmark: str
    part: str
    command: str
    date: str
    machine: str
    recorded: str
    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its file in benchmarks/results/, without the ending."""
        return f"{self.benchmark}.{self.part}" if self.part else self.benchmark

    def save(self, path: Path) -> None:
        """Write the run as JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        atomic_write(path, (text + "\n").encode())

    def markdown(self) -> str:
        """Provenance, targets and tables."""
        parts = [f"`{self.command}`", f"{self.date}, {self.machine}. Figures {self.recorded}."]
        if self.targets:
            rows = tuple((t.target, t.measured, "yes" if t.met else "**no**") for t in self.targets)
            parts.append(Table("", ("target", "measured", "met"), rows).markdown())
        for table in self.tables:
            parts += [f"**{table.title}**"] if table.title else []
            parts.append(table.markdown())
            parts += [table.note] if table.note else []
        return "\n\n".join(parts)


def load(path: Path) -> Run:
    """Return a run from its file; raises ValueError for another format."""
    given = json.loads(path.read_text(encoding="utf-8"))
    if given.pop("format", None) != FORMAT:
        raise ValueError(f"{path.name}: expected the format {FORMAT}")
    given["tables"] = tuple(_table(table) for table in given["tables"])
    given["targets"] = tuple(Target(**target) for target in given["targets"])
    run = Run(**given)
    if run.name != path.stem:
        raise ValueError(f"{path.name}: holds the run {run.name}")
    return run


def _table(given: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in given["rows"])
    return Table(given["title"], tuple(given["columns"]), rows, given["note"])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- for the scripts ------------------------------------------------------------------------------


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a script's parser the option `--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print the figures as one JSON object; with FILE write the run there instead",
    )


def record(
    name: str, tables: Sequence[Table], targets: Sequence[Target], figures: dict[str, Any]
) -> Run:
    """Return the run that this process made; `name` is NAME or NAME.PART."""
    benchmark, _, part = name.partition(".")
    today = datetime.date.today().isoformat()
    made = (command(benchmark), today, machine(), WRITTEN)
    return Run(benchmark, part, *made, tuple(tables), tuple(targets), figures)


def give(
    wanted: str | None,
    name: str,
    tables: Sequence[Table],
    figures: dict[str, Any],
    targets: Sequence[Target] = (),
) -> None:
    """Print the tables, or print the figures (`--json`), or write the run (`--json FILE`)."""
    if wanted is None:
        print("\n\n".join(_titled(table) for table in tables))
    elif wanted == "-":
        print(json.dumps(figures))
    else:
        record(name, tables, targets, figures).save(Path(wanted))


def _titled(table: Table) -> str:
    title = f"### {table.title}\n\n" if table.title else ""
    note = f"\n\n{table.note}" if table.note else ""
    return title + table.markdown() + note


def command(benchmark: str) -> str:
    """The command of this process, without `--json`; folders outside by their last part alone."""
    shown = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument == "--json":
            next(arguments, None)
        elif os.path.isabs(argument) or argument.startswith(".."):
            shown.append(Path(argument).name)
        else:
            shown.append(argument)
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *shown])


def machine() -> str:
    """Processor, cores and torch's version; no name of the machine."""
    import torch

    model = platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = models[0] if models else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    instructions = torch.backends.cpu.get_cpu_capability()
    cores = f"{model} ({instructions}), {os.cpu_count()} cores{gpu}"
    return f"{cores}, torch {torch.__version__}, {load_words()}"


def load_words() -> str:
    """The other work on this machine when it was first asked for, in words."""
    waiting = _load_at_start()
    cores = os.cpu_count() or 1
    words = f"{waiting:.1f} cores busy at the start"
    if waiting > QUIET_LOAD * cores:
        return f"{words}: under load, so times are too long"
    return words


@functools.cache
def _load_at_start() -> float:
    """Cores that were busy while this process slept. Not on Linux: the last minute's load.

    The load average would count what ended before.
    """
    busy = _busy_ticks()
    if busy is None:
        return os.getloadavg()[0]
    start = time.monotonic()
    time.sleep(LOOK_S)
    ticks_a_second = os.sysconf("SC_CLK_TCK")
    return ((_busy_ticks() or 0) - busy) / (ticks_a_second * (time.monotonic() - start))


def _busy_ticks() -> int | None:
    """Clock ticks in which a core worked, since the machine began; None where no kernel says so."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    user, nice, system, _, _, *rest = map(int, path.read_text().split("\n")[0].split()[1:])
    return user + nice + system + sum(rest[:3])  # interrupts, and what other machines took


def say_conditions() -> None:
    """Note the load before a script adds its own, and print it with the processor."""
    print(machine(), file=sys.stderr)


# --- the pages ------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Return every page that should be, by its path."""
    runs: dict[str, dict[str, Run]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        run = load(path)
        runs.setdefault(run.benchmark, {})[run.part] = run
    found = {PAGES / f"{name}.md": page(name, parts) for name, parts in runs.items()}
    return found | {PAGES / "index.md": index(runs)}


def page(name: str, runs: dict[str, Run]) -> str:
    """Return a benchmark's page: its words with every run at its marker."""
    text = (TEXTS / f"{name}.md").read_text(encoding="utf-8").rstrip()
    placed = set()
    for part, run in runs.items():
        if MARKER.format(part=part or "all") not in text and PROCESSORS in text:
            shown = f"### {part}\n\n{run.markdown()}\n\n{PROCESSORS}"
            text = text.replace(PROCESSORS, shown)
            placed.add(part)
    text = text.replace(PROCESSORS, "")
    for part, run in runs.items():
        if part in placed:
            continue
        marker = MARKER.format(part=part or "all")
        if text.count(marker) != 1:
            raise ValueError(f"benchmarks/pages/{name}.md: expected once {marker}")
        text = text.replace(marker, run.markdown())
    if MARKER.split("{", maxsplit=1)[0] in text:
        raise ValueError(f"benchmarks/pages/{name}.md: a marker without a run")
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{GENERATED.format(name=name)}\n{rest}\n"


def index(runs: dict[str, dict[str, Run]]) -> str:
    """Return the page that lists the benchmarks, with its own words first."""
    rows = []
    for name, parts in runs.items():
        title = (TEXTS / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
        dates = ", ".join(sorted({run.date for run in parts.values()}))
        rows.append((f"[{title.removeprefix('# ')}]({name}.md)", f"benchmarks/{name}.py", dates))
    table = Table("", ("measurement", "script", "run"), tuple(rows)).markdown()
    head = (TEXTS / "index.md").read_text(encoding="utf-8").rstrip()
    title, _, rest = head.partition("\n")
    return f"{title}\n\n{GENERATED.format(name='index')}\n{rest}\n\n{table}\n"


def outdated() -> list[Path]:
    """Return the pages that are missing, stale, or of no benchmark."""
    expected = pages()
    stale = [
        path
        for path, text in expected.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    return stale + [path for path in PAGES.glob("*.md") if path not in expected]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description="The pages of docs/measurements.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is stale")
    options = parser.parse_args(arguments)
    stale = outdated()
    for path in stale:
        print(f"{path.relative_to(ROOT)}: not current", file=sys.stderr)
    if options.check:
        return int(bool(stale))
    for path, text in pages().items():
        atomic_write(path, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
