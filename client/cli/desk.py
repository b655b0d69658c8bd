"""`desk`: the review desk, a local page on which people decide on images."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.prices import open_records, price_lines
from client.cli.terminal import write_line
from client.desk.door import Address
from client.desk.sessions import Sessions
from client.egress.review import open_reviews
from client.state.config import load_site
from client.state.folder import State
from common.errors import ConfigurationError

Host = Annotated[str, typer.Option("--host", help="loopback address to listen on")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="port; without one a free one")
]
SocketFile = Annotated[
    Path | None, typer.Option("--socket", help="listen on this socket file instead")
]


def desk(
    state: StateFolder,
    host: Host = "127.0.0.1",
    port: Port = None,
    socket_file: SocketFile = None,
) -> None:
    """Open the review desk: a page of this machine on which people decide on images.

    The link that it shows works once. It calls nobody; Ctrl-C ends it.
    """
    # the web framework takes half a second that no other command needs
    from client.desk.pages import Desk, make_app
    from client.desk.serving import bind_file, bind_loopback, serve

    config = load_site(state)
    place = State(state)
    if socket_file is not None and port is not None:
        raise ConfigurationError("--port or --socket, not both", hint="kohort-site desk --help")
    # a key under a passphrase is opened now, not at the first decision
    place.signing_key()
    records = open_records(state)
    listener = bind_loopback(host, port or 0) if socket_file is None else bind_file(socket_file)
    address = Address(f"/{secrets.token_urlsafe(9)}", _port_of(listener))
    sessions = Sessions()
    reviews = open_reviews(place, config)

    def show_link() -> None:
        write_line(f"open {_place_of(listener, address)}/open?token={sessions.new_link()}")

    def show_next() -> None:
        write_line("opened; another person opens")
        show_link()

    found = Desk(config.site, reviews, records.plans.valid, sessions, address)
    found.opened, found.prices = show_next, lambda: list(price_lines(records))
    write_line("the review desk shows images of patients: it answers on this machine alone")
    if socket_file is not None:
        write_line(f"first, where the browser is: ssh -L 8437:{socket_file.resolve()} THIS-MACHINE")
    show_link()
    serve(make_app(found), listener)


def _port_of(listener: socket.socket) -> int | None:
    """The port of a socket; None for a file."""
    if listener.family == socket.AF_UNIX:
        return None
    return int(listener.getsockname()[1])


def _place_of(listener: socket.socket, address: Address) -> str:
    """Where a browser finds the desk."""
    if address.port is None:
        return f"http://localhost:8437{address.place}"
    name = "[::1]" if listener.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://{name}:{address.port}{address.place}"
