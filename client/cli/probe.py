"""`probe`: whether the daemon is well, for the probes of containers and services."""

from __future__ import annotations

import typer

from client.cli.options import StateFolder
from client.cli.terminal import write_line
from client.daemon.metrics import SERVICE
from client.state.config import load_site
from common.errors import ConfigurationError


def probe(state: StateFolder) -> None:
    """Ask the running daemon whether it is well: exit code 0 for yes, 1 for no.

    It answers where `health.listen` of site.yaml says.
    """
    listen = load_site(state).health.listen
    if listen is None:
        raise ConfigurationError(
            "site.yaml: health.listen: not set, so nobody answers",
            hint="name a socket there, such as unix:/run/kohort-site/health.sock, then restart",
        )
    from common.monitoring.health import probe as ask

    if ask(listen, SERVICE):
        write_line("serving")
        return
    write_line("not serving; kohort-site status says why")
    raise typer.Exit(1)
