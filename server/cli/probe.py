"""`probe`: whether the server is well, for the probes of containers and services."""

from __future__ import annotations

import typer

from common.errors import ConfigurationError
from server.cli.options import StateFolder
from server.cli.terminal import write
from server.operator.config import load_config
from server.operator.state import ServerState
from server.rounds.metrics import SERVICE


def probe(state: StateFolder) -> None:
    """Ask the running server whether it is well: exit code 0 for yes, 1 for no.

    It answers where `health.listen` of server.yaml says.
    """
    listen = load_config(ServerState(state).config).health.listen
    if listen is None:
        raise ConfigurationError(
            "server.yaml: health.listen: not set, so nobody answers",
            hint="name a socket there, such as unix:/run/kohort-server/health.sock, then restart",
        )
    from common.monitoring.health import probe as ask

    if ask(listen, SERVICE):
        write("serving\n")
        return
    write("not serving; kohort-server status says why\n")
    raise typer.Exit(1)
