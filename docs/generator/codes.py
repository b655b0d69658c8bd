"""Error codes, reasons of the quarantine, health states and exit codes.

In: the sources, and the advice in common/codes.toml and client/ingest/reasons.toml.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

from docs.generator.markdown import page, table
from docs.generator.sources import ROOT, package_files

REFERENCE = ROOT / "docs" / "reference"
PACKAGES = ("client", "common", "kohort", "server")
CODE = re.compile(r"(?<![A-Z0-9-])E-[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*(?![A-Z0-9-])")


def codes_in_sources() -> set[str]:
    """Return every error code that a source names, without the gate's rules of the other table."""
    found = set()
    for package in PACKAGES:
        for path in package_files(package, "*.py"):
            found |= set(CODE.findall(path.read_text()))
    return {code for code in found if not code.startswith(("E-GATE", "E-FLOWER-"))}


def advice(name: str) -> dict[str, Any]:
    """Return one of the two files of advice: `codes.toml` or `reasons.toml`."""
    folder = "common" if name == "codes.toml" else "client/ingest"
    return tomllib.loads((ROOT / folder / name).read_text())


def errors_page() -> str:
    """Return the page of error codes."""
    from common.privacy.boundary_rules import RULES

    lines = [
        "A command that fails prints `error:` and `hint:` lines. What crosses between hospital and",
        "server is the code alone. Hospital staff find codes in the log of `kohort-site run`, the",
        "operator in the output of `kohort-server run` and, for a site in quarantine, in",
        "`kohort-server sites`. Each code ends a command with an [exit code](exit-codes.md).",
        "",
    ]
    for code, entry in sorted(advice("codes.toml").items()):
        lines += [f"## {code}", "", entry["means"], "", f"*Who mends it:* {entry['who']}", ""]
        lines += [f"*What to do:* {entry['fix']}", ""]
    lines += [
        "## E-FLOWER-n",
        "",
        "Flower itself answered for the site, with its error number n: the site was unreachable,",
        "or its reply came too late.",
        "",
        "*Who mends it:* operator",
        "",
        "*What to do:* nothing at first: the server asks again. If it stays, look at the site's",
        "connection with `kohort-site status`.",
        "",
        "## E-GATE-01 to E-GATE-27",
        "",
        "A numbered rule of the gate (at the site) or of the intake (at the server) was broken.",
        "Nothing left the site, or the server took nothing. A site stays in quarantine at the",
        "server until `kohort-server sites release NAME`.",
        "",
    ]
    rows = [(rule.code, rule.sentence, rule.side) for rule in RULES.values()]
    return page("Error codes", *lines, *table(("Code", "What must hold", "Checked by"), rows))


def reasons_page() -> str:
    """Return the page of reasons for quarantine."""
    from client.ingest.quarantine import Reason

    rows = [(f"`{reason.value}`", reason.sentence, reason.fix) for reason in Reason]
    return page(
        "Reasons of the quarantine",
        "Every file of the data folder enters the cohort or gets one of these codes.",
        "`kohort-site ingest` prints how many files have which, and `kohort-site quarantine` lists",
        "the files by their paths. The list on disk names files by opaque ids.",
        "",
        *table(("Code", "What it means", "What to do"), rows),
    )


def health_page() -> str:
    """Return the page of health states."""
    from client.fleet.health import STATES

    rows = [
        (f"`{state.code}`", state.subject, state.severity, state.text, state.fix or "nothing")
        for state in STATES.values()
    ]
    return page(
        "Health states of a site",
        "`kohort-site status` prints the states that hold now, at most one for each subject.",
        "",
        *table(("Code", "Subject", "Severity", "What it means", "What to do"), rows),
    )


def exit_codes_page() -> str:
    """Return the page of exit codes."""
    from common.errors import KohortError

    rows = [("0", "done", "")]
    for error in sorted(KohortError.__subclasses__(), key=lambda kind: kind.exit_code):
        if error.__module__.endswith("errors"):
            meaning = (error.__doc__ or "").split("\n")[0]
            rows.append((str(error.exit_code), meaning, f"`{error.default_code}`"))
    rows.append(("130", "Interrupted with ctrl-C; what was journaled is kept.", ""))
    return page(
        "Exit codes",
        "The three programs end with the same codes.",
        "",
        *table(("Code", "Meaning", "Error code, where none is more exact"), rows),
        "",
        "## For a monitoring system",
        "",
        "`kohort-site check --monitor`, `kohort-site status --monitor` and",
        "`kohort-server status --monitor` print one line, and end as plugins of Nagios do:",
        "",
        *table(("Code", "First word", "Meaning"), monitor_rows()),
    )


def monitor_rows() -> list[tuple[str, str, str]]:
    """Return the exit codes of `--monitor`."""
    from common.alerts import CRITICAL, OK, WARNING, WORDS

    meanings = {
        OK: "nothing to mend",
        WARNING: "somebody should look, work goes on",
        CRITICAL: "work stands still, or soon will; also a folder that cannot be read",
    }
    return [(str(code), WORDS[code], meaning) for code, meaning in meanings.items()]
