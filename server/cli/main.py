"""`kohort-server`: the operator's commands, one file a group of them."""

from __future__ import annotations

import sys

import typer

from common.process import keep_private
from kohort.console import run_typer
from server.cli import plans, pretrain, publish, serve, setup, sites

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.command()(setup.init)
app.command()(setup.front)
app.command()(plans.plan)
app.command()(plans.pin)
app.command()(plans.sign)
app.command()(sites.enrol)
app.command()(sites.sites)
app.command()(serve.run)
app.command()(serve.status)
app.command()(publish.release)
app.command()(pretrain.pretrain)


def main() -> None:
    """Entry point of the console script."""
    keep_private()
    sys.exit(run_typer("kohort-server", lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
