"""`log`: what the consortium did, and whether the log is as it was written."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from common.errors import ConfigurationError, PolicyError
from server.cli.options import AsJson, StateFolder
from server.cli.terminal import write
from server.operator.hand_over import operator_keys
from server.operator.log import OperatorLog
from server.operator.opening import check_set_up
from server.operator.state import ServerState

Action = Annotated[str, typer.Argument(metavar="[verify]", help="`verify`, or nothing")]

Head = Annotated[
    str,
    typer.Option(metavar="SHA256", help="with `verify`: a head that a release or a site names"),
]


def log(state: StateFolder, what: Action = "", head: Head = "", as_json: AsJson = False) -> None:
    """Show what was done: plans, sites, rounds, releases. Works while the server runs.

    `verify` names the first entry that is not as it was written, and checks what the sites have
    countersigned.
    """
    place = ServerState(state)
    check_set_up(place)
    if what not in ("", "verify"):
        raise ConfigurationError(
            f"log {what}: unknown; expected `verify` or nothing", hint="kohort-server log --help"
        )
    if head and what != "verify":
        raise ConfigurationError("--head: for `log verify` alone", hint="kohort-server log --help")
    with place.open_log() as book:
        if what == "verify":
            verify(place, book, head, as_json)
            return
        entries = book.entries()
    for entry in entries:
        write((json.dumps(asdict(entry)) if as_json else entry.line()) + "\n")
    if not entries and not as_json:
        write("nothing was done here yet\n")


def verify(place: ServerState, book: OperatorLog, head: str, as_json: bool) -> None:
    """Check chain, signed heads and countersignatures, and say what holds; then look for a head."""
    count = book.verify(operator_keys(place))
    numbers = {entry.digest: entry.seq for entry in book.entries()}
    if head and head not in numbers:
        raise PolicyError(
            f"log: the head {head[:16]} was never of this log: it is older than that, or another "
            "one",
            hint="copy the head as it stands, 64 digits; if it is right, put the newest copy of "
            "the whole state folder back",
            code="E-ROLLBACK",
        )
    signed = max((head.seq for head in book.heads()), default=0)
    sites = book.countersigned()
    if as_json:
        facts = {"entries": count, "head": book.head, "signed": signed, "countersigned": sites}
        if head:
            facts["found"] = numbers[head]
        write(json.dumps(facts) + "\n")
        return
    write(f"{count} entries, each as it was written; head {book.head or 'none'}\n")
    write(f"the operator's key has signed the first {signed} of them\n")
    for site, signed_head in sorted(sites.items()):
        write(f"{site} has countersigned the first {numbers[signed_head]} of them\n")
    if head:
        write(f"the head {head[:16]} covers the first {numbers[head]} of them\n")
