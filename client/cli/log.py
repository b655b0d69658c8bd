"""`log`: what was done at this site, and whether the log is as it was written."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from client.cli.options import AsJson, StateFolder
from client.cli.terminal import write_line
from client.state.config import load_site
from client.state.folder import State
from client.state.head import Heads
from client.state.signers import signing_keys
from common.errors import ConfigurationError

Action = Annotated[str, typer.Argument(metavar="[verify]", help="`verify`, or nothing")]


def log(state: StateFolder, what: Action = "", as_json: AsJson = False) -> None:
    """Show what was done here: plans, reservations, what was signed, reviews, withdrawals.

    `verify` names the first entry that is not as it was written, and says how many the operator
    has countersigned. The log stays here; only a commitment to its head leaves.
    """
    load_site(state)
    place = State(state)
    if what not in ("", "verify"):
        raise ConfigurationError(
            f"log {what}: unknown; expected `verify` or nothing", hint="kohort-site log --help"
        )
    if what == "verify":
        _verify(place, as_json)
        return
    entries = place.log.entries()
    for entry in entries:
        write_line(json.dumps(asdict(entry)) if as_json else entry.line())
    if not entries and not as_json:
        write_line("nothing was done here yet")


def _verify(place: State, as_json: bool) -> None:
    """Check chain, signed heads, and that the log is as new as what left."""
    count = place.log.verify(signing_keys(place))
    heads = Heads(place)
    heads.check()
    facts = {
        "entries": count,
        "head": place.log.head,
        "countersigned": heads.countersigned("log"),
    }
    if as_json:
        write_line(json.dumps(facts))
        return
    write_line(f"{count} entries, each as it was written; head {place.log.head or 'none'}")
    write_line(f"the operator has countersigned the first {facts['countersigned']} of them")
