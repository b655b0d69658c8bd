"""`kohort-server`: the operator's commands, one file a group of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from common import passphrase
from common.process import keep_private
from kohort.console import run_typer
from server.cli import (
    authority,
    catalogue,
    log,
    page,
    plans,
    pretrain,
    probe,
    publish,
    renewals,
    rotate,
    serve,
    setup,
    sign_off,
    sites,
    status,
    study,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def main_options(
    passphrase_fd: Annotated[
        int | None,
        typer.Option(min=0, help="descriptor of the passphrase that opens protected keys"),
    ] = None,
) -> None:
    """The operator's program: plans, sites, rounds, releases."""
    if passphrase_fd is not None:
        passphrase.offer(passphrase.read_descriptor(passphrase_fd))


app.command()(setup.init)
app.command()(setup.front)
app.command()(plans.plan)
app.command()(plans.pin)
app.command()(plans.sign)
app.command()(sites.enrol)
app.command()(sites.sites)
app.command()(authority.certify)
app.command()(authority.authority)
app.command()(authority.renew)
app.command()(renewals.renewals)
app.command()(renewals.rollover)
app.command()(rotate.rotate)
app.command()(authority.protect)
app.command()(serve.run)
app.command()(status.status)
app.command()(page.page)
app.command()(probe.probe)
app.command()(study.study)
app.command()(log.log)
app.command()(publish.release)
app.command("sign-off")(sign_off.sign_off)
app.command()(catalogue.publish)
app.command()(catalogue.withdraw)
app.command()(pretrain.pretrain)


def main() -> None:
    """Entry point of the console script."""
    keep_private()
    sys.exit(run_typer("kohort-server", lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
