"""The shape of `status --json` and `check --json`: every key and what it says.

A key that goes, or changes its meaning, breaks monitoring systems: then the format's number rises.
New keys may come. Tests hold this list against what the commands print.
"""

from __future__ import annotations

from docs.generator.markdown import page, table

SITE = {
    "": {
        "format": "`kohort-site-status/1`",
        "time": "when this was read, ISO 8601 in UTC, as every time here",
        "site": "this hospital's name",
        "daemon": "whether `kohort-site run` works here",
        "contact": "when the server answered last; null: never",
        "connection": "the health states that hold now; empty where no daemon ever ran",
        "devices": "where children compute, in words",
        "plans": "the approved plans",
        "state": "faults of the state folder, as alerts",
        "last_error": "what could not be done last; null: nothing",
        "expiry": "certificates, the first to end first: `of`, `ends`, `fix`",
        "alerts": "what a person should mend",
        "epsilon": "planned, spent and left, as `kohort-site ledger` says it",
    },
    "daemon": {
        "state": "`never`, `starting`, `running`, `hung`, `stopped` or `died`",
        "pid": "its process; null: never",
        "since": "when it started",
        "last_beat": "its last sign of life",
    },
    "connection": {
        "code": "a [health state](health.md)",
        "subject": "what it is about",
        "severity": "`info`, `warning` or `error`",
        "text": "what it means",
        "fix": "what to do",
        "facts": "what is special here",
        "since": "since when it holds",
    },
    "plans": {
        "name": "the study's name",
        "hash": "the plan's hash",
        "approved": "who approved it and when; null: in an earlier version",
        "rounds": "by model: rounds answered, rounds planned",
        "images": "`none planned`, `not made yet`, `waiting`, `approved`, `rejected` or `sent`",
        "at_work": "what a child is at: `round`, `phase`, `done`, `total`, `seconds_left`",
        "cohort": "for this hospital alone; null: not taken in",
    },
    "plans.cohort": {
        "people": "distinct people, without who withdrew",
        "images": "their images",
        "by_label": "images by label",
    },
    "last_error": {
        "code": "an [error code](errors.md)",
        "who": "who mends it",
        "means": "what it means",
        "fix": "what to do",
        "time": "when",
    },
}
SERVER = {
    "": {
        "format": "`kohort-server-status/1`",
        "time": "when this was read",
        "server": "whether `kohort-server run` works here; keys as `daemon` of a site",
        "studies": "how far each study is",
        "unreadable": "studies that cannot be read: `hash`, `code`",
        "sites": "how each site stands",
        "foreign_runs": "runs that were refused: `time`, `run`, `bundle`",
        "ending": "certificates that end soon: `of`, `ends`, `severity`, `fix`",
        "renewals": "sites whose next certificate a person has to sign",
        "alerts": "what a person should mend",
    },
    "server": SITE["daemon"],
    "studies": {
        "study": "its name",
        "hash": "the plan's hash",
        "quorum": "how many sites each round needs",
        "done": "rounds closed",
        "total": "rounds planned, that of the images included",
        "phase": "the open round",
        "waiting": "what it waits for",
        "complete": "whether everything is done",
        "code": "why it is paused; empty: it is not",
        "since": "since when it is paused",
        "abandoned": "whether the operator ended it",
        "missing": "sites of which the round that was closed last has nothing",
        "absent": "the same with `rounds` in a row and `since`",
    },
    "sites": {
        "site": "its name",
        "state": "`enrolled`, `registered`, `quarantined` or `revoked`",
        "code": "the code of `declared`; empty: none",
        "connected": "whether it was heard within a minute, by a server that runs",
        "seen": "when it was heard last; null: never",
        "declared": "the code in place of an answer, in words, `where` and `since`; null: none",
        "awaited": "open studies that need it",
        "fingerprint": "its signing key",
    },
    "alerts": {
        "severity": "`warning` or `error`",
        "code": "what it is",
        "text": "what is the matter",
        "fix": "the command or the deed that mends it",
    },
}

# codes of alerts that are neither error codes nor health states
ALERTS = {
    "SERVER-NOT-RUNNING": ("operator", "a study waits, and no server runs"),
    "SERVER-HUNG": ("operator", "the server is there, and has given no sign of life for a minute"),
    "SITE-SILENT": ("operator", "a site that an open study needs was not heard for ten minutes"),
    "CERTIFICATE-WAITS": ("operator", "a person has to sign a site's next certificate"),
    "CERTIFICATE-ENDS": ("both", "a certificate ends in days or weeks, or has ended"),
    "REVIEW-WAITING": ("hospital", "images wait for a person"),
}


def status_page() -> str:
    """Return the page of the JSON shapes."""
    lines = [
        "`--json` prints one object on one line. Its shape stays while its `format` does: no key",
        "goes, and none changes its meaning; new ones may come.",
    ]
    for command, shape in (("kohort-site status", SITE), ("kohort-server status", SERVER)):
        lines += ["", f"## {command} --json"]
        for place, keys in shape.items():
            rows = [(f"`{key}`", meaning) for key, meaning in keys.items()]
            what = "At the top:"
            if place:
                what = f"In {' of '.join(reversed([f'`{part}`' for part in place.split('.')]))}:"
            lines += ["", what, "", *table(("Key", "What it says"), rows)]
    lines += [
        "",
        "## kohort-site check --json",
        "",
        "`format` is `kohort-site-check/1`; `looks` has one object a look: its name in `look`, and",
        "`faults` with the keys of an alert.",
        "",
        "## Codes of alerts",
        "",
        "Beside [error codes](errors.md) and [health states](health.md) alerts have these:",
        "",
        *table(("Code", "Whom it is for", "What it says"), alert_rows()),
    ]
    return page("Status as JSON", *lines)


def alert_rows() -> list[tuple[str, str, str]]:
    """Return the codes of alerts that stand on no other page."""
    return [(f"`{code}`", whom, meaning) for code, (whom, meaning) in ALERTS.items()]
