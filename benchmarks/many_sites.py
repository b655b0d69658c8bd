"""Many sites on one server: rounds, memory and disk of the real server, and its loop alone.

    python -m benchmarks.many_sites --real 50x20 --json benchmarks/results/many_sites.50x20.json
    python -m benchmarks.many_sites --real 4x100 | --hostile 50x20 | --empty | --late | --loop

--real SITESxMIB: `kohort-server run` with its front, SuperLink, executor and ServerApp, and so many
simulated sites on the site's own Fleet client (simulated_sites.py), with updates of so many MiB.
--hostile: the same, where five of the sites are slow, silent, doubled, restarted.
--empty: four sites with the smallest update. --late: the last rounds of a study of 400 rounds.
--loop: the round loop, intake and record alone, in this process. 3 sites that answer at once.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import real_server, report
from benchmarks.real_server import Case, Found
from common.storage.files import file_digest
from common.wire import signing
from server.operator.sites import Registry
from server.rounds.loop import train_round
from server.rounds.record import StudyRecord
from tests.federation import Federation

ROUNDS = 400
JOURNAL_SITES = 50
KEY_OF_EARLIER = f"ssh-ed25519 {'A' * 68}"
LATE_SITES = 20
LATE_ROUNDS = 16  # measured at each end of a study
MOST_RATIO = 1.2
MOST_EMPTY_S = 1.5
MOST_GROWTH = 1.1  # of memory, from replies 11 to 20 to the last ten
MOST_S = 330.0  # a run of the real server
BUCKET = 10  # replies
ROLES = ("SuperLink", "ServerApp", "front", "executor", "coordinator", "all")
TINY_MIB = 0.1
HOSTILE_ROUNDS = 3
HOSTILE_DEADLINE_S = 120.0
FATES = {1: "drips", 2: "silent", 3: "twice", 4: "restarts", 5: "drips"}


# --- the loop alone -------------------------------------------------------------------------------


def fill_journal(record: StudyRecord, model: str, keys: Mapping[str, str], rounds: int) -> None:
    """Journal so many closed rounds of these sites and earlier ones, and the weights then."""
    earlier = range(JOURNAL_SITES - len(keys))
    keys = {f"earlier-{number}": KEY_OF_EARLIER for number in earlier} | dict(keys)
    path = record.write_weights(model, rounds, record.weights(model, 0))
    digest = file_digest(path)
    record.journal._db.execute("BEGIN")  # one commit for all
    for number in range(rounds):
        key = record.place("train", model, number)
        for name, sign_key in keys.items():
            sent = hashlib.sha256(f"{number} {name}".encode()).hexdigest()
            record.note_accepted(f"{key}/0", name, sent, sign_key)
        closed = {"accepted": sorted(keys), "refused": {}, "missing": [], "weights": digest}
        record.journal.append(key, "closed", closed)
    record.journal._db.execute("COMMIT")


def loop_case(before: int, rounds: int) -> dict[str, float]:
    """The round loop alone: process time of its first round after an opening, and of later ones."""
    with tempfile.TemporaryDirectory(prefix="k-") as name:
        federation = Federation.create(Path(name), models__gan__rounds=ROUNDS)
        run = federation.open()
        if before:
            keys = dict.fromkeys(federation.sites, KEY_OF_EARLIER)
            fill_journal(run.record, "gan", keys, before)
        grid = federation.grid()
        took = []
        for number in range(before, before + rounds + 1):
            start = time.process_time()
            train_round(run, grid, "gan", number)
            run.record.progress()
            took.append(time.process_time() - start)
        run.record.close()
        run.registry.close()
    return {
        "rounds_before": before,
        "first_s": round(took[0], 4),
        "round_s": round(statistics.median(took[1:]), 4),
    }


def give_loop(wanted: str | None, rounds: int) -> None:
    """Measure the loop alone and print or write it."""
    cases = [loop_case(before, rounds) for before in (0, ROUNDS - rounds - 2)]
    rows = []
    for case in cases:
        first, later = case["first_s"], case["round_s"]
        rows.append((f"{case['rounds_before']:.0f}", f"{1e3 * first:.0f}", f"{1e3 * later:.1f}"))
    columns = ("rounds of 50 sites before", "first round after a start, ms", "a later round, ms")
    table = report.Table("Process time of a round", columns, tuple(rows))
    ratio = cases[1]["round_s"] / cases[0]["round_s"]
    asked = f"last rounds of {ROUNDS} against the first ones, process time, at most {MOST_RATIO}"
    target = report.Target(asked, f"{ratio:.2f}", ratio <= MOST_RATIO)
    report.give(wanted, "many_sites.loop", [table], {"cases": cases}, [target])


# --- the real server ------------------------------------------------------------------------------


def run_case(case: Case, closed: int, most_s: float = MOST_S) -> Found:
    """Run a case until so many rounds are closed."""
    with real_server.consortium(case) as found:
        if case.before:
            fill_before(found)
        return real_server.run(found, lambda seen: len(seen.rounds) >= closed, most_s)


def fill_before(found: real_server.Consortium) -> None:
    """Journal the rounds that the case has behind it, under the sites' own keys."""
    registry = Registry(found.state.sites)
    keys = {name: site.sign_key for name, site in registry.sites().items()}
    registry.close()
    for line in keys.values():
        signing.parse_public(line)
    record = real_server.open_record(found)
    fill_journal(record, "wgan", keys, found.case.before)
    record.close()


def round_rows(found: Found) -> tuple[tuple[str, ...], ...]:
    """A row for every round: seconds, replies, peaks."""
    rows = []
    start = 0.0
    for one in found.rounds:
        peaks = [f"{found.peak(role, start, one.closed_s):.0f}" for role in (*ROLES, "database")]
        seconds = f"{one.closed_s - start:.1f}"
        rows.append((str(one.number + 1), seconds, str(len(one.accepted)), *peaks))
        start = one.closed_s
    return tuple(rows)


def round_table(title: str, found: Found, note: str = "") -> report.Table:
    """The rounds of a run."""
    peaks = [f"{role}, MiB" for role in (*ROLES, "database")]
    columns = ("round", "s", "replies", *peaks)
    return report.Table(title, columns, round_rows(found), note)


def peaks_by_replies(found: Found, role: str = "all") -> list[float]:
    """Return the largest memory while each ten replies were accepted, in MiB."""
    buckets: dict[int, float] = {}
    for sample in found.samples:
        bucket = int(sample["accepted"]) // BUCKET
        buckets[bucket] = max(buckets.get(bucket, 0.0), sample.get(role, 0.0))
    return [buckets[bucket] for bucket in sorted(buckets)]


def growth(found: Found) -> dict[str, float]:
    """Return how memory went on after the first ten replies: slope and ratio."""
    peaks = peaks_by_replies(found)[1:]
    if len(peaks) < 3:
        return {}
    slope = float(np.polyfit(np.arange(len(peaks)), peaks, 1)[0])
    return {
        "mib_after_ten": round(peaks[0], 1),
        "mib_last": round(peaks[-1], 1),
        "mib_each_hundred_replies": round(slope * 100 / BUCKET, 2),
        "ratio": round(max(peaks[-3:]) / max(peaks[:3]), 3),
    }


def figures(found: Found) -> dict[str, Any]:
    """Return what machines read of a run; samples thinned out."""
    kept = asdict(found)
    step = max(1, len(found.samples) // 200)
    kept["samples"] = [
        {name: round(value, 1) for name, value in sample.items()}
        for sample in found.samples[::step]
    ]
    kept.pop("accepted_s")
    return kept | {"growth": growth(found), "seconds": found.seconds()}


def described(found: Found) -> str:
    """What else a run showed, in a sentence."""
    calls = sum(found.calls.values())
    seconds = found.samples[-1]["s"]
    left = ", ".join(f"{name} {value:g}" for name, value in found.left.items())
    return (
        f"An update has {found.update_mib:g} MiB; the sites pushed {found.pushed_mib:,.0f} MiB in "
        f"{calls:,} calls ({calls / seconds:.0f} a second). Processor time of the SuperLink: "
        f"{_cpu(found, 'SuperLink'):.0f} s of {seconds:.0f}. On disk afterwards, MiB: {left}."
    )


def _cpu(found: Found, role: str) -> float:
    return sum(value for name, value in found.cpu_s.items() if name.startswith(role))


def parse_size(text: str) -> tuple[int, float]:
    """Return sites and MiB of `50x20`."""
    sites, _, mib = text.partition("x")
    return int(sites), float(mib)


def give_real(wanted: str | None, size: str, rounds: int, most_s: float) -> None:
    """Rounds of honest sites."""
    sites, mib = parse_size(size)
    case = Case(sites, mib, rounds, spread_s=5.0 if sites > 10 else 0.0)
    found = run_case(case, rounds, most_s)
    table = round_table(f"{sites} sites, {found.update_mib:g} MiB each", found, described(found))
    grown = growth(found)
    targets = [
        report.Target(
            "every site's every update is averaged",
            f"{sum(len(one.accepted) for one in found.rounds)} of {sites * len(found.rounds)}",
            all(len(one.accepted) == sites for one in found.rounds) and not found.states,
        )
    ]
    if grown:
        targets.append(
            report.Target(
                "memory of all server processes after the first ten replies: last against first, "
                f"at most {MOST_GROWTH}",
                f"{grown['ratio']:.2f} ({grown['mib_each_hundred_replies']:+g} MiB each hundred "
                "replies)",
                grown["ratio"] <= MOST_GROWTH,
            )
        )
    report.give(wanted, f"many_sites.{size}", [table], figures(found), targets)


def give_empty(wanted: str | None, rounds: int) -> None:
    """Rounds that carry almost nothing."""
    found = run_case(Case(4, TINY_MIB, rounds + 1), rounds + 1)
    seconds = sorted(found.seconds())
    nine_tenths = seconds[int(0.9 * len(seconds)) - 1]
    rows = ((str(len(seconds)), *(f"{value:.2f}" for value in (
        seconds[0], statistics.median(seconds), nine_tenths, seconds[-1]))),)  # fmt: skip
    columns = ("rounds", "shortest, s", "median, s", "nine in ten, s", "longest, s")
    table = report.Table("An empty round, 4 sites", columns, rows, described(found))
    asked = f"an empty round with 4 sites, nine in ten, at most {MOST_EMPTY_S} s"
    target = report.Target(asked, f"{nine_tenths:.2f} s", nine_tenths <= MOST_EMPTY_S)
    report.give(wanted, "many_sites.empty", [table], figures(found), [target])


def give_late(wanted: str | None, sites: int) -> None:
    """The first and the last rounds of a long study."""
    fresh = Case(sites, TINY_MIB, ROUNDS)
    cases = (fresh, replace(fresh, before=ROUNDS - LATE_ROUNDS - 2))
    runs = [run_case(case, LATE_ROUNDS + 1, MOST_S / 2) for case in cases]
    medians = [statistics.median(found.seconds()) for found in runs]
    rows = []
    for case, found, median in zip(cases, runs, medians, strict=True):
        cpu = _cpu(found, "ServerApp") / len(found.rounds)
        first = f"{found.rounds[0].closed_s:.1f}"
        rows.append((str(case.before), first, f"{median:.2f}", f"{cpu:.2f}"))
    columns = ("rounds before", "first round after a start, s", "a later round, median, s",
               "processor time of the ServerApp a round, s")  # fmt: skip
    table = report.Table(f"{sites} sites, small updates, over the wire", columns, tuple(rows))
    ratio = medians[1] / medians[0]
    asked = f"last rounds of {ROUNDS} against the first ones, at most {MOST_RATIO}"
    target = report.Target(asked, f"{ratio:.2f}", ratio <= MOST_RATIO)
    both = {"fresh": figures(runs[0]), "late": figures(runs[1])}
    report.give(wanted, "many_sites.late", [table], both, [target])


def give_hostile(wanted: str | None, size: str, rounds: int, deadline_s: float) -> None:
    """Rounds in which a few sites are slow, silent, doubled, restarted."""
    sites, mib = parse_size(size)
    fates = {number: fate for number, fate in FATES.items() if number < sites}
    case = Case(sites, mib, rounds + 1, deadline_s=deadline_s, spread_s=5.0, fates=fates)
    found = run_case(case, rounds)
    names = case.names
    rows = []
    for fate in dict.fromkeys(fates.values()):
        ours = [names[number] for number, one in fates.items() if one == fate]
        counted = [str(sum(n in one.accepted for n in ours)) for one in found.rounds]
        rows.append((fate, str(len(ours)), ", ".join(counted)))
    honest = [name for number, name in enumerate(names) if number not in fates]
    counted = [str(sum(name in one.accepted for name in honest)) for one in found.rounds]
    rows.append(("honest", str(len(honest)), ", ".join(counted)))
    columns = ("site", "how many", "averaged in rounds 1, 2, …")
    tables = [
        report.Table("Who was averaged", columns, tuple(rows)),
        round_table(f"{sites} sites, {found.update_mib:g} MiB each", found, described(found)),
    ]
    everyone = all(set(honest) <= set(one.accepted) for one in found.rounds)
    longest = max([found.rounds[0].closed_s, *found.seconds()])
    most_s = deadline_s + 30
    targets = [
        report.Target("every honest site is averaged in every round", counted[-1], everyone),
        report.Target(
            f"a round ends at its deadline of {deadline_s:g} s, within half a minute",
            f"{longest:.0f} s",
            longest <= most_s,
        ),
        report.Target(
            "nobody is in quarantine for being slow, doubled or restarted",
            ", ".join(found.states) or "nobody",
            not found.states,
        ),
    ]
    report.give(wanted, "many_sites.hostile", tables, figures(found), targets)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write the run."""
    parser = argparse.ArgumentParser(description="Many sites on one server.")
    report.add_json(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--real", metavar="SITESxMIB", help="rounds of honest sites")
    what.add_argument("--hostile", metavar="SITESxMIB", help="the same with five that are not")
    what.add_argument("--empty", action="store_true", help="four sites, the smallest update")
    what.add_argument("--late", action="store_true", help="the last rounds of a long study")
    what.add_argument("--loop", action="store_true", help="the round loop alone")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=MOST_S, help="the longest run of --real")
    parser.add_argument("--sites", type=int, default=LATE_SITES, help="of --late")
    parser.add_argument(
        "--deadline", type=float, default=HOSTILE_DEADLINE_S, help="of --hostile, s"
    )
    options = parser.parse_args(arguments)
    # `timeout` ends the server with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report.say_conditions()
    if options.real:
        give_real(options.json, options.real, options.rounds or 6, options.seconds)
    elif options.hostile:
        give_hostile(
            options.json, options.hostile, options.rounds or HOSTILE_ROUNDS, options.deadline
        )
    elif options.empty:
        give_empty(options.json, options.rounds or 20)
    elif options.late:
        give_late(options.json, options.sites)
    else:
        give_loop(options.json, options.rounds or 8)


if __name__ == "__main__":
    main()
