"""`kohort-site`: puts the hospital's commands together. Each group is a file beside this one.

Out: lines for a person, or one JSON line with `--json`; exit codes of kohort/errors.py.
Guarantees: only `run` and `check` call the study's server, and `fetch` the hospital's own DICOMweb
server; no command raises what site.yaml allows.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from client.cli import (
    approve,
    audit,
    check,
    desk,
    fetch,
    joining,
    labels,
    log,
    look,
    measure,
    persons,
    probe,
    protect,
    quarantine,
    rehearse,
    review,
    rotate,
    serve,
    status,
    withdraw,
)
from client.cli.words import name_faults
from common import passphrase
from common.process import keep_private
from kohort.console import run_typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def main_options(
    passphrase_fd: Annotated[
        int | None,
        typer.Option(min=0, help="descriptor of the passphrase that opens protected keys"),
    ] = None,
) -> None:
    """The hospital's program: intake, approval, daemon, review."""
    if passphrase_fd is not None:
        passphrase.offer(passphrase.read_descriptor(passphrase_fd))


app.command()(joining.init)
app.command()(joining.join)
app.command()(approve.approve)
app.command()(rehearse.rehearse)
app.command()(labels.labels)
app.command()(fetch.fetch)
app.command()(serve.ingest)
app.command()(quarantine.quarantine)
app.command()(serve.run)
app.command()(persons.persons)
app.command()(withdraw.withdraw)
app.command()(review.review)
app.command()(desk.desk)
app.command()(measure.utility)
app.command()(measure.privatize)
app.command()(look.ledger)
app.command()(audit.audit)
app.command()(status.status)
app.command()(log.log)
app.command()(check.check)
app.command()(probe.probe)
app.command()(protect.protect)
app.command()(rotate.rotate)


def run_command_line(arguments: list[str] | None = None) -> int:
    """Run one command, by default that of this process; return its exit code."""

    def call() -> object:
        with name_faults():
            return app(arguments, standalone_mode=False)

    return run_typer("kohort-site", call)


def main() -> None:
    """Entry point of the console script."""
    keep_private()
    sys.exit(run_command_line())


if __name__ == "__main__":
    main()
