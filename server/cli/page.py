"""`page`: what is true now, as a page that is read and never written."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigurationError
from common.storage.files import atomic_write
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.terminal import write
from server.operator.state import ServerState

PORT = 9480
Releases = Annotated[
    Path | None,
    typer.Option(help="the folder in which `release --out` puts releases, to show them"),
]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help=f"port of this machine to listen on; default: {PORT}"),
]
Socket = Annotated[
    Path | None, typer.Option("--socket", help="unix socket to listen on, for a proxy of your own")
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="host name under which your proxy shows it; may be given again"),
]
Once = Annotated[
    Path | None, typer.Option(help="write the page to this file once, and listen nowhere")
]


def page(
    state: StateFolder,
    releases: Releases = None,
    port: Port = None,
    socket: Socket = None,
    name: Names = None,
    once: Once = None,
) -> None:
    """Show studies, sites, certificates, disk and releases, with what to mend. Read-only.

    It listens on this machine alone. For others, put it behind a proxy of yours that asks who
    they are.
    """
    # the web framework takes half a second of CPU to import, which no other command should spend
    from server.page.overview import read_overview
    from server.page.render import render_page

    given = [one for one in (port, socket, once) if one is not None]
    if len(given) > 1:
        raise ConfigurationError(
            "--port, --socket, --once: expected one of them", hint="leave the others out"
        )
    place = ServerState(state)
    # what is wrong with the folder is said now, not in a browser
    found = read_overview(place, releases)
    if once is not None:
        check_folder("--once", once.parent)
        atomic_write(once, render_page(found).encode())
        write(f"written {once}; {len(found.alerts())} alerts\n")
        return
    _serve(place, releases, port or PORT, socket, name or [])


def _serve(
    place: ServerState, releases: Path | None, port: int, path: Path | None, names: list[str]
) -> None:
    """Listen until ctrl-C."""
    from server.page.app import build_app
    from server.page.listening import open_port, open_socket, serve
    from server.page.overview import read_overview

    # a service is ended as ctrl-C ends it, so that its socket goes with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app = build_app(lambda: read_overview(place, releases), names)
    if path is not None:
        listening = open_socket(path)
        write(f"the page is at unix:{path}; ctrl-C ends it\n")
    else:
        listening = open_port(port)
        write(f"the page is at http://127.0.0.1:{port}/; ctrl-C ends it\n")
    try:
        serve(app, listening)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
